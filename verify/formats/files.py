"""How a file is written, so that an interruption never costs an old one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def check_writable(path: Path) -> None:
    """Find out before a run whether its file can be written after it.

    Raises
    ------
    OSError
        If not; with the reason.

    """
    with atomically(path, keep=False):
        pass


@contextlib.contextmanager
def atomically(path: Path, *, keep: bool = True) -> Iterator[Path]:
    """Give a path to write to, beside ``path`` and with its suffix, and rename it to ``path`` when all is written.

    An old file stays as it is until then, and if anything goes wrong. A device or a pipe is written directly.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file", str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "may not be written", str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()  # what a link points to is replaced, not the link
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        if keep:
            if path.exists():
                shutil.copymode(path, temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomically(path) as temporary:
        temporary.write_bytes(content)

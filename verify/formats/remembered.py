"""What the reference says, kept on disk by the content of the question: a second subject costs its own time alone.

The key is a hash of everything that is given, of the sources of the reference and of what asks it, and of the versions
that numbers may depend on. So nothing is ever found for another question, and no entry has to be thrown away by hand.
`LRP_VERIFY_CACHE` names the folder; with `off`, everything is computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import os
import pickle
import platform
import sqlite3
import types
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from platformdirs import user_cache_path
from safetensors.numpy import load, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

VARIABLE = "LRP_VERIFY_CACHE"
_OFF = "off"
_PACKAGES = ("reference", "verify/questions", "verify/checks", "verify/formats")
#: Files of other sources or versions that are kept: a branch and its base take turns.
_KEPT = 2
_CHECKSUM = 8
_SUFFIXES = {".py", ".txt", ".toml", ".xz", ".safetensors"}


def remembered(compute: Callable[[], Mapping[str, NDArray[Any]]], *given: object) -> Arrays:
    """Return what ``compute`` returns, from disk if it was computed before for the same things ``given``.

    Raises
    ------
    pickle.PicklingError, TypeError
        If something given is no plain data: its content cannot be told.

    """
    store = _store()
    if store is None:
        return dict(compute())
    key = _digest(*given)
    if (found := store.get(key)) is None:
        found = dict(compute())
        store.put(key, found)
    return found


class _Content(pickle.Pickler):
    """Writes things down by their content: a function by its code and what it holds, a tensor by its numbers."""

    def persistent_id(self, thing: Any) -> Any:
        if isinstance(thing, torch.Tensor):
            numbers = thing.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
            return str(thing.dtype), tuple(thing.shape), numbers
        if isinstance(thing, types.FunctionType):
            # what it calls is in the hash of the sources
            code, cells = thing.__code__, thing.__closure__ or ()
            where = (thing.__module__, thing.__qualname__, code.co_firstlineno, code.co_code, repr(code.co_consts))
            return where, thing.__defaults__, [cell.cell_contents for cell in cells]
        return None


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Compute everything within, and keep nothing: for questions that nobody asks again."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = _OFF
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def _digest(*things: object, size: int = 16) -> bytes:
    written = io.BytesIO()
    content = _Content(written, protocol=5)
    content.fast = True  # by content alone: whether two of the things are one object makes no difference
    content.dump(things)
    return hashlib.blake2b(written.getbuffer(), digest_size=size).digest()


class _Store:
    """One file of SQLite, which any number of processes share. Trouble with it costs time, and never a result."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._process = os.getpid()
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")  # what a power failure takes is computed again
        self._database.execute("CREATE TABLE IF NOT EXISTS known (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def get(self, key: bytes) -> Arrays | None:
        with contextlib.suppress(sqlite3.Error):
            row = self._database.execute("SELECT value FROM known WHERE key = ?", (key,)).fetchone()
            if row is not None and _checksum(row[0][_CHECKSUM:]) == row[0][:_CHECKSUM]:
                return load(row[0][_CHECKSUM:])
        return None

    def put(self, key: bytes, arrays: Arrays) -> None:
        # a strided view would be written as its memory lies
        data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("INSERT OR REPLACE INTO known VALUES (?, ?)", (key, _checksum(data) + data))


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM).digest()


def _store() -> _Store | None:
    # a process that was forked opens the file again
    return _opened(os.environ.get(VARIABLE, ""), os.getpid())


@cache
def _opened(where: str, _process: int) -> _Store | None:
    if where == _OFF:
        return None
    folder = Path(where) if where else user_cache_path("lrp-rules", appauthor=False)
    path = folder / f"reference-{_sources()}.sqlite"
    with contextlib.suppress(OSError, sqlite3.Error):
        store = _Store(path)
        _forget(folder, path)
        return store
    return None


@cache
def _sources() -> str:
    """Return a hash of the sources and versions that decide what the reference says."""
    top = Path(__file__).parents[2]
    paths = [path for package in _PACKAGES for path in sorted((top / package).rglob("*")) if path.suffix in _SUFFIXES]
    versions = [importlib.metadata.version(name) for name in ("numpy", "torch")]
    sources = [(path.relative_to(top).as_posix(), path.read_bytes()) for path in paths]
    return _digest(sources, versions, platform.python_version(), platform.machine(), size=8).hex()


def _forget(folder: Path, path: Path) -> None:
    """Remove the files of other sources, but for the latest ones."""
    others = [other for other in folder.glob("reference-*.sqlite") if other != path]
    others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    for other in others[_KEPT - 1 :]:
        for name in (other.name, f"{other.name}-wal", f"{other.name}-shm"):
            (folder / name).unlink(missing_ok=True)

"""Says what to install where a part of the project is used that `pip install lrp-rules` alone does not bring."""

from __future__ import annotations

import importlib.metadata
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_DISTRIBUTION = "lrp-rules"


class MissingExtraError(ModuleNotFoundError):
    """What a part of the project needs is not installed; the message says how to install it."""


def require(extra: str, who: str) -> None:
    """Raise MissingExtraError unless all of an extra is installed. ``who`` needs it, in the words of the message."""
    if missing := sorted(name for name in set(_required(extra)) if not _installed(name)):
        verb = "are" if len(missing) > 1 else "is"
        msg = (
            f"{who} needs {', '.join(missing)}, which {verb} not installed: run pip install '{_DISTRIBUTION}[{extra}]'"
        )
        raise MissingExtraError(msg, name=missing[0])


def _required(extra: str) -> Iterator[str]:
    """Yield the names of what an extra brings; it is written out in the metadata, also where it contains another."""
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or ()
    except importlib.metadata.PackageNotFoundError:  # a checkout that was put on the path
        return
    for text in requirements:
        name, _, marker = text.partition(";")
        if re.search(rf"""\bextra\s*==\s*["']{extra}["']""", marker):
            yield re.split(r"[^\w.-]", name)[0]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

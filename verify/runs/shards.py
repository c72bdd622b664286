"""A run in parts: which cases a shard asks, and how the files of all shards become the report of one run."""

from __future__ import annotations

import zlib
from hashlib import sha256
from typing import TYPE_CHECKING

from verify.runs.selection import UnusableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from verify.model import Case


def parse(text: str) -> tuple[int, int]:
    """Read ``K/N``."""
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    msg = f"--shard is {text!r}; expected K/N, such as 1/4 for the first of four parts"
    raise UnusableError(msg)


def deal(cases: Sequence[Case], number: int, of: int) -> list[Case]:
    """Return the cases of shard ``number``, in their order.

    Each check is dealt out by itself, since checks differ most in what they cost, and in an order that has nothing to
    do with layers, rules and dtypes.
    """
    if of > max(len(cases), 1):  # nothing selected is fine for one that only searches
        msg = f"--shard {number}/{of}: there are only {len(cases)} cases; expected at most as many parts"
        raise UnusableError(msg)
    order = sorted(range(len(cases)), key=lambda i: (cases[i].check, zlib.crc32(cases[i].id.encode()), i))
    return [cases[i] for i in sorted(order[number - 1 :: of])]


def corpus(ids: Iterable[str]) -> str:
    """Return what tells one list of cases from another."""
    return sha256("\n".join(ids).encode()).hexdigest()

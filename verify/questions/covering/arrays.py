"""The covering arrays as files: a row of levels a line, by rule and space."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING

from verify.questions.covering.factors import spaces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: How many factors can be asked for together; the first is what every run asks.
DEPTHS = (2, 3)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def path(depth: int) -> Path:
    """Return the file of a depth; it is packed, as that of triples is large."""
    return Path(__file__).parent / f"depth-{depth}.txt.xz"


def write(depth: int, found: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Write the rows of all spaces: a digit for each factor, which is the place of its level in the line above them."""
    lines = []
    for name, rows in found.items():
        rule, _, space = name.partition("/")
        factors = spaces(rule)[space].factors
        lines.append(json.dumps({"name": name, "factors": factors}))
        lines += ["".join(_DIGITS[levels.index(row[factor])] for factor, levels in factors.items()) for row in rows]
    path(depth).write_bytes(lzma.compress("\n".join(lines).encode()))


def read(depth: int) -> dict[str, list[dict[str, str]]]:
    """Return the rows of all spaces, by rule/space."""
    found: dict[str, list[dict[str, str]]] = {}
    factors: dict[str, list[str]] = {}
    rows: list[dict[str, str]] = []
    for line in lzma.decompress(path(depth).read_bytes()).decode().splitlines():
        if line.startswith("{"):
            header = json.loads(line)
            factors, rows = header["factors"], found.setdefault(header["name"], [])
            continue
        digits = zip(factors.items(), line, strict=True)
        rows.append({factor: levels[_DIGITS.index(digit)] for (factor, levels), digit in digits})
    return found

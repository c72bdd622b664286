"""The covering arrays as files: a row of levels a line, by rule and space.

``python -m verify.questions.covering.arrays`` prints what they cover.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from verify.questions.covering.factors import spaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: How many factors can be asked for together; the first is what every run asks.
DEPTHS = (2, 3)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def path(depth: int) -> Path:
    """Return the file of a depth; it is packed, as that of triples is large."""
    return Path(__file__).parent / f"depth-{depth}.txt.xz"


class Coverage(NamedTuple):
    """Of one space: its factors and rows, and how many pairs (triples) of levels that can meet the rows cover."""

    factors: int
    rows: int
    covered: int
    of: int


def write(
    depth: int, found: Mapping[str, Sequence[Mapping[str, str]]], coverage: Mapping[str, tuple[int, int]]
) -> None:
    """Write the rows of all spaces: a digit for each factor, which is the place of its level in the line above them."""
    lines = []
    for name, rows in found.items():
        rule, _, space = name.partition("/")
        factors = spaces(rule)[space].factors
        covered, of = coverage[name]
        lines.append(json.dumps({"name": name, "factors": factors, "covered": covered, "of": of}))
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


def coverage(depth: int) -> dict[str, Coverage]:
    """Return what the rows of each space cover, by rule/space, as the generator's analysis found it."""
    found: dict[str, Coverage] = {}
    name = ""
    for line in lzma.decompress(path(depth).read_bytes()).decode().splitlines():
        if line.startswith("{"):
            header = json.loads(line)
            name = header["name"]
            varied = sum(len(levels) > 1 for levels in header["factors"].values())
            found[name] = Coverage(varied, 0, header["covered"], header["of"])
        else:
            found[name] = found[name]._replace(rows=found[name].rows + 1)
    return found


def main() -> None:
    """Print a table in Markdown: for each space, factors, pairs and triples that are covered, and cases."""
    pairs, triples = coverage(2), coverage(3)
    print("| rule / space | factors | pairs | cases | triples at depth 3 | cases |")  # noqa: T201
    print("|---|--:|--:|--:|--:|--:|")  # noqa: T201
    for name in pairs:
        _print(name.replace("/", " / "), str(pairs[name].factors), pairs[name], triples[name])
    _print("all", "", *(_sum(found.values()) for found in (pairs, triples)))


def _sum(found: Iterable[Coverage]) -> Coverage:
    return Coverage(*map(sum, zip(*found, strict=True)))


def _print(name: str, factors: str, two: Coverage, three: Coverage) -> None:
    cells = [f"{one.covered:,} of {one.of:,} | {one.rows:,}" for one in (two, three)]
    print(f"| {name} | {factors} | {' | '.join(cells)} |")  # noqa: T201


if __name__ == "__main__":
    main()

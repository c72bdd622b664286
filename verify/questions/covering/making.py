"""How covering arrays are made, by coverwise; ``python -m verify.questions.covering.making`` writes them anew.

The arrays are kept in files beside this one, so that a run needs no generator and ids stay as they are. Where a factor
gets another level, the rows that there are stay, and others are added.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import coverwise

from verify.questions.covering import arrays
from verify.questions.covering.factors import RULES, Space, spaces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from verify.questions.covering.factors import Never

    Row = Mapping[str, str]

#: What coverwise draws from; another number gives other rows of the same coverage.
_SEED = 1


def made(space: Space, strength: int, kept: Sequence[Row] = ()) -> list[dict[str, str]]:
    """Return rows that cover each pair (triple, ...) of levels that can meet.

    First come the rows that were ``kept``, then those that cover what the telling levels can, then all others.
    """
    rows = [dict(row) for row in kept]
    for one in (space.telling, space):
        model = _model(one, strength)
        here = [row for row in rows if all(row[name] in levels for name, levels in one.factors.items())]
        if here:
            found = coverwise.extend_tests([_varied(one, row) for row in here], model)["tests"]
            rows += [_whole(one, row) for row in found[len(here) :]]
        else:
            rows += [_whole(one, row) for row in coverwise.generate(model)["tests"]]
    return rows


def coverage(space: Space, rows: Sequence[Row], strength: int) -> tuple[int, int]:
    """Return how many pairs (triples, ...) of levels that can meet the rows cover, and how many there are."""
    model = _model(space, strength)
    found = coverwise.analyze_coverage(
        model["parameters"], [_varied(space, row) for row in rows], strength, model["constraints"]
    )
    return int(found["coveredTuples"]), int(found["totalTuples"])


def _model(space: Space, strength: int) -> dict[str, Any]:
    varied = {name: list(levels) for name, levels in space.factors.items() if len(levels) > 1}
    constraints = [text for one in space.never if (text := _constraint(space, one))]
    return {"parameters": varied, "constraints": constraints, "strength": strength, "seed": _SEED}


def _constraint(space: Space, never: Never) -> str:
    sets = {name: [level for level in space.factors[name] if level in levels] for name, levels in never.items()}
    # a factor of one level is no parameter
    terms = [f"{name} IN {{{_quoted(levels)}}}" for name, levels in sets.items() if len(space.factors[name]) > 1]
    *first, last = terms
    return f"IF {' AND '.join(first)} THEN NOT ({last})" if first else f"NOT ({last})"


def _quoted(levels: Sequence[str]) -> str:
    return ", ".join(f'"{level}"' for level in levels)


def _varied(space: Space, row: Row) -> dict[str, str]:
    return {name: row[name] for name, levels in space.factors.items() if len(levels) > 1}


def _whole(space: Space, row: Row) -> dict[str, str]:
    return {name: row.get(name, levels[0]) for name, levels in space.factors.items()}


def main(strengths: Sequence[int]) -> None:
    """Write the files, and print how many rows and which coverage they have."""
    for strength in strengths:
        # what the depth below asks stays as it is, too
        depth = next((depth for depth in (strength, strength - 1) if arrays.path(depth).exists()), 0)
        known = arrays.read(depth) if depth else {}
        found: dict[str, list[dict[str, str]]] = {}
        covered: dict[str, tuple[int, int]] = {}
        for rule in RULES:
            for name, space in spaces(rule).items():
                kept = [row for row in known.get(f"{rule}/{name}", []) if _fits(space, row)]
                rows = made(space, strength, kept)
                found[f"{rule}/{name}"] = rows
                covered[f"{rule}/{name}"] = coverage(space, rows, strength)
                print(f"{rule}/{name}: {len(rows)} rows, {covered[f'{rule}/{name}']}", flush=True)  # noqa: T201
        arrays.write(strength, found, covered)


def _fits(space: Space, row: Row) -> bool:
    return (
        row.keys() == space.factors.keys()
        and all(row[name] in levels for name, levels in space.factors.items())
        and space.allows(row)
    )


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [2, 3])

"""What is said of failures that no known variant explains: which comes nearest, and what the failing cases share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verify.explaining import separating

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from verify.explaining.search import Nearest, Search
    from verify.model import Case


def unexplained(search: Search, rule: str, failing: Sequence[Case], passing: Sequence[Case]) -> list[str]:
    """Return a line for the variant that comes nearest, and one for what tells failing cases from the others."""
    nearest = search.nearest(failing, passing)
    told = separating.sentence(failing, passing)
    lines = [] if nearest is None else [f"No diagnosis of {rule}: {_nearest(nearest, len(failing))}"]
    return lines + ([f"{rule} {told}"] if told else [])


def _nearest(nearest: Nearest, failures: int) -> str:
    """Say which failures a variant explains, and what tells them from the others."""
    one, explained, left = nearest
    asked = len(explained) + len(left)
    some = "" if asked == failures else f" that were asked again, of {failures}"
    seen = f" ({one.seen})" if one.seen else ""
    if not left:
        where = "; but not all cases that pass"
    else:
        told = separating.sentence(left, explained, "it does not", "it does")
        where = f"; {told}" if told else ""
    return f"`{one.name}`{seen} explains {len(explained)} of {asked} failures{some}: {one.sentence}{where}"


def errors(raised: Iterable[tuple[str, Sequence[Case], Sequence[Case]]]) -> list[str]:
    """Return a line for all rules that raise errors in the same cases: (rule, those, all others)."""
    found: dict[str, tuple[list[str], int]] = {}
    for rule, raising, others in raised:
        where = separating.where(raising, others)
        rules, count = found.get(where, ([], 0))
        found[where] = ([*rules, rule], count + len(raising))
    return [
        f"Left out as no evidence: {count} error{'s' * (count != 1)} of {', '.join(rules)}" + (where and f", {where}")
        for where, (rules, count) in found.items()
    ]

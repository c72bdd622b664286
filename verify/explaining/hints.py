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
    where = separating.where(left, explained)
    rest = "" if left else "; but it explains not all cases that pass"
    rest = f"; the other {len(left)} are those {where}" if where else rest
    return f"`{one.name}`{seen} explains {len(explained)} of {asked} failures{some}: {one.sentence}{rest}"


def errors(raised: Iterable[tuple[str, Sequence[Case], Sequence[Case]]]) -> list[str]:
    """Return a line for all rules that raise errors in cases of the same traits: (rule, those, all others)."""
    found: dict[str, list[str]] = {}
    for rule, raising, others in raised:
        found.setdefault(separating.where(raising, others), []).append(rule)
    return [
        f"Errors are no evidence, and were left out: {', '.join(rules)}" + (where and f", {where}")
        for where, rules in found.items()
    ]

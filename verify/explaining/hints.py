"""What is said of failures that no known variant explains: which comes nearest, and what the failing cases share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verify.explaining import separating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from verify.explaining.diagnoses import Diagnosis
    from verify.explaining.search import Nearest, Search
    from verify.model import Case


def hints(
    search: Search,
    rule: str,
    failing: Sequence[Case],
    passing: Sequence[Case],
    raising: Sequence[Case],
    found: Diagnosis | None,
) -> list[str]:
    """Return a line for each thing that is known of the failures of a rule beside its diagnosis."""
    lines = []
    if found is None and failing:
        nearest = search.nearest(failing, passing)
        if nearest is not None:
            lines.append(f"Nothing known explains all failures of {rule}; {_nearest(nearest, len(failing))}")
        if told := separating.sentence(failing, passing):
            lines.append(f"{rule} {told}")
    if raising:
        told = separating.sentence(raising, (*failing, *passing), "raises an error", "answers")
        cases = "case" if len(raising) == 1 else "cases"
        lines.append(
            f"{rule} {told}; errors are no evidence"
            if told
            else f"{rule} raises an error in {len(raising)} {cases}, which are no evidence"
        )
    return lines


def _nearest(nearest: Nearest, failures: int) -> str:
    """Say which failures a variant explains, and what tells them from the others."""
    one, explained, left = nearest
    asked = len(explained) + len(left)
    some = "" if asked == failures else f" that were asked again, of {failures}"
    seen = f" ({one.seen})" if one.seen else ""
    told = separating.sentence(left, explained, "fails", "holds")
    where = f"; it {told}" if told else ""
    return f"`{one.name}`{seen} explains {len(explained)} of {asked} failures{some}: {one.sentence}{where}"

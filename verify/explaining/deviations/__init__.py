"""Known deviations: where a library is known to do something else than the specification says, and why.

A file describes one library:

    library = "zennit"
    versions = ["0.5.1", "0.5.1"]             # the first and the last that the entries were read from
    extends = "zennit"                        # optional: a file whose entries hold here, too
    without = ["api/Hook/tuples"]             # optional: patterns of that file that do not

    [[deviation]]
    pattern = "errors/*/stabilizer-negative"  # ids of cases: one pattern, or a list of them
    verdict = "fail"                          # what becomes of these cases: fail, error, crash, timeout
    reason = "..."                            # what the library does, and what the specification says
    link = "https://..."                      # an issue or a pull request, where there is one
    says = "*is accepted*"                    # the outcome's reason; needed where an error is accepted
    formula = "unsigned-epsilon"              # what is computed instead, likewise; see `formulas`
    sometimes = true                          # rounding decides whether these cases deviate; they may all pass

In a pattern, ``*`` stands for anything, ``/`` included, and ``{a,b}`` for a or b. The first part, the check, has to be
named. An entry is to excuse what is known and nothing else: one of which no case deviates any more is stale. The
schema is `lrp-deviations-1.schema.json`. See `baseline` for what writes a first file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cache
from heapq import nlargest
from typing import TYPE_CHECKING

from verify.explaining.deviations.entries import Deviation, DeviationError, Deviations, expression
from verify.explaining.deviations.reading import available, load, schema
from verify.model import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from verify.questions.fixed import Fixing

__all__ = [
    "Deviation",
    "DeviationError",
    "Deviations",
    "Stale",
    "apply",
    "available",
    "explaining",
    "expression",
    "is_known",
    "load",
    "schema",
    "stale",
]

#: The detail of an outcome that a known deviation explains.
KNOWN = "known deviation"
_NEAREST = 3  # ids that are named beside a pattern without any


@dataclass(frozen=True)
class Stale:
    """A pattern of an entry that excuses nothing."""

    entry: Deviation
    pattern: str
    why: str

    def __str__(self) -> str:
        return f"{self.entry.place}: {self.pattern} {self.why}"


def apply(
    outcomes: Sequence[Outcome],
    deviations: Deviations,
    *,
    seed: int = 0,
    device: str = "cpu",
    ids: Collection[str] | None = None,
    subject: Fixing | None = None,
) -> tuple[tuple[Outcome, ...], tuple[Stale, ...]]:
    """Mark the outcomes that are known deviations, and return them all with the patterns that are stale.

    A pattern is stale if none of the cases that it matches deviates as its entry says. Where not all cases were asked,
    ``ids`` is all there are: a pattern is judged if every case that it matches was asked. Outcomes that an entry
    matches and does not explain stay what they are. ``seed``, ``device`` and ``subject`` are those of the run.
    """
    found = {
        outcome.id: explaining(outcome, deviations, seed=seed, device=device, subject=subject) for outcome in outcomes
    }
    entries = deviations.entries
    marked = tuple(_marked(o, entries[found[o.id][0]]) if found[o.id] else o for o in outcomes)
    return marked, stale({o.id: (o.verdict, found[o.id], o.reason) for o in outcomes}, deviations, ids=ids)


def explaining(
    outcome: Outcome, deviations: Deviations, *, seed: int = 0, device: str = "cpu", subject: Fixing | None = None
) -> tuple[int, ...]:
    """Return the numbers, from 0, of the entries that match an outcome and explain it."""
    return tuple(
        number
        for number, entry in enumerate(deviations.entries)
        if any(expression.fullmatch(outcome.id) for expression in entry.expressions.values())
        and entry.explains(outcome, seed=seed, device=device, subject=subject)
    )


def stale(
    asked: Mapping[str, tuple[Verdict, Collection[int], str]],
    deviations: Deviations,
    *,
    ids: Collection[str] | None = None,
) -> tuple[Stale, ...]:
    """Return the patterns that are stale, see `apply`; ``asked`` has verdict, `explaining` and reason of each case."""
    left = [] if ids is None else [id_ for id_ in ids if id_ not in asked]
    all_ids = [*asked, *left]
    found = []
    for number, entry in enumerate(deviations.entries):
        for single, matching in entry.expressions.items():
            matched = [asked[id_] for id_ in asked if matching.fullmatch(id_)]
            # None stands for what the entry says
            counter = Counter(None if number in numbers else verdict for verdict, numbers, _ in matched)
            borne_out = counter[None] or (entry.sometimes and matched)
            if not borne_out and not any(map(matching.fullmatch, left)):
                now = next((said for verdict, _, said in matched if said and verdict is not Verdict.NOT_OFFERED), "")
                found.append(Stale(entry, single, _why(entry, single, counter, all_ids, now)))
    return tuple(found)


def is_known(outcome: Outcome) -> bool:
    """Whether `apply` has found a known deviation in this outcome."""
    return KNOWN in outcome.details


def _marked(outcome: Outcome, entry: Deviation) -> Outcome:
    known = {"reason": entry.reason, "link": entry.link, "entry": entry.place}
    return replace(outcome, details={**outcome.details, KNOWN: known})


def _why(entry: Deviation, pattern: str, verdicts: Counter[Verdict | None], ids: Sequence[str], now: str) -> str:
    if not verdicts:
        near = _nearest(pattern, ids)
        hint = f"; the nearest ids are {', '.join(near)}" if near else ""
        return f"matches no case{hint}; correct it, or delete it"
    found = ", ".join(f"{verdicts[v]} {v.value}" for v in Verdict if verdicts[v])
    said = f"; now it says: {now}" if now else ""
    if verdicts[entry.verdict]:
        told = " and ".join(
            f"{name} {value!r}"
            for name, value in (("says", entry.says), ("formula", entry.formula))
            if value not in {"*", ""}
        )
        return f"matches {found}, expected {entry.verdict.value} with {told}: look at what has changed{said}"
    return f"matches {found}, expected {entry.verdict.value}: delete this entry if the library was repaired{said}"


def _nearest(pattern: str, ids: Iterable[str]) -> list[str]:
    """Return the ids that a pattern most likely means: alike part by part, where ``*`` is like anything."""
    parts = pattern.split("/")

    @cache
    def alike(part: str, of_id: str) -> float:
        return 1.0 if expression(part).fullmatch(of_id) else SequenceMatcher(None, part, of_id).ratio()

    def likeness(id_: str) -> float:
        return sum(map(alike, parts, id_.split("/")))

    # the first part alone, the check, is not enough to be near
    return nlargest(_NEAREST, (id_ for id_ in ids if likeness(id_) > 1), key=likeness)

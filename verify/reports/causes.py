"""Failures of one cause are said once: one exception in many cases, one diagnosis in several checks."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from verify.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from verify.model import Outcome
    from verify.reports.report import Report

    Key = tuple[str, ...]

#: The checks whose failures a diagnosis explains: those that compare relevance with the reference's.
_EXPLAINED = frozenset({"agreement", "conservation"})
#: The checks whose reasons are numbers, which differ from case to case.
_NUMBERS = frozenset({"agreement", "conservation", "laws", "second-order", "network", "search"})
#: Fewer failures than these stay with their rule and check.
_FEWEST = 3


def grouped(report: Report, failures: Sequence[Outcome]) -> list[list[Outcome]]:
    """Return the failures in groups: those of one cause, or else those of one rule and check, in their order."""
    causes = [_cause(report, outcome) for outcome in failures]
    sizes = Counter(causes)
    groups: dict[Key, list[Outcome]] = {}
    for outcome, cause in zip(failures, causes, strict=True):
        key = cause if cause and sizes[cause] >= _FEWEST else (outcome.rule, outcome.check)
        groups.setdefault(key, []).append(outcome)
    return list(groups.values())


def _cause(report: Report, outcome: Outcome) -> Key:
    """What failures of one cause have in common; empty where no cause is known."""
    if outcome.verdict is not Verdict.FAIL:
        return ("raised", outcome.verdict, _plain(outcome)) if outcome.reason else ()
    if outcome.check in _EXPLAINED:
        found = (one for one in report.diagnoses if (one.rule, one.level) == (outcome.rule, outcome.level))
        return ("explained", outcome.rule) if any(one.covers(outcome.id) for one in found) else ()
    return () if outcome.check in _NUMBERS or not outcome.reason else ("said", outcome.check, _plain(outcome))


def _plain(outcome: Outcome) -> str:
    """The reason without what is of this case alone: names of classes, numbers, and the place in a file."""
    kind, colon, message = re.sub(r" \([^()]*:\d+ in [^()]*\)$", "", outcome.reason).partition(":")
    message = re.sub(r"\b[\w.]*[A-Z][\w.]*", "Name", message)
    return kind + colon + re.sub(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", "0", message)

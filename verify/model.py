"""What the parts of the verifier hand to each other: a case, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from verify.subjects import Subject

#: Another number for each change of the JSON; `merge` and `verify.conformance` read this one alone.
SCHEMA = "lrp-verify/3"


class Verdict(StrEnum):
    """What became of a case. Only PASS, NOT_OFFERED and SKIPPED leave a run unharmed."""

    PASS = "pass"  # noqa: S105  no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"
    CRASH = "crash"
    TIMEOUT = "timeout"
    NOT_OFFERED = "not-offered"
    SKIPPED = "skipped"


class Level(StrEnum):
    """How binding a requirement is: MUST for everybody, SHOULD for our own rules and under ``--strict``."""

    MUST = "must"
    SHOULD = "should"


BAD = frozenset({Verdict.FAIL, Verdict.ERROR, Verdict.CRASH, Verdict.TIMEOUT})


@dataclass(frozen=True)
class Outcome:
    """The verdict on one case, as plain data.

    ``ratio`` is the largest |got - expected| / bound over the decided entries, ``probable`` the same against the
    probabilistic bound, ``undecided`` the share of entries for which rounding leaves no finite bound, ``undecidable``
    the share of which that is so by the reference alone, whoever is asked; None where nobody had to know.
    """

    id: str
    rule: str
    layer: str
    check: str
    dtype: str
    level: Level
    verdict: Verdict
    ratio: float | None = None
    probable: float | None = None
    undecided: float = 0.0
    reason: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    undecidable: float | None = None


@dataclass(frozen=True)
class Finding:
    """What a check says of a case: an Outcome without the case's own data."""

    verdict: Verdict
    ratio: float | None = None
    probable: float | None = None
    undecided: float = 0.0
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    undecidable: float | None = None


@dataclass(frozen=True)
class Case:
    """One question to a subject. ``layer`` is the family of layers, for the table; ``id`` is stable and readable.

    ``run`` asks it. It lets exceptions of the subject through: the runner turns them into a verdict.
    """

    id: str
    rule: str
    layer: str
    check: str
    dtype: str
    level: Level
    run: Callable[[Subject], Finding] = field(repr=False, compare=False)
    device: str = "cpu"

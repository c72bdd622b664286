"""What the rooms of the verifier hand to each other: a question, the subject that is asked, and what became of it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

# Nothing here imports torch: it takes seconds, and whoever only hands plain data on needs none.
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

#: Another number for each change of the JSON; `merge` and `verify.reports.conformance` read this one alone.
SCHEMA = "lrp-verify/4"

#: Seconds for one case.
TIME_LIMIT = 20.0

#: The rules of the API.
RULES = (
    "Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat",
    "Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth",
)  # fmt: skip
#: The rules for what lies between the layers of a network, which a subject may offer besides.
NETWORK_RULES = ("Uniform", "SignalTakesAll", "Bilinear", "Softmax", "Stop", "LayerNormRule")


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

    @property
    def word(self) -> str:
        """The verdict as people read it: "86 cases failed"; files have the value."""
        return _WORDS.get(self.value, self.value)


_WORDS = {
    "pass": "passed", "fail": "failed", "error": "raised an error", "crash": "crashed", "timeout": "timed out",
    "not-offered": "not offered",
}  # fmt: skip


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


def share_left(found: Finding | Outcome) -> float:
    """Return the share of entries of one case that are left undecided; all of them where it is inconclusive."""
    return found.undecided or float(found.verdict is Verdict.INCONCLUSIVE)


class SubjectError(Exception):
    """The subject cannot be used at all; the message says why and what to do."""


class NotOfferedError(Exception):
    """The subject does not have what a case is about: neither a pass nor a failure."""


class UnansweredError(BaseException):
    """What became of a case whose subject gave nothing to judge; no check takes it for an exception that it expects."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.reason)
        self.finding = finding


def other_value(value: Any, fixed: Any) -> bool:
    """Whether a value of a parameter is another than the only one that there is; names of parameters are a list."""
    if fixed is None or isinstance(fixed, list):
        names = [value] if isinstance(value, str) else list(value or ())
        return set(names) != set(fixed or ())
    return type(value) not in {int, float} or value != fixed


@dataclass(frozen=True)
class Subject:
    """A namespace with rule classes; their instances have ``register(module)``, which returns what has ``remove()``."""

    spec: str
    namespace: Any
    version: str
    #: Parameters that it cannot change, rule by rule: see `verify.questions.fixed`.
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True)

    def offers(self, name: str) -> bool:
        """Whether the subject has something of that name."""
        return hasattr(self.namespace, name)

    def get(self, name: str) -> Any:
        """Return the attribute, or raise NotOfferedError."""
        if not self.offers(name):
            msg = f"{self.spec} has no {name}"
            raise NotOfferedError(msg)
        return self.with_fixed(name, getattr(self.namespace, name))

    def with_fixed(self, name: str, make: Callable[..., Any]) -> Any:
        """Return what makes a rule without the parameters that are fixed, and offers no other value of them."""
        fixed = self.parameters.get(name)
        if not fixed:
            return make

        def made(**arguments: Any) -> Any:
            for parameter in fixed.keys() & arguments.keys():
                if other_value(value := arguments.pop(parameter), fixed[parameter]):
                    msg = f"{self.spec} has {name} with {parameter}={fixed[parameter]} alone, not with {value!r}"
                    raise NotOfferedError(msg)
            return make(**arguments)

        return made

    def asking(self, case: Case, seconds: float) -> AbstractContextManager[None]:  # noqa: ARG002  see subjects.protocol.port
        """Surround one case, for which there are so many seconds."""
        return contextlib.nullcontext()

    @property
    def is_ours(self) -> bool:
        """Whether this is lrp_rules itself, which is held to every requirement."""
        return self.spec.split(":")[0].split(".")[0] == "lrp_rules"


@dataclass(frozen=True)
class Problem:
    """What a rule is asked about: a module, its input, and the relevance of its output, which is independent of it.

    ``call`` is how it is asked: see ``verify.subjects.asking``.
    """

    module: nn.Module
    x: Tensor
    relevance: Tensor
    batched: bool
    call: str = "grad"


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

"""Planted mistakes: each is seen, by the check and for the rule that it is in; what is right passes."""

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrp_rules
from lrp_rules.layers.layer import Layer
from lrp_rules.parts import negative, positive
from verify.checks import agreement
from verify.checks.cases import all_cases
from verify.model import BAD, Case, Level, NotOfferedError, Problem, Subject
from verify.subjects.asking import relevance_by_call

#: The grid: what is planted here needs no options to meet.
CASES = [case for case in all_cases(seed=0, dtypes=("float64",)) if "," not in case.id]


def planted(**changed: Any) -> Subject:
    namespace = {name: getattr(lrp_rules, name) for name in lrp_rules.__all__}
    return Subject("planted", SimpleNamespace(**(namespace | changed)), "0")


def failures(subject: Subject, rule: str, part: str = "linear-") -> Counter[str]:
    """Failing cases by check, on the dense layers and on what has no layer."""
    found: Counter[str] = Counter()
    for case in selected(rule, part):
        if case.run(subject).verdict in BAD:
            found[case.check] += 1
    return found


def selected(rule: str, part: str) -> Iterator[Case]:
    return (case for case in CASES if case.rule == rule and (part in case.id or case.layer == "-"))


class IgnoresRelevance(lrp_rules.Epsilon):
    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return super().relevances(layer, layer.real_outputs)


def sign_of_zero_is_zero(d: Tensor) -> Tensor:
    return d + 1e-6 * d.sign()


class SignOfZeroIsZero(lrp_rules.Epsilon):
    def __init__(self, epsilon: Any = sign_of_zero_is_zero, zero_params: Any = None) -> None:
        super().__init__(epsilon, zero_params)


class SeparateDenominators(lrp_rules.ZPlus):
    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = torch.zeros_like(layer.x)
        for change in (positive, negative):
            A, v = layer.matrix(change), change(layer.x)
            bias = positive(layer.bias) if change is positive else 0.0
            r = r + v * (A.T @ (R / self.stabilizer(A @ v + bias)))
        return r


class AcceptsEqual(lrp_rules.AlphaBeta):
    def __init__(self, alpha: float = 2.0, beta: float = 1.0, stabilizer: Any = 1e-6, zero_params: Any = None) -> None:
        super().__init__(2.0, 1.0, stabilizer, zero_params)
        self.alpha, self.beta = alpha, beta


class OtherDefault(lrp_rules.Gamma):
    def __init__(self, gamma: float = 0.5, stabilizer: Any = 1e-6, zero_params: Any = None) -> None:
        super().__init__(gamma, stabilizer, zero_params)


class CastsToFloat32(lrp_rules.ZBox):
    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R).float().to(R.dtype)


@pytest.mark.parametrize(
    ("rule", "wrong", "checks"),
    [
        ("Epsilon", IgnoresRelevance, {"agreement", "conservation", "laws", "second-order"}),
        ("Epsilon", SignOfZeroIsZero, {"agreement", "api"}),
        ("ZPlus", SeparateDenominators, {"agreement", "conservation", "laws", "second-order"}),
        ("AlphaBeta", AcceptsEqual, {"errors"}),
        ("Gamma", OtherDefault, {"agreement", "conservation", "api"}),
        ("ZBox", CastsToFloat32, {"agreement", "conservation"}),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_a_planted_mistake_is_seen_by_these_checks(rule: str, wrong: type, checks: set[str]) -> None:
    assert checks <= set(failures(planted(**{rule: wrong}), rule))


@pytest.mark.parametrize("rule", ["Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat"])
def test_what_is_right_passes(rule: str) -> None:
    assert not failures(planted(), rule)


def test_a_planted_mistake_does_not_spread_to_other_rules() -> None:
    assert not failures(planted(Gamma=OtherDefault), "ZPlus")


def _written(relevance: Tensor) -> None:
    with torch.no_grad():  # through .data, a batched relevance would end the process
        relevance.detach().mul_(1.5)


class Writes:
    """Goes before a rule; writes to every tensor and list that it gets hold of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, list):
                value.append("weight")
            elif isinstance(value, Tensor):
                value.data.fill_(9.0)

    def register(self, module: nn.Module) -> Any:
        def write(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            for t in (*inputs, *module.parameters()):
                t.data.mul_(1.5)
            for y in output if isinstance(output, tuple) else (output,):
                if y.requires_grad:
                    y.register_hook(_written)

        handles = super().register(module), module.register_forward_hook(write)  # type: ignore[misc]
        return SimpleNamespace(remove=lambda: [handle.remove() for handle in handles])


class WritesDenominator(lrp_rules.Stabilizer):
    def __call__(self, denominator: Tensor) -> Tensor:
        return denominator.fill_(9.0)


@pytest.mark.parametrize("rule", ["Epsilon", "ZBox", "ReLUBetaSmooth", "Stabilizer"])
def test_what_a_subject_writes_to_its_tensors_is_not_seen_by_the_next_case(rule: str) -> None:
    wrong = WritesDenominator if rule == "Stabilizer" else type(rule, (Writes, getattr(lrp_rules, rule)), {})
    cases = [case for case in CASES if case.rule == rule and case.check in {"api", "errors", "conduct"}]
    failed = []
    for case in cases:
        try:
            failed.append(case.run(planted(**{rule: wrong})).verdict in BAD)
        except Exception:  # noqa: BLE001  a weight that was written, under a name that is not there, and more
            failed.append(True)
    assert any(failed)
    assert [case.id for case in cases if case.run(planted()).verdict in BAD] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("shape", lambda r: r[:, :-1]),
        ("batch", lambda r: r.flip(0)),
        ("nan", lambda r: r * float("nan")),
        ("scale", lambda r: r * (1 + 1e-9)),
        ("dtype", lambda r: r.float()),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_wrong_answer_is_a_verdict(name: str, change: Any) -> None:
    subject = planted()

    def wrong(rule: Any, problem: Problem) -> Tensor:
        r: Tensor = change(relevance_by_call(rule, problem))
        return r

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "relevance_by_call", wrong)
        case = next(case for case in CASES if case.id == "agreement/Epsilon/linear-5-4/default/signed/float64")
        finding = case.run(subject)
    assert finding.verdict in BAD
    assert finding.reason


def test_what_a_subject_lacks_is_not_offered() -> None:
    subject = Subject("bare", SimpleNamespace(Epsilon=lrp_rules.Epsilon), "0")
    case = next(case for case in CASES if case.rule == "Gamma" and case.check == "agreement")
    with pytest.raises(NotOfferedError, match="Gamma"):
        case.run(subject)


def test_the_levels_of_bad_input_are_those_of_the_rules() -> None:
    levels = {case.id: case.level for case in CASES if case.check == "errors"}
    assert levels["errors/AlphaBeta/accepts-1.4-0.4"] is Level.MUST
    assert levels["errors/AlphaBeta/equal"] is Level.MUST
    assert levels["errors/Gamma/gamma--0.25"] is Level.SHOULD
    assert levels["errors/ZBox/low-above-high"] is Level.SHOULD
    assert levels["errors/ZPlus/refuses-two-inputs"] is Level.SHOULD

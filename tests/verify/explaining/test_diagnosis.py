"""A rule that follows a known variant is diagnosed by that very name; anything else by no name at all."""

from __future__ import annotations

import functools
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import lrp_rules
from lrp_rules.layers.layer import Layer
from lrp_rules.parts import negative, positive
from verify.checks.cases import all_cases
from verify.explaining import diagnosis, evidence, search
from verify.explaining.diagnosis import Explained, asking, diagnose
from verify.model import Case, Finding, Level, Outcome, Subject, SubjectError, Verdict
from verify.runs.outcomes import outcome_of
from verify.subjects.loading import load

if TYPE_CHECKING:
    from verify.explaining.diagnoses import Diagnosis

Relevance = Callable[[Any, Layer, Tensor], Tensor]

#: Seconds for a diagnosis. Out of time it says nothing, which a test must not take for an answer on a slow machine.
ENOUGH_TIME = 3600.0


@pytest.fixture(scope="module", autouse=True)
def remembered() -> Iterator[None]:
    """What the reference is asked in a case is the same for every subject."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # torch says once that padding 'same' of an even kernel needs a copy
        warnings.filterwarnings("ignore", message="Using padding='same'")
        patch.setattr(evidence, "questions", functools.cache(evidence.questions))
        yield


@functools.cache
def cases_of(rule: str) -> tuple[Case, ...]:
    """All cases of a rule that tell variants apart, the most different ones first."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in grid():
        groups[case.rule].append(case)
    return tuple(search.spread(groups[rule]))


@functools.cache
def grid() -> tuple[Case, ...]:
    return tuple(case for case in all_cases() if diagnosis._told_apart(case))


def outcome(case: Case, subject: Subject) -> Outcome:
    try:
        finding = case.run(subject)
    except Exception as error:  # noqa: BLE001  as the runner does
        finding = Finding(Verdict.ERROR, reason=str(error))
    return outcome_of(case, finding, 0.0)


def run(subject: Subject, cases: Sequence[Case], enough: int = 48, failing: int = 6) -> list[Outcome]:
    """Ask the first cases, and as many more as it takes to see it fail."""
    outcomes: list[Outcome] = []
    for case in cases:
        if len(outcomes) >= enough and sum(one.verdict is not Verdict.PASS for one in outcomes) >= failing:
            break
        outcomes.append(outcome(case, subject))
    return outcomes


def explained(subject: Subject, rule: str, cases: Sequence[Case] | None = None, **options: Any) -> Explained:
    chosen = cases_of(rule) if cases is None else cases
    outcomes = run(subject, chosen)
    return diagnose(outcomes, {case.id: case for case in chosen}, asking(subject), **{"seconds": ENOUGH_TIME} | options)


def examine(subject: Subject, rule: str, cases: Sequence[Case] | None = None, **options: Any) -> list[Diagnosis]:
    return explained(subject, rule, cases, **options).diagnoses


def names(found: Sequence[Diagnosis]) -> set[tuple[str, ...]]:
    return {one.names for one in found}


def required(found: Sequence[Diagnosis]) -> list[Diagnosis]:
    return [one for one in found if one.level is Level.MUST]


def following(rule: str, relevance: Relevance) -> Subject:
    """A subject whose rule of that name gives this relevance."""
    # Epsilon and Norm are written for several inputs
    several = lambda self, layer, R: (relevance(self, layer, R[0]),)  # noqa: E731
    made = type(rule, (getattr(lrp_rules, rule),), {"relevance": relevance, "relevances": several})
    return Subject("wrong", SimpleNamespace(**{rule: made}), "0")


# --- rules that follow a known variant --------------------------------------------------------------------------------


def propagate(terms: Sequence[tuple[Any, Tensor]], bias: Any, R: Tensor, S: Callable[[Tensor], Tensor]) -> Tensor:
    """Return sum v * A^T s over the terms (A, v), with s = R / S(sum A v + bias)."""
    d = bias
    for A, v in terms:
        d = d + A @ v
    s, r = R / S(d), torch.zeros(())
    for A, v in terms:
        r = r + v * (A.T @ s)
    return r


def split(x: Tensor, plus: Any, minus: Any) -> list[tuple[Any, Tensor]]:
    return [(plus, positive(x)), (minus, negative(x))]


def separate(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    x, S = layer.x, rule.stabilizer
    first = propagate([(layer.matrix(positive), positive(x))], positive(layer.bias), R, S)
    return first + propagate([(layer.matrix(negative), negative(x))], 0.0, R, S)


def captum(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return propagate([(layer.matrix(positive), layer.x)], layer.bias, R, rule.stabilizer)


def captum_gamma(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    A = layer.matrix(lambda w: w + rule.gamma * positive(w))
    return propagate([(A, layer.x)], layer.bias, R, rule.stabilizer)


def gamma_of_2019(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    A = layer.matrix(lambda w: w + rule.gamma * positive(w))
    return propagate([(A, layer.x)], layer.bias + rule.gamma * positive(layer.bias), R, rule.stabilizer)


def gamma_without_gate(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    g, b = rule.gamma, layer.bias
    plus, minus = layer.matrix(lambda w: w + g * positive(w)), layer.matrix(lambda w: w + g * negative(w))
    return propagate(split(layer.x, plus, minus), b + g * positive(b), R, rule.stabilizer)


def gamma_ignored(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return lrp_rules.Gamma(0.25, rule.stabilizer, rule.zero_params).relevance(layer, R)


def default_stabilizer(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return lrp_rules.ZPlus(zero_params=rule.zero_params).relevance(layer, R)


def without_bias(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return propagate([(layer.matrix(), layer.x)], 0.0, R, rule.stabilizer)


def with_mean_in_each_run(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    module = layer.module
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return lrp_rules.ZPlus.relevance(rule, layer, R)
    plus, minus, bias = layer.matrix(positive), layer.matrix(negative), layer.given.get("bias")
    assert module.running_mean is not None
    shape = (1, -1) + (1,) * (layer.x.ndim - 2)
    mean = module.running_mean.view(shape).expand_as(layer.x)
    b = 0.0 if bias is None or layer.zeroes else positive(bias).view(shape)
    return propagate(split(layer.x, plus, minus), b - plus @ mean - minus @ mean, R, rule.stabilizer)


def gradient(_rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return layer.pull((R,))[0]


def gradient_times_input(_rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return layer.x * layer.pull((R,))[0]


def unsigned(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    given = rule.stabilizer
    S = (lambda d: d + given.epsilon) if isinstance(given, lrp_rules.Stabilizer) else given
    return propagate([(layer.matrix(), layer.x)], layer.bias, R, S)


FOLLOWING: dict[str, tuple[str, Relevance]] = {
    "ZPlus separate-denominators": ("separate-denominators", separate),
    "ZPlus captum": ("inputs-and-bias-unsplit", captum),
    "ZPlus stabilizer-ignored": ("stabilizer-ignored", default_stabilizer),
    "ZPlus running-mean": ("running-mean-with-weight", with_mean_in_each_run),
    "Gamma captum": ("gamma-on-positive-weights-only", captum_gamma),
    "Gamma 2019": ("gamma-on-positive-weights-only", gamma_of_2019),
    "Gamma without a gate": ("gate-none", gamma_without_gate),
    "Gamma ignored": ("gamma-ignored", gamma_ignored),
    "Gamma gradient-times-input": ("gradient-times-input", gradient_times_input),
    "AlphaBeta gradient": ("gradient", gradient),
    "Epsilon without bias": ("bias-dropped", without_bias),
    "Norm without bias": ("bias-dropped", without_bias),
    "Epsilon unsigned": ("epsilon-unsigned", unsigned),
}


@pytest.mark.parametrize("id_", FOLLOWING)
def test_a_rule_that_follows_a_variant_is_diagnosed_by_its_name(id_: str) -> None:
    rule, (name, relevance) = id_.split(maxsplit=1)[0], FOLLOWING[id_]
    found = examine(following(rule, relevance), rule)
    assert names(found) == {(name,)}
    assert {one.rule for one in found} == {rule}


class DoesNothing:
    """A rule that registers, and changes nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def register(self, _module: nn.Module) -> Any:
        return SimpleNamespace(remove=lambda: None)


@pytest.mark.parametrize("rule", ["ZPlus", "Flat", "Pass"])
def test_a_rule_that_does_nothing_gives_the_gradient(rule: str) -> None:
    found = examine(Subject("nothing", SimpleNamespace(**{rule: DoesNothing}), "0"), rule)
    assert names(found) == {("gradient",)}


# --- no name where none fits ------------------------------------------------------------------------------------------

RULES = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
GRADIENT_RULES = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")


@pytest.mark.parametrize("rule", [*RULES, *GRADIENT_RULES])
def test_a_right_rule_gets_no_diagnosis(rule: str) -> None:
    subject = Subject("lrp_rules", lrp_rules, lrp_rules.__version__)
    cases = cases_of(rule)[:30]
    outcomes = [outcome(case, subject) for case in cases]
    assert all(one.verdict is not Verdict.FAIL for one in outcomes)
    assert diagnose(outcomes, {case.id: case for case in cases}, asking(subject)).diagnoses == []
    failed = [outcome_of(case, Finding(Verdict.FAIL), 0.0) for case in cases]
    assert diagnose(failed, {case.id: case for case in cases}, asking(subject)).diagnoses == []


def _spoilt(change: Callable[[Tensor], Tensor]) -> Callable[[str], Subject]:
    def subject(rule: str) -> Subject:
        right = getattr(lrp_rules, rule)

        def relevances(self: Any, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(change(r) for r in right.relevances(self, layer, R))

        return Subject("wrong", SimpleNamespace(**{rule: type(rule, (right,), {"relevances": relevances})}), "0")

    return subject


def _noisy(r: Tensor) -> Tensor:
    return r + 1e-3 * torch.randn(r.shape, dtype=r.dtype, generator=torch.Generator().manual_seed(1))


def _refused(_r: Tensor) -> Tensor:
    msg = "no"
    raise ValueError(msg)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda r: 1.01 * r,
    "slightly scaled": lambda r: (1 + 1e-9) * r,
    "noisy": _noisy,
    "zero": torch.zeros_like,
    "NaN": lambda r: r * torch.nan,
    "of another shape": lambda r: r[..., :1],
    "refused": _refused,
}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("rule", RULES)
def test_another_mistake_gets_no_name(rule: str, mistake: str) -> None:
    subject = _spoilt(WRONG[mistake])(rule)
    cases = cases_of(rule)[:24]
    outcomes = run(subject, cases)
    assert any(one.verdict in {Verdict.FAIL, Verdict.ERROR} for one in outcomes)
    assert diagnose(outcomes, {case.id: case for case in cases}, asking(subject), seconds=ENOUGH_TIME).diagnoses == []


def test_zennit_is_not_misnamed() -> None:
    try:
        subject = load("zennit.rules")
    except SubjectError as error:
        pytest.skip(str(error))
    chosen = [case for case in grid() if "zero_params=other" in case.id or "/batchnorm" in case.id]
    chosen += [case for rule in RULES for case in cases_of(rule)[:12]]
    cases = {case.id: case for case in chosen}
    found = diagnose(
        [outcome(case, subject) for case in cases.values()], cases, asking(subject), seconds=ENOUGH_TIME
    ).diagnoses
    # it searches a string for the names of parameters, and subtracts the running mean in every changed batch norm
    known = {Level.MUST: {"zero-params-by-substring"}, Level.SHOULD: {"running-mean-with-weight"}}
    assert {one.rule for one in found} >= {"Epsilon", "ZPlus", "Gamma"}
    for one in found:
        assert set(one.names) <= known[one.level]


# --- how it is said, and its limits -----------------------------------------------------------------------------------


def test_a_sentence_names_the_variant_where_it_was_seen_and_what_it_does() -> None:
    (first, *_) = examine(following("ZPlus", separate), "ZPlus")
    expected = "matches `separate-denominators` (zennit PR #100): each half is divided by its own sum"
    assert first.sentence == expected
    assert not first.published
    assert min(first.failing, first.passing) > 0


def test_a_published_convention_is_shown_as_one() -> None:
    (first, *_) = examine(following("Gamma", gamma_without_gate), "Gamma")
    assert first.published
    assert first.sentence.startswith("follows another published convention, `gate-none` (Montavon et al. 2019): ")


def test_variants_that_the_cases_do_not_tell_apart_are_all_named() -> None:
    # without a bias, captum's rule is the one that does not split the inputs
    cases = [case for case in cases_of("ZPlus") if case.id.split("/")[2] == "linear-7-3-nobias"]
    (first,) = examine(following("ZPlus", captum), "ZPlus", cases)
    assert set(first.names) == {"inputs-unsplit", "inputs-and-bias-unsplit"}
    assert first.sentence.endswith("(these cases do not tell them apart)")


def test_a_variant_on_some_layers_says_on_which() -> None:
    def on_linear(rule: Any, layer: Layer, R: Tensor) -> Tensor:
        return (separate if isinstance(layer.module, nn.Linear) else lrp_rules.ZPlus.relevance)(rule, layer, R)

    (first,) = examine(following("ZPlus", on_linear), "ZPlus")
    assert first.names == ("separate-denominators",)
    assert first.layers
    assert all(layer.startswith("linear") for layer in first.layers)
    assert f", on {first.layers[0]}" in first.sentence


def no_zero_params(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    if rule.zero_params:
        msg = "unexpected argument 'zero_params'"
        raise TypeError(msg)
    return separate(rule, layer, R)


def zero_params_ignored(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return separate(rule, replace(layer, zero_params=(), memo={}), R)


def test_an_error_is_no_evidence_against_a_formula() -> None:
    found = explained(following("ZPlus", no_zero_params), "ZPlus")
    (first,) = required(found.diagnoses)
    assert (first.names, first.default) == (("separate-denominators",), False)
    (hint,) = found.hints
    assert hint == "Errors are no evidence, and were left out: ZPlus, with zero_params given"


def test_two_mistakes_at_once_are_both_named() -> None:
    (first,) = required(examine(following("ZPlus", zero_params_ignored), "ZPlus"))
    assert first.names == ("zero-params-ignored + separate-denominators",)
    assert first.sentence.endswith(": zero_params is not used; and each half is divided by its own sum")


def scaled_if_zeroed(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return separate(rule, layer, R) * (1.01 if rule.zero_params else 1.0)


def test_an_unknown_mistake_in_a_parameter_does_not_hide_the_first() -> None:
    (first,) = required(examine(following("ZPlus", scaled_if_zeroed), "ZPlus"))
    assert (first.names, first.default) == (("separate-denominators",), True)
    assert first.sentence.endswith("; this explains the cases with default parameters, and not all of the others")
    assert first.covers("agreement/ZPlus/linear-5-4/default/signed/float64")
    assert not first.covers("agreement/ZPlus/linear-5-4/zero_params=bias/signed/float64")


def strided_is_another(rule: Any, layer: Layer, R: Tensor) -> Tensor:
    return without_bias(rule, layer, R) * (2 if getattr(layer.module, "stride", (1,)) not in {(1,), (1, 1)} else 1)


def test_where_nothing_explains_all_the_nearest_is_told_and_what_it_leaves() -> None:
    cases = [case for case in cases_of("Epsilon") if case.layer in {"Linear", "Conv1d"} and "bias" not in case.id]
    found = explained(following("Epsilon", strided_is_another), "Epsilon", cases)
    assert found.diagnoses == []
    hint = found.hints[0]
    told = re.fullmatch(
        r"No diagnosis of Epsilon: `bias-dropped` explains (\d+) of (\d+) failures: the bias is left out of the "
        r"denominator; the other (\d+) are those with stride",
        hint,
    )
    assert told, found.hints
    explains, of, left = map(int, told.groups())
    assert explains + left == of
    assert explains > left > 0


def test_what_tells_the_failing_cases_is_said_without_any_variant() -> None:
    def scaled(rule: Any, layer: Layer, R: Tensor) -> Tensor:
        r = lrp_rules.ZPlus.relevance(rule, layer, R)
        return 1.01 * r if getattr(layer.module, "padding_mode", "zeros") == "circular" else r

    found = explained(following("ZPlus", scaled), "ZPlus")
    assert found.diagnoses == []
    (hint,) = found.hints
    assert re.fullmatch(
        r"ZPlus fails on \d+ of the \d+ cases with padding mode circular; holds on all \d+ others", hint
    )


def test_one_mistake_is_said_of_all_parameters() -> None:
    (first,) = required(examine(following("ZPlus", separate), "ZPlus"))
    assert not first.default
    assert first.covers("agreement/ZPlus/linear-5-4/zero_params=bias/signed/float64")


def test_a_second_mistake_at_the_default_parameters_gets_no_name() -> None:
    def both(rule: Any, layer: Layer, R: Tensor) -> Tensor:
        return no_zero_params(rule, layer, R) * (1.01 if layer.x.shape[-1] == 3 else 1.0)

    assert required(examine(following("ZPlus", both), "ZPlus")) == []


def test_answers_that_were_recorded_do_as_well() -> None:
    subject, cases = following("ZPlus", separate), cases_of("ZPlus")[:40]
    outcomes = [outcome(case, subject) for case in cases]
    ask = asking(subject)
    recorded = {case.id: ask(case) for case in cases}
    found = diagnose(
        outcomes, {case.id: case for case in cases}, lambda case: recorded[case.id], seconds=ENOUGH_TIME
    ).diagnoses
    assert names(found) == {("separate-denominators",)}


def test_only_cases_that_came_to_an_end_are_asked_again() -> None:
    cases = cases_of("ZPlus")[:10]
    outcomes = [
        outcome_of(case, Finding(verdict), 0.0) for case in cases for verdict in (Verdict.CRASH, Verdict.TIMEOUT)
    ]

    def ask(_case: Case) -> None:
        pytest.fail("a case that did not come to an end was asked again")

    assert diagnose(outcomes, {case.id: case for case in cases}, ask).diagnoses == []


def test_without_time_nothing_is_said() -> None:
    start = time.perf_counter()
    assert examine(following("ZPlus", separate), "ZPlus", seconds=0.0) == []
    assert time.perf_counter() - start < 30


def test_no_more_cases_are_asked_than_enough() -> None:
    subject, asked = following("ZPlus", separate), list[str]()
    cases = cases_of("ZPlus")
    outcomes = run(subject, cases, enough=200)

    def ask(case: Case) -> Any:
        asked.append(case.id)
        return asking(subject)(case)

    assert diagnose(outcomes, {case.id: case for case in cases}, ask, seconds=ENOUGH_TIME).diagnoses
    failing = {one.id for one in outcomes if one.verdict is Verdict.FAIL and one.level is Level.MUST}
    assert len(asked) <= len(set(asked)) + len(Level)  # one of each level twice: whether the answer is the same again
    assert len(failing & set(asked)) <= search.ENOUGH < len(failing)


def test_a_parameter_that_decides_is_not_taken_for_a_layer() -> None:
    """Seen with another number on other layers alone, a stabilizer that is right as a number looks ignored on these."""

    def callable_ignored(rule: Any, layer: Layer, R: Tensor) -> Tensor:
        given = rule.stabilizer
        stabilizer = given if isinstance(given, lrp_rules.Stabilizer) else 1e-6
        return lrp_rules.ZPlus(stabilizer, rule.zero_params).relevance(layer, R)

    wanted = {("linear-5-4", "stabilizer=callable"), ("conv2d-circular", "stabilizer=0.3"), ("conv2d-k1", "default")}
    cases = [case for case in cases_of("ZPlus") if tuple(case.id.split("/")[2:4]) in wanted]
    outcomes = [outcome(case, following("ZPlus", callable_ignored)) for case in cases]
    assert {one.id.split("/")[2] for one in outcomes if one.verdict is Verdict.FAIL} == {"linear-5-4"}
    assert examine(following("ZPlus", callable_ignored), "ZPlus", cases) == []

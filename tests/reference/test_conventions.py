"""Every known variant of a rule gives its own numbers: worked by hand, and never those of the rule or of another."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from reference import network_rules, rules
from reference.conventions import CONVENTIONS, Batch, Convention, Question, RefusedError, of_rule
from reference.layers import AvgPool, BatchNorm, Conv, ConvTranspose, Layer, Linear, MaxPool, affine
from reference.nonlinear import Elementwise, Softmax
from reference.operations import GroupNorm, LayerNorm, MatMul, Product
from reference.precision import model_for
from reference.rounding import CallableStabilizer
from reference.rules import Stabilizer
from reference.windows import Array

RULES = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
GRADIENT_RULES = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")
NETWORK_RULES: dict[str, tuple[Any, Any]] = {
    "Uniform": (network_rules.uniform, network_rules.COUNTED),
    "SignalTakesAll": (None, network_rules.COUNTED),
    "Bilinear": (network_rules.bilinear, Stabilizer(1e-6)),
    "Softmax": (network_rules.softmax, network_rules.UNDIVIDED),
    "Stop": (network_rules.stop, Stabilizer(1e-6)),
    "LayerNormRule": (network_rules.layer_norm, Stabilizer(1e-6)),
}
BARE = Stabilizer(0.0)


def _parts(rule: str, given: dict[str, Any], shape: tuple[int, ...], index: int) -> Any:
    def bound(name: str) -> Any:
        value = np.asarray(given[name], np.float64)
        value = value.reshape(*value.shape, *(1,) * (len(shape) - value.ndim)) if value.ndim else value
        return np.broadcast_to(value[: shape[0]] if value.ndim else value, shape)[index]

    return {
        "Epsilon": rules.epsilon,
        "Norm": rules.norm,
        "ZPlus": rules.zplus,
        "AlphaBeta": lambda layer: rules.alpha_beta(layer, given.get("alpha", 2.0), given.get("beta", 1.0)),
        "Gamma": lambda layer: rules.gamma(layer, given.get("gamma", 0.25)),
        "ZBox": lambda layer: rules.zbox(layer, bound("low"), bound("high")),
        "WSquare": rules.wsquare,
        "Flat": rules.flat,
        "SignalTakesAll": lambda layer: network_rules.signal_takes_all(layer, given["signal"]),
        **{name: parts for name, (parts, _) in NETWORK_RULES.items() if parts},
    }.get(rule)


def ask(rule: str, layer: Layer, x: Array, R: Array, stabilize: Any = BARE, **given: Any) -> list[Question]:
    """The questions of a batch: x and R hold one sample a row."""
    shape = (len(x), *layer.input_shape)
    zero = given.get("zero_params") or ()
    names = (zero,) if isinstance(zero, str) else tuple(zero)
    return [
        Question(
            rule, affine(layer, x_i, names), R_i, stabilize, given=given, index=i, batch=shape,
            parts_of=_parts(rule, given, shape, i),
        )
        for i, (x_i, R_i) in enumerate(zip(np.atleast_2d(x), np.atleast_2d(R), strict=True))
    ]  # fmt: skip


def _linear(w: list[float], b: float = 0.0) -> Linear:
    return Linear((len(w),), np.array([w]), np.array([b]))


#: name, rule, weights and bias of one output, x, R, stabilizer, parameters, relevance worked by hand.
WORKED: tuple[tuple[Any, ...], ...] = (
    # positive contributions 2 and 1: ZPlus gives 4 and 2
    ("separate-denominators", "ZPlus", [1.0, -1], 0.0, [2.0, -1], 6.0, BARE, {}, [6.0, 6]),
    ("half-denominator", "ZPlus", [1.0, -1], 0.0, [2.0, -1], 6.0, BARE, {}, [6.0, 3]),
    ("positive-inputs-only", "ZPlus", [1.0, -1], 0.0, [2.0, -1], 6.0, BARE, {}, [6.0, 0]),
    ("magnitudes", "ZPlus", [1.0, 1], 0.0, [2.0, -1], 6.0, BARE, {}, [4.0, 2]),
    ("output-clamped", "ZPlus", [1.0, 1], 1.0, [2.0, -1], 6.0, BARE, {}, [6.0, -3]),
    # what captum gives for R = z, as its users see it
    ("inputs-and-bias-unsplit", "ZPlus", [1.0, -1], 0.0, [-1.0, 2], -3.0, BARE, {}, [-3.0, 0]),
    ("inputs-and-bias-unsplit", "ZPlus", [1.0, -1], -1.0, [1.0, 1], -1.0, Stabilizer(1e-9), {}, [-1e9, 0]),
    ("inputs-unsplit", "ZPlus", [1.0, -1], -1.0, [1.0, 1], -1.0, BARE, {}, [-1.0, 0]),
    ("bias-dropped", "Epsilon", [1.0, 2], 3.0, [1.0, 1], 6.0, BARE, {}, [2.0, 4]),
    ("bias-doubled", "Epsilon", [1.0, 2], 3.0, [1.0, 1], 9.0, BARE, {}, [1.0, 2]),
    ("bias-unclamped", "ZPlus", [1.0, 2], -1.0, [1.0, 1], 6.0, BARE, {}, [3.0, 6]),
    ("bias-both-signs", "ZPlus", [1.0, 2], -3.0, [1.0, 1], 6.0, BARE, {}, [1.0, 2]),
    # halves 1 + 3 and -2 + 3, in place of 1 + 3 and -2
    ("bias-in-both-halves", "AlphaBeta", [1.0, -2], 3.0, [1.0, 1], 4.0, BARE, {}, [2.0, 8]),
    ("bias-halves-swapped", "AlphaBeta", [1.0, -2], 1.0, [1.0, 1], 2.0, BARE, {}, [4.0, -4]),
    ("beta-added", "AlphaBeta", [1.0, -2], 0.0, [1.0, 1], 2.0, BARE, {}, [4.0, 2]),
    ("alpha-beta-swapped", "AlphaBeta", [1.0, -2], 0.0, [1.0, 1], 2.0, BARE, {}, [2.0, -4]),
    ("one-denominator", "AlphaBeta", [3.0, -1], 0.0, [1.0, 1], 2.0, BARE, {}, [6.0, 1]),
    # z = -1: the branch below has 1 and -4 of -3, the one above 2 and -2 of 0, and with b = 1 both have one more
    ("gate-none", "Gamma", [1.0, -2], 0.5, [1.0, 1], 1.0, BARE, {"gamma": 1.0}, [2.0, -2]),
    ("gate-positive-only", "Gamma", [1.0, -2], 0.0, [1.0, 1], 3.0, BARE, {"gamma": 1.0}, [0.0, 0]),
    ("gate-relevance", "Gamma", [1.0, -2], 0.0, [1.0, 1], -3.0, BARE, {"gamma": 1.0}, [1.0, -4]),
    ("gate-zero-above", "Gamma", [1.0, -1], 0.0, [1.0, 1], 1.0, BARE, {"gamma": 1.0}, [2.0, -1]),
    ("bias-unscaled", "Gamma", [1.0, 0], 1.0, [1.0, 1], 3.0, BARE, {"gamma": 1.0}, [2.0, 0]),
    ("gamma-on-positive-weights-only", "Gamma", [1.0, -2], 0.0, [2.0, -1], 6.0, BARE, {"gamma": 1.0}, [4.0, 2]),
    ("gamma-squared-weight", "Gamma", [2.0, -1], 0.0, [1.0, 1], 5.0, BARE, {"gamma": 1.0}, [6.0, -1]),
    ("gamma-ignored", "Gamma", [4.0, -1], 0.0, [1.0, 1], 4.0, BARE, {"gamma": 9.0}, [5.0, -1]),
    # x - l and h - x would be 3 and 1
    ("bounds-swapped", "ZBox", [1.0, -1], 0.0, [1.0, 1], 4.0, BARE, {"low": -2.0, "high": 2.0}, [1.0, 3]),
    ("high-ignored", "ZBox", [1.0, -1], 0.0, [1.0, 1], 2.0, BARE, {"low": -2.0, "high": 2.0}, [3.0, -1]),
    ("bias-kept", "ZBox", [1.0, -1], 4.0, [1.0, 1], 8.0, BARE, {"low": -2.0, "high": 2.0}, [3.0, 1]),
    ("bias-dropped", "WSquare", [1.0, 2], 5.0, [1.0, 1], 5.0, BARE, {}, [1.0, 4]),
    ("weights-magnitude", "WSquare", [1.0, -2], 0.0, [1.0, 1], 3.0, BARE, {}, [1.0, 2]),
    ("bias-kept", "Flat", [7.0, 8], 2.0, [1.0, 1], 4.0, BARE, {}, [1.0, 1]),
    ("zero-weights-left-out", "Flat", [7.0, 0], 2.0, [1.0, 1], 4.0, BARE, {}, [4.0, 0]),
    ("epsilon-unsigned", "Epsilon", [1.0, -3], 0.0, [1.0, 1], 3.0, Stabilizer(1.0), {}, [-3.0, 9]),
    ("epsilon-subtracted", "Epsilon", [1.0, 3], 0.0, [1.0, 1], 3.0, Stabilizer(1.0), {}, [1.0, 3]),
    ("zero-negative", "Epsilon", [1.0, -1], 0.0, [1.0, 1], 3.0, Stabilizer(1.0), {}, [-3.0, 3]),
    ("epsilon-clip", "Epsilon", [1.0, 3], 0.0, [1.0, 1], 4.0, Stabilizer(1.0), {}, [1.0, 3]),
    ("relevance-ignored", "Norm", [1.0, 3], 0.0, [1.0, 1], 100.0, BARE, {}, [1.0, 3]),
    ("relevance-output", "Norm", [1.0, 3], 0.0, [1.0, 1], 5.0, BARE, {}, [5.0, 15]),
    ("gradient-times-input", "Epsilon", [1.0, 3], 0.0, [2.0, 1], 5.0, BARE, {}, [10.0, 15]),
    ("gradient", "ZPlus", [1.0, -3], 0.0, [2.0, 1], 5.0, BARE, {}, [5.0, -15]),
    ("bias-shared", "Epsilon", [1.0, 2], 3.0, [1.0, 1], 6.0, BARE, {}, [2.5, 3.5]),
    # A x = 3 and b = -3 share R, and what is left flows through 1 + 2
    ("bias-by-magnitude", "Epsilon", [1.0, 2], -3.0, [1.0, 1], 6.0, BARE, {}, [1.0, 2]),
    # positive contributions 2 and 1, each with the bias 1
    ("separate-denominators-with-bias", "ZPlus", [1.0, -1], 1.0, [2.0, -1], 6.0, BARE, {}, [4.0, 3]),
    ("gamma-on-all-weights", "Gamma", [1.0, -2], -1.0, [1.0, 1], 3.0, BARE, {"gamma": 1.0}, [-2.0, 4]),
    ("gamma-on-all-weights", "Gamma", [2.0, -1], 0.0, [1.0, 1], 8.0, BARE, {"gamma": 1.0}, [8.0, 0]),
    ("gamma-small-ignored", "Gamma", [1.0, -1], 0.0, [1.0, 1], 1.0, Stabilizer(1.0), {"gamma": 0.0}, [1.0, -1]),
    ("zero-dropped", "Epsilon", [1.0, -1], 0.0, [1.0, 1], 3.0, Stabilizer(1.0), {}, [0.0, 0]),
    ("unstabilized", "WSquare", [1.0, -1], 0.0, [1.0, 1], 3.0, Stabilizer(1.0), {}, [1.5, 1.5]),
)


@pytest.mark.parametrize(
    ("name", "rule", "w", "b", "x", "R", "stabilize", "given", "expected"),
    WORKED,
    ids=[f"{row[1]}-{row[0]}-{i}" for i, row in enumerate(WORKED)],
)
def test_numbers_worked_by_hand(
    name: str, rule: str, w: list[float], b: float, x: list[float], R: float, stabilize: Any, given: Any, expected: Any
) -> None:
    batch = ask(rule, _linear(w, b), np.array([x]), np.array([[R]]), stabilize, **given)
    answers = [one.form(batch)[0].relevance for one in of_rule(rule) if one.name == name]
    assert any(np.allclose(answer, expected, rtol=1e-12, atol=0) for answer in answers), answers


# --- the whole table --------------------------------------------------------------------------------------------------


def test_the_table_names_what_it_knows() -> None:
    assert len({one.name for one in CONVENTIONS}) >= 25
    for one in CONVENTIONS:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.name), one.name
        assert one.rules
        assert set(one.rules) <= {*RULES, *GRADIENT_RULES, *NETWORK_RULES}
        assert one.sentence
        assert not one.sentence.endswith(".")


def _random(shape: tuple[int, ...], seed: int, *, integers: bool = False) -> Array:
    source = np.random.default_rng(seed)
    return source.integers(-2, 3, shape).astype(np.float64) if integers else source.standard_normal(shape)


def _layers(*, integers: bool) -> Iterator[Layer]:
    def random(*shape: int) -> Array:
        return _random(shape, 7 * len(shape) + sum(shape), integers=integers)

    yield Linear((5,), random(4, 5), random(4))
    yield Conv((2, 5), random(3, 2, 3), random(3), (1,), (1,), (1,))
    yield Conv((2, 3), random(2, 2, 3), random(2), (1,), (2,), (1,), padding_mode="replicate")
    yield Conv((4, 4), random(4, 2, 2), random(4), (1,), (0,), (1,), groups=2)
    yield BatchNorm((3, 2), random(3), random(3), random(3), random(3) ** 2 + 1, 1e-5)
    yield AvgPool((2, 6), (2,), (2,), (0,))
    yield MaxPool((2, 6), (2,), (2,), (0,), (1,))
    yield MaxPool((2, 6), (2,), (1,), (0,), (1,))
    yield ConvTranspose((2, 3), random(2, 2, 3), random(2), (2,), (1,), (1,), (1,))


#: Rules for networks that divide by what they stabilize.
WEIGHED = ("Bilinear", "LayerNormRule")
UNSIGNED = CallableStabilizer(lambda d: np.sqrt(d * d + 4.0))


def _settings(rule: str) -> Iterator[dict[str, Any]]:
    box: dict[str, Any] = {"low": -3.3, "high": 2.2} if rule == "ZBox" else {}
    yield {**box, "stabilize": Stabilizer(1e-6)}
    for stabilize in (Stabilizer(0.3), UNSIGNED):
        yield {**box, "stabilize": stabilize, "stabilizer": stabilize}
    for zero in ("bias", ["bias"], "bias_weight"):
        yield {**box, "zero_params": zero}
    if rule == "Gamma":
        yield from ({"gamma": 2.0}, {"gamma": 0.0})
    if rule == "AlphaBeta":
        yield from ({"alpha": 1.0, "beta": 0.0}, {"alpha": 4.0, "beta": 3.0})


def _networks(rule: str, *, integers: bool) -> Iterator[tuple[Layer, dict[str, Any]]]:
    """What the rules for networks are tried on, with their arguments."""

    def random(*shape: int) -> Array:
        return _random(shape, 7 * len(shape) + sum(shape), integers=integers)

    def product(*shapes: tuple[int, ...], constants: tuple[Array | None, ...] = ()) -> Product:
        given = constants or (None,) * len(shapes)
        count = sum(int(np.prod(shape)) for shape, constant in zip(shapes, given, strict=True) if constant is None)
        return Product((count,), shapes, given)

    if rule in {"Uniform", "SignalTakesAll", "Bilinear"}:
        layers: list[Layer] = [
            product((2, 3), (1, 3)),
            product((2, 3), (2, 1), (2, 3)),
            product((2, 3), (2, 3), constants=(None, random(2, 3) + 2)),
        ]
        if rule == "Bilinear":
            layers.append(MatMul((18,), ((2, 3), (3, 4)), (None, None)))
        for layer in layers:
            yield layer, {"signal": 0} if rule == "SignalTakesAll" else {}
    elif rule in {"Softmax", "Stop"}:
        yield Softmax((2, 3), axis=0), {}
        yield Softmax((2, 3), axis=-1), {}
    else:
        for zero in ("", "bias", "weight"):
            yield LayerNorm((3, 4), random(4) + 3, random(4), 0.5, axes=1), {"zero_params": zero}
        yield GroupNorm((4, 3), random(4) + 3, random(4) + 1, 1e-3, num_groups=2), {}


def _network_panel(rule: str) -> Iterator[Batch]:
    stabilizers: tuple[Any, ...] = (Stabilizer(1e-6), Stabilizer(0.3), UNSIGNED)
    for integers in (False, True):
        for layer, given in _networks(rule, integers=integers):
            n, m = int(np.prod(layer.input_shape)), int(np.prod(layer.output_shape))
            x, R = _random((2, n), 3, integers=integers), _random((2, m), 4)
            R[0, 1], R[0, -1], R[1, 0] = 250.0, 0.0, 5e-4
            for stabilize in stabilizers if rule in WEIGHED else (NETWORK_RULES[rule][1],):
                named = {} if stabilize == Stabilizer(1e-6) else {"stabilizer": stabilize}
                yield ask(rule, layer, x, R, stabilize, **given, **named)
    if rule == "Bilinear":  # 1 - 1 = 0
        layer = MatMul((4,), ((1, 2), (2, 1)), (None, None))
        yield ask(rule, layer, np.array([[1.0, 1, 1, -1], [2, 1, 1, 3]]), np.array([[3.0], [1]]), Stabilizer(0.3))


def _of_arguments(rule: str) -> Iterator[Batch]:
    """What is asked of one rule alone."""
    if rule == "Gamma":  # 1 - 1 = 0
        x, R = np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([[3.0], [1.0]])
        yield ask(rule, _linear([1.0, -1.0]), x, R, Stabilizer(1e-6), gamma=0.0)
    if rule == "ZBox":
        layer = Conv((2, 5), _random((3, 2, 3), 5), None, (1,), (1,), (1,))
        x, R = _random((2, 10), 6), _random((2, 15), 7)
        channels, samples = np.array([[[-3.0], [-4.0]]]), np.arange(1.0, 3.0)
        longer = np.arange(1.0, 41.0).reshape(4, 2, 5)
        for low, high in ((channels, -channels), (-samples, samples), (-longer, longer)):
            yield ask(rule, layer, x, R, Stabilizer(1e-6), low=low, high=high)


@cache
def panel(rule: str) -> tuple[Batch, ...]:
    """What every variant of a rule is tried on: two samples each, relevance of all sizes, exact zeros among them."""
    batches: list[Batch] = []
    if rule in NETWORK_RULES:
        return tuple(_network_panel(rule))
    for integers in (False, True):
        if rule in GRADIENT_RULES:
            for function in ("relu", "tanh"):
                x, R = _random((2, 6), 1, integers=integers), _random((2, 6), 2)
                R[0, 1], R[1, 2], R[1, 3] = 250.0, 5e-4, 2e4
                batches.append(ask(rule, Elementwise((6,), function), x, R))
            continue
        for layer in _layers(integers=integers):
            n, m = int(np.prod(layer.input_shape)), int(np.prod(layer.output_shape))
            x, R = _random((2, n), 3, integers=integers), _random((2, m), 4)
            R[0, 1], R[0, -1], R[1, 0], R[1, 1], R[1, 2] = 250.0, 0.0, 5e-4, 2e5, 0.0
            if isinstance(layer, MaxPool) and rule not in {"Epsilon", "Norm"}:
                continue
            # parameters of the rule are varied on one layer
            for given in list(_settings(rule))[: None if isinstance(layer, Linear) else 2]:
                stabilize = given.get("stabilize", Stabilizer(1e-6))
                rest = {name: value for name, value in given.items() if name != "stabilize"}
                batches.append(ask(rule, layer, x, R, stabilize, **rest))
    return (*batches, *_of_arguments(rule))


#: Stands for an error in the place of an answer.
REFUSED = -1e99


@cache
def _all(convention: Convention, rule: str) -> Array:
    """All that a variant answers to the panel, in a row."""
    found: list[Array] = []
    with np.errstate(all="ignore"):
        for batch in panel(rule):
            try:
                found += [answer.relevance for answer in convention.form(batch)]
            except RefusedError:
                found += [np.full_like(question.x, REFUSED) for question in batch]
    return np.concatenate(found)


def _same(first: Array, second: Array) -> bool:
    return np.allclose(first, second, rtol=1e-9, atol=1e-12, equal_nan=True)


@cache
def _itself(rule: str) -> Array:
    return np.concatenate([question.answer().relevance for batch in panel(rule) for question in batch])


#: Variants that differ from the rule by rounding alone.
ROUNDED = ("float32", "half-result")
OTHERS = [one for one in CONVENTIONS if one.name not in ROUNDED]


@pytest.mark.parametrize("convention", OTHERS, ids=[f"{i}-{one.name}" for i, one in enumerate(OTHERS)])
def test_a_variant_is_not_the_rule_itself(convention: Convention) -> None:
    assert any(not _same(_all(convention, rule), _itself(rule)) for rule in convention.rules)


@pytest.mark.parametrize(("name", "dtype", "digits"), [("float32", "float64", 24), ("half-result", "float32", 8)])
def test_a_coarser_result_has_fewer_digits_and_more_room(name: str, dtype: str, digits: int) -> None:
    batch = [replace(question, model=model_for(dtype)) for question in panel("Epsilon")[0]]
    rounded = next(one for one in of_rule("Epsilon") if one.name == name).form(batch)[0]
    assert rounded.digits == digits
    assert rounded.worst.max() > batch[0].answer().worst.max()
    other = [
        replace(question, model=model_for({"float64": "float32", "float32": "float64"}[dtype])) for question in batch
    ]
    assert next(one for one in of_rule("Epsilon") if one.name == name).form(other)[0].digits is None


#: The denominators of Flat are 0, or counts and means above any epsilon in use.
ONE = {("Flat", *pair) for pair in combinations(("epsilon-clip", "epsilon-only-at-zero", "zero-dropped"), 2)}

#: What leaves all denominators but those of exactly 0 as they are, or nearly so.
TINY = {"stabilizer-ignored", "stabilizer-default", "unstabilized", "zero-dropped"}


@pytest.mark.parametrize("rule", [*RULES, *GRADIENT_RULES, *NETWORK_RULES])
def test_no_two_names_stand_for_the_same_numbers(rule: str) -> None:
    known = [(one.name, _all(one, rule)) for one in of_rule(rule)]
    known = [(name, r) for name, r in known if not _same(r, _itself(rule))]
    for (first, a), (second, b) in combinations(known, 2):
        if first == second or (rule, first, second) in ONE or {first, second} <= TINY:
            continue
        assert not _same(a, b), f"{first} and {second} are the same for {rule}"


@pytest.mark.parametrize("rule", [*RULES, *NETWORK_RULES])
def test_without_a_second_half_or_a_sample_nothing_breaks(rule: str) -> None:
    for batch in panel(rule)[:2]:
        for convention in of_rule(rule):
            with np.errstate(all="ignore"):
                answers = convention.form(batch[:1])
            assert len(answers) == 1
            assert answers[0].relevance.shape == answers[0].worst.shape == batch[0].x.shape


def test_a_bound_is_that_of_the_variant() -> None:
    """Where the variant has no bias, its denominator 1 - 1 cancels: that is undecided, and not for the rule."""
    layer = _linear([0.1, -0.1], 5.0)
    batch = ask("Epsilon", layer, np.array([[1.0, 1.0 + 1e-16]]), np.array([[1.0]]), Stabilizer(1e-6))
    dropped = next(one for one in of_rule("Epsilon") if one.name == "bias-dropped")
    assert np.isfinite(batch[0].answer().worst).all()
    assert np.isinf(dropped.form(batch)[0].worst).all()


def test_a_relevance_that_is_off_carries_its_error() -> None:
    batch = ask("Epsilon", _linear([1.0, 3.0]), np.array([[1.0, 1.0]]), np.array([[8.0]]))
    exact, off = batch[0].answer(), batch[0].inexact(batch[0].R, np.array([0.4]))
    assert (off.worst - exact.worst >= 0.4 / 4 * np.array([1.0, 3.0])).all()
    moved = replace(batch[0], R=batch[0].R + 0.4).answer().relevance
    assert (np.abs(moved - exact.relevance) <= off.worst).all()

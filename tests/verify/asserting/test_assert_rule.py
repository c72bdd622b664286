"""assert_rule: correct formulas hold, without a tolerance; mistakes are told by where they are and what they give."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lrp_rules
from lrp_rules.layers.layer import Layer
from verify import assert_rule
from verify.asserting.cases import _CONDUCT, _TOPICS

#: For tests of what is said, not of how far the grid goes.
SMALL: dict[str, Any] = {"layers": ["linear-5-4"], "conduct": [], "laws": []}


def positive(v: Any) -> Any:
    return np.maximum(v, 0)


def negative(v: Any) -> Any:
    return np.minimum(v, 0)


def stabilized(d: Any) -> Any:
    return d + 1e-6 * np.where(d < 0, -1, 1)


def epsilon(A: Any, x: Any, b: Any, R: Any) -> Any:
    return x * (A.T @ (R / stabilized(A @ x + b)))


def half(first: Any, second: Any, x: Any, b: Any, R: Any) -> Any:
    s = R / stabilized(first @ positive(x) + second @ negative(x) + b)
    return positive(x) * (first.T @ s) + negative(x) * (second.T @ s)


def zplus(A: Any, x: Any, b: Any, R: Any) -> Any:
    return half(A.of(positive), A.of(negative), x, positive(b), R)


def alpha_beta(A: Any, x: Any, b: Any, R: Any) -> Any:
    plus, minus = A.of(positive), A.of(negative)
    return 2 * half(plus, minus, x, positive(b), R) - half(minus, plus, x, negative(b), R)


def wsquare(A: Any, x: Any, b: Any, R: Any) -> Any:
    square = A.of(np.square)
    return square.T @ (R / stabilized(square.sum(axis=1) + b**2))


def one_by_one(A: Any, x: Any, b: Any, R: Any) -> Any:
    """Epsilon in loops, without any of the functions of NumPy."""
    r = [0.0] * len(x)
    for row, constant, relevance in zip(A, b, R, strict=True):
        d = sum(w * v for w, v in zip(row, x, strict=True)) + constant
        s = relevance / (d - 1e-6 if d < 0 else d + 1e-6)
        r = [total + w * v * s for total, w, v in zip(r, row, x, strict=True)]
    return r


@pytest.mark.parametrize(
    ("rule", "formula"),
    [
        (lrp_rules.Epsilon, epsilon),
        (lrp_rules.ZPlus, zplus),
        (lrp_rules.AlphaBeta, alpha_beta),
        (lrp_rules.WSquare, wsquare),
    ],
)
def test_our_own_rules_follow_their_formulas(rule: type, formula: Callable[..., Any]) -> None:
    assert_rule(rule, formula)


def test_a_formula_may_be_loops() -> None:
    assert_rule(lrp_rules.Epsilon, one_by_one, **SMALL)


# --- mistakes ---------------------------------------------------------------------------------------------------------


class Mistaken(lrp_rules.ZPlus):
    """ZPlus, but for what a subclass changes."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return self.changed(super().relevance(layer, R))

    def changed(self, r: Tensor) -> Tensor:
        return r


class NoBias(lrp_rules.ZPlus):
    def __init__(self) -> None:
        super().__init__(zero_params="bias")


class InFloat32(lrp_rules.ZPlus):
    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R.float().to(R.dtype))


class WrongShape(Mistaken):
    def changed(self, r: Tensor) -> Tensor:
        return r.flatten()


class NaN(Mistaken):
    def changed(self, r: Tensor) -> Tensor:
        return r.masked_fill(r == r.max(), torch.nan)


class SamplesMixed(Mistaken):
    def changed(self, r: Tensor) -> Tensor:
        return r - r.mean(0, keepdim=True) * 1e-3


class Clipped(Mistaken):
    def changed(self, r: Tensor) -> Tensor:
        return r.clamp(-1, 1)


@pytest.mark.parametrize(
    ("rule", "kinds", "cases"),
    [
        (NoBias, ["signed"], ["signed/float64", "signed/float32"]),
        (InFloat32, ["signed"], ["signed/float64"]),
        (SamplesMixed, ["signed", "batch-of-1"], ["signed/float64", "signed/float32", "batch-of-1/float64"]),
        (NaN, ["signed"], ["signed/float64", "signed/float32"]),
        (WrongShape, ["signed"], ["signed/float64", "signed/float32"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_mistake_is_told(rule: type, kinds: list[str], cases: list[str]) -> None:
    with pytest.raises(AssertionError) as told:
        assert_rule(rule, zplus, kinds=kinds, **SMALL)
    text = str(told.value)
    assert f"{rule.__name__} failed " in text
    for case in cases:
        assert f"agreement/linear-5-4/{case}: " in text
    first = text.splitlines()[-1]
    assert first == f'Reproduce: assert_rule({rule.__name__}, formula, only="agreement/linear-5-4/{cases[0]}")'


@pytest.mark.parametrize(
    "stabilizer",
    [
        pytest.param(lambda d: torch.where(d == 0, -1e-6, d + 1e-6 * d.sign()), id="-1"),
        pytest.param(lambda d: d + 1e-6 * d.sign(), id="0"),
    ],
)
def test_the_sign_of_zero_is_seen_where_outputs_cancel(stabilizer: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError) as told:
        assert_rule(lambda: lrp_rules.Epsilon(stabilizer), epsilon, layers=["Linear"], laws=[], conduct=[])
    text = str(told.value)
    assert "agreement/linear-3d-input/zeros/float64: failed: " in text
    assert "agreement/linear-3d-input/zeros/float32: failed: " in text
    assert "/signed/" not in text


def test_the_account_in_full() -> None:
    with pytest.raises(AssertionError) as told:
        assert_rule(NoBias, zplus, only="agreement/linear-5-4/signed/float64", seed=2)
    said, table, where, again = str(told.value).splitlines()
    assert said == "NoBias failed 1 of 1 cases"
    assert table == "  agreement: 1 of 1  Linear"
    for word in ("linear-5-4", "sample ", "entry ", "got ", "expected ", " times the bound "):
        assert word in where
    assert again.endswith('only="agreement/linear-5-4/signed/float64", seed=2)')


def test_what_is_no_relevance_is_named() -> None:
    with pytest.raises(AssertionError, match=r"relevance of shape|invalid shape|returned an invalid gradient"):
        assert_rule(WrongShape, zplus, kinds=["signed"], **SMALL)


def test_laws_are_asked_beside_the_formula() -> None:
    def clipped(A: Any, x: Any, b: Any, R: Any) -> Any:
        return np.clip(zplus(A, x, b, R), -1, 1)

    chosen = SMALL | {"laws": ["*"]}
    with pytest.raises(AssertionError, match=r"laws/additive/linear-5-4/float64"):
        assert_rule(Clipped, clipped, **chosen)
    assert_rule(Clipped, clipped, **chosen | {"laws": ["sample-alone", "permuted-*"]})


def test_conduct_is_asked_too() -> None:
    class Writes(lrp_rules.Epsilon):
        def register(self, module: torch.nn.Module) -> Any:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0)
            return super().register(module)

    with pytest.raises(AssertionError, match=r"conduct/parameters: failed: registered: \w+ was written in place"):
        assert_rule(Writes, epsilon, **SMALL | {"conduct": ["parameters"]})


def test_every_topic_of_conduct_is_there() -> None:
    assert {topic.what for topic in _TOPICS} == set(_CONDUCT)
    assert all("Epsilon" in topic.rules for topic in _TOPICS)


# --- the formula ------------------------------------------------------------------------------------------------------


def without_a_stabilizer(A: Any, x: Any, b: Any, R: Any) -> Any:
    return x * (A.T @ (R / (A @ x + b)))


def test_a_formula_that_is_not_finite_everywhere_needs_its_kinds_of_data() -> None:
    def rule() -> Any:
        return lrp_rules.Epsilon(0.0)

    assert_rule(rule, without_a_stabilizer, kinds=["signed"], conduct=[])
    # a rule is not to blame for what its formula leaves open, but a test in which nothing can fail is none
    options: dict[str, Any] = {"layers": ["linear-7-3-nobias"], "laws": [], "conduct": []}
    assert_rule(rule, without_a_stabilizer, kinds=["signed", "zeros"], **options)
    with pytest.raises(ValueError, match=r"rule was not tested: in agreement/linear-7-3-nobias/zeros/"):
        assert_rule(rule, lambda A, x, b, R: x * (A.T @ (R / (b * 0))), kinds=["zeros"], **options)


@pytest.mark.parametrize(
    ("formula", "error", "says"),
    [
        (lambda A, x, b, R: x[:1], ValueError, r"the formula returns shape \(1,\), expected .* \(5,\)"),
        (lambda A, x, b, R: np.exp(x), TypeError, "exp"),
        (lambda A, x, b, R: undefined, NameError, "undefined"),  # type: ignore[name-defined]  # noqa: F821
        (lambda A, x, b, R: A.of(lambda w: w[0]), ValueError, "a change of the weight gives shape"),
    ],
    ids=["shape", "function", "name", "change"],
)
def test_a_mistake_in_the_formula_is_not_told_of_the_rule(
    formula: Callable[..., Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        assert_rule(lrp_rules.Epsilon, formula, **SMALL)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": ["LSTM"]}, r"no case fits .*layers=\['LSTM'\]"),
        ({"dtypes": ["float16"]}, "dtypes has float16; expected float64 or float32"),
        ({"only": "agreement"}, "no case fits only='agreement'"),
    ],
    ids=["layers", "dtypes", "only"],
)
def test_what_selects_nothing_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        assert_rule(lrp_rules.Epsilon, epsilon, **options)


# --- the package ------------------------------------------------------------------------------------------------------


def test_it_is_there_without_torch_until_it_is_asked_for() -> None:
    program = (
        "import sys, verify; assert 'torch' not in sys.modules; import verify.asserting; "
        "from verify import assert_rule; assert callable(assert_rule); assert not hasattr(verify, 'no_such_name')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with torch.no_grad():
        assert_rule(lrp_rules.Epsilon, epsilon, kinds=["signed"], **SMALL)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(1), expected)

"""Bad input, row by row: which exception, and that its message names the value."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Hook,
    Norm,
    ReLUBetaSmooth,
    WSquare,
    ZBox,
    ZPlus,
)
from tests.lrp_rules.cases import (
    relevance,
)

if TYPE_CHECKING:
    from collections.abc import Callable


STABILIZED: dict[str, Callable[[Any], Hook]] = {
    "Epsilon": Epsilon,
    "Norm": Norm,
    "ZPlus": ZPlus,
    "AlphaBeta": lambda s: AlphaBeta(stabilizer=s),
    "Gamma": lambda s: Gamma(stabilizer=s),
    "ZBox": lambda s: ZBox(-1, 1, stabilizer=s),
    "WSquare": WSquare,
    "Flat": Flat,
    "BasicHook": lambda s: BasicHook(stabilizer=s),
}


@pytest.mark.parametrize("rule", STABILIZED)
@pytest.mark.parametrize("value", [None, "1e-6", [1e-6], 1j, object], ids=["None", "str", "list", "complex", "a-class"])
def test_stabilizer_that_is_neither_number_nor_callable(rule: str, value: Any) -> None:
    if isinstance(value, type):
        STABILIZED[rule](value)  # classes are callable
        return
    with pytest.raises(TypeError) as error:
        STABILIZED[rule](value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("rule", STABILIZED)
@pytest.mark.parametrize("value", [-1e-6, -1, math.nan, math.inf, -math.inf])
def test_stabilizer_that_is_negative_or_not_finite(rule: str, value: float) -> None:
    with pytest.raises(ValueError, match="epsilon") as error:
        STABILIZED[rule](value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("rule", STABILIZED)
@pytest.mark.parametrize("value", [0, 0.0, -0.0, 1, 1e-300, np.float64(0.5), np.float32(0.5)], ids=repr)
def test_stabilizer_that_is_any_number(rule: str, value: float) -> None:
    x = torch.ones(2, 3)
    relevance(STABILIZED[rule](value), nn.Linear(3, 3), x, x)


def test_stabilizer_that_is_a_fraction() -> None:
    x = torch.ones(2, 3)
    relevance(Epsilon(Fraction(1, 2)), nn.Linear(3, 3), x, x)  # type: ignore[arg-type]


WRONG_PAIRS = [
    (2, 2),
    (1, 1),
    (1, -0.0001),
    (0, -1),
    (-1, -2),
    (0.5, 0.5),
    (1, 2),
    (1 + 1e-9, 0),
    (2, 1 + 1e-12),
    (3, 1),
]


@pytest.mark.parametrize(("alpha", "beta"), WRONG_PAIRS)
def test_alpha_and_beta_that_do_not_fit(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match=r"alpha|beta") as error:
        AlphaBeta(alpha, beta)
    assert repr(alpha) in str(error.value) or repr(beta) in str(error.value)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(math.nan, 1), (2, math.nan), (math.inf, 1), (math.inf, math.inf), (1, math.inf)]
)
def test_alpha_or_beta_not_finite(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match="finite") as error:
        AlphaBeta(alpha, beta)
    assert "nan" in str(error.value) or "inf" in str(error.value)


DECIMALS = [(1.4, 0.4), (2.2, 1.2), (2.3, 1.3), (1.15, 0.15), (1, 0), (1.0, -0.0), (2, 1), (1e3 + 1.1, 1e3 + 0.1)]


@pytest.mark.parametrize(("alpha", "beta"), DECIMALS)
def test_alpha_and_beta_that_fit_but_for_rounding(alpha: float, beta: float) -> None:
    AlphaBeta(alpha, beta)


def test_all_decimals_of_two_digits_fit() -> None:
    for hundredths in range(1000):
        AlphaBeta(float(f"{1 + hundredths // 100}.{hundredths % 100:02}"), hundredths / 100)


@pytest.mark.parametrize("gamma", [-0.25, math.nan, math.inf, -math.inf])
def test_gamma_negative_or_not_finite(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma") as error:
        Gamma(gamma)
    assert repr(gamma) in str(error.value)


@pytest.mark.parametrize("beta_smooth", [0, 0.0, -10, math.nan, math.inf])
def test_beta_smooth_not_positive_or_not_finite(beta_smooth: float) -> None:
    with pytest.raises(ValueError, match="beta_smooth") as error:
        ReLUBetaSmooth(beta_smooth)
    assert repr(beta_smooth) in str(error.value)


LOW_ABOVE_HIGH: dict[str, tuple[Tensor | float, Tensor | float]] = {
    "numbers": (1, -1),
    "somewhere": (torch.tensor([[0.0, 2, 0]]), torch.ones(1, 3)),
    "tensor-and-number": (torch.tensor([[0.0, 2, 0]]), 1.0),
    "shapes-differ": (torch.tensor([[0.0, 2, 0]]), torch.ones(2, 3)),
}


@pytest.mark.parametrize("bounds", LOW_ABOVE_HIGH)
def test_low_above_high(bounds: str) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="low is above high"):
        relevance(ZBox(*LOW_ABOVE_HIGH[bounds]), nn.Linear(3, 2), x, torch.ones(2, 2))


def test_low_equal_to_high_is_legal() -> None:
    relevance(ZBox(1, 1), nn.Linear(3, 2), torch.zeros(2, 3), torch.ones(2, 2))


@pytest.mark.parametrize(
    "bad",
    [
        3,
        [3],
        ["bias", None],
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", [Epsilon, ZPlus, AlphaBeta, Gamma, WSquare, Flat])
def test_zero_params_that_are_no_names(rule: Callable[..., Hook], bad: Any) -> None:
    with pytest.raises(TypeError) as error:
        rule(zero_params=bad)
    assert "3" in str(error.value) or "None" in str(error.value)

"""The rules: their API and their numbers."""

from __future__ import annotations

import inspect
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrp_rules
from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Hook,
    Norm,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    Stabilizer,
    WSquare,
    ZBox,
    ZPlus,
)
from tests.lrp_rules.cases import (
    CASES,
    FORMULAS,
    KNOWN,
    Case,
    Dense,
    Square,
    TracedLinear,
    down,
    integers,
    output_of,
    power_of_two,
    relevance,
    up,
)

if TYPE_CHECKING:
    from collections.abc import Callable

each_rule = pytest.mark.parametrize("rule", FORMULAS)
each_layer = pytest.mark.parametrize("layer", CASES)


REQUIRED = inspect.Parameter.empty
API: dict[type, list[tuple[str, Any]]] = {
    Epsilon: [("epsilon", 1e-6), ("zero_params", None)],
    Gamma: [("gamma", 0.25), ("stabilizer", 1e-6), ("zero_params", None)],
    ZPlus: [("stabilizer", 1e-6), ("zero_params", None)],
    AlphaBeta: [("alpha", 2.0), ("beta", 1.0), ("stabilizer", 1e-6), ("zero_params", None)],
    ZBox: [("low", REQUIRED), ("high", REQUIRED), ("stabilizer", 1e-6), ("zero_params", None)],
    Norm: [("stabilizer", 1e-6)],
    WSquare: [("stabilizer", 1e-6), ("zero_params", None)],
    Flat: [("stabilizer", 1e-6), ("zero_params", None)],
    Pass: [],
    ReLUDeconvNet: [],
    ReLUGuidedBackprop: [],
    ReLUBetaSmooth: [("beta_smooth", 10.0)],
    Stabilizer: [("epsilon", 1e-6), ("clip", False), ("norm_scale", False), ("dim", None)],
    BasicHook: [
        ("input_modifiers", None), ("param_modifiers", None), ("output_modifiers", None),
        ("gradient_mapper", None), ("reducer", None), ("stabilizer", 1e-6),
    ],
}  # fmt: skip


@pytest.mark.parametrize("cls", API, ids=lambda cls: cls.__name__)
def test_names_order_and_defaults_of_parameters(cls: type) -> None:
    parameters = inspect.signature(cls).parameters.values()
    assert [(p.name, p.default) for p in parameters] == API[cls]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


@pytest.mark.parametrize("cls", [c for c in API if c is not Stabilizer], ids=lambda cls: cls.__name__)
def test_bases(cls: type) -> None:
    gradients_only = {Pass, ReLUDeconvNet, ReLUGuidedBackprop, ReLUBetaSmooth}
    assert issubclass(cls, Hook)
    assert issubclass(cls, BasicHook) is (cls not in gradients_only)


def test_all_public_names_exist() -> None:
    assert {name for name in lrp_rules.__all__ if not hasattr(lrp_rules, name)} == set()
    assert {cls.__name__ for cls in API} | {"ParamMod", "ClampMod", "GammaMod", "NoMod", "zero_bias", "Hook"} <= set(
        lrp_rules.__all__
    )


@pytest.mark.parametrize("cls", [c for c in API if c is not Stabilizer], ids=lambda cls: cls.__name__)
def test_copy_is_another_object_with_the_same_arguments(cls: type[Hook]) -> None:
    hook = cls(-1, 2) if cls is ZBox else cls()
    twin = hook.copy()
    assert type(twin) is cls
    assert twin is not hook
    assert vars(twin) == vars(hook)


@each_rule
@each_layer
def test_rule_is_its_formula_bit_by_bit(rule: str, layer: str) -> None:
    make, formula = FORMULAS[rule]
    case = CASES[layer]
    module, x = case.module(), case.input()
    # the small addition would be lost in any narrower type
    R = integers(output_of(module, x).shape, seed=2) + 2.0**-30
    assert torch.equal(relevance(make(), module, x, R), formula(Dense(module, x, R)))


@pytest.mark.parametrize("sign", [1, -1], ids=["inputs>=0", "inputs<=0"])
@each_rule
def test_inputs_of_one_sign(rule: str, sign: int) -> None:
    make, formula = FORMULAS[rule]
    module, x = KNOWN["conv2d-circular"].module(), sign * KNOWN["conv2d-circular"].input().abs()
    R = integers(output_of(module, x).shape, seed=2)
    assert torch.equal(relevance(make(), module, x, R), formula(Dense(module, x, R)))


@each_rule
@pytest.mark.parametrize("layer", ["linear", "conv2d-asymmetric", "transposed1d", "batchnorm1d"])
def test_rules_act_where_the_output_is_exactly_zero(rule: str, layer: str) -> None:
    # a dead unit: its row of weights and its bias are zero, and so is its output
    make, formula = FORMULAS[rule]
    module, x = KNOWN[layer].module(), KNOWN[layer].input()
    with torch.no_grad():
        assert isinstance(module.weight, Tensor)
        assert isinstance(module.bias, Tensor)
        row = module.weight[:, 0] if layer == "transposed1d" else module.weight[0]
        row.zero_()
        module.bias[0] = 0
    R = integers(output_of(module, x).shape, seed=2)
    oracle = Dense(module, x, R)
    assert bool((output_of(module, x) == 0).any())
    assert torch.equal(relevance(make(), module, x, R), formula(oracle))


ZEROED = ["bias", "weight", ["bias"], ["weight", "bias"], ("nonsense", "bias"), "bia", []]


@pytest.mark.parametrize("names", ZEROED, ids=str)
@pytest.mark.parametrize("layer", ["linear", "conv2d-circular", "transposed1d", "traced-linear"])
@pytest.mark.parametrize("rule", [name for name in FORMULAS if name != "Norm" and "Gamma" not in name])
def test_zero_params_are_zero_before_the_change(rule: str, layer: str, names: Any) -> None:
    make, formula = FORMULAS[rule]
    module, x = CASES[layer].module(), CASES[layer].input()
    R = integers(output_of(module, x).shape, seed=2)
    got = relevance(make(zero_params=names), module, x, R)
    with torch.no_grad():
        for name in [names] if isinstance(names, str) else names:
            parameter = getattr(module, name, None)
            if isinstance(parameter, Tensor):
                parameter.zero_()
    assert torch.equal(got, formula(Dense(module, x, R)))


@pytest.mark.parametrize("gamma", [0, 0.25, 1, 4])
@pytest.mark.parametrize("names", ["bias", "weight", ["weight", "bias"]], ids=str)
@pytest.mark.parametrize("cls", [nn.Linear, TracedLinear])
def test_gate_of_gamma_knows_no_zero_params(cls: type[nn.Linear], names: str | list[str], gamma: float) -> None:
    case = Case(lambda: cls(5, 6), (5,))
    module, x, R = case.module(), case.input(), integers((3, 6), seed=2)
    z = output_of(module, x)
    got = relevance(Gamma(gamma, power_of_two, names), module, x, R)
    zeroed = case.module()
    with torch.no_grad():
        for name in [names] if isinstance(names, str) else names:
            getattr(zeroed, name).zero_()
    # the same formula, each half with the relevance that the gate of the real output lets through
    oracle = Dense(zeroed, x, R)
    A_up, A_down, b = (
        oracle.A(lambda w: w + gamma * w.clamp(min=0)),
        oracle.A(lambda w: w + gamma * w.clamp(max=0)),
        oracle.b,
    )
    above = oracle.share((A_up, x.clamp(min=0)), (A_down, x.clamp(max=0)), bias=b + gamma * b.clamp(min=0), where=z > 0)
    below = oracle.share((A_down, x.clamp(min=0)), (A_up, x.clamp(max=0)), bias=b + gamma * b.clamp(max=0), where=z < 0)
    assert torch.equal(got, above + below)


def test_epsilon_by_hand() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -1.0]]))
        layer.bias.copy_(torch.tensor([1.0]))
    # z = 2 * 3 - 1 * 4 + 1 = 3, S = 3 + 1 = 4, s = 8 / 4 = 2, r = (3 * 2 * 2, 4 * -1 * 2)
    r = relevance(Epsilon(1.0), layer, torch.tensor([[3.0, 4.0]]), torch.tensor([[8.0]]))
    assert r.tolist() == [[12.0, -8.0]]


def test_stabilizer_pushes_away_from_zero_on_either_side() -> None:
    layer = nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    # z = -3, S = -3 - 1 = -4, r = -3 * 8 / -4; z = 0, S = +1, r = 0 * 8 / 1
    r = relevance(Epsilon(1.0), layer, torch.tensor([[-3.0], [0.0]]), torch.tensor([[8.0], [8.0]]))
    assert r.tolist() == [[6.0], [0.0]]


def test_zero_denominator_counts_as_positive_for_flat_and_zplus() -> None:
    layer = nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    x, R = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    assert relevance(WSquare(0.5), layer, x, R).tolist() == [[0.0]]
    assert relevance(Flat(0.5), layer, x, R).tolist() == [[2.0]]  # 3 / (1 + 0.5)


def test_beta_zero_leaves_the_second_half_alone() -> None:
    # all contributions positive: db = 0, and 0 * (R / 0) would be NaN
    layer = nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    r = relevance(AlphaBeta(1, 0, stabilizer=0), layer, torch.tensor([[1.0, 3.0]]), torch.tensor([[8.0]]))
    assert r.tolist() == [[2.0, 6.0]]


def test_positive_layer_gets_twice_the_relevance_from_alpha_2_beta_1() -> None:
    layer = nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    r = relevance(AlphaBeta(2, 1, power_of_two), layer, torch.tensor([[1.0, 3.0]]), torch.tensor([[8.0]]))
    assert r.tolist() == [
        [2.0, 6.0]
    ]  # the power of two above 4 is 8: 2 * (1, 3) * 8 / 8, and nothing from the other half


def test_relevance_is_not_the_output() -> None:
    # R has both signs and nothing to do with z: a rule that looked at z in its place would be wrong here
    case = KNOWN["linear"]
    module, x = case.module(), case.input()
    R = -output_of(module, x)
    for make, formula in FORMULAS.values():
        assert torch.equal(relevance(make(), module, x, R), formula(Dense(module, x, R)))


def test_pass() -> None:
    x, R = integers((2, 5), 1), integers((2, 5), 2)
    for module in (nn.ReLU(), nn.Tanh(), nn.Linear(5, 5)):
        assert torch.equal(relevance(Pass(), module, x, R), R)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.LeakyReLU(0.25), Square()], ids=lambda m: type(m).__name__)
def test_deconvnet_and_guided(module: nn.Module) -> None:
    x, R = integers((4, 6), 1), integers((4, 6), 2)
    slope = {nn.ReLU: (x > 0).double(), nn.LeakyReLU: torch.where(x > 0, 1.0, 0.25), Square: 2 * x}[type(module)]
    assert torch.equal(relevance(ReLUDeconvNet(), module, x, R), R.clamp(min=0))
    assert torch.equal(relevance(ReLUGuidedBackprop(), module, x, R), torch.where(R > 0, slope * R, 0.0))


def test_guided_backprop_keeps_the_gradient_of_a_linear_where_the_relevance_is_positive() -> None:
    # no module to use it on, but zennit does the same, and A^T is not A here
    module, x, R = nn.Linear(3, 3).double(), integers((2, 3), 1), integers((2, 3), 2)
    module.weight.data = integers((3, 3), 3)
    pulled = R @ module.weight.data
    assert torch.equal(relevance(ReLUGuidedBackprop(), module, x, R), torch.where(R > 0, pulled, 0.0))


@pytest.mark.parametrize("beta", [0.5, 10, 1000])
def test_beta_smooth(beta: float) -> None:
    x, R = torch.randn(40, 6, dtype=torch.float64), integers((40, 6), 2)
    assert_smooth(relevance(ReLUBetaSmooth(beta), nn.ReLU(), x, R), x, R, beta)


def assert_smooth(r: Tensor, x: Tensor, R: Tensor, beta: float) -> None:
    """The relevance is R / (1 + exp(-beta x)), up to rounding: of beta x, and of at most six steps more."""
    exponents = beta * x.detach().numpy().astype(np.longdouble)
    expected = R.numpy() / (1 + np.exp(-exponents))
    unit, least = torch.finfo(torch.float64).eps / 2, torch.finfo(torch.float64).tiny
    assert (abs(r.numpy() - expected) <= (abs(exponents) + 6) * unit * abs(expected) + least * abs(R.numpy())).all()


@pytest.mark.parametrize("threshold", [10.0, 30.0])
def test_a_sigmoid_that_is_one_too_early_is_caught(threshold: float) -> None:
    x, R = torch.linspace(-50, 50, 1001, dtype=torch.float64), integers((1001,), 2)
    assert_smooth(torch.sigmoid(x) * R, x, R, 1.0)
    with pytest.raises(AssertionError):
        assert_smooth(torch.where(x > threshold, 1.0, torch.sigmoid(x)) * R, x, R, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("beta", [Fraction(1, 3), np.float32(3), 1e300, 1e-300], ids=repr)
def test_beta_smooth_of_other_kinds_and_sizes(beta: Any, dtype: torch.dtype) -> None:
    x = torch.tensor([2.0, -3.0, 0.0], dtype=dtype)
    found = relevance(ReLUBetaSmooth(beta), nn.ReLU(), x, torch.ones(3, dtype=dtype))
    exponents = float(beta) * np.array([2.0, -3.0, 0.0], np.longdouble)
    with np.errstate(over="ignore"):
        expected = torch.from_numpy((1 / (1 + np.exp(-exponents))).astype(np.float64))
    # the result is rounded once, of what float32 makes at least: by the bound above, for exponents of at most 9
    unit = (torch.finfo(dtype).eps + 15 * min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)) / 2
    assert ((found.double() - expected).abs() <= unit * expected).all()


PLANTED: dict[str, tuple[str, Callable[[Dense], Tensor]]] = {
    "bias-of-ZPlus-twice": (
        "ZPlus",
        lambda o: o.share((o.A(up), up(o.x.flatten(1))), (o.A(down), down(o.x.flatten(1))), bias=2 * up(o.b)),
    ),
    "separate-denominators": (
        "ZPlus",
        lambda o: o.share((o.A(up), up(o.x.flatten(1))), bias=up(o.b)) + o.share((o.A(down), down(o.x.flatten(1)))),
    ),
    "matrix-clamped-and-not-weights": (
        "ZPlus",
        lambda o: o.share((up(o.A()), up(o.x.flatten(1))), (down(o.A()), down(o.x.flatten(1))), bias=up(o.b)),
    ),
    "no-bias": ("Epsilon", lambda o: o.share((o.A(), o.x.flatten(1)))),
    "alpha-and-beta-swapped": ("AlphaBeta(2,1)", lambda o: o.alpha_beta(1, 2)),
    "low-and-high-swapped": ("ZBox(-1,2)", lambda o: o.zbox(2, -1)),
    "bias-in-Flat": ("Flat", lambda o: o.share((o.A(torch.ones_like), torch.ones(1, 3)), bias=1.0)),
    "signs-of-inputs-ignored": (
        "Gamma(0.25)",
        lambda o: o.share((o.A(lambda w: w + 0.25 * up(w)), o.x.flatten(1)), bias=o.b + 0.25 * up(o.b)),
    ),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistakes_are_caught_bit_by_bit(mistake: str) -> None:
    rule, wrong = PLANTED[mistake]
    # circular padding that wraps onto itself: one entry of the matrix gathers several weights
    case = Case(lambda: nn.Conv1d(1, 2, 7, padding=3, padding_mode="circular"), (1, 3))
    module, x = case.module(seed=4), case.input(20)
    R = integers(output_of(module, x).shape, seed=2)
    make, formula = FORMULAS[rule]
    got, oracle = relevance(make(), module, x, R), Dense(module, x, R)
    assert torch.equal(got, formula(oracle))
    assert not torch.equal(got, wrong(oracle))


def test_sign_of_zero_is_seen() -> None:
    # contributions that cancel: d = 1 - 1 + 0, S = +1, r = (1, -1) * 8 / 1; with sgn(0) = -1 all signs would be turned
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
        layer.bias.zero_()
    for x in (torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.0, -1.0]])):
        sign = x[0, 0].item()
        assert relevance(Epsilon(1.0), layer, x, torch.tensor([[8.0]])).tolist() == [[8.0 * sign, -8.0 * sign]]
        assert relevance(Norm(1.0), layer, x, torch.tensor([[8.0]])).tolist() == [[8.0 * sign, -8.0 * sign]]


def test_functional_reference_of_the_cases_is_right() -> None:
    # the dense matrix against torch's own Jacobian: the oracle of this file is tested, too
    for name, case in CASES.items():
        module, x = case.module(), case.input(1)
        J = torch.autograd.functional.jacobian(module, x).reshape(-1, x.numel())
        A, b = Dense(module, x, x).A(), Dense(module, x, x).b
        assert torch.equal(A, J), name
        assert torch.equal(A @ x.flatten() + b, output_of(module, x).flatten()), name


@pytest.mark.parametrize("gamma", [0.25, 1.0, 2.0])
def test_gamma_where_the_output_is_zero_gives_nothing_even_without_a_stabilizer(gamma: float) -> None:
    module, x = nn.Linear(4, 3).double(), integers((2, 4), seed=1)
    with torch.no_grad():
        module.weight[1], module.bias[1] = 0, 0
    R = integers((2, 3), seed=2)
    elsewhere = R.clone()
    elsewhere[:, 1] = 0
    r = relevance(Gamma(gamma, stabilizer=0.0), module, x, R)
    assert torch.isfinite(r).all()
    assert torch.equal(r, relevance(Gamma(gamma, stabilizer=1e-300), module, x, elsewhere))


def test_gamma_scales_its_stabilizer_by_the_denominators_of_one_sign() -> None:
    # with g = 1: z = (4 - 1, 2 - 3); where z > 0, d would be (2 * 4 - 1, 2 * 2 - 3) = (7, 1), of root mean square 5
    module = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[4.0, -1], [2, -3]]))
    x, R = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[7 + 0.25 * 5, 0]], dtype=torch.float64)
    stabilizer = Stabilizer(0.25, norm_scale=True)
    for way in (stabilizer, stabilizer.__call__):
        assert relevance(Gamma(1.0, stabilizer=way), module, x, R).tolist() == [[2 * 4.0, -1.0]]

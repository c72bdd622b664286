"""Known layers as maps where they are large, have no batch, or meet themselves in a graph of their own."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lrp_rules import Epsilon, Flat, Hook, Norm, ReLUGuidedBackprop, Stabilizer, WSquare, ZBox, ZPlus
from lrp_rules.layers import convolution, known
from lrp_rules.layers import layer as layer_module
from lrp_rules.layers.known import TracedLayer
from lrp_rules.layers.layer import nothing
from tests.lrp_rules.cases import CASES, FORMULAS, RULES, integers, output_of, power_of_two, relevance
from tests.lrp_rules.test_parts import PowerOfTwo, few_terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.layers.layer import Layer

# --- A x from an output that holds a bias, too ------------------------------------------------------------------------

#: Beside it, a float32 has no digit left for numbers below 4; the square of the other outweighs it.
BIAS, LARGE = 2.0**26, 2.0**14

#: Layers with more products in a sum than are looked at, the shape of one sample, and how many inputs that leaves.
LOOKED_AT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(8, 3), (8,), 4),
    "conv1d": (lambda: nn.Conv1d(8, 3, 2), (8, 6), 2),
    "conv1d-wide": (lambda: nn.Conv1d(2, 3, 5), (2, 6), 1),
    "conv2d": (lambda: nn.Conv2d(8, 3, 2), (8, 4, 4), 1),
    "conv2d-one-output": (lambda: nn.Conv2d(2, 1, 2), (2, 4, 4), 1),
    "conv3d": (lambda: nn.Conv3d(4, 3, (2, 2, 1)), (4, 3, 3, 3), 1),
    "transposed1d": (lambda: nn.ConvTranspose1d(8, 3, 2), (8, 6), 2),
    "transposed2d": (lambda: nn.ConvTranspose2d(2, 3, 2), (2, 4, 4), 1),
    "transposed2d-one-output": (lambda: nn.ConvTranspose2d(4, 1, 2), (4, 4, 4), 1),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 3, (2, 2, 1)), (4, 3, 3, 3), 1),
}
#: Layers with no more than that, or none that is looked at.
TOO_FEW: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 5), (3,)),
    "conv1d-of-one": (lambda: nn.Conv1d(1, 3, 1), (1, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 2, 1), (3, 4, 4)),
    "conv2d-one-input": (lambda: nn.Conv2d(1, 2, 2), (1, 4, 4)),
    "transposed2d-one-input": (lambda: nn.ConvTranspose2d(1, 2, 2), (1, 4, 4)),
    "transposed1d-stride": (lambda: nn.ConvTranspose1d(8, 3, 2, stride=2), (8, 6)),
    "transposed2d-stride": (lambda: nn.ConvTranspose2d(8, 3, 2, stride=(1, 2)), (8, 4, 4)),
    "transposed2d-one-to-one": (lambda: nn.ConvTranspose2d(1, 1, 1), (1, 4, 4)),
}
each_sample = pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])


@pytest.fixture
def from_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    few_terms(monkeypatch)


def denominators(module: nn.Module, x: Tensor) -> Tensor:
    """What Epsilon divides by where the bias is set to zero."""
    seen: list[Tensor] = []

    def recorder(d: Tensor) -> Tensor:
        seen.append(d.clone())
        return power_of_two(d)

    relevance(Epsilon(recorder, "bias"), module, x, torch.ones_like(output_of(module, x)))
    return seen[0]


def filled(make: Callable[[], nn.Module], shape: tuple[int, ...], v: Tensor, w: Tensor) -> tuple[Any, Tensor]:
    """A layer without a bias and two samples; v and w are what is in each entry of an input channel."""
    module: Any = make().float()
    channels = shape[0]
    module.weight.data.zero_()
    dim = 0 if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 1
    module.weight.data += w.float().view([channels if k == dim else 1 for k in range(module.weight.ndim)])
    module.bias.data.zero_()
    return module, v.view(channels, *[1] * (len(shape) - 1)).expand(2, *shape).float()


@pytest.mark.usefixtures("from_the_output")
@each_sample
@pytest.mark.parametrize("bias", [BIAS, -BIAS], ids=["positive", "negative"])
@pytest.mark.parametrize("large", ["nothing", "input-beside-zeros", "weight-beside-zeros"])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_products_that_are_not_in_the_sum_do_not_outweigh_a_bias(
    name: str, large: str, bias: float, batched: bool
) -> None:
    # what is large meets zeros in the channel itself, and something large in the channel beside it
    make, shape, looked = LOOKED_AT[name]
    v, w = torch.ones(shape[0]), torch.ones(shape[0])
    if large != "nothing":
        first, second = (v, w) if large == "input-beside-zeros" else (w, v)
        first[:looked], second[looked] = 0.0, 0.0
        second[looked - 1], first[looked] = LARGE, LARGE
    module, x = filled(make, shape, v, w)
    x = x if batched else x[0]
    d = output_of(module, x)
    module.bias.data.fill_(bias)
    assert torch.equal(denominators(module, x), d)


@pytest.mark.usefixtures("from_the_output")
@each_sample
@pytest.mark.parametrize("bias", [1.0, BIAS])
@pytest.mark.parametrize("name", TOO_FEW)
def test_sums_of_few_products_lack_the_bias(name: str, bias: float, batched: bool) -> None:
    make, shape = TOO_FEW[name]
    module, x = filled(make, shape, torch.ones(shape[0]), torch.ones(shape[0]))
    x = x if batched else x[0]
    d = output_of(module, x)
    module.bias.data.fill_(bias)
    assert torch.equal(denominators(module, x), d)


def multiply_adds(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    total: int = counter.get_total_flops()
    return total


@pytest.mark.usefixtures("from_the_output")
@each_sample
@pytest.mark.parametrize("bias", [1.0, -1.0])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_products_that_cancel_outweigh_a_small_bias(name: str, bias: float, batched: bool) -> None:
    # A x is 0, and A(|w|) |x| is not: z - b is exact, and the layer is not run again
    make, shape, _ = LOOKED_AT[name]
    signs = torch.tensor([-1.0, 1.0] * (shape[0] // 2))
    module, x = filled(make, shape, signs, torch.ones(shape[0]))
    module.bias.data.fill_(bias)
    x = (x if batched else x[0]).requires_grad_()
    with Epsilon(zero_params="bias").register(module):
        z = module(x)
    once = multiply_adds(lambda: module(x))
    assert 0 < multiply_adds(lambda: torch.autograd.grad(z, x, torch.ones_like(z))) < 2 * once
    assert torch.equal(denominators(module, x.detach()), torch.zeros_like(z))


@each_sample
@pytest.mark.parametrize("name", LOOKED_AT)
def test_epsilon_takes_no_more_products_than_the_layer(name: str, batched: bool) -> None:
    # the output is known, and nobody asks for a gradient of the weight
    make, shape, _ = LOOKED_AT[name]
    module, x = make(), torch.randn(2, *shape) if batched else torch.randn(shape)
    x.requires_grad_()
    with Epsilon().register(module):
        z = module(x)
    once = multiply_adds(lambda: module(x))
    assert 0 < multiply_adds(lambda: torch.autograd.grad(z, x, torch.ones_like(z))) <= once


# --- Linear layers in blocks of outputs -------------------------------------------------------------------------------


def test_blocks_hold_several_outputs_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, R = nn.Linear(4, 20).double(), integers((3, 4), seed=2), integers((3, 20), seed=3)
    for k, parameter in enumerate(module.parameters()):
        parameter.data = integers(parameter.shape, seed=k)
    whole = relevance(ZPlus(PowerOfTwo()), module, x, R)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(layer_module, "SMALL", -1)
    monkeypatch.setattr(known, "ROWS", 16)  # eight, eight and four
    assert torch.equal(relevance(ZPlus(PowerOfTwo()), module, x, R), whole)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_a_relevance_of_a_large_layer_has_a_derivative(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(4, 6).double().requires_grad_(not frozen)
    for k, parameter in enumerate(module.parameters()):
        parameter.data = integers(parameter.shape, seed=k)
    R = integers((3, 6), seed=3)

    def derivative() -> list[Tensor]:
        x = integers((3, 4), seed=2).requires_grad_()
        r = relevance(ZPlus(1.0), module, x, R, create_graph=True)
        return [r, *torch.autograd.grad(r.square().sum(), [x, *(p for p in module.parameters() if not frozen)])]

    whole = derivative()
    monkeypatch.setattr(layer_module, "SMALL", -1)
    monkeypatch.setattr(known, "ROWS", 1)
    assert all(torch.equal(one, other) for one, other in zip(derivative(), whole, strict=True))


@pytest.mark.parametrize("rule", ["Epsilon", "ZPlus", "AlphaBeta", "Gamma", "Gamma(2)", "ZBox", "WSquare", "Flat"])
def test_no_inputs_are_no_error(rule: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that there is nothing to initialise
        module = nn.Linear(0, 3)
    assert relevance(RULES[rule](), module, torch.empty(2, 0), torch.ones(2, 3)).shape == (2, 0)


# --- Convolutions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeroed", [None, "bias", "weight", ("weight", "bias")])
@pytest.mark.parametrize("rule", ["Epsilon", "ZPlus", "AlphaBeta(2,1)", "Gamma(0.25)", "Gamma(4)", "ZBox(-1,2)"])
@pytest.mark.parametrize("name", ["conv1d", "conv2d-asymmetric", "conv2d-groups", "conv2d-circular", "conv3d"])
def test_convolutions_side_by_side_are_those_one_by_one(
    name: str, rule: str, zeroed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = CASES[name].module(), CASES[name].input()
    R = integers(output_of(module, x).shape, seed=2)
    found = []
    for few in (0, convolution.FEW):
        monkeypatch.setattr(convolution, "FEW", few)
        hook = FORMULAS[rule][0](zero_params=zeroed)
        found.append((relevance(hook, module, x, R), relevance(hook, module, x[0], R[0])))
    (one_by_one, alone), (side_by_side, alone_side_by_side) = found
    assert torch.equal(side_by_side, one_by_one)
    assert torch.equal(alone_side_by_side, alone)
    assert torch.equal(alone, one_by_one[0])


def with_powers(rule: str) -> Any:
    hook: Any = RULES[rule]()
    hook.stabilizer = power_of_two
    return hook


class DoubledConv2d(nn.Conv2d):
    """Computes its output in a way of its own, below ``forward``; as weight standardization is often written."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        output: Tensor = super()._conv_forward(input, 2 * weight, bias)
        return output


@pytest.mark.parametrize("rule", ["Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma"])
def test_a_convolution_that_uses_its_weight_in_a_way_of_its_own(rule: str) -> None:
    own, plain = DoubledConv2d(2, 3, 2).double(), nn.Conv2d(2, 3, 2).double()
    for k, (parameter, other) in enumerate(zip(own.parameters(), plain.parameters(), strict=True)):
        parameter.data = integers(parameter.shape, seed=k)
        other.data = (1 if parameter is own.bias else 2) * parameter.data
    x, R = integers((2, 2, 3, 4), seed=5), integers((2, 3, 2, 3), seed=6)
    got, expected = (relevance(with_powers(rule), module, x, R) for module in (own, plain))
    assert torch.equal(got, expected)


# --- Elementwise layers -----------------------------------------------------------------------------------------------


class TracedReLU(nn.ReLU):
    """The same, but nobody recognises it."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input)


@pytest.mark.parametrize("rule", ["Epsilon", "Norm", "ZPlus", "ReLUGuidedBackprop"])
def test_the_derivative_of_a_relevance_goes_back_through_a_relu(rule: str) -> None:
    below, above = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    for k, parameter in enumerate((*below.parameters(), *above.parameters())):
        parameter.data = integers(parameter.shape, seed=k)
    R, found = integers((3, 3), seed=8), []
    for relu in (nn.ReLU(), TracedReLU()):
        x = integers((3, 4), seed=7).requires_grad_()
        with with_powers(rule).register(relu), Epsilon(power_of_two).register(above):
            z = above(relu(below(x)))
        (r,) = torch.autograd.grad(z, x, R, create_graph=True)
        found.append((r, *torch.autograd.grad(r.square().sum(), x)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["relu", "batchnorm2d", "linear", "conv2d-circular", "transposed1d"])
def test_a_graph_changes_no_denominator(name: str) -> None:
    # a stabilizer that looks at the whole output sees the same one, where it is known and where it is computed again
    module, x = (nn.ReLU(), integers((3, 8), 1)) if name == "relu" else (CASES[name].module(), CASES[name].input())
    R = integers(output_of(module, x).shape, seed=2)
    hook = Norm(Stabilizer(1.0, norm_scale=True))
    r = relevance(hook, module, x, R)
    assert torch.equal(relevance(hook, module, x, R, create_graph=True).detach(), r)


def test_a_longer_bound_is_cut_to_the_batch_and_to_nothing_else() -> None:
    low, high = -torch.ones(5, 1), torch.ones(5, 1)
    assert relevance(ZBox(low, high), nn.ReLU(), torch.randn(3, 4), torch.randn(3, 4)).shape == (3, 4)
    with pytest.raises(ValueError, match=r"low has shape \(5,\)"):
        relevance(ZBox(low[:, 0], high[:, 0]), nn.ReLU(), torch.randn(3), torch.randn(3))


@pytest.mark.parametrize("make", [Flat, WSquare])
def test_a_relu_of_a_single_number(make: Callable[[Any], Hook]) -> None:
    r = relevance(make(power_of_two), nn.ReLU(), torch.tensor(-2.0), torch.tensor(3.0))
    assert torch.equal(r, torch.tensor(1.5))  # 1 / S(1) is a half


@pytest.mark.parametrize("create_graph", [False, True], ids=["", "with-a-graph"])
@pytest.mark.parametrize("module", [nn.ReLU(), nn.Identity()], ids=["relu", "identity"])
def test_guided_backprop_writes_to_nothing_of_others(module: nn.Module, create_graph: bool) -> None:
    x, R = integers((5, 4), seed=1) / 4, integers((5, 4), seed=2) / 4
    given, slope = R.clone(), (x > 0 if isinstance(module, nn.ReLU) else torch.ones_like(x))
    r = relevance(ReLUGuidedBackprop(), module, x, R, create_graph=create_graph)
    assert torch.equal(R, given)
    assert torch.equal(r, torch.where(R > 0, R * slope, 0.0))


# --- One matrix whatever the rule -------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Which operations of torch were called, with the size of the first dimension of what they were given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.ndim > 0]
        self.called.append((func.overloadpacket.__name__, len(tensors[0]) if tensors else 0))
        return func(*args, **(kwargs or {}))

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.called)


def operations(rule: Hook, module: nn.Module, x: Tensor, *, create_graph: bool = False) -> Operations:
    """What propagating through a module calls."""
    with rule.register(module):
        x = x.detach().requires_grad_()
        z = module(x)
    found = Operations()
    with found:
        torch.autograd.grad(z, x, torch.ones_like(z), create_graph=create_graph)
    return found


@pytest.mark.parametrize("rule", ["ZPlus", "AlphaBeta", "Gamma", "Gamma(2)"])
def test_a_pooling_is_gone_through_once_in_each_direction(rule: str) -> None:
    found = operations(RULES[rule](), nn.AvgPool2d(2), torch.randn(3, 2, 4, 4))
    # the forward pass has left z; A x is taken once, whatever it is compared with
    assert (found.count("avg_pool2d"), found.count("avg_pool2d_backward")) == (1, 1)
    stabilizers = found.count("ge")
    assert found.count("addcmul") + found.count("addcmul_") == stabilizers > 0  # and r is one product


@pytest.mark.parametrize("rule", ["ZPlus", "AlphaBeta", "Gamma(2)"])
def test_a_relu_is_gone_through_once_in_each_direction(rule: str) -> None:
    found = operations(RULES[rule](), nn.ReLU(), torch.randn(3, 4))
    gates = 2 if rule.startswith("Gamma") else 0  # of its two denominators
    assert found.count("threshold_backward") - gates == 2


@pytest.mark.parametrize(("lowest", "products"), [(0.0, 2), (-1.0, 4)])
def test_a_part_of_the_input_that_vanishes_is_left_out(lowest: float, products: int) -> None:
    x = torch.tensor([[lowest, 1.0, 0.0, 2.0]], dtype=torch.get_default_dtype())
    assert operations(ZPlus(), nn.Linear(4, 5), x).count("mm") == products


@pytest.mark.parametrize("rule", ["ZPlus", "AlphaBeta", "Gamma(2)"])
def test_a_module_without_weights_is_gone_through_once(rule: str) -> None:
    # to know A from A^T, for b and for d; and for r; once more in the first call, to see that A is right
    module, x = nn.AdaptiveAvgPool2d(2), torch.randn(3, 2, 4, 4, requires_grad=True)
    with RULES[rule]().register(module):
        for times in (4, 3):
            z = module(x)
            with Operations() as found:
                torch.autograd.grad(z, x, torch.ones_like(z))
            assert found.count("_adaptive_avg_pool2d_backward") == times


class Apart(ZPlus):
    """Sends relevance through two maps that do not meet: to x, and twice of it to |x|."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        vectors = (layer.x, layer.x.abs())
        A = layer.grid((None, nothing), (nothing, torch.abs))
        assert all(torch.equal(d, layer.module(v)) for d, v in zip(A @ vectors, vectors, strict=True))
        return layer.total(vectors, A.T @ [R, 2 * R])


@pytest.mark.parametrize("module", [nn.AvgPool1d(2), nn.ReLU()], ids=["pooling", "relu"])
def test_nothing_is_no_place_of_the_one_matrix(module: nn.Module) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.get_default_dtype())
    r = relevance(Apart(), module, x, torch.ones_like(module(x)))
    assert torch.equal(r, 3 * x / (x.shape[1] // module(x).shape[1]))


@pytest.mark.parametrize(
    ("dtype", "batch", "create_graph", "run"),
    [(torch.float32, 1, False, 2), (torch.float32, 3, False, 3), (torch.float64, 1, False, 1),
     (torch.float32, 1, True, 1)],
    ids=["alone", "three", "float64", "with-a-graph"],
)  # fmt: skip
def test_one_volume_is_convolved_as_two(dtype: torch.dtype, batch: int, create_graph: bool, run: int) -> None:
    module, x = nn.Conv3d(2, 3, 2).to(dtype), torch.randn(batch, 2, 4, 4, 4, dtype=dtype)
    found = operations(Epsilon(zero_params="bias"), module, x, create_graph=create_graph)
    assert ("convolution", run) in found.called


def test_one_image_is_convolved_as_it_is() -> None:
    module, x = nn.Conv2d(2, 3, 2).float(), torch.randn(1, 2, 4, 4).float()
    assert ("convolution", 1) in operations(Epsilon(zero_params="bias"), module, x).called


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (1, 4, 4, 4)])
def test_a_volume_without_a_batch_is_convolved_as_it_is(shape: tuple[int, ...]) -> None:
    module, x, rule = nn.Conv3d(shape[0], 3, 2).float(), integers(shape, seed=1).float(), Epsilon(power_of_two, "bias")
    module.weight.data = integers(module.weight.shape, seed=2).float()
    R = torch.ones(3, 3, 3, 3)
    r, alone = (relevance(rule, module, v, R.expand(output_of(module, v).shape).float()) for v in (x, x[None]))
    assert r.shape == shape
    assert torch.equal(r, alone[0])


# --- Channels that are all the same, and a single one -----------------------------------------------------------------

EQUAL_CHANNELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(8, 4, 3), (8, 9)),
    "conv2d-groups": (lambda: nn.Conv2d(8, 4, 2, groups=2), (8, 5, 4)),
    "conv2d-circular": (lambda: nn.Conv2d(8, 4, 2, padding=1, padding_mode="circular"), (8, 5, 4)),
    "conv3d": (lambda: nn.Conv3d(8, 4, 2), (8, 3, 4, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(8, 4, 3, stride=2), (8, 5)),
    "transposed2d-groups": (lambda: nn.ConvTranspose2d(8, 4, 2, groups=2), (8, 5, 4)),
}


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("name", EQUAL_CHANNELS)
def test_of_channels_that_are_the_same_one_is_convolved(
    name: str, batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = EQUAL_CHANNELS[name]
    module = make()
    module.weight.data = integers(module.weight.shape, seed=1)
    x = torch.zeros(shape if batch is None else (batch, *shape))
    layer = known.layer_type(module)(
        module, (x,), None, output_of(module, x).shape, {"weight": module.weight, "bias": None}, run=module,
    )  # fmt: skip
    one = integers((1, *shape[1:]), seed=2)  # a channel, which differs from place to place
    v, A = one.expand_as(x), layer.matrix()
    expected, products = A @ v.clone(), multiply_adds(lambda: A @ v.clone())
    assert multiply_adds(lambda: A @ v) == products  # so few weights are not worth it
    monkeypatch.setattr(convolution, "ADDED", 0)
    assert torch.equal(A @ v, expected)
    assert multiply_adds(lambda: A @ v) * 8 == products * module.groups


@pytest.mark.parametrize("rule", ["WSquare", "ZBox"])
def test_ones_and_bounds_are_a_single_channel(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "ADDED", 0)
    module, x = nn.Conv2d(24, 4, 3), torch.randn(5, 24, 6, 6)  # few channels are convolved side by side
    products = multiply_adds(lambda: module(x[:1]))
    with RULES[rule]().register(module):
        z = module(x.requires_grad_())
    matrices = 2 if rule == "ZBox" else 1
    found = multiply_adds(lambda: torch.autograd.grad(z, x, torch.ones_like(z)))
    # of each, a channel of one sample forwards, and all of five samples back
    assert found * 24 == products * matrices * (1 + 24 * 5)


ONE_CHANNEL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(1, 1, 3), (1, 9)),
    "conv2d-asymmetric": (lambda: nn.Conv2d(1, 1, (2, 3), padding=(1, 0), dilation=(1, 2)), (1, 5, 6)),
    "conv2d-wide-padding": (lambda: nn.Conv2d(1, 1, 2, padding=3), (1, 4, 3)),
    "conv2d-stride": (lambda: nn.Conv2d(1, 1, 2, stride=(1, 2)), (1, 4, 5)),
    "conv2d-two-outputs": (lambda: nn.Conv2d(1, 2, 3), (1, 4, 4)),
    "conv2d-same": (lambda: nn.Conv2d(1, 1, (3, 2), padding="same"), (1, 4, 4)),
    "conv2d-reflect": (lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 1, (2, 1, 3), padding=(1, 0, 1)), (1, 3, 2, 4)),
}


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", ONE_CHANNEL)
def test_a_single_channel_is_sent_back_by_the_kernel_turned_around(name: str, batch: int | None) -> None:
    make, shape = ONE_CHANNEL[name]
    module: Any = make()
    module.weight.data = integers(module.weight.shape, seed=1)
    x = integers(shape if batch is None else (batch, *shape), seed=2)
    R = integers(output_of(module, x).shape, seed=3)
    own = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(own), own, R)  # S(d) is 1 below
    assert torch.equal(relevance(Epsilon(torch.ones_like), module, x, R), x * gradient)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["float64", "float32", "bfloat16"]
)
@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_what_is_not_finite_goes_no_further_than_a_single_channel_reaches(number: float, dtype: torch.dtype) -> None:
    module, x = nn.Conv2d(1, 1, (2, 3), padding=(1, 2)).to(dtype), torch.randn(2, 1, 6, 6).to(dtype)
    x[0, 0, 0, 0] = number
    r = relevance(Epsilon(), module, x, torch.ones(2, 1, 7, 8, dtype=dtype))
    reached = torch.zeros_like(x, dtype=torch.bool)
    reached[0, 0, :2, :3] = True
    assert torch.isfinite(r[~reached]).all()
    assert not torch.isfinite(r[reached]).all()


# --- What is written over ---------------------------------------------------------------------------------------------


class Kept(Stabilizer):
    """Gives what it was given, or what it has given before."""

    def __init__(self, given: Tensor | None = None) -> None:
        super().__init__()
        vars(self)["given"] = given

    def __call__(self, denominator: Tensor) -> Tensor:
        given: Tensor | None = vars(self)["given"]
        return denominator if given is None else given


@pytest.mark.parametrize("as_function", [False, True], ids=["subclass", "function"])
@pytest.mark.parametrize("rule", ["Epsilon", "ZPlus", "AlphaBeta", "Gamma", "Gamma(2)", "ZBox"])
def test_what_a_stabilizer_of_ones_own_gives_is_not_written_to(rule: str, as_function: bool) -> None:
    module, x, fixed = nn.Linear(3, 4), torch.randn(2, 3), torch.full((2, 4), 2.0)
    for stabilizer in (Kept(), Kept(fixed)):
        hook: Any = RULES[rule]()
        hook.stabilizer = stabilizer.__call__ if as_function else stabilizer
        with hook.register(module):
            z = module(x.requires_grad_())
        output = z.detach().clone()
        torch.autograd.grad(z, x, torch.ones_like(z))
        assert torch.equal(z, output)
        assert torch.equal(fixed, torch.full((2, 4), 2.0))


def test_statistics_with_more_digits_than_the_input_leave_its_dtype() -> None:
    module = nn.BatchNorm1d(4, affine=False).float().eval()
    x, seen = torch.randn(3, 4).bfloat16(), []

    def recorder(d: Tensor) -> Tensor:
        seen.append(d.dtype)
        return power_of_two(d)

    z = output_of(module, x)
    relevance(ZPlus(recorder), module, x, torch.ones_like(z))
    assert seen == [z.dtype] == [torch.bfloat16]


class Shift(nn.Module):
    """z = x + w: the gradient that goes back is the very tensor that came."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def test_what_is_added_up_is_not_written_over_shares_that_are_still_needed() -> None:
    module, x = Shift(), torch.tensor([[1.0, -1.0, 2.0]]).double()
    layer = TracedLayer(
        module, (x,), None, x.shape, {"weight": module.weight}, run=lambda parameters, v: (v + parameters["weight"],)
    )
    s = [torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[4.0, 5.0, 6.0]]).double()]
    before = [one.clone() for one in s]
    (found,) = layer.grid((torch.square,), (torch.abs,)).T @ s
    assert torch.equal(found, before[0] + before[1])
    assert all(map(torch.equal, s, before))

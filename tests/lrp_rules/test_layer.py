"""How a large layer is cut, what zeroed parameters leave of it, and where A x may be taken from its output."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import Epsilon, Gamma, Hook, Norm, ReLUGuidedBackprop, WSquare, ZBox, ZPlus
from lrp_rules.layers import blocks, known
from lrp_rules.layers import layer as layer_module
from tests.lrp_rules.cases import KNOWN, Case, Dense, integers, output_of, power_of_two, relevance
from tests.lrp_rules.test_parts import LAYERS, PowerOfTwo, few_terms, with_bias

if TYPE_CHECKING:
    from collections.abc import Callable

# --- Parts ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_module, "SMALL", -1)
    monkeypatch.setattr(blocks, "PART", 1)
    monkeypatch.setattr(known, "ROWS", 1)
    monkeypatch.setattr(known, "QUARTERED", 0)
    monkeypatch.setattr(known, "LEAST", 1)


BY_SAMPLES: dict[str, tuple[Callable[[], Hook], Callable[[], nn.Module], tuple[int, ...]]] = {
    "Epsilon-linear": (Epsilon, lambda: nn.Linear(4, 3), (5, 4)),
    "ZPlus-conv2d": (ZPlus, lambda: nn.Conv2d(2, 3, 2), (5, 2, 3, 4)),
    "Gamma-transposed2d": (Gamma, lambda: nn.ConvTranspose2d(2, 3, 2), (5, 2, 3, 4)),
    "Norm-batchnorm1d": (Norm, lambda: nn.BatchNorm1d(4).eval(), (5, 4)),
    "WSquare-conv2d": (WSquare, lambda: nn.Conv2d(2, 3, 2), (5, 2, 3, 4)),
    "ReLUGuidedBackprop": (ReLUGuidedBackprop, nn.ReLU, (5, 4)),
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", BY_SAMPLES)
def test_parts_write_to_nothing_they_were_given(name: str) -> None:
    make, module_of, shape = BY_SAMPLES[name]
    module, x = module_of(), torch.randn(shape, requires_grad=True)
    R = torch.randn(output_of(module, x).shape)
    given = [x, R, *module.state_dict().values()]
    before = [tensor.detach().clone() for tensor in given]
    r = relevance(make(), module, x, R)
    assert all(torch.equal(tensor, was) for tensor, was in zip(given, before, strict=True))
    assert r.untyped_storage().data_ptr() not in {tensor.untyped_storage().data_ptr() for tensor in given}


SAMPLES_APART: dict[str, Callable[[Any], Hook]] = {
    "Epsilon": Epsilon,
    "ZPlus": ZPlus,
    "Gamma": lambda S: Gamma(0.25, S),
    "WSquare": WSquare,
    "ZBox": lambda S: ZBox(-3, 3, S),
}
ALONE = ("linear", "conv1d", "conv2d-circular", "conv3d", "transposed1d")


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("rule", SAMPLES_APART)
def test_a_large_sample_without_a_batch_stays_whole(rule: str, name: str) -> None:
    make = SAMPLES_APART[rule]
    module, x = KNOWN[name].module(), KNOWN[name].input(1)
    R = integers(output_of(module, x).shape, seed=2)
    assert torch.equal(
        relevance(make(PowerOfTwo()), module, x[0], R[0]), relevance(make(PowerOfTwo()), module, x, R)[0]
    )


def test_blocks_of_outputs_need_not_be_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    # two, two and one: a warning that memory does not fit would be an error here
    threads = torch.get_num_threads()
    module = nn.Linear(4 * threads, 5).double()
    for k, parameter in enumerate(module.parameters()):
        parameter.data = integers(parameter.shape, seed=k)
    x, R = integers((3, 4 * threads), seed=2), integers((3, 5), seed=3)
    whole = relevance(ZPlus(PowerOfTwo()), module, x, R)
    monkeypatch.setattr(layer_module, "SMALL", -1)
    monkeypatch.setattr(known, "ROWS", 8)
    assert torch.equal(relevance(ZPlus(PowerOfTwo()), module, x, R), whole)


@pytest.mark.parametrize("rule", [WSquare, ZPlus])
def test_blocks_of_outputs_are_not_cut_by_samples_again(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(lambda: nn.Linear(4, 6), (4,))
    module, x, R = case.module(), case.input(5), integers((5, 6), seed=3)
    whole = relevance(rule(PowerOfTwo()), module, x, R)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(layer_module, "SMALL", -1)
    monkeypatch.setattr(blocks, "PART", 1)
    monkeypatch.setattr(known, "ROWS", 8)  # two rows; a layer of so few weights would be done by samples
    assert torch.equal(relevance(rule(PowerOfTwo()), module, x, R), whole)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("rule", [Epsilon, lambda S: Gamma(0.25, S)], ids=["Epsilon", "Gamma"])
def test_parts_without_an_output_that_was_overwritten(rule: Any) -> None:
    case = Case(lambda: nn.Conv2d(2, 3, 2), (2, 3, 3))
    module, x, R = case.module(), case.input(4).requires_grad_(), integers((4, 3, 2, 2), seed=3)
    expected = relevance(rule(PowerOfTwo()), module, x, R)
    with rule(PowerOfTwo()).register(module):
        y = module(x).mul_(2)
    (got,) = torch.autograd.grad(y, x, R / 2)
    assert torch.equal(got, expected)


# --- Parameters that are set to zero ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KNOWN if name.startswith("batchnorm")])
def test_a_batch_norm_without_its_bias_still_subtracts_its_mean(name: str) -> None:
    module, x = KNOWN[name].module(), KNOWN[name].input()
    R = integers(output_of(module, x).shape, seed=2)
    other = copy.deepcopy(module)
    if isinstance(other.bias, Tensor):
        other.bias.data.zero_()
    assert torch.equal(relevance(Epsilon(power_of_two, "bias"), module, x, R), Dense(other, x, R).epsilon())


class Recorder:
    """A stabilizer that keeps the denominators it is given."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, d: Tensor) -> Tensor:
        self.seen.append(d.clone())
        return power_of_two(d)


def test_norm_divides_by_what_the_module_returned() -> None:
    # few digits, and a mean that takes most of them: x * scale - mean * scale would lose the others
    module = nn.BatchNorm1d(4, affine=False).eval().bfloat16()
    assert isinstance(module.running_mean, Tensor)
    assert isinstance(module.running_var, Tensor)
    module.running_mean.fill_(128.0)
    module.running_var.fill_(9.0)
    x = torch.arange(129.0, 137.0).view(2, 4).bfloat16()
    z, recorder = output_of(module, x), Recorder()
    relevance(Norm(recorder), module, x, torch.ones_like(z))
    assert torch.equal(recorder.seen[0], z)


def test_a_module_without_the_parameter_is_not_run_again() -> None:
    calls: list[int] = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return x * x

    relevance(Epsilon(zero_params="bias"), Counted(), torch.randn(3, 4), torch.randn(3, 4))
    assert len(calls) == 1


def test_bounds_of_a_longer_batch_are_cut_for_a_batch_norm() -> None:
    module, x = KNOWN["batchnorm2d"].module(), KNOWN["batchnorm2d"].input(3)
    R = integers(output_of(module, x).shape, seed=2)
    low, high = -integers((5, 2, 3, 2), seed=5, low=0), integers((5, 2, 3, 2), seed=6, low=0)
    cut = relevance(ZBox(low[:3], high[:3], power_of_two), module, x, R)
    assert torch.equal(relevance(ZBox(low, high, power_of_two), module, x, R), cut)


# --- A x from an output that holds a bias, too ------------------------------------------------------------------------


@pytest.fixture
def from_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    few_terms(monkeypatch)


LARGE = 2.0**26  # beside it, a float32 has no digit left for numbers below 4


@pytest.mark.usefixtures("from_the_output")
@pytest.mark.parametrize("bias", [(1.0, LARGE, 1.0), (1.0, -LARGE, 1.0), (-LARGE, -LARGE, -LARGE)])
@pytest.mark.parametrize("name", [name for name, (make, _) in LAYERS.items() if make().bias.numel() == 3])
def test_one_bias_that_has_taken_the_digits_is_enough(name: str, bias: tuple[float, ...]) -> None:
    make, shape = LAYERS[name]
    module, other, x = with_bias(make(), 0.0), with_bias(make(), 0.0), integers(shape, seed=1, low=1).float()
    module.bias.data = torch.tensor(bias).float()
    R = torch.ones_like(output_of(module, x))
    got = relevance(Epsilon(PowerOfTwo(), "bias"), module, x, R)
    assert torch.equal(got, relevance(Epsilon(PowerOfTwo()), other, x, R))


@pytest.mark.usefixtures("from_the_output")
@pytest.mark.parametrize("name", LAYERS)
def test_a_large_layer_without_a_bias(name: str) -> None:
    make, shape = LAYERS[name]
    module, x = with_bias(make(), 1.0), integers(shape, seed=1).float()
    module.bias = None
    R = torch.ones_like(output_of(module, x))
    got = relevance(Epsilon(PowerOfTwo(), "bias"), module, x, R)
    assert torch.equal(got, relevance(Epsilon(PowerOfTwo()), module, x, R))


@pytest.mark.usefixtures("from_the_output")
@pytest.mark.parametrize("name", LAYERS)
def test_a_large_layer_whose_output_was_overwritten(name: str) -> None:
    make, shape = LAYERS[name]
    module, other, x = with_bias(make(), 1.0), with_bias(make(), 0.0), integers(shape, seed=1).float()
    R = torch.ones_like(output_of(module, x))
    expected = relevance(Epsilon(PowerOfTwo()), other, x, R)
    x.requires_grad_()
    with Epsilon(PowerOfTwo(), "bias").register(module):
        output = module(x)
    output.add_(64.0)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], expected)


@pytest.mark.usefixtures("from_the_output")
@pytest.mark.parametrize("zeroed", ["weight", "bias", ("weight", "bias")])
@pytest.mark.parametrize("name", LAYERS)
def test_denominators_of_a_large_layer_lack_what_is_zeroed(name: str, zeroed: str | tuple[str, ...]) -> None:
    make, shape = LAYERS[name]
    module, x, recorder = with_bias(make(), 2.0), integers(shape, seed=1).float(), Recorder()
    other = copy.deepcopy(module)
    for parameter in (zeroed,) if isinstance(zeroed, str) else zeroed:
        getattr(other, parameter).data.zero_()
    d = output_of(other, x)
    relevance(Epsilon(recorder, zeroed), module, x, torch.ones_like(d))
    assert torch.equal(recorder.seen[0], d)


@pytest.mark.usefixtures("from_the_output")
@pytest.mark.parametrize("name", LAYERS)
def test_no_samples_are_no_error(name: str) -> None:
    make, shape = LAYERS[name]
    module, x = make(), torch.empty(0, *shape[1:])
    assert relevance(Epsilon(zero_params="bias"), module, x, output_of(module, x)).shape == x.shape


@pytest.mark.parametrize("anew", [0, layer_module.ANEW])
def test_no_outputs_are_no_error(anew: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_module, "ANEW", anew)
    module, x = nn.Linear(80, 3), torch.randn(2, 80)
    module.weight.data, module.bias.data = module.weight.data[:0], module.bias.data[:0]
    assert torch.equal(relevance(Epsilon(zero_params="bias"), module, x, torch.empty(2, 0)), torch.zeros(2, 80))

"""All rules on a device that is not the CPU: the CPU's numbers, and nothing to wait for.

Both devices compute with the same kernels here, so that numbers are equal to the bit where both add up in the same
order. Two things change that order without any mistake: autograd executes nodes by their numbers, which each thread
counts by itself, see ``number_nodes``; and on the CPU alone, large layers are done in parts, which is switched off.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

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
from lrp_rules.layers import known, layer
from tests.lrp_rules import fake_device
from tests.lrp_rules.fake_device import DeviceTensor, Record, on_device, recorded, to_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.layers.layer import Layer

    Place = Callable[[Tensor], Tensor]
    #: Given where tensors are to be.
    Rule = Callable[[Place], Hook]


@pytest.fixture(autouse=True)
def _device() -> None:
    if fake_device.unavailable():
        pytest.skip(fake_device.unavailable())


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its input, and whether its output has the same."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    same_shape: bool = False


LAYERS = {
    "linear": Case(lambda: nn.Linear(6, 5), (4, 6)),
    "linear-of-sequences": Case(lambda: nn.Linear(6, 5), (2, 3, 6)),
    "linear-large": Case(lambda: nn.Linear(1024, 520), (5, 1024)),
    "conv1d": Case(lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 2, 7)),
    "conv2d": Case(lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 2, 5, 5)),
    "conv2d-large": Case(lambda: nn.Conv2d(16, 16, 3), (2, 16, 32, 32)),
    "conv2d-groups": Case(lambda: nn.Conv2d(4, 4, 3, groups=2), (2, 4, 5, 5)),
    "conv2d-circular": Case(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
    "conv2d-same": Case(lambda: nn.Conv2d(2, 3, 2, padding="same"), (2, 2, 5, 5)),
    "conv3d": Case(lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "transposed2d": Case(lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (2, 2, 4, 4)),
    "batchnorm-eval": Case(lambda: nn.BatchNorm2d(3).eval(), (2, 3, 4, 4), same_shape=True),
    "batchnorm-train": Case(lambda: nn.BatchNorm2d(3), (2, 3, 4, 4), same_shape=True),
    "relu": Case(nn.ReLU, (4, 6), same_shape=True),
    "relu-in-place": Case(lambda: nn.ReLU(inplace=True), (4, 6), same_shape=True),
    "avgpool1d": Case(lambda: nn.AvgPool1d(2), (2, 2, 4)),
    "avgpool2d": Case(lambda: nn.AvgPool2d(2), (2, 2, 4, 4)),
    "avgpool3d": Case(lambda: nn.AvgPool3d(2), (2, 2, 4, 2, 4)),
    "adaptive-avgpool2d": Case(lambda: nn.AdaptiveAvgPool2d(2), (2, 2, 4, 4)),
    "maxpool2d": Case(lambda: nn.MaxPool2d(2), (2, 2, 4, 4)),
    "layernorm": Case(lambda: nn.LayerNorm(6), (4, 6), same_shape=True),
    "gelu": Case(nn.GELU, (4, 6), same_shape=True),
    "softmax": Case(lambda: nn.Softmax(-1), (4, 6), same_shape=True),
    "weight-norm": Case(lambda: parametrizations.weight_norm(nn.Linear(6, 5)), (4, 6)),
    "block": Case(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), (4, 6), same_shape=True),
}
RULES: dict[str, Rule] = {
    "Epsilon": lambda _: Epsilon(),
    "Epsilon-zero-bias": lambda _: Epsilon(zero_params="bias"),
    "Epsilon-clip-norm": lambda _: Epsilon(Stabilizer(1e-3, clip=True, norm_scale=True)),
    "Norm": lambda _: Norm(),
    "ZPlus": lambda _: ZPlus(),
    "AlphaBeta": lambda _: AlphaBeta(),
    "Gamma(0.25)": lambda _: Gamma(0.25),
    "Gamma(2)": lambda _: Gamma(2),
    "ZBox": lambda _: ZBox(-3.0, 3.0),
    "ZBox-tensors": lambda _: ZBox(torch.tensor([[-3.0]]), torch.tensor([[3.0]])),
    "ZBox-tensors-on-device": lambda place: ZBox(place(torch.tensor([[-3.0]])), place(torch.tensor([[3.0]]))),
    "WSquare": lambda _: WSquare(),
    "Flat": lambda _: Flat(),
    "BasicHook": lambda _: BasicHook(),
    "Pass": lambda _: Pass(),
    "ReLUDeconvNet": lambda _: ReLUDeconvNet(),
    "ReLUGuidedBackprop": lambda _: ReLUGuidedBackprop(),
    "ReLUBetaSmooth": lambda _: ReLUBetaSmooth(),
}
#: They want an output of the input's shape.
WANT_SAME_SHAPE = {"Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth"}
#: They leave parameters as they are, and so may be put on a container.
ON_CONTAINERS = {"Epsilon", "Norm", "Pass"}
#: Bounds that are numbers or tensors of the CPU stay there, and are copied whenever they are used: low and high.
COPIES = {"ZBox-tensors": 2}
#: There, ZBox uses them twice.
LARGE = {"linear-large", "conv2d-large"}


@dataclass(frozen=True)
class Outcome:
    """What one pass gave: by name, as tensors of the CPU; and what was written down meanwhile."""

    tensors: dict[str, Tensor | None]
    record: Record


def outcome(rule: Rule, case: Case, *, second: bool, device: bool) -> Outcome | Exception:
    """Return what a rule gives on a layer, from the second pass of a registration, or how it is refused."""
    torch.manual_seed(0)
    module = case.make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    place: Place = on_device if device else torch.clone
    if device:
        to_device(module)
    try:
        with pytest.MonkeyPatch.context() as patch, rule(place).register(module):
            if not device:
                # a large layer's sums are taken from its output there, or put together from blocks of outputs
                patch.setattr(layer, "ANEW", sys.maxsize)
                patch.setattr(known, "ROWS", sys.maxsize)
            # what is looked at once may be waited for once
            _passed(module, case.shape, place, second=second)
            with recorded() as record:
                tensors = _passed(module, case.shape, place, second=second)
    except (TypeError, ValueError, RuntimeError) as error:
        return error
    tensors |= dict(module.named_buffers())
    if device:
        assert record.operations > 0
        assert all(t is None or isinstance(t, DeviceTensor) for t in tensors.values())
    return Outcome({name: t.held if isinstance(t, DeviceTensor) else t for name, t in tensors.items()}, record)


def _passed(module: nn.Module, shape: tuple[int, ...], place: Place, *, second: bool) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(3)  # no sample is without a positive number
    x = place(torch.randn(shape, generator=generator)).requires_grad_()
    output = module(x.clone())  # a module in place may write there
    R = place(torch.randn(output.shape, generator=generator)).requires_grad_()
    (r,) = torch.autograd.grad(output, x, R, create_graph=second)
    if not second:
        return {"relevance": r}
    v = place(torch.randn(r.shape, generator=generator))
    wanted = {"x": x, "R": R, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(r, list(wanted.values()), v, allow_unused=True)
    return {"relevance": r, **dict(zip(wanted, gradients, strict=True))}


def check(rule: Rule, case: Case, *, second: bool, copies: int = 0) -> Exception | None:
    """Assert that the device gives what the CPU gives, without a wait; return how both refuse it, if they do."""
    expected = outcome(rule, case, second=second, device=False)
    fake_device.number_nodes(device_ahead=True)
    found = outcome(rule, case, second=second, device=True)
    if isinstance(expected, Exception):
        assert (type(found), str(found)) == (type(expected), str(expected))
        return expected
    if isinstance(found, Exception):
        raise found
    assert found.record.synchronisations == []
    assert len(found.record.copies) <= copies, found.record.copies
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        on_the_device = found.tensors[name]
        if tensor is None or on_the_device is None:
            assert tensor is on_the_device, name
        else:
            assert on_the_device.dtype == tensor.dtype, name
            assert torch.equal(on_the_device, tensor), name
    return None


@pytest.mark.parametrize("second", [False, True], ids=["relevance", "second-derivative"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", RULES)
def test_numbers_are_those_of_the_cpu_and_nothing_is_waited_for(rule: str, name: str, second: bool) -> None:
    copies = COPIES.get(rule, 0) * (2 if name in LARGE else 1)
    refused = check(RULES[rule], LAYERS[name], second=second, copies=copies)
    if refused:
        # neither of the two is refused for what the test itself did
        shape = rule in WANT_SAME_SHAPE and not LAYERS[name].same_shape
        container = name == "block" and rule not in ON_CONTAINERS
        assert shape or container, refused


class Planted(Epsilon):
    """Epsilon, with a change of the relevance of the output."""

    def __init__(self, change: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.calls = 0

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        self.calls += 1
        return super().relevance(layer, self.change(R, self.calls))


def _refuse(error: type[Exception], R: Tensor, *, where: bool) -> Tensor:
    if where:
        msg = "no"
        raise error(msg)
    return R


#: What a rule may do wrong with the relevance in a call, and what is said of it.
PLANTED: dict[str, tuple[Callable[[Tensor, int], Tensor], str]] = {
    "item": (lambda R, _: R * R.sum().item(), "_local_scalar_dense"),
    "if": (lambda R, _: R if (R > 0).any() else 2 * R, "_local_scalar_dense"),
    "mask": (lambda R, _: torch.zeros_like(R).index_put((R > 0,), R.new_ones(())), "index_put"),
    "item-in-the-second-call-alone": (lambda R, n: R * R.sum().item() if n > 1 else R, "_local_scalar_dense"),
    "to-the-cpu-and-back": (lambda R, _: R.cpu().to(R.device), "_to_copy"),
    "from-the-cpu": (lambda R, _: R * torch.ones(R.shape).to(R.device), "copy_"),
    "tensor-made-there": (lambda R, _: R * torch.tensor([1.0], device=R.device), "_copy_from"),
    "both-devices": (lambda R, _: R * torch.ones(R.shape), "Expected all tensors to be on the same device"),
    "stays-on-the-cpu": (lambda R, _: R.cpu(), "Expected all tensors to be on the same device"),
    "other-numbers": (lambda R, _: R if R.is_cpu else 2 * R, "torch.equal"),
    "other-last-bit": (lambda R, _: R if R.is_cpu else R * (1 + 2**-52), "torch.equal"),
    "nan": (lambda R, _: R * torch.nan, "torch.equal"),
    "refused-there-alone": (lambda R, _: _refuse(TypeError, R, where=not R.is_cpu), "no"),
    "refused-here-alone": (lambda R, _: _refuse(TypeError, R, where=R.is_cpu), "TypeError"),
    "another-refusal": (lambda R, _: _refuse(TypeError if R.is_cpu else ValueError, R, where=True), "ValueError"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    change, said = PLANTED[name]
    with pytest.raises((AssertionError, RuntimeError, TypeError), match=re.escape(said)):
        check(lambda _: Planted(change), LAYERS["linear"], second=False)


def test_another_derivative_is_found() -> None:
    # the relevance is the same, and so is what of the derivative goes to R
    other = Planted(lambda R, _: R)
    other.stabilizer = lambda d: Stabilizer()(d if d.is_cpu else d.detach())
    assert check(lambda _: other, LAYERS["linear"], second=False) is None
    with pytest.raises(AssertionError, match=r"^x\b"):
        check(lambda _: other, LAYERS["linear"], second=True)


def test_the_first_call_of_a_registration_may_wait() -> None:
    once = lambda R, n: R * R.new_tensor(1.0).item() if n == 1 else R  # noqa: E731  as those that are planted
    assert check(lambda _: Planted(once), LAYERS["linear"], second=False) is None

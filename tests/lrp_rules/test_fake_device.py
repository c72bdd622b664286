"""The device that the tests make up: it refuses, waits and copies where a real one does, and disturbs nothing else."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everyone knows
from torch.utils import backend_registration

from tests.lrp_rules import fake_device
from tests.lrp_rules.fake_device import NAME, DeviceTensor, number_nodes, on_device, recorded, to_device

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@pytest.fixture(autouse=True)
def _device() -> None:
    if fake_device.unavailable():
        pytest.skip(fake_device.unavailable())


def numbers() -> Tensor:
    return torch.tensor([[1.0, -2.0], [3.0, 4.0]])


def held(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DeviceTensor)
    return tensor.held


class Thread(torch.autograd.Function):
    """Notes the thread that its backward runs on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, found: list[int]) -> Tensor:
        ctx.found = found
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.found.append(threading.get_ident())
        return gradient, None


def test_a_tensor_is_on_the_device() -> None:
    x = on_device(numbers())
    assert x.device == torch.device(NAME, 0)
    assert not x.is_cpu
    assert x.shape == (2, 2)
    assert torch.equal(held(x), numbers())


STAY: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "product": (lambda x: x @ x, numbers() @ numbers()),
    "view": (lambda x: x.T[0], torch.tensor([1.0, 3.0])),
    "in-place": (lambda x: x.mul_(2), 2 * numbers()),
    "in-place-of-a-part": (lambda x: x[0].zero_() + x, torch.tensor([[0.0, 0.0], [3.0, 4.0]])),
    "out": (lambda x: torch.add(x, x, out=torch.empty_like(x)), 2 * numbers()),
    "clone": (lambda x: x.clone(), numbers()),
    "dtype": (lambda x: x.to(torch.float32).to(torch.float64), numbers()),
    "there-already": (lambda x: x.to(x.device), numbers()),
    "full": (lambda x: x.new_full((2,), 3.0), torch.full((2,), 3.0)),
    "zeros": (lambda x: torch.zeros(2, device=x.device), torch.zeros(2)),
    "arange": (lambda x: torch.arange(3, device=x.device), torch.arange(3)),
    "index": (lambda x: x[torch.arange(1, device=x.device)], numbers()[:1]),
    "number": (lambda x: x * torch.tensor(2.0), 2 * numbers()),
    "number-before": (lambda x: torch.tensor(2.0) - x, 2 - numbers()),
    "number-in-place": (lambda x: x.div_(torch.tensor(2.0)), numbers() / 2),
    "number-out": (lambda x: torch.mul(x, torch.tensor(2.0), out=x), 2 * numbers()),
    "number-where": (lambda x: torch.where(x > 0, x, torch.tensor(0.0)), F.relu(numbers())),
    "number-filled": (lambda x: x.masked_fill(x < 0, torch.tensor(0.0)), F.relu(numbers())),
}


@pytest.mark.parametrize("name", STAY)
def test_nothing_is_written_down_of_what_stays_on_the_device(name: str) -> None:
    operation, expected = STAY[name]
    x = on_device(numbers())
    with recorded() as record:
        result = operation(x)
    assert torch.equal(held(result), expected)
    assert record.synchronisations == record.copies == []


WAIT: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0, 0]),
    "if": lambda x: bool((x > 0).any()),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask-written": lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    "masked-select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "repeats": lambda x: x.repeat_interleave(torch.arange(2, device=x.device), 0),
}


@pytest.mark.parametrize("name", WAIT)
def test_what_has_to_be_waited_for_is_written_down(name: str) -> None:
    x = on_device(numbers())
    with recorded() as record:
        WAIT[name](x)
    assert len(record.synchronisations) == 1
    assert "test_fake_device.py:" in record.synchronisations[0]
    assert record.copies == []


COPY: dict[str, Callable[[Tensor], object]] = {
    "cpu": lambda x: x.cpu(),
    "to": lambda x: numbers().to(x.device),
    "to-like": lambda x: numbers().to(x),
    "number-to": lambda x: torch.tensor(1.0).to(x.device),
    "copied-into-one-here": lambda x: torch.empty(2, 2).copy_(x),
    "copied-into-one-there": lambda x: x.copy_(numbers()),
    "part-of-one-there": lambda x: x[0].copy_(numbers()[0]),
    "made-of-a-number": lambda x: torch.tensor(1.0, device=x.device),
    "made-of-a-list": lambda x: x.new_tensor([1.0]),
}


@pytest.mark.parametrize("name", COPY)
def test_copies_between_devices_are_written_down(name: str) -> None:
    x = on_device(numbers())
    with recorded() as record:
        COPY[name](x)
    assert len(record.copies) == 1
    assert "test_fake_device.py:" in record.copies[0]
    assert record.synchronisations == []


def test_copies_carry_the_numbers() -> None:
    assert torch.equal(on_device(numbers()).cpu(), numbers())
    assert torch.equal(held(numbers().to(NAME)), numbers())
    assert torch.equal(held(torch.tensor([1.0, 2.0], device=NAME)), torch.tensor([1.0, 2.0]))


MIXTURES: dict[str, Callable[[Tensor], object]] = {
    "sum": lambda x: x + numbers(),
    "sum-before": lambda x: numbers() + x,
    "one-entry": lambda x: x * torch.ones(1),
    "in-place": lambda x: x.mul_(numbers()),
    "here-in-place": lambda x: numbers().mul_(x),
    "out": lambda x: torch.mul(x, x, out=numbers()),
    "out-of-numbers": lambda x: torch.mul(x[0, 0], x[0, 0], out=torch.tensor(0.0)),
    "product": lambda x: x @ numbers(),
    "linear": lambda x: F.linear(x, x, torch.ones(2)),
    "cat": lambda x: torch.cat([x, numbers()]),
    "where": lambda x: torch.where(x > 0, x, numbers()),
    # CUDA takes numbers in operations of two tensors
    "number-of-three": lambda x: torch.addcmul(x, x, torch.tensor(2.0)),
    "number-in-a-stack": lambda x: torch.stack([x[0, 0], torch.tensor(2.0)]),
    "number-added-up": lambda x: torch.tensor(2.0).add_(x[0, 0]),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_devices_are_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"Expected all tensors to be on the same device.*{NAME}:0 and cpu"):
        MIXTURES[name](on_device(numbers()))


def test_another_shape_in_place_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"t_\.default gives a tensor of fakedevice another shape or layout"):
        on_device(torch.ones(2, 3)).t_()


def test_records_end_and_may_overlap() -> None:
    x = on_device(numbers())
    with recorded() as outer:
        with recorded() as inner:
            pass
        x.sum().item()
        with recorded() as other:
            x.cpu()
    x.cpu().sum().item()
    assert (len(outer.synchronisations), len(outer.copies)) == (1, 1)
    assert (len(inner.synchronisations), len(inner.copies)) == (0, 0)
    assert (len(other.synchronisations), len(other.copies)) == (0, 1)


def test_a_backward_pass_runs_on_a_thread_of_the_device_and_is_recorded() -> None:
    found: list[int] = []
    for make in (on_device, torch.clone):
        x = make(numbers()).requires_grad_()
        Thread.apply(x, found).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        assert x.grad.device == x.device
    there, here = found
    assert here == threading.get_ident() != there

    x = on_device(numbers()).requires_grad_()
    product = x * 2
    product.register_hook(lambda g: g * g.sum().item())
    with recorded() as record:
        torch.autograd.grad(product.sum(), x)
    assert len(record.synchronisations) == 1


@pytest.mark.parametrize("ahead", [True, False], ids=["device-ahead", "device-behind"])
def test_nodes_of_the_device_are_numbered_above_or_below_those_of_this_thread(ahead: bool) -> None:
    for _ in range(2):
        number_nodes(device_ahead=not ahead)
        number_nodes(device_ahead=ahead)
        assert (fake_device._AdvanceDevice.run(0) > fake_device._advance(0)) is ahead


def test_a_module_moves_as_a_whole() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad = False
    before = copy.deepcopy(module.state_dict())
    to_device(module)
    tensors = [*module.parameters(), *module.buffers()]
    assert all(isinstance(tensor, DeviceTensor) for tensor in tensors)
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]
    assert all(isinstance(p, nn.Parameter) for p in module.parameters())
    assert all(torch.equal(held(now), before[name]) for name, now in module.state_dict().items())


def test_the_rest_of_torch_is_as_it_was() -> None:
    assert torch.empty(0).device.type == "cpu"
    torch.manual_seed(5)
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))
    with recorded() as record, torch.random.fork_rng(devices=[]):
        x = numbers().requires_grad_()
        (gradient,) = torch.autograd.grad((x[x > 0] ** 2).sum(), x)
        torch.set_rng_state(torch.get_rng_state())
    assert type(gradient) is Tensor
    assert torch.equal(gradient, 2 * F.relu(numbers()))
    assert record.operations == 0


def _imported_again(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, fake_device.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_a_second_registration_is_not_tried() -> None:
    assert _imported_again("second").unavailable() == f"this process has a device of the kind already, {NAME}"


def test_a_torch_that_cannot_have_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(backend_registration, "_setup_privateuseone_for_python_backend")
    assert _imported_again("old").unavailable() == f"torch {torch.__version__} knows no backends in Python"


def test_after_a_backward_pass_it_is_too_late() -> None:
    program = (
        "import torch; torch.ones(1, requires_grad=True).sum().backward()\n"
        "import fake_device; print(fake_device.unavailable(), end='')"
    )
    folder = Path(fake_device.__file__).parent
    found = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout == "a backward pass had been run before the device was there"

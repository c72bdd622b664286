"""A device that is not the CPU, on a machine without one.

Its tensors say that they are on ``fakedevice:0``, and the CPU's kernels compute their numbers, in memory of the CPU.
What makes a device different for those who use it is real, or is noticed:

- autograd runs a backward pass on the device's own thread, whose nodes are numbered from zero, see ``number_nodes``;
- an operation on tensors of both devices is refused. Numbers, as tensors of the CPU without dimensions, are taken where
  CUDA takes them;
- an operation is written down that has to wait for the device, because a number or a shape depends on what is computed
  there, and so is a copy from one device to the other, see ``recorded``.

Not everything is as on a real device: ``data_ptr()`` is 0 for all tensors, and a random number is one of the CPU.

torch calls such a device a backend in Python, behind the dispatch key PrivateUse1. There is one in a process, for good.
It is there once this module is imported; ``unavailable`` says why it may not be.
"""

from __future__ import annotations

import atexit
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

NAME = "fakedevice"

aten = torch.ops.aten
#: What may go from one device to the other.
_COPIES = {aten.copy_.default, aten._to_copy.default}
#: What takes a number that is a tensor of the CPU, besides the pointwise operations of two tensors.
_TAKE_NUMBERS = {
    aten.where.self,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.fill.Tensor,
    aten.fill_.Tensor,
}
#: With a mask as an index, these look for what is True in it.
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
#: What makes a tensor out of no other; torch makes the rest with the first two.
_MAKERS = (
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.eye.default,
    aten.eye.m,
)
#: An operation that has one of these tags gives a number or a shape that depends on the values of tensors.
_WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(eq=False)
class Record:
    """What happened on the device, each with the line of Python that it was for."""

    operations: int = 0
    synchronisations: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)


_records: list[Record] = []


@contextmanager
def recorded() -> Iterator[Record]:
    """Write down what happens on the device meanwhile, on every thread."""
    record = Record()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


class DeviceTensor(Tensor):
    """A tensor on the device. ``held`` is the tensor that has its numbers; to look at it is no operation."""

    held: Tensor
    # no function of Python is to see another class than Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[Self], held: Tensor) -> Self:
        tensor: Self = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0), requires_grad=False, storage_size=held.untyped_storage().nbytes(),
        )  # fmt: skip
        tensor.held = held
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]  # the other takes contents, which are known here
        return f"DeviceTensor({self.held})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # declared as no method of the class, which torch wants it to be
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _executed(func, args, dict(kwargs or {}))


def on_device(tensor: Tensor) -> Tensor:
    """Return a leaf with these numbers on the device; nothing is written down."""
    return DeviceTensor(tensor.detach().clone())


def to_device(module: nn.Module) -> None:
    """Move the parameters and buffers of a module, and of those below it, to the device; nothing is written down."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(on_device(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_device(buffer)


def _executed(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Execute an operation that torch has brought down to what a device has to know."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    device = kwargs.get("device")
    away = device is not None and torch.device(device).type != NAME
    _watch(func, tensors, _written(func, args, kwargs), away=away)
    if device is not None:
        kwargs["device"] = "cpu"
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def given_back(made: Any) -> Any:
        if not isinstance(made, Tensor) or away:
            return made
        for tensor in tensors:
            if _held(tensor) is made:  # it was written to
                if tensor.shape != made.shape or tensor.stride() != made.stride():
                    msg = f"{func} gives a tensor of {NAME} another shape or layout, which nobody has implemented"
                    raise NotImplementedError(msg)
                return tensor
        return DeviceTensor(made)

    return tree_map(given_back, result)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, DeviceTensor) else leaf


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that the operation writes to."""
    given = [*args, *(kwargs.get(argument.name) for argument in func._schema.arguments[len(args) :])]
    arguments = zip(func._schema.arguments, given, strict=True)
    return [value for argument, value in arguments if argument.is_write]


def _watch(func: Any, tensors: Sequence[Tensor], written: Sequence[Any], *, away: bool) -> None:
    """Refuse a mixture of devices, and write down what has to wait and what is copied."""
    strangers = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    for record in _records:
        record.operations += 1
    if func in _COPIES:
        if strangers or away:
            _note("copies", func)
        return
    numbers = func in _TAKE_NUMBERS or (torch.Tag.pointwise in func.tags and len(_inputs(func, tensors)) == 2)
    if any(tensor.ndim > 0 or not numbers or any(tensor is w for w in written) for tensor in strangers):
        msg = (
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({func})"
        )
        raise RuntimeError(msg)
    if func in _INDEXING:
        waits = any(tensor.dtype in {torch.bool, torch.uint8} for tensor in tensors[1:])
    else:
        waits = not _WAITS.isdisjoint(func.tags)
    if waits:
        _note("synchronisations", func)


def _inputs(func: Any, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the tensors without those that are written to and not read: they come last."""
    outs = sum(argument.is_out for argument in func._schema.arguments)
    return tensors[: len(tensors) - outs]


def _note(what: str, func: Any) -> None:
    if _records:
        line = f"{func} in {_place(traceback.extract_stack())}"
        for record in _records:
            getattr(record, what).append(line)


def _place(stack: Iterable[traceback.FrameSummary]) -> str:
    """Return the innermost line that is neither torch's nor this module's."""
    torchs = str(Path(torch.__file__).parent)
    frames = [f for f in stack if not f.filename.startswith(torchs) and f.filename != __file__]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else "autograd"


class _Module:
    """What torch asks of ``torch.fakedevice``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False  # or nn.DataParallel, and whatever else takes the device that is there, would take this one

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: random numbers come from the CPU's generator."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _maker(operation: Any) -> Callable[..., Tensor]:
    """Return an operation that makes a tensor out of no other, for the device."""

    def make(*args: Any, **options: Any) -> Tensor:
        return DeviceTensor(operation(*args, **{**options, "device": "cpu"}))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy where torch has left subclasses behind already, as in ``torch.tensor(1.0, device=...)``."""
    _note("copies", aten._copy_from.default)
    _held(target).copy_(_held(source))
    return target


def number_nodes(*, device_ahead: bool) -> None:
    """Let the next nodes of the device's thread have higher numbers than those of this thread, or lower ones.

    Of the nodes that are ready, autograd executes the one with the highest number first, and adds up gradients in that
    order. Each thread numbers its nodes by itself. On the CPU, those that a backward pass makes come behind those of
    the forward pass, since one thread makes them all: so they do on the device if it is ahead. It is behind in a
    process that has just begun.
    """
    if device_ahead:
        _AdvanceDevice.run(_advance(0) + _MARGIN)
    else:
        _advance(_AdvanceDevice.run(0) + _MARGIN)


#: More nodes than a test makes.
_MARGIN = 2000


def _advance(least: int) -> int:
    """Make nodes on this thread up to one with at least this number, which is returned."""
    x, number = torch.ones((), requires_grad=True), -1
    with torch.enable_grad():
        while number < least:
            node = x.view_as(x).grad_fn
            assert node is not None
            number = node._sequence_nr()
    return number


class _AdvanceDevice(torch.autograd.Function):
    """Does the same on the device's thread, in a backward pass."""

    @classmethod
    def run(cls, least: int) -> int:
        numbers: list[int] = []
        x = on_device(torch.ones(())).requires_grad_()
        torch.autograd.grad(cls.apply(x, least, numbers), x)  # type: ignore[no-untyped-call]
        return numbers[0]

    @staticmethod
    def forward(ctx: Any, x: Tensor, least: int, numbers: list[int]) -> Tensor:
        ctx.least, ctx.numbers = least, numbers
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.numbers.append(_advance(ctx.least))
        return gradient, None, None


@cache
def _registered() -> str:
    """Bring the device into being; return why that cannot be, or nothing."""
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        return f"torch {torch.__version__} knows no backends in Python"
    other = torch._C._get_privateuse1_backend_name()
    if other != "privateuseone":
        return f"this process has a device of the kind already, {other}"
    setup(NAME, backend_module=_Module())
    # when a pass is over, the device's thread lets go of Python's objects, which it may not do while Python ends
    atexit.register(time.sleep, 0.1)
    for makes in _MAKERS:
        _kernels.impl(makes, _maker(makes), "PrivateUse1")
    _kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    return ""


@cache
def unavailable() -> str:
    """Return why the device cannot be used in this process; an empty string where it can."""
    reason = _registered()
    if reason:
        return reason
    x = on_device(torch.ones(1)).requires_grad_()
    try:
        torch.autograd.grad(x * 2, x, on_device(torch.ones(1)))
    except RuntimeError as error:
        if "device_ready_queues_" not in str(error):
            raise
        # torch starts the threads of all devices at the first backward pass, and none later
        return "a backward pass had been run before the device was there"
    return ""


# kept for good: what it has registered goes with it
_kernels = torch.library.Library("aten", "IMPL")
# at import: before the first backward pass, since test files are imported before the first test runs
_registered()

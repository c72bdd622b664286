"""The rule classes of the API, for a process: what they are registered on is described, and the relevance asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from verify.formats import layer_json, torch_layers
from verify.model import Finding, NotOfferedError, UnansweredError, Verdict
from verify.questions.variants import clipped
from verify.subjects.adapting import Handle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from verify.subjects.protocol.connection import Connection


def rule_class(connection: Connection, name: str) -> Callable[..., Rule]:
    """Return what makes a rule of that name from arguments, as a class of the API would."""
    return lambda **arguments: Rule(connection, name, arguments)


class Rule:
    """A rule whose relevance a process gives."""

    def __init__(self, connection: Connection, name: str, arguments: Mapping[str, Any]) -> None:
        self._connection = connection
        self._name = name
        self._parameters = {key: _parameter(key, value) for key, value in arguments.items()}

    def register(self, module: nn.Module) -> Handle:
        """Put the question to the process in the backward pass of a module."""
        original = module.forward

        def forward(*inputs: Any, **others: Any) -> Any:
            if len(inputs) != 1 or others:
                msg = "a process is asked about one input, by position"
                raise NotOfferedError(msg)
            (x,) = inputs
            with torch.no_grad():
                z = original(x)
            if not isinstance(z, Tensor):
                msg = "a process is asked about one output"
                raise NotOfferedError(msg)
            return _Asked.apply(x, z, lambda R: self._relevance(module, x.detach(), R))  # type: ignore[no-untyped-call]

        return Handle(module, forward)

    def _relevance(self, module: nn.Module, x: Tensor, R: Tensor) -> Tensor:
        lone = _is_one_sample(module, x)
        layer, tensors = _described(module, x.shape if lone else x.shape[1:])
        self._check_offered(layer, x.dtype)
        given = {"x": x[None], "R": R[None]} if lone else {"x": x, "R": R}
        found = self._connection.relevance(
            self._name,
            self._parameters,
            layer,
            {name: to_array(value) for name, value in (given | tensors).items()},
        )
        return _checked(found, given["x"]).reshape(x.shape)

    def _check_offered(self, layer: Mapping[str, Any], dtype: torch.dtype) -> None:
        started = self._connection.started
        assert started is not None
        name = str(dtype).removeprefix("torch.")
        for what, value, known in (
            ("dtype", name, started.dtypes),
            ("layer", layer["type"], started.layers),
            ("function", layer.get("function"), started.functions),
        ):
            if value is not None and value not in known:
                msg = f"{started.name} does not offer the {what} {value}"
                raise NotOfferedError(msg)


class _Asked(torch.autograd.Function):
    """The module's own output forward, and what the process answers backward."""

    @staticmethod
    def forward(ctx: Any, _x: Tensor, z: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.ask = ask
        return z.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ask(relevance[0]), None, None


def _described(module: nn.Module, shape: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a module's layer in JSON, and its tensors in the module's own dtype."""
    try:
        layer = torch_layers.describe(module, tuple(shape))
    except TypeError as error:
        raise NotOfferedError(str(error)) from error
    values = {name: getattr(module, name, None) for name in layer_json.TENSORS}
    return layer_json.describe(layer), {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _is_one_sample(module: nn.Module, x: Tensor) -> bool:
    """Whether the input has no axis for the batch."""
    # a subclass is called as it likes
    kind = next((cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules")), "")
    if kind.startswith(("Conv", "AvgPool", "MaxPool", "Adaptive")):
        return x.ndim == int(kind[-2]) + 1
    return x.ndim == 1


def _parameter(name: str, value: Any) -> Any:
    """Return a parameter as messages carry it; NotOfferedError for code, which they do not."""
    if value is clipped:
        return {"epsilon": 0.5, "clip": True, "norm_scale": False}
    if name == "zero_params":
        return [value] if isinstance(value, str) else list(value or ())
    if isinstance(value, Tensor):
        return to_array(value)
    if isinstance(value, np.generic):
        return value.item()
    if callable(value):
        msg = f"a callable as {name} cannot be sent to a process"
        raise NotOfferedError(msg)
    return value


def to_array(value: Tensor) -> NDArray[Any]:
    """Return a tensor's entries, those of bfloat16 as the uint16 of their bits."""
    value = value.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(np.uint16)
    return np.asarray(value.numpy())


def _checked(found: NDArray[Any], x: Tensor) -> Tensor:
    """Return the answer as a tensor; one of another shape or dtype than the input is the verdict already."""
    expected = to_array(x)
    for what, given, wanted in (
        ("shape", found.shape, expected.shape),
        ("dtype", _name(found), _name(expected)),
    ):
        if given != wanted:
            reason = f"relevance of {what} {given}, expected that of the input, {wanted}"
            raise UnansweredError(Finding(Verdict.FAIL, reason=reason))
    tensor = torch.from_numpy(found.view(np.int16) if found.dtype == np.uint16 else found)
    return tensor.view(torch.bfloat16) if found.dtype == np.uint16 else tensor


def _name(array: NDArray[Any]) -> str:
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name

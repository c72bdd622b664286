"""The node that stands for one call of a module in the graph of autograd; its backward is the rule."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from lrp_rules.derivative import Derivative
from lrp_rules.parts import plainly, stands_for_many
from lrp_rules.refusals import see
from lrp_rules.rerun import Rerun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lrp_rules.hooks import Hook
    from lrp_rules.layer import Layer

    Tensors = tuple[Tensor, ...]


class Watched:
    """The values of a tensor, until somebody overwrites them."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    @property
    def value(self) -> Tensor | None:
        return self._tensor if self._tensor._version == self._version else None


@dataclass
class Call:
    """What is known of one call of a module besides its tensors."""

    hook: Hook
    module: nn.Module
    kind: type[Layer]
    shapes: list[torch.Size]
    rerun: Rerun | None = None
    in_torch_func: bool = False
    #: What was asked already of the numbers of this module, on a device where that is waited for.
    asked: set[str] = field(default_factory=set)
    #: Parameters as the call used them, where the module does not have them under their names any more.
    used: Mapping[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    #: Parameters of known layers that are None.
    absent: Mapping[str, None] = field(default_factory=dict)
    #: Parameters, and where their data lies: what is replaced through ``.data`` leaves no other trace.
    places: Sequence[tuple[nn.Parameter, int]] = ()
    kept: tuple[str, ...] = ()
    output: Watched | None = None
    #: How many parameters the node has as inputs, behind the call's own.
    parameters: int = 0
    #: The graph of the call itself, for each output, where the hook cannot repeat it.
    graph: Sequence[torch.autograd.graph.GradientEdge | None] = ()

    def run(
        self, parameters: Mapping[str, Tensor | None], *inputs: Tensor, below: Sequence[Tensor] | None = None
    ) -> Tensors:
        """Repeat the call with other parameters or inputs."""
        self.check_repeatable()
        # what is known as a matrix does not depend on train or eval mode, or is in eval mode
        rerun = Rerun(self.module, modes={self.module: False}) if self.rerun is None else self.rerun
        return rerun(parameters, *inputs, below=below)

    def check_repeatable(self) -> None:
        """Refuse to repeat the call where torch cannot."""
        if self.in_torch_func:
            msg = (
                f"{type(self.hook).__name__} on {self.module} has to run the module once more, which torch.func cannot "
                "do in a backward pass; expected a rule or module that needs no second run. Use torch.autograd.grad, "
                f"with is_grads_batched=True for several relevances{see('torch-func')}"
            )
            raise RuntimeError(msg)


class Node(torch.autograd.Function):
    """The node that stands for one call of a module."""

    @staticmethod
    def forward(ctx: Any, call: Call, saved: Tensors, returned: Tensors, *inputs: Tensor) -> Any:
        # behind the inputs come parameters: no relevance goes there, but the derivative of one does
        ctx.call = call
        ctx.save_for_backward(*(inputs[: len(call.shapes)] if call.hook.uses_inputs else ()), *saved)
        return returned if len(returned) > 1 else returned[0]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        if stands_for_many():
            with plainly():
                return Node._backward(ctx, relevance)
        return Node._backward(ctx, relevance)

    @staticmethod
    def _backward(ctx: Any, relevance: Tensors) -> Any:
        call: Call = ctx.call
        try:
            tensors = ctx.saved_tensors
        except CheckpointError as error:
            error.add_note(
                f"{type(call.hook).__name__} on {call.module} was in force when the checkpointed part was called, and "
                "is not now, when it is called again. Do the backward pass before the rules are removed"
                f"{see('checkpoints')}"
            )
            raise
        count = len(call.shapes) if call.hook.uses_inputs else 0
        inputs, saved = tensors[:count], tensors[count:]
        for parameter, place in call.places:
            if parameter.data_ptr() != place:
                _refuse_replaced(call, parameter)
        device = relevance[0].device.type
        if Derivative.under_way():
            with Derivative.inside(), _without_autocast(device):
                answer = call.hook._differentiate(
                    call, inputs, saved, relevance, ctx.next_functions[: len(call.shapes)]
                )
            return (None, None, None, *[r if r is None else Derivative.behind(r, ()) for r in answer])
        with _without_autocast(device):
            answer = call.hook._propagate(call, inputs, saved, relevance)
        got = [r if r is None else r.shape for r in answer]
        if got != call.shapes and not _fits(got, call.shapes):
            msg = (
                f"{type(call.hook).__name__} on {call.module}: relevance of shape {[a and tuple(a) for a in got]}, "
                f"expected one tensor for each input, of shape {[tuple(b) for b in call.shapes]}. A rule that passes "
                "relevance on unchanged needs a module whose outputs look like its inputs"
            )
            raise TypeError(msg)
        if torch.is_grad_enabled():
            used = (*inputs, *saved[len(call.kept) : len(call.kept) + len(call.names)])
            answer = [r if r is None else Derivative.behind(r, used) for r in answer]
        return (None, None, None, *answer, *[None] * call.parameters)


class FunctorchNode(Node):
    """The same under torch.func.vjp, grad and jacrev, which ask for another form, slower for small layers."""

    @staticmethod
    def forward(_call: Call, _saved: Tensors, returned: Tensors, *_inputs: Tensor) -> Any:  # type: ignore[override]
        return returned if len(returned) > 1 else returned[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, saved, _returned, *given = inputs
        Node.forward(ctx, call, saved, (output,), *given)


_NO_AUTOCAST: AbstractContextManager[None] = nullcontext()


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    # a device such as 'meta' knows no autocast, and torch refuses the question
    if device in {"cpu", "cuda"} or torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NO_AUTOCAST
    return _NO_AUTOCAST


def _refuse_replaced(call: Call, parameter: nn.Parameter) -> None:
    names = [name for name, value in call.module.named_parameters() if value is parameter]
    msg = (
        f"{type(call.hook).__name__} on {call.module}: the data of its parameter {', '.join(names)} was replaced "
        "between the forward and the backward pass, so that the numbers of the call are gone; expected the same in "
        f"both. Call the module again after the change{see('what-the-call-used')}"
    )
    raise RuntimeError(msg)


def _fits(got: Sequence[torch.Size | None], expected: Sequence[torch.Size]) -> bool:
    # None is no relevance
    return len(got) == len(expected) and all(a in (None, b) for a, b in zip(got, expected, strict=True))

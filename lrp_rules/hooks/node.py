"""The node that stands for one call of a module in the graph of autograd; its backward is the rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from lrp_rules.errors import see
from lrp_rules.hooks.calls import check_outside
from lrp_rules.hooks.rerun import autocast
from lrp_rules.layers.blocks import VMAP, in_vmap, interpreters, is_plain, plainly
from lrp_rules.layers.derivative import Derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lrp_rules.hooks.call import Call

    Tensors = tuple[Tensor, ...]


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
        if (interpreters() is not None or in_vmap(VMAP)) and not is_plain():
            with plainly():
                return Node.backward(ctx, *relevance)
        call: Call = ctx.call
        if call.within is not None:
            check_outside(call.hook, call.module, call.within())
        try:
            tensors = ctx.saved_tensors if call.around is None else call.around(lambda: ctx.saved_tensors)
        except CheckpointError as error:
            error.add_note(
                f"{type(call.hook).__name__} on {call.module} was in force when the checkpointed part was called, and "
                "is not now, when it is called again. Do the backward pass before the rules are removed"
                f"{see('checkpoints')}"
            )
            raise
        count = len(call.shapes) if call.hook.uses_inputs else 0
        inputs, saved = tensors[:count], tensors[count:]
        if call.places:
            used = saved[len(call.kept) : len(call.kept) + len(call.names)]
            if call.places != [parameter.data_ptr() for parameter in used]:
                _check_replaced(call, used)
        if call.in_derivative or Derivative.under_way():
            found = Node._differentiated(ctx, call, inputs, saved, relevance)
            return (None, None, None, *found, *(None,) * len(call.asked))
        device = relevance[0].device.type
        shares: Sequence[Tensor | None] = ()
        if device != "meta" and torch.is_autocast_enabled(device):  # 'meta' knows no autocast
            with torch.autocast(device, enabled=False):
                answer = call.hook._propagate(call, inputs, saved, relevance)
                shares = _shares(ctx, call, inputs, saved, relevance) if call.asked else ()
        else:
            answer = call.hook._propagate(call, inputs, saved, relevance)
            shares = _shares(ctx, call, inputs, saved, relevance) if call.asked else ()
        if [r if r is None else r.shape for r in answer] != call.shapes:
            answer = _one_for_each(call, answer, ctx.next_functions)
        if torch.is_grad_enabled():
            used = (*inputs, *saved[len(call.kept) : len(call.kept) + len(call.names)])
            answer = [r if r is None else Derivative.behind(r, used) for r in answer]
            shares = [r if r is None else Derivative.behind(r, used) for r in shares]
        return (None, None, None, *answer, *(call.to_parameters or (None,) * call.parameters), *shares)

    @staticmethod
    def _differentiated(
        ctx: Any, call: Call, inputs: Tensors, saved: Tensors, gradients: Tensors
    ) -> Sequence[Tensor | None]:
        """Return what the module's own backward pass would."""
        device = gradients[0].device.type
        with Derivative.inside(), autocast(device, None):
            answer = call.hook._differentiate(call, inputs, saved, gradients, ctx.next_functions[: len(call.shapes)])
        return [r if r is None else Derivative.behind(r) for r in answer]


class FunctorchNode(Node):
    """The same under torch.func.vjp, grad and jacrev, which ask for another form, slower for small layers."""

    @staticmethod
    def forward(_call: Call, _saved: Tensors, returned: Tensors, *_inputs: Tensor) -> Any:  # type: ignore[override]
        return returned if len(returned) > 1 else returned[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, saved, _returned, *given = inputs
        Node.forward(ctx, call, saved, (output,), *given)


def _shares(ctx: Any, call: Call, inputs: Tensors, saved: Tensors, relevance: Tensors) -> Sequence[Tensor | None]:
    """Return the relevance of the parameters that are asked for, where this pass wants it."""
    edges = ctx.next_functions[-len(call.asked) :]
    wanted = [torch._C._will_engine_execute_node(node) for node, _ in edges]
    names = [name for name, needed in zip(call.asked, wanted, strict=True) if needed]
    found = iter(call.hook._divide(call, inputs, saved, relevance, names) if names else ())
    return [next(found) if needed else None for needed in wanted]


def _check_replaced(call: Call, used: Tensors) -> None:
    """Refuse a parameter whose data was replaced; one that was packed by saved-tensor hooks lies elsewhere, too."""
    now = {value.data_ptr() for value in call.module.parameters(recurse=False)}
    pairs = zip(call.places or (), used, strict=True)
    replaced = [p for place, p in pairs if p.data_ptr() != place and place not in now and type(p) is nn.Parameter]
    if not replaced:
        return
    msg = (
        f"{type(call.hook).__name__} on {call.module}: the data of a parameter of shape {tuple(replaced[0].shape)} was "
        "replaced between the forward and the backward pass, so that the numbers of the call are gone; expected the "
        f"same in both. Call the module again after the change{see('what-the-call-used')}"
    )
    raise RuntimeError(msg)


def _one_for_each(
    call: Call, answer: Sequence[Tensor | None], edges: Sequence[tuple[Any, int]]
) -> Sequence[Tensor | None]:
    """Return a relevance for each input, or none; refuse what is of another shape."""
    if len(answer) < len(call.shapes):
        needing = [edge[0] is not None for edge in edges[: len(call.shapes)]]
        if sum(needing) == len(answer):  # none for what is constant
            given = iter(answer)
            answer = [next(given) if needed else None for needed in needing]
    got = [r if r is None else r.shape for r in answer]
    if len(got) == len(call.shapes) and all(a in (None, b) for a, b in zip(got, call.shapes, strict=True)):
        return answer
    msg = (
        f"{type(call.hook).__name__} on {call.module}: relevance of shape {[a and tuple(a) for a in got]}, expected "
        f"one tensor for each input, of shape {[tuple(b) for b in call.shapes]}. A rule that passes relevance on "
        f"unchanged needs a module whose outputs look like its inputs{see('several-tensors')}"
    )
    raise TypeError(msg)

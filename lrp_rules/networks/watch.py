"""Hooks on every module of a model with rules, that tell the flow of a call where it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrp_rules.errors import see
from lrp_rules.hooks.calls import drop_hooks, opaque
from lrp_rules.networks.between import Inside, here, stack
from lrp_rules.networks.flow import CONSTANT, GATE_MODULES, RAW, REACHED, Flow, wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.hooks.registration import Registration
    from lrp_rules.networks.between import Between


class Watch:
    """Two hooks on a module: they tell the flow of a call where it is, and begin one where there is none."""

    def __init__(
        self, between: Between, name: str, module: nn.Module, registration: Registration | None, *, is_open: bool
    ) -> None:
        self.between, self.name, self.registration = between, name, registration
        self.choose = getattr(registration, "choose", None)
        enter, leave = (self._into, self._out_of) if is_open else (self._enter, self._leave)
        self.handles = [
            module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Take both off."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def __deepcopy__(self, memo: Any) -> Watch:
        return _removed()

    def __reduce__(self) -> tuple[Callable[[], Watch], tuple[()]]:
        return _removed, ()

    # a module with a rule

    @opaque
    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.handles:
            drop_hooks(module, _is_removed)
            return
        flow = None if here.blocks(self.between) else flow_of(self.between)
        value = REACHED
        if flow is not None and torch.is_grad_enabled():
            value = flow.reach(wanted((args, kwargs)), self.name)
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                value = RAW
        if self.choose is not None:
            first = module in self.between.first if flow is not None and flow.repeats else value == RAW
            if first:
                self.between.first.add(module)
            self.choose(first=first)
            value = min(value, REACHED)
            if flow is None and torch.is_grad_enabled() and not here.blocks(self.between):
                check_model_is_called(module)
        here.inside.append(Inside(sys._getframe(1), value, module, self.between if self.registration is None else None))

    @opaque
    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # not where a hook of somebody else has raised before the call began
        if not self.handles or not here.inside or here.inside[-1].module is not module:
            return
        value = here.inside.pop().value
        flow = None if here.blocks(self.between) else flow_of(self.between)
        if flow is None or output is None or not torch.is_grad_enabled():
            return
        hook = None if self.registration is None else self.registration.hook
        flow.mark(output, CONSTANT if hook is not None and hook.is_constant else value)
        flow.stopped = flow.stopped or (hook is not None and hook.is_constant)
        if isinstance(module, GATE_MODULES):
            flow.note_gate(output)
        if hook is not None and isinstance(output, Tensor) and len(args) == 1 and not kwargs:
            flow.note_layer(output, hook, module, args[0])  # type: ignore[arg-type]

    # a module without one

    @opaque
    def _into(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.handles:
            drop_hooks(module, _is_removed)
            return
        flow = flow_of(self.between)
        if here.inside or flow is None:
            here.settle()
            flow = flow_of(self.between)
        if here.blocks(self.between) or not torch.is_grad_enabled() or torch._C._get_tracing_state() is not None:
            return
        if flow is None and is_compiling():
            if self.between.rules or self.between.early:
                msg = (
                    f"{type(module).__name__} has rules for functions, and torch.compile runs it: what it makes of "
                    "them would not be these rules. Call the model that was given to torch.compile, or this one inside "
                    "`with torch.compiler.set_stance('force_eager')`"
                    f"{see('between-the-layers')}"
                )
                raise RuntimeError(msg)
            return
        if flow is None:
            flow = Flow(self.between, sys._getframe(1))
            if self.between.early and self.name and not flow.repeats:
                check_model_is_called(module)
            flow.begin(module, (args, kwargs))
            flow.start()
        flow.path.append((self.name, module))

    @opaque
    def _out_of(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.handles:
            return
        flow = flow_of(self.between)
        if flow is None or not any(module is part for _, part in flow.path):
            return
        while flow.path.pop()[1] is not module:
            pass
        if not flow.path:
            values = [flow.value(tensor) for tensor in wanted(output)]
            stopped = flow.stopped
            flow.end()
            if isinstance(output, Iterator):
                msg = (
                    f"{type(module).__name__} gives a {type(output).__name__}, which computes after the call, where no "
                    "function has a rule; expected a forward pass that returns what it computes. Put that in a list"
                    f"{see('between-the-layers')}"
                )
                raise RuntimeError(msg)
            if values and not any(values) and stopped and not self.name:
                msg = (
                    f"the output of {type(module).__name__} is a constant for relevance: it ends in a softmax whose "
                    "rule is Stop; expected an output that relevance can start from. "
                    f"Explain what the model computes before its softmax{see('between-the-layers')}"
                )
                raise RuntimeError(msg)
            if output is not None:
                self.between.say()


def is_compiling() -> bool:
    """Whether torch.compile runs what is called here."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is not None and getattr(getattr(dynamo, "_stance", None), "stance", "") == "force_eager":
        return False
    for frame in stack():
        if frame.f_code.co_filename.endswith("_dynamo/eval_frame.py"):
            return frame.f_code.co_qualname.startswith("_TorchDynamoContext.")  # and not what disables it
    return False


def check_model_is_called(module: nn.Module) -> None:
    """Refuse a part that is called by itself, where first layers have rules of their own."""
    msg = (
        f"{type(module).__name__} was called by itself, and not by its model, and the composite has rules for the "
        "layers that the model's input reaches first: which these are can only be seen in a call of the model. Call "
        f"the model that the rules are attached to, or attach them to this part{see('between-the-layers')}"
    )
    raise RuntimeError(msg)


def flow_of(between: Between) -> Flow | None:
    """Return what sees the call under way of a model on this thread, if there is one."""
    for flow in reversed(here.flows):
        if flow.between is between:
            return flow  # type: ignore[no-any-return]
    return None


def _is_removed(owner: Any) -> bool:
    return isinstance(owner, Watch) and not owner.handles


def _removed() -> Watch:
    watch = object.__new__(Watch)
    watch.handles = []
    return watch

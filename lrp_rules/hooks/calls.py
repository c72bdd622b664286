"""Whether a model was called, and what to say of rules that were not: their modules had the plain gradient."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from lrp_rules.errors import see

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import FrameType

    F = TypeVar("F", bound=Callable[..., Any])


def opaque(hook: F) -> F:
    """Keep torch.compile from looking into a hook: it is called as it is, between two compiled parts.

    What it does with graphs and threads cannot be compiled. Both marks are read by torch._dynamo, which is not imported
    for it: the one where a call of the hook is traced, the other where the hook runs.
    """
    hook._torchdynamo_disable = True  # type: ignore[attr-defined]
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(hook.__code__, frames._FrameExecStrategy(skip, skip))
    return hook


def drop_hooks(module: nn.Module, gone: Callable[[Any], bool]) -> None:
    """Take off a module the hooks whose owner is gone: those of a copy, which has no rule but the hooks of one."""
    tables = [table for name, table in vars(module).items() if name.startswith("_forward_") and "hooks" in name]
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if gone(getattr(hook, "__self__", None))]:
            for table in tables:
                table.pop(key, None)


@dataclass(eq=False)
class Running:
    """A call under way of a model with rules: its thread, and the frame that calls the model. It goes as it ends."""

    calls: Calls
    thread: int
    frame: FrameType

    @property
    def lasts(self) -> bool:
        """Whether it is under way still: torch tells nobody of a call that was interrupted from the keyboard."""
        frame = _innermost(self.thread)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


def _innermost(thread: int) -> FrameType | None:
    """Return the frame that a thread is in."""
    if thread == threading.get_ident():
        return sys._getframe()
    # In Python 3.11, a collection of garbage in the midst of this waits for a lock that this holds (CPython 106883).
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if collects:
            gc.enable()


running: list[Running] = []


def outermost() -> weakref.ref[Running] | None:
    """Return the first of the calls that this thread is inside of, for as long as it is under way."""
    thread = threading.get_ident()
    return next((weakref.ref(call) for call in running if call.thread == thread), None)


def check_outside(hook: object, module: nn.Module, within: Running | None) -> None:
    """Refuse a backward pass inside the forward pass of a model with rules: the model's own output would change.

    ``within`` is the call of that model in which the module was called, if it has not ended. The thread of the backward
    pass tells nothing: on an accelerator it is another one.
    """
    if within is None:
        return
    if not within.lasts:
        _forget([within])
        return
    msg = (
        f"{type(hook).__name__} on {module}: the model computes a gradient inside its own forward pass, and would "
        "get a relevance there, so that its output would change; expected a forward pass without a backward pass "
        "in it. Attach the rules to the part of the model that is to be explained, or, where that gradient is "
        f"meant to be a relevance, to the part that it goes through{see('gradients-inside-the-forward-pass')}"
    )
    raise RuntimeError(msg)


def _forget(calls: Iterable[Running]) -> None:
    for call in calls:  # one by one, since other threads add theirs
        running.remove(call)


class Calls:
    """Counts the calls of a module, until ``remove()``.

    The module keeps it, and it keeps ``owner``: who forgets an attachment has its rules as long as there is the model.
    """

    def __init__(self, module: nn.Module, owner: object) -> None:
        self.number, self.owner = 0, owner
        self._handles = [
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end, always_call=True),
        ]
        self.counts = True

    @opaque
    def _begin(self, module: nn.Module, _args: Any) -> None:
        if self.counts:
            self.number += 1
            thread = threading.get_ident()
            _forget([call for call in running if call.thread == thread and not call.lasts])
            running.append(Running(self, thread, sys._getframe(1)))
        else:
            drop_hooks(module, lambda owner: owner is self)

    @opaque
    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        thread = threading.get_ident()
        # none where the rules were removed during the call
        _forget([call for call in running if call.thread == thread and call.calls is self][-1:])

    def remove(self) -> int:
        """Stop, and return how many there were."""
        number, self.number, self.counts, self.owner = self.number, 0, False, None
        for handle in self._handles:
            handle.remove()
        _forget([call for call in running if call.calls is self])
        return number

    def __deepcopy__(self, memo: Any) -> Calls:
        return _none()

    def __reduce__(self) -> tuple[Callable[[], Calls], tuple[()]]:
        return _none, ()


def _none() -> Calls:
    calls = object.__new__(Calls)
    calls.number, calls.counts, calls.owner = 0, False, None
    return calls


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is what torch.compile made of another one."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return frames is not None and isinstance(module, frames.OptimizedModule)


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or what it is a part of, was given to torch.compile: calls then leave no trace here."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    if frames is None:
        return False
    wrapper: type[nn.Module] = frames.OptimizedModule
    if any(isinstance(part, wrapper) or part._compiled_call_impl is not None for part in model.modules()):
        return True
    seen: set[int] = set()
    waiting: list[nn.Module] = [model]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        for holder in gc.get_referrers(*[table for table in gc.get_referrers(part) if isinstance(table, dict)]):
            # from Python 3.13 on, a module's attributes need no dict of their own, and it refers to them itself
            owner = holder if isinstance(holder, nn.Module) else None
            for above in (
                [owner] if owner is not None else [m for m in gc.get_referrers(holder) if isinstance(m, nn.Module)]
            ):
                if isinstance(above, wrapper):
                    return True
                waiting.append(above)
    return False


def never_called(model: nn.Module, idle: Sequence[tuple[object, nn.Module]]) -> str:
    """Return what to say of rules that were never called although the model was, and why that may be."""
    names = {part: name for name, part in model.named_modules()}
    groups: dict[tuple[str, str, str], int] = {}
    gone = []
    for hook, module in idle:
        name = names.get(module)
        if name is None:
            gone.append(module)
        where = "no part of the model any more" if name is None else _pattern(name)
        key = (type(hook).__name__, type(module).__name__, where)
        groups[key] = groups.get(key, 0) + 1
    listed = "; ".join(
        f"{rule} on {count} {kind} ({where})" if where.startswith("no part") else f"{rule} on {count} {kind} in {where}"
        for (rule, kind, where), count in groups.items()
    )
    return (
        f"{type(model).__name__} was called, and these rules were not, so that their modules had the plain gradient: "
        f"{listed}. {_cause(model, [module for _, module in idle], gone)} Where a pass is meant to leave a module out, "
        f"name it in attach(..., unused=...), or in ignore{see('a-rule-that-never-acts')}"
    )


def _cause(model: nn.Module, idle: Sequence[nn.Module], gone: Sequence[nn.Module]) -> str:
    if len(gone) == len(idle):
        return "They were replaced after the rules were attached: attach the rules after the change."
    if is_compiled(model):
        return (
            "The model was compiled by torch.compile, and called before the rules were attached: what was compiled "
            "then does not know them. Attach the rules before the first call, or call torch._dynamo.reset() before."
        )
    if any(isinstance(part, torch.fx.GraphModule) for part in model.modules()) and any(
        type(module) is nn.Module for module in idle
    ):
        return (
            "The model was exported: it calls functions with the weights of these modules. Attach the rules to the "
            "model that it was exported from."
        )
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        return "The model was traced or scripted: attach the rules to the model that it was made from."
    return (
        "The model may have called their forward directly (layer.forward(x)), or used their weights in a function "
        "(F.linear(x, layer.weight)): call the modules instead (layer(x))."
    )


def _pattern(name: str) -> str:
    """Return the names of modules alike as one: what is counted is a star."""
    parent = name.rpartition(".")[0] if "." in name else name
    return ".".join("*" if part.isdigit() else part for part in parent.split(".")) or "the model itself"

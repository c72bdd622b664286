"""Watches one forward pass: which calls were made.

It takes part in nothing: hooks on modules note tensors, a ``TorchFunctionMode`` notes functions. All of them are gone
when the pass is over.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, resolve_name
from torch.utils._pytree import tree_flatten

import lrp_rules
from lrp_rules import Stop
from lrp_rules.networks.between import INNER, here
from lrp_rules.networks.operations import in_place, operation_of
from lrp_rules.networks.written_out import WRITTEN_OUT
from verify.auditing.calls import Call, end_of, floats, key_of
from verify.auditing.meaning import LINEAR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from verify.auditing.meaning import Meaning

#: Folders and files of code that calls functions on behalf of somebody else.
_TORCH = Path(torch.__file__).parent
_BETWEEN = (
    f"{Path(lrp_rules.__file__).parent}/", f"{Path(__file__).parent}/", f"{_TORCH}/overrides.py",
    f"{_TORCH}/_tensor.py", f"{_TORCH}/functional.py", f"{_TORCH}/nn/functional.py", f"{_TORCH}/utils/",
)  # fmt: skip
# what attach says of a line of the model is said of that line, and not of this file
INNER.append(f"{Path(__file__).parent}/")
_GATES = {"sigmoid", "hardsigmoid"}
_GATE_MODULES = (nn.Sigmoid, nn.Hardsigmoid)
_RAW, _REACHED, _STOPPED = 2, 1, -1


class Watch(TorchFunctionMode):
    """Notes the calls of one forward pass in ``calls``."""

    def __init__(
        self, model: nn.Module, inputs: Sequence[Tensor], meaning: Meaning, *, keeps_outputs: bool = False
    ) -> None:
        super().__init__()
        self.model, self.meaning, self.keeps_outputs = model, meaning, keeps_outputs
        self.calls: list[Call] = []
        self.modules_called: set[nn.Module] = set()
        #: By their ids: parameters that functions were called with.
        self.parameters_used: set[int] = set()
        self._stack: list[tuple[str, nn.Module, Call | None]] = []
        self._inside: list[Call] = []
        self._known: dict[tuple[int, int], int] = {}
        self._gates: set[tuple[int, int]] = set()
        #: By the ids of what they returned: calls after which relevance cannot come back.
        self._cuts: dict[int, Call] = {}
        self._kept: list[Any] = []  # what is known by its id must live
        self._on = self._paused = False
        for tensor in inputs:
            self._note(tensor, _RAW)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watch what the model calls in this block."""
        handles: list[Any] = []
        try:
            for name, module in self.model.named_modules():
                handles.append(module.register_forward_pre_hook(self._before(name), prepend=True, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after, always_call=True))
            # inside of whatever else sees functions, so that a function is seen as the model calls it
            handles.append(self.model.register_forward_pre_hook(self._begin))
            handles.append(self.model.register_forward_hook(self._end, always_call=True, prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._end()

    def _begin(self, *_: Any) -> None:
        if not self._on:
            self._on = True
            self.__enter__()  # type: ignore[no-untyped-call]

    def _end(self, *_: Any) -> None:
        if self._on and _get_current_function_mode() is self:
            self._on = False
            self.__exit__(None, None, None)

    def _pause(self) -> None:
        if self._on and _get_current_function_mode() is self:
            self._paused = True
            self.__exit__(None, None, None)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self.__enter__()  # type: ignore[no-untyped-call]

    # what is known of tensors

    def _note(self, tensor: Tensor, value: int) -> None:
        end = end_of(tensor)
        self._kept.append(end[0])
        self._known[key_of(end)] = value

    def value(self, tensor: Tensor) -> int:
        """Return 0 for what does not depend on the model's input, 2 where no first layer lies between, else 1.

        -1 for what depends on it through Stop alone: where nothing goes there, it is a constant.
        """
        if not tensor.requires_grad:
            return 0
        found = self._known.get(key_of(end_of(tensor)))
        if found is not None:
            return found
        return 0 if tensor.grad_fn is None else self._through(tensor.grad_fn)

    def _through(self, node: Any) -> int:
        """Look for the model's input below a node that nobody has noted."""
        todo, seen, values = [node], set(), []
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            for below, number in one.next_functions:
                if below is None:
                    continue
                leaf = getattr(below, "variable", None)
                key = (id(below), number) if leaf is None else (id(leaf), 0)
                if key in self._known:
                    values.append(self._known[key])
                elif leaf is None:
                    todo.append(below)
        return min([value for value in values if value > 0], default=min(values, default=0))

    # what is called

    def _open(self, call: Call, values: Any, *, copies: bool) -> Call:
        given = [t for t in floats(values) if t.requires_grad]
        call.originals, call.ends = given, [end_of(t) for t in given]
        call.inputs = [t.detach().clone() if copies else t.detach() for t in given]
        call.versions = [t._version for t in call.inputs]
        values_of = [self.value(t) for t in given]
        call.known, call.reached = values_of, [value > 0 for value in values_of]
        call.gates = [key_of(end) in self._gates for end in call.ends]
        call.raw = min([value for value in values_of if value > 0], default=0) == _RAW
        return call

    def _close(self, call: Call, output: Any) -> None:
        call.end = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        call.originals = []
        found = floats(output)
        if not found or not any(call.known):
            return
        answering = [t for t in found if t.requires_grad]
        value = _RAW if call.raw and not self.meaning.is_first_layer(call) else _REACHED
        if all(known in {0, _STOPPED} for known in call.known) or isinstance(self.meaning.of(call), Stop):
            value = _STOPPED
        for tensor in answering:
            self._note(tensor, value)
        if not answering:
            call.cut = call.module is not None or call.operation.rpartition(".")[2] in {"detach", "detach_"}
        if call.cut or (answering and call.end > call.start):
            call.outs = [end_of(t) if t.requires_grad else None for t in found]
            if call.cut:
                self._cuts.update({id(t): call for t in found})
                self._kept += found
            call.shapes = [(t.shape, t.dtype) for t in found]
            if self.keeps_outputs:
                call.outputs = [t.detach().clone() for t in found]
            self.calls.append(call)

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            with torch._C.DisableTorchFunction():  # nobody is to see what is done here
                enter(module, args, kwargs)

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            call = None
            self.modules_called.add(module)
            if not self._inside and torch.is_grad_enabled() and self.meaning.is_one_operation(module):
                number = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
                call = Call(type(module).__name__, name, "", number, module=module)
                call.arguments = (args, kwargs)
                self._open(call, (args, kwargs), copies=bool(getattr(module, "inplace", False)))
                self._inside.append(call)
                # nothing is to be seen in a linear layer with a rule, and much is called there
                if isinstance(module, LINEAR) and module in self.meaning.modules:
                    self._pause()
            self._stack.append((name, module, call))

        return hook

    def _after(self, module: nn.Module, _args: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():
            self._leave(module, output)

    def _leave(self, module: nn.Module, output: Any) -> None:
        if not self._stack or self._stack[-1][1] is not module:  # somebody's hook raised before the call
            return
        _, _, call = self._stack.pop()
        if call is not None:
            self._inside.remove(call)
            self._resume()
            if output is not None:
                self._close(call, output)
                if isinstance(module, _GATE_MODULES) and isinstance(output, Tensor):
                    self._gates.add(key_of(end_of(output)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            if len(self._inside) == 1 and operation_of(func) is not None:
                self._inside[0].inner.append(func)
            return func(*args, **kwargs)
        tensors = floats((args, kwargs))
        self.parameters_used.update(id(t) for t in tensors if isinstance(t, nn.Parameter))
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():  # somebody's kind of tensor is not to see what is done here
            given = [t for t in tensors if t.requires_grad]
            reached = bool(given) and any(self.value(t) > 0 for t in given)
        if not given:
            return self._handed_on(tensors, func(*args, **kwargs))
        if reached and here.flows and here.flows[-1].between.rules and operation_of(func) in WRITTEN_OUT:
            with self:  # attach computes it of the same parts, and each of them is a call
                return WRITTEN_OUT[str(operation_of(func))](*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            call = self._opened(func, args, kwargs)
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            self._close(call, result)
            if getattr(func, "__name__", "").rstrip("_") in _GATES and isinstance(result, Tensor):
                self._gates.add(key_of(end_of(result)))
        return result

    def _handed_on(self, tensors: list[Tensor], result: Any) -> Any:
        """Note that what is made of a detached tensor alone is detached by the same call."""
        cut = next((self._cuts[id(t)] for t in tensors if id(t) in self._cuts), None)
        if cut is not None:
            found = floats(result)
            self._cuts.update({id(t): cut for t in found})
            self._kept += found
        return result

    def _opened(self, func: Any, args: Any, kwargs: Any) -> Call:
        """Return the call of a function, with arguments that are no part of the graph."""
        number = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        path = self._stack[-1][0] if self._stack else ""
        call = Call(name_of(func), path, _where(), number, function=func)
        self._open(call, (args, kwargs), copies=in_place(func, args, kwargs))
        call.weight = id(kwargs.get("weight", args[1] if len(args) > 1 else None))
        leaves, structure = tree_flatten((args, kwargs))
        inputs = iter(call.inputs)  # in the same order; a tensor that is given twice is two inputs
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                leaves[place] = next(inputs) if leaf.is_floating_point() and leaf.requires_grad else leaf.detach()
        call.arguments = (leaves, structure)
        if operation_of(func) in WRITTEN_OUT:
            for given in (*args[:2], kwargs.get("query"), kwargs.get("key")):
                if id(given) in self._cuts:
                    self._cuts[id(given)].is_query = True
        return call


def name_of(func: Any) -> str:
    """Return what a function of torch is called by."""
    name: str = resolve_name(func) or getattr(func, "__name__", repr(func))
    return name.replace("torch.nn.functional.", "F.").replace("torch.Tensor.", "Tensor.")


def _where() -> str:
    """Return the line that called a function."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"

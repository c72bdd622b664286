"""What happens between the modules of a model while it is called: which functions run, and what its input reaches.

Nothing of the model is rewritten or traced. While a model with rules is called, a ``TorchFunctionMode`` sees every
function of torch that it calls; a call of a function with a rule becomes a call of a module with that rule, so that
modules and functions are treated alike.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, resolve_name
from torch.utils._pytree import tree_leaves

from lrp_rules.errors import see
from lrp_rules.hooks.registration import is_in_checkpoint
from lrp_rules.network_rules import SignalTakesAll
from lrp_rules.networks.between import Inside, here, is_inner, stack
from lrp_rules.networks.operations import LOOKUPS, as_module, in_place, operation_of, routes
from lrp_rules.networks.report import Place
from lrp_rules.networks.written_out import WRITTEN_OUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import FrameType

    from lrp_rules.hooks.hook import Hook
    from lrp_rules.hooks.registration import Registration
    from lrp_rules.networks.between import Between

#: What is known of a tensor: it does not depend on the model's input; it does; it does, and no layer lies between.
CONSTANT, REACHED, RAW = 0, 1, 2

#: Functions whose results are gates, and the modules of torch that are one.
GATES = {"sigmoid", "hardsigmoid"}
GATE_MODULES = (nn.Sigmoid, nn.Hardsigmoid)

#: Nodes of autograd that are there for other reasons than an operation, and hand relevance on.
_TRANSPARENT = {
    "BackwardHookFunctionBackward",
    "CheckpointFunctionBackward",
    "torch::autograd::CopySlices",
    "CopySlices",
    "AsStridedBackward0",
}


class Layer(NamedTuple):
    """A call of a layer with a rule, for a batch norm that may be folded into it."""

    hook: Hook
    module: nn.Module
    x: Tensor


class Flow(TorchFunctionMode):
    """Sees what one call of a model calls."""

    def __init__(self, between: Between, frame: FrameType) -> None:
        super().__init__()
        self.between, self.frame = between, frame
        self.path: list[tuple[str, nn.Module]] = []
        self.layers: dict[Any, Layer] = {}
        #: Nodes of what lies between 0 and 1 by its function, and is a gate where it is multiplied.
        self._gates: set[Any] = set()
        self._seen: dict[Any, int] = {}
        self._leaves: dict[int, tuple[Tensor, int]] = {}
        self._begin = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        #: In a backward pass that repeats a part of the model, nobody knows what is the model's input.
        self.repeats = torch._C._current_graph_task_id() >= 0

    def start(self) -> None:
        """See what is called from now on, on this thread."""
        here.flows.append(self)
        # torch.compile would look into this mode, and compile what it does: what is compiled is run as it is written
        self._compiler = _set_compiler(None)
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self, *, interrupted: bool = False) -> None:
        """Stop seeing anything."""
        here.flows.remove(self)
        if not interrupted:  # else, who has set it has taken it back
            _set_compiler(self._compiler)
        if _get_current_function_mode() is self:
            self.__exit__(None, None, None)

    # what is known of tensors

    def begin(self, inputs: Any) -> None:
        """Note what the model was called with."""
        for tensor in wanted(inputs):
            self._note(tensor, REACHED if self.repeats else RAW)

    def _note(self, tensor: Tensor, value: int) -> None:
        node = tensor.grad_fn
        if node is None:
            self._leaves[id(tensor)] = (tensor, value)
        else:
            self._seen[node] = value

    def mark(self, results: Any, value: int) -> None:
        """Note what is known of an operation's results."""
        if type(results) is Tensor:
            if results.requires_grad:
                self._note(results, value)
            return
        for tensor in wanted(results):
            self._note(tensor, value)

    def value(self, tensor: Tensor, user: str = "") -> int:
        """Return what is known of a tensor. Who has made it without being seen is reported."""
        node = tensor.grad_fn
        if node is None:
            if id(tensor) in self._leaves:
                return self._leaves[id(tensor)][1]
            return CONSTANT if isinstance(tensor, nn.Parameter) or id(tensor) in self.between.parameters else REACHED
        found = self._seen.get(node)
        if found is None:
            found = self._seen[node] = REACHED
            if node._sequence_nr() >= self._begin and node.name() not in _TRANSPARENT:
                name = node.name().removesuffix("Backward")
                self._unruled(f"{name} (a function that torch shows to nobody)", user or "the output of the model")
        return found

    def reach(self, leaves: Iterable[Tensor], user: str = "") -> int:
        """Return what is known of the result of an operation on these."""
        return min([value for value in (self.value(leaf, user) for leaf in leaves) if value], default=CONSTANT)

    # what is called

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if here.inside and here.blocks(self.between):
            return func(*args, **kwargs)
        operation = operation_of(func)
        if not torch.is_grad_enabled():
            if operation in self.between.rules:
                self.between.unrepeated += is_in_checkpoint("forward")
            return func(*args, **kwargs)
        if operation is None:
            result = func(*args, **kwargs)
            if isinstance(result, (Tensor, tuple, list, dict)):
                self._passed(func, args, kwargs, result)
            elif func is Tensor.__setitem__:
                self._passed(func, args, kwargs, args[0])
            return result
        if not self._is_alive():
            return func(*args, **kwargs)
        return self._operation(func, operation, args, kwargs)

    def _passed(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note what a function without a rule has done."""
        results = wanted(result)
        if not results:
            return
        leaves = wanted((args, kwargs))
        written = [leaf for leaf in leaves if any(leaf is tensor for tensor in results)]
        others = [leaf for leaf in leaves if not any(leaf is tensor for tensor in written)]
        values = [self.value(leaf, _name(func)) for leaf in others]
        for tensor in written:
            node = tensor.grad_fn
            if node is None or node in self._seen:  # it is returned as it was
                values.append(self.value(tensor))
            else:  # its node is a new one, and the one before is below that
                values += [self._seen[below] for below, _ in node.next_functions if below in self._seen]
        value = RAW if func in LOOKUPS else min([value for value in values if value], default=CONSTANT)
        if value and func not in LOOKUPS and not routes(func, args, kwargs) and self._is_alive():
            self._unruled(_name(func), None)
        for tensor in results:
            self._note(tensor, value)

    def _operation(self, func: Any, operation: str, args: Any, kwargs: Any) -> Any:
        """Call a function that a rule can be given for."""
        between = self.between
        tensors = wanted((args, kwargs))
        value = self.reach(tensors, _name(func))
        if value == CONSTANT:
            result = func(*args, **kwargs)
            self.mark(result, CONSTANT)
            return result
        if between.rules and operation in WRITTEN_OUT:
            with self:  # it is off while it handles a call
                return WRITTEN_OUT[operation](*args, **kwargs)
        hook, registration = self._rule(operation, value, args, kwargs)
        if hook is None:
            result = func(*args, **kwargs)
            if operation not in between.keeps and operation != "relu":  # a layer above gives none to what is 0
                self._unruled(_name(func), None)
            self.mark(result, value)
            return result
        place = self._place(_name(func), None)
        between.note(place, hook, registration)
        module, inputs = as_module(func, operation, args, kwargs, self.value, f"{place.operation} at {place.where}")
        result = self._as_module(hook, module, inputs, value)
        if hook.is_constant:
            value = CONSTANT
        elif operation in between.early:
            value = REACHED
        # a gate by a constant is a gate, and so is 1 - gate
        alone = operation in {"add", "mul", "div"} and len(inputs) == 1 and inputs[0].grad_fn in self._gates
        if alone or getattr(func, "__name__", "").rstrip("_") in GATES:
            self.note_gate(result)
        if in_place(func, args, kwargs):
            result = args[0].copy_(result)
        self.mark(result, value)
        return result

    def _as_module(self, hook: Hook, module: nn.Module, inputs: list[Tensor], value: int) -> Any:
        """Call a module that stands for a function, with its rule."""
        if isinstance(hook, SignalTakesAll) and hook.signal is None:
            # signal and gate may be told apart by what has made them
            signals = [place for place, factor in enumerate(inputs) if factor.grad_fn not in self._gates]
            hook = SignalTakesAll(signals[0]) if len(inputs) > 1 and len(signals) == 1 else hook
        here.inside.append(Inside(sys._getframe(), value, module, None))
        try:
            return self._ruled(hook, module, inputs)
        except TypeError as error:
            raise ValueError(*error.args) from error  # a TypeError of `a * b` means to Python that there is no such *
        finally:
            here.inside.pop()

    def _ruled(self, hook: Hook, module: nn.Module, inputs: list[Tensor]) -> Any:
        folds = getattr(hook, "fold", None)
        if folds is not None:
            return folds(module, inputs, self)
        registration = hook.register(module)
        try:
            result = module(*inputs)
        finally:
            registration.remove()
        if len(inputs) == 1 and isinstance(result, Tensor) and result.grad_fn is not None:
            self.layers[result.grad_fn] = Layer(hook, module, inputs[0])
        return result

    def _rule(self, operation: str, value: int, args: Any, kwargs: Any) -> tuple[Hook | None, Registration | None]:
        between = self.between
        if operation in {"linear", "convolution"}:
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            if isinstance(weight, Tensor) and weight.requires_grad and self.value(weight):
                return between.rules.get("matmul"), None  # a weight that the input reaches is a factor
            if id(weight) in between.by_weight:
                return between.by_weight[id(weight)]
        if value == RAW and operation in between.early:
            return between.early[operation], None
        return between.rules.get(operation), None

    def note_gate(self, result: Any) -> None:
        """Note a result that is between 0 and 1."""
        if isinstance(result, Tensor) and result.grad_fn is not None:
            self._gates.add(result.grad_fn)

    # what is said

    def _unruled(self, name: str, where: str | None) -> None:
        if self.between.quiet:
            return
        place = self._place(name, where)
        if self.between.strict:
            msg = (
                f"{place.operation} at {place.where} has no rule, and relevance goes through it by its plain gradient; "
                "expected a rule for all that the input reaches. Give one for the function, as in "
                "attach(model, {torch.add: Norm()}), use a composite, or name it in ignore"
                f"{see('between-the-layers')}"
            )
            raise ValueError(msg)
        self.between.unruled[place] = self.between.unruled.get(place, 0) + 1

    def _place(self, name: str, where: str | None) -> Place:
        return Place(name, where or self._where())

    def _where(self) -> str:
        """Return the module of torch that calls, or the line of the model."""
        if self.path and type(self.path[-1][1]).__module__.startswith("torch.nn.modules"):
            path, module = self.path[-1]
            return f"{type(module).__name__} {path}" if path else type(module).__name__
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and is_inner(frame.f_code):
            frame = frame.f_back
        return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def _is_alive(self) -> bool:
        """Whether the call is under way: torch tells nobody of one that was interrupted from the keyboard."""
        return self.frame in stack()


#: What torch.compile is known to Python by, on this thread.
_set_compiler = torch._C._dynamo.eval_frame.set_eval_frame


def wanted(tensors: Any) -> list[Tensor]:
    """Return the tensors that require a gradient, among arguments or results."""
    if isinstance(tensors, Tensor):
        return [tensors] if tensors.requires_grad else []
    return [leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _name(func: Any) -> str:
    name: str = resolve_name(func) or getattr(func, "__name__", repr(func))
    return name.replace("torch.nn.functional.", "F.").replace("torch.Tensor.", "Tensor.")

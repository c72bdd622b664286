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
from lrp_rules.hooks.refusals import tensors_inside
from lrp_rules.hooks.registration import is_in_checkpoint
from lrp_rules.network_rules import SignalTakesAll, Uniform
from lrp_rules.networks.between import Inside, here, is_inner, stack
from lrp_rules.networks.operations import LOOKUPS, as_module, in_place, operation_of, routes
from lrp_rules.networks.report import Place
from lrp_rules.networks.written_out import WRITTEN_OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import FrameType

    from lrp_rules.hooks.hook import Hook
    from lrp_rules.hooks.registration import Registration
    from lrp_rules.networks.between import Between

#: What is known of a tensor: it does not depend on the model's input; it does; it does, and no layer lies between.
CONSTANT, REACHED, RAW = 0, 1, 2

#: Functions whose results are gates, and the modules of torch that are one.
GATES = {"sigmoid", "hardsigmoid", "special_expit", "expit", "rsqrt"}
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
    #: Of the output: whoever writes to it makes it another one.
    version: int


class Flow(TorchFunctionMode):
    """Sees what one call of a model calls."""

    def __init__(self, between: Between, frame: FrameType) -> None:
        super().__init__()
        self.between = between
        self.frame: FrameType | None = frame
        self.path: list[tuple[str, nn.Module]] = []
        self._layers: dict[Any, Layer] = {}
        #: Nodes of what lies between 0 and 1 by its function, and is a gate where it is multiplied.
        self._gates: set[Any] = set()
        #: Nodes of 1 / sqrt(x).
        self._normalisers: set[Any] = set()
        self._seen: dict[Any, int] = {}
        #: Whether relevance was stopped somewhere, so that an output may have none to give.
        self.stopped = False
        self._leaves: dict[int, tuple[Tensor, int]] = {}
        self._begin = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        #: In a backward pass that repeats a part of the model, nobody knows what is the model's input.
        self.repeats = torch._C._current_graph_task_id() >= 0

    @staticmethod
    def around(between: Between, model: nn.Module, call: Callable[[], Any]) -> Any:
        """Call what may repeat a part of a model, as a checkpoint does, that begins in none of its modules."""
        if (
            not (between.in_force and (between.rules or between.early))
            or here.blocks(between)
            or any(flow.between is between for flow in here.flows)
        ):
            return call()
        flow = Flow(between, sys._getframe())
        flow.begin(model, ((), {}))
        flow.path.append(("", model))  # a module that ends is not the end of this
        flow.start()
        try:
            return call()
        finally:
            flow.end()

    def start(self) -> None:
        """See what is called from now on, on this thread."""
        here.flows.append(self)
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Stop seeing anything."""
        here.flows.remove(self)
        if _get_current_function_mode() is self:
            self.__exit__(None, None, None)
        for table in (
            self._layers,
            self._seen,
            self._leaves,
            self._gates,
            self._normalisers,
            self.path,
        ):  # frames make circles
            table.clear()

    # what is known of tensors

    def begin(self, module: nn.Module, inputs: Any) -> None:
        """Note what the model was called with, and what it holds."""
        for part in module.modules():
            for values in (part._parameters, part._buffers, vars(part)):
                for value in values.values():
                    if isinstance(value, Tensor) and value.requires_grad:
                        self._note(value, CONSTANT)
        args, kwargs = inputs
        for leaf in (*args, *kwargs.values()):
            for tensor in tensors_inside(leaf, 5):
                if tensor.requires_grad:
                    self._note(tensor, REACHED if self.repeats else RAW)

    def note_layer(self, output: Tensor, hook: Hook, module: nn.Module, x: Tensor) -> None:
        """Note the call of a layer, for a batch norm behind it; not where a hook has made another output of it."""
        call = getattr(output.grad_fn, "call", None)
        if call is not None and call.module is module:
            self._layers[output.grad_fn] = Layer(hook, module, x, call.version)

    def layer_of(self, tensor: Tensor) -> Layer | None:
        """Return the layer whose output this is, as it gave it."""
        layer = self._layers.get(tensor.grad_fn)
        return layer if layer is not None and layer.version == tensor._version else None

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
            return CONSTANT if isinstance(tensor, nn.Parameter) else REACHED
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
        is_gate = any(leaf.grad_fn in self._gates for leaf in leaves)
        for tensor in results:
            self._note(tensor, value)
            if is_gate and tensor.grad_fn is not None:
                self._gates.add(tensor.grad_fn)

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
            value, self.stopped = CONSTANT, True
        elif operation in between.early:
            value = REACHED
        # a gate by a constant is a gate, and so is 1 - gate
        is_gate = operation in {"add", "mul", "div"} and len(inputs) == 1 and inputs[0].grad_fn in self._gates
        name = getattr(func, "__name__", "").rstrip("_")
        is_gate = is_gate or name in GATES
        if in_place(func, args, kwargs):
            result = args[0].copy_(result)
        self.mark(result, value)
        if is_gate:
            self.note_gate(result)
        if name == "rsqrt":
            self._normalisers.add(result.grad_fn)
        return result

    def _as_module(self, hook: Hook, module: nn.Module, inputs: list[Tensor], value: int) -> Any:
        """Call a module that stands for a function, with its rule."""
        decided = isinstance(hook, SignalTakesAll) and hook.signal is not None and len(inputs) > 1
        if isinstance(hook, (Uniform, SignalTakesAll)) and not decided:
            hook = self._of_factors(hook, inputs)
        here.inside.append(Inside(sys._getframe(), value, module, None))
        try:
            return self._ruled(hook, module, inputs)
        except TypeError as error:
            raise ValueError(*error.args) from error  # a TypeError of `a * b` means to Python that there is no such *
        finally:
            here.inside.pop()

    def _of_factors(self, hook: Hook, factors: list[Tensor]) -> Hook:
        """Tell signal and gate apart by what has made them, if that can be done."""
        if len(factors) < 2:
            return SignalTakesAll()  # by a constant: all to the other factor
        if all(factor is factors[0] for factor in factors):
            return SignalTakesAll(0)  # x * x: all to x
        # what a normalisation divides by is no signal, whatever the rule
        sides = self._gates if isinstance(hook, SignalTakesAll) else self._normalisers
        signals = [place for place, factor in enumerate(factors) if factor.grad_fn not in sides]
        return SignalTakesAll(signals[0]) if len(signals) == 1 else hook

    def _ruled(self, hook: Hook, module: nn.Module, inputs: list[Tensor]) -> Any:
        folds = getattr(hook, "fold", None)
        if folds is not None:
            return folds(module, inputs, self)
        registration = hook.register(module)
        registration.asked, registration.around = self.between.asked, self.between.around
        try:
            result = module(*inputs)
        finally:
            registration.remove()
        if len(inputs) == 1 and isinstance(result, Tensor):
            self.note_layer(result, hook, module, inputs[0])
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
        if operation == "interpolate" and sum(map(bool, map(self.value, wanted((args, kwargs))))) > 1:
            return None, None  # where it looks depends on the input, too
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
        return any(frame is self.frame for frame in stack())


def wanted(tensors: Any) -> list[Tensor]:
    """Return the tensors that require a gradient, among arguments or results."""
    if isinstance(tensors, Tensor):
        return [tensors] if tensors.requires_grad else []
    return [leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _name(func: Any) -> str:
    name: str = resolve_name(func) or getattr(func, "__name__", repr(func))
    return name.replace("torch.nn.functional.", "F.").replace("torch.Tensor.", "Tensor.")

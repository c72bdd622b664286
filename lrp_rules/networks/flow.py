"""What happens between the modules of a model while it is called: which functions run, and what its input reaches.

Nothing of the model is rewritten or traced. While a model with rules is called, a ``TorchFunctionMode`` sees every
function of torch that it calls; a call of a function with a rule becomes a call of a module with that rule, so that
modules and functions are treated alike.
"""

from __future__ import annotations

import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, resolve_name
from torch.utils._pytree import tree_leaves

from lrp_rules.errors import see
from lrp_rules.hooks.calls import drop_hooks, opaque
from lrp_rules.hooks.registration import is_in_checkpoint
from lrp_rules.network_rules import SignalTakesAll
from lrp_rules.networks.report import Place, UnruledWarning, unruled
from lrp_rules.networks.operations import LOOKUPS, as_module, in_place, operation_of, routes
from lrp_rules.networks.written_out import WRITTEN_OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import CodeType, FrameType

    from lrp_rules.hooks.hook import Hook
    from lrp_rules.hooks.registration import Registration

#: What is known of a tensor: it does not depend on the model's input; it does; it does, and no layer lies between.
CONSTANT, REACHED, RAW = 0, 1, 2

#: Functions whose results are gates, and the modules of torch that are one.
GATES = {"sigmoid", "hardsigmoid"}
_GATE_MODULES = (nn.Sigmoid, nn.Hardsigmoid)

#: Nodes of autograd that are there for other reasons than an operation, and hand relevance on.
_TRANSPARENT = {
    "BackwardHookFunctionBackward",
    "CheckpointFunctionBackward",
    "torch::autograd::CopySlices",
    "CopySlices",
    "AsStridedBackward0",
}


class Inside(NamedTuple):
    """A call under way of a module that has a rule, or that an attachment ignores."""

    frame: FrameType
    #: What was known of its arguments.
    value: int
    module: object
    #: The attachment that ignores it; None where it has a rule.
    of: Between | None


class _Here(threading.local):
    """What a thread is inside of: calls of modules with rules, and flows of models with rules."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []
        #: Calls of modules whose functions are not to be looked at.
        self.inside: list[Inside] = []

    def blocks(self, between: Between) -> bool:
        """Whether the functions of an attachment are not to be looked at now."""
        return any(call.of is None or call.of is between for call in self.inside)

    def settle(self) -> None:
        """Forget calls that are over: torch tells nobody of one that was interrupted from the keyboard."""
        stack = set(_stack())
        self.inside = [call for call in self.inside if call.frame in stack]
        for flow in [flow for flow in self.flows if flow.frame not in stack]:
            flow.end(interrupted=True)


here = _Here()


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


class Layer(NamedTuple):
    """A call of a layer with a rule, for a batch norm that may be folded into it."""

    hook: Hook
    module: nn.Module
    x: Tensor


class Between:
    """The rules for functions of one attachment, and what became of them."""

    def __init__(
        self, rules: Mapping[str, Hook], early: Mapping[str, Hook], keeps: Iterable[str], *, strict: bool, quiet: bool
    ) -> None:
        self.rules, self.early, self.keeps = dict(rules), dict(early), set(keeps)
        self.strict, self.quiet = strict, quiet
        self.parameters: set[int] = set()
        #: By the ids of weights, the rules of their modules, which functions that use them have, too; and registrations.
        self.by_weight: dict[int, tuple[Hook, Registration | None]] = {}
        self.calls: dict[Place, int] = {}
        self.ruled: dict[Place, Hook] = {}
        #: Operations through which relevance went without a rule, and how often.
        self.unruled: dict[Place, int] = {}
        self.unrepeated = 0
        #: Modules that the input has reached first.
        self.first: set[nn.Module] = set()
        self._said: set[Place] = set()

    def say(self) -> None:
        """Warn of what had no rule, once."""
        new = {place: count for place, count in self.unruled.items() if place not in self._said}
        if not new:
            return
        self._said.update(new)
        frame, level = sys._getframe(1), 2
        while frame.f_back is not None and _is_inner(frame.f_code):
            frame, level = frame.f_back, level + 1
        warnings.warn(unruled(new), UnruledWarning, stacklevel=level)


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
        self.__enter__()

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
        for tensor in _wanted(inputs):
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
        for tensor in _wanted(results):
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
        results = _wanted(result)
        if not results:
            return
        leaves = _wanted((args, kwargs))
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
        between = self.between
        wanted = _wanted((args, kwargs))
        if not wanted or not any(leaf.is_floating_point() for leaf in wanted):
            return func(*args, **kwargs)
        value = self.reach(wanted, _name(func))
        if value == CONSTANT:
            result = func(*args, **kwargs)
            self.mark(result, CONSTANT)
            return result
        if between.unrepeated and operation in between.rules:
            between.unrepeated -= is_in_checkpoint("backward")
        if between.rules and operation in WRITTEN_OUT:
            return self._again(WRITTEN_OUT[operation], args, kwargs)
        hook, registration = self._rule(operation, args, kwargs)
        if operation in between.early:
            hook = between.early[operation] if value == RAW else hook
            value = REACHED
        if hook is None:
            result = func(*args, **kwargs)
            if operation not in between.keeps and operation != "relu":  # a layer above gives none to what is 0
                self._unruled(_name(func), None)
            self.mark(result, value)
            return result
        if isinstance(hook, SignalTakesAll) and hook.signal is None:
            hook = self._gated(hook, wanted)
        place = self._place(_name(func), None)
        between.calls[place] = between.calls.get(place, 0) + 1
        between.ruled[place] = hook
        writes = in_place(func, args, kwargs)
        module, inputs = as_module(func, operation, args, kwargs, self.value, f"{place.operation} at {place.where}")
        if registration is not None:
            registration.calls += 1
        here.inside.append(Inside(sys._getframe(), value, module, None))
        try:
            result = self._ruled(hook, module, inputs)
        finally:
            here.inside.pop()
        self.mark(result, CONSTANT if hook.is_constant else value)
        if getattr(func, "__name__", "").rstrip("_") in GATES:
            self.note_gate(result)
        if writes:
            result = args[0].copy_(result)
            self.mark(result, value)
        return result

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

    def note_gate(self, result: Any) -> None:
        """Note a result that is between 0 and 1."""
        if isinstance(result, Tensor) and result.grad_fn is not None:
            self._gates.add(result.grad_fn)

    def _gated(self, hook: SignalTakesAll, factors: list[Tensor]) -> SignalTakesAll:
        """Tell signal and gate apart by what has made them, if that can be done."""
        signals = [place for place, factor in enumerate(factors) if factor.grad_fn not in self._gates]
        return SignalTakesAll(signals[0]) if len(factors) > 1 and len(signals) == 1 else hook

    def _again(self, written: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function that is made of others in this mode, which is off while it handles a call."""
        with self:
            return written(*args, **kwargs)

    def _rule(self, operation: str, args: Any, kwargs: Any) -> tuple[Hook | None, Registration | None]:
        if operation in {"linear", "convolution"}:
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            found = self.between.by_weight.get(id(weight))
            if found is not None:
                return found
            if isinstance(weight, Tensor) and weight.requires_grad and self.value(weight):
                operation = "matmul"
        return self.between.rules.get(operation), None

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
        while frame is not None and _is_inner(frame.f_code):
            frame = frame.f_back
        return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def _is_alive(self) -> bool:
        """Whether the call is under way: torch tells nobody of one that was interrupted from the keyboard."""
        return self.frame in _stack()


#: What torch.compile is known to Python by, on this thread.
_set_compiler = torch._C._dynamo.eval_frame.set_eval_frame

_inner: dict[CodeType, bool] = {}
_OURS, _TORCH = __file__.rpartition("networks")[0], torch.__file__.rpartition("__init__")[0]


def _is_inner(code: CodeType) -> bool:
    if code not in _inner:
        _inner[code] = code.co_filename.startswith((_OURS, _TORCH))
    return _inner[code]


def _wanted(tensors: Any) -> list[Tensor]:
    """Return the tensors that require a gradient, among arguments or results."""
    if isinstance(tensors, Tensor):
        return [tensors] if tensors.requires_grad else []
    return [leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _name(func: Any) -> str:
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    return name.replace("torch.nn.functional.", "F.").replace("torch.Tensor.", "Tensor.")


class Watch:
    """Two hooks on a module: they tell the flow where it is, and begin one where there is none."""

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
            value = flow.reach(_wanted((args, kwargs)), self.name)
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                value = RAW
        if self.choose is not None:
            first = module in self.between.first if flow is not None and flow.repeats else value == RAW
            if first:
                self.between.first.add(module)
            self.choose(first=first)
            value = min(value, REACHED)
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
        if isinstance(module, _GATE_MODULES):
            flow.note_gate(output)
        if hook is not None and len(args) == 1 and not kwargs and type(output) is Tensor and output.grad_fn is not None:
            flow.layers[output.grad_fn] = Layer(hook, module, args[0])  # type: ignore[arg-type]

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
        if flow is None:
            flow = Flow(self.between, sys._getframe(1))
            flow.begin((args, kwargs))
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
            flow.end()
            for tensor in _wanted(output):
                flow.value(tensor)
            if output is not None:
                self.between.say()


def flow_of(between: Between) -> Flow | None:
    for flow in reversed(here.flows):
        if flow.between is between:
            return flow
    return None


def _is_removed(owner: Any) -> bool:
    return isinstance(owner, Watch) and not owner.handles


def _removed() -> Watch:
    watch = object.__new__(Watch)
    watch.handles = []
    return watch

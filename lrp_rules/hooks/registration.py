"""How a rule enters the backward pass. The only file that registers anything; nothing of a formula is here.

A rule's hook lets the module run as it is, then takes the graph of that call away and puts one autograd node in its
place, whose backward is the rule. The module's own backward does not run unless a rule asks for it. What a call needs
later hangs on its node, as the saved tensors of any other node do: two calls never meet, and everything goes when the
graph goes.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _global_forward_hooks
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrp_rules.errors import see
from lrp_rules.hooks.call import Call, Watched
from lrp_rules.hooks.calls import drop_hooks, opaque, outermost, running
from lrp_rules.hooks.node import FunctorchNode, Node
from lrp_rules.hooks.refusals import (
    check_graph,
    check_module,
    check_something,
    check_tensors,
    check_traced,
    check_transforms,
)
from lrp_rules.hooks.rerun import Arguments, Rerun, check_repeated, is_float, random_state
from lrp_rules.layers.blocks import interpreters
from lrp_rules.layers.derivative import Derivative
from lrp_rules.layers.known import Layer, TracedLayer, layer_type
from lrp_rules.layers.numbers import agree
from lrp_rules.modules import is_seen, modules_of, properties

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from lrp_rules.hooks.call import HookInterface

    Tensors = tuple[Tensor, ...]


class Registration:
    """A hook on a module, until ``remove()`` or the end of the ``with`` block.

    ``calls`` counts the calls of the module since then, ``unrepeated`` those of them that a reentrant checkpoint is
    still to repeat, in the backward pass.
    """

    hook: HookInterface
    module: nn.Module
    calls: int = 0
    unrepeated: int = 0
    #: By the ids of parameters: the tensors at which autograd is asked for their relevance.
    asked: Mapping[int, Tensor] = MappingProxyType({})
    #: What a checkpoint is to repeat a part of the model in; see ``Call.around``.
    around: Callable[[Callable[[], Any]], Any] | None = None
    #: Whether calls begin with ``_before``.
    _prepares: bool = False

    def __init__(self, hook: HookInterface, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            msg = (
                f"{type(hook).__name__} cannot be registered on {module!r}, a {type(module).__name__}; expected a "
                "module, such as model.features[0]. For names and types of modules there is attach"
            )
            raise TypeError(msg)
        drop_hooks(module, _is_copied)
        for other in module._forward_hooks.values():
            owner = getattr(other, "__self__", None)
            if isinstance(owner, Registration):
                msg = (
                    f"{type(hook).__name__} cannot be registered on {module}: it has {type(owner.hook).__name__} "
                    "already. Remove that one first; one module takes one rule"
                )
                raise RuntimeError(msg)  # noqa: TRY004  the type is right, the state is not
        check_module(hook, module)
        self.hook, self.module = hook, module
        self._entries, self._known_right = threading.local(), set[str]()
        lists = list(module.parametrizations.items()) if parametrize.is_parametrized(module) else []  # type: ignore[operator, union-attr]
        kind = layer_type(module)
        self._prepares = kind is TracedLayer or bool(lists)
        # no property hides them
        self._holds_weights = kind.used_parameters.isdisjoint(properties(type(module)))
        # first of all hooks: what hooks of others do with the output comes after the rule, and is differentiated as
        # usual; called even if the module raises, so that nothing of that call is left
        handle = module.register_forward_hook(self._after, prepend=True, with_kwargs=True, always_call=self._prepares)
        self._first = handle.id
        self._handles = [handle]
        if self._prepares:
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
        for name, parametrization in lists:
            self._handles.append(parametrization.register_forward_hook(_Seen(self, name).note))

    @property
    def rule_name(self) -> str:
        """What a table calls the rule."""
        return type(self.hook).__name__

    def remove(self) -> None:
        """Take the hook off the module. Graphs that were made with it keep it.

        Raises
        ------
        RuntimeError
            If the module was called inside a reentrant checkpoint, and has not been called again by a backward pass:
            that call would be made without the rule.

        """
        waiting, self.unrepeated = self.unrepeated, 0
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if waiting:
            msg = (
                f"{type(self.hook).__name__} was called {waiting} times inside torch.utils.checkpoint with "
                "use_reentrant=True, and the backward pass, which calls the module again, has not come yet: it would "
                "give the plain gradient. Do the backward pass before the rules are removed, or use "
                f"use_reentrant=False{see('checkpoints')}"
            )
            raise RuntimeError(msg)

    def __enter__(self) -> Self:
        if not self._handles:
            msg = (
                f"this {type(self).__name__} of {type(self.hook).__name__} was removed, and would do nothing; expected "
                f"one that is in force. Register the rule again{see('a-rule-that-never-acts')}"
            )
            raise RuntimeError(msg)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.unrepeated = 0  # that exception is what there is to say
        self.remove()

    def __deepcopy__(self, memo: Any) -> Registration:
        return _copied()

    def __reduce__(self) -> tuple[Callable[[], Registration], tuple[()]]:
        return _copied, ()

    @opaque
    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Give the module inputs of its own, that know what the call started from."""
        if not self._handles:  # the copy of a module has the hooks of the original, but not its rule
            return None
        entry = _Entry()
        vars(self._entries).setdefault("open", []).append(entry)
        if not torch.is_grad_enabled():
            return None
        leaves, structure = _leaves(args, kwargs)
        if not any(map(is_wanted, leaves)):
            return None
        if self.hook.may_rerun or self._comes_late(module):
            entry.random = random_state(next(filter(is_float, leaves)).device)
        in_place = bool(getattr(module, "inplace", False))
        entry.own = [_Own(leaf, in_place=in_place) if is_wanted(leaf) else None for leaf in leaves]
        given = [leaf if own is None else own.given for leaf, own in zip(leaves, entry.own, strict=True)]
        if structure is None:
            return tuple(given), kwargs
        made = tree_unflatten(given, structure)
        entry.made = (made, given, structure)
        return made

    @opaque
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Put the node in the place of the call's own graph."""
        entry = _NOTHING
        if self._prepares:
            waiting = vars(self._entries).get("open")
            entry = waiting.pop() if waiting else _NOTHING
            if output is None:  # an exception is under way, or there is nothing to put a node behind
                return None
        elif not self._handles:
            drop_hooks(module, _is_copied)
            return None
        if _tracing() is not None:
            check_traced(self.hook, module)
        self.calls += 1
        if not torch.is_grad_enabled():
            self.unrepeated += is_in_checkpoint("forward")
            return None
        if self.unrepeated:
            self.unrepeated -= is_in_checkpoint("backward")
        kind = layer_type(module)
        if kind is not TracedLayer and len(args) == 1 and not kwargs and not self._prepares:
            (x,) = args
            parameters, hooks = module._parameters, module._forward_hooks
            # nothing unusual: one tensor in, one out, and nothing to remember of the call but these
            if (
                type(x) is Tensor
                and type(output) is Tensor
                and (not kind.used_parameters or ("weight" in parameters and "bias" in parameters))
                and self._holds_weights
                and (len(hooks) == 1 or next(iter(hooks)) == self._first)
                and not _global_forward_hooks
                and interpreters() is None
                and forward_ad._current_level < 0
                and not x.is_nested
            ):
                if not x.requires_grad:
                    return None
                return self._put(Call(self.hook, module, kind, [x.shape]), args, (output,))[0]
        return self._slowly(module, kind, args, kwargs, output, entry)

    def _comes_late(self, module: nn.Module) -> bool:
        """Whether somebody's hook has seen the output before this one, and may have replaced it."""
        return bool(_global_forward_hooks) or next(iter(module._forward_hooks)) != self._first

    def _slowly(  # noqa: C901  one call, step by step
        self, module: nn.Module, kind: type[Layer], args: Any, kwargs: Any, output: Any, entry: _Entry
    ) -> Any:
        leaves, structure = _leaves(args, kwargs)
        if entry.made is not None:
            self._check_unchanged(module, *entry.made)
        results, shell = ([output], None) if isinstance(output, Tensor) else tree_flatten(output)
        functorch = check_transforms(self.hook, module, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in (*leaves, *results)):
            check_tensors(self.hook, module, leaves, results)
        takes = is_float if self.hook.sees_constants else is_wanted
        positions = [i for i, leaf in enumerate(leaves) if takes(leaf)]
        inputs = tuple(leaves[i] for i in positions)
        outputs = tuple(result for result in results if is_float(result))
        if not outputs or not any(map(is_float, leaves)):
            check_something(self.hook, module, [*leaves, *results])
        if not outputs or not any(x.requires_grad for x in inputs):
            return None
        own = [entry.own[i] if entry.own else None for i in positions]
        overwritten = self._check_written(module, own, outputs)
        self._check_replaced(module, kind, own, inputs)
        # where the input was overwritten, its own copy is what the module was given
        inputs = tuple(x if o is None or o.value is None else o.value for x, o in zip(inputs, own, strict=True))
        by_keyword = bool(kwargs) and any(map(is_wanted, tree_flatten(kwargs)[0]))
        wanted = sum(x.requires_grad for x in inputs)
        if (wanted > 1 or len(outputs) > 1 or by_keyword) and not self.hook.allows_several:
            msg = (
                f"{type(self.hook).__name__} on {module} was called with {wanted} tensors that require a gradient "
                f"and gave {len(outputs)}; expected one tensor, by position, and one back. Use Norm, Epsilon or Pass "
                f"there, or put the rule on a part of the module{see('several-tensors')}"
            )
            raise TypeError(msg)

        call = Call(self.hook, module, kind, [x.shape for x in inputs], used=entry.used)
        call.in_torch_func, call.known_right = functorch, self._known_right
        if kind is TracedLayer:
            if not functorch:
                check_graph(self.hook, module, inputs, outputs)
            rest = [None if i in positions else leaf for i, leaf in enumerate(leaves)]
            arguments = None if structure is None else Arguments(rest, structure, positions)
            modes = {part: part.training for part in modules_of(module)}
            device = inputs[0].device.type
            available = torch.amp.is_autocast_available(device)
            cast = torch.get_autocast_dtype(device) if available and torch.is_autocast_enabled(device) else None
            call.rerun = Rerun(module, arguments, modes, entry.random, cast)
        if self._comes_late(module) or (
            kind is not TracedLayer and not is_seen(module, kind.used_parameters, entry.used)
        ):
            self._check_unreplaced(call, inputs, outputs)
        made = self._put(call, inputs, outputs)
        if overwritten is not None:
            # whoever else holds the input sees it overwritten, as without the rule
            return overwritten.copy_(made[0])
        if shell is None:
            return made[0]
        nodes = iter(made)
        return tree_unflatten([next(nodes) if is_float(result) else result for result in results], shell)

    def _check_unchanged(self, module: nn.Module, made: Any, given: list[Any], structure: Any) -> None:
        """Refuse a module that has changed the lists or dicts that it was called with: they are copies here."""
        now, shape = tree_flatten(made)
        if shape == structure and all(a is b for a, b in zip(now, given, strict=True)):
            return
        msg = (
            f"{type(self.hook).__name__} on {module}: it changes a list or dict that it is called with, so that the "
            "rule cannot tell its inputs from what became of them, and the caller would not see the change; expected a "
            f"module that leaves its arguments alone. Put rules on its parts{see('tensors-beside-the-arguments')}"
        )
        raise RuntimeError(msg)

    def put(
        self,
        hook: HookInterface,
        module: nn.Module,
        x: Tensor,
        output: Tensor,
        asked: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the output of a known layer behind a node with a rule, as if ``module`` had given it for ``x``.

        ``asked`` are the tensors at which the relevance of its parameters is asked for, by name.
        """
        if not x.requires_grad:
            return output
        call = Call(hook, module, layer_type(module), [x.shape])
        call.in_torch_func = interpreters() is not None
        return self._put(call, (x,), (output,), asked)[0]

    def _put(
        self, call: Call, inputs: Tensors, outputs: Tensors, asked: Mapping[str, Tensor] | None = None
    ) -> Tensors:  # fmt: skip
        """Return the outputs behind a node, in place of the graph that they have."""
        saved, parameters, keep = call.hook._record(call, inputs, outputs)
        if self.asked and asked is None:
            pairs = zip(call.names, parameters, strict=False)
            asked = {name: self.asked[id(value)] for name, value in pairs if id(value) in self.asked}
        if asked:
            call.asked = tuple(asked)
        if self.around is not None and _packs():
            call.around = self.around
        call.parameters, call.used = len(parameters), None
        if running:
            call.within = outermost()
        for parameter in parameters:
            if parameter._backward_hooks is not None or parameter._post_accumulate_grad_hooks is not None:
                call.to_parameters = [torch.zeros_like(p) if _is_hooked(p) else None for p in parameters]
                break
        # a module behind may write into what it gets, but not into what a graph that is kept goes through
        returned = tuple([o.detach().clone() if _is_among(o, saved) else o.detach() for o in outputs])
        call.version = returned[0]._version
        if keep and not call.in_torch_func:
            call.output = Watched(returned[0].detach())
        if Derivative.alive and Derivative.under_way():
            call.in_derivative = is_in_checkpoint("backward")
        node = FunctorchNode if call.in_torch_func else Node
        # views, since the engine tells of no leaf whether it is asked for
        ends = [end.view_as(end) for end in asked.values()] if asked else ()
        made = node.apply(call, saved, returned, *inputs, *parameters, *ends)  # type: ignore[no-untyped-call]
        return made if isinstance(made, tuple) else (made,)

    def _check_written(
        self, module: nn.Module, owned: Sequence[_Own | None], outputs: Sequence[Tensor]
    ) -> Tensor | None:
        """Refuse a module that writes to its input unannounced. Return what the caller holds, to be overwritten."""
        overwritten = None
        for own in owned:
            if own is None or own.given._version == own.version:
                continue
            announced = own.value is not None and len(outputs) == 1
            if announced and outputs[0].shape == own.given.shape and _is_same_place(outputs[0], own.given):
                # a leaf cannot be overwritten: torch refuses it, and so there is nobody to whom it would matter
                overwritten = None if own.x.is_leaf else own.x
                continue
            msg = (
                f"{type(self.hook).__name__} on {module}: it writes to its input, which the rule needs; expected a "
                "module that does not, or one with an attribute `inplace` whose output is that input. Put rules on its "
                f"parts, or make it work out of place{see('modules-that-work-in-place')}"
            )
            raise RuntimeError(msg)
        return overwritten

    def _check_replaced(
        self, module: nn.Module, kind: type[Layer], owned: Sequence[_Own | None], inputs: Sequence[Tensor]
    ) -> None:
        """Refuse an input in place that is not what the rule has copied before."""
        late = kind is TracedLayer and not self._prepares and getattr(module, "inplace", False)
        pairs = [(own, x) for own, x in zip(owned, inputs, strict=True) if own is not None and own.value is not None]
        if late or not all(x is own.given or _is_same_place(x, own.given) for own, x in pairs):
            msg = (
                f"{type(self.hook).__name__} on {module}: it works in place, and what it was given is not known any "
                "more: a pre-hook of somebody else that was registered after the rule has replaced it, or `inplace` "
                "was set after the rule was registered. Register the rule last, or use inplace=False"
                f"{see('modules-that-work-in-place')}"
            )
            raise RuntimeError(msg)

    def _check_unreplaced(self, call: Call, inputs: Tensors, outputs: Tensors) -> None:
        """Refuse an output that is not the module's own: somebody's hook before this one has replaced it."""
        again = self.hook._again(call, inputs, outputs)
        if len(again) == len(outputs) and all(map(agree, again, outputs)):
            return
        if not self._comes_late(call.module):
            check_repeated(self.hook, call.module, again, outputs)
        msg = (
            f"{type(self.hook).__name__} on {call.module}: its output is not what the module computes; a hook of "
            "somebody else that runs before the rule seems to have replaced it (a global one, or one that was "
            "registered with prepend=True after the rule). Register that hook without prepend, or the rule after it"
            f"{see('hooks-of-others')}"
        )
        raise RuntimeError(msg)


def _packs() -> bool:
    """Whether somebody packs saved tensors, as torch.utils.checkpoint does, which calls again to unpack them."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None  # noqa: FBT003  it takes no name


#: What torch.jit.trace goes by.
_tracing = torch._C._get_tracing_state


def _leaves(args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    """Return what a module was called with, and its structure; None for a tensor alone, which takes less time."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return [args[0]], None
    return tree_flatten((args, kwargs))


def is_wanted(leaf: Any) -> bool:
    """Whether a leaf of arguments is a tensor whose relevance may be asked for; others are constants."""
    return isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point()


def _is_same_place(a: Tensor, b: Tensor) -> bool:
    try:
        return a.data_ptr() == b.data_ptr()
    except RuntimeError:  # tensors of torch.func lie nowhere
        return False


def _is_hooked(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _is_among(tensor: Tensor, tensors: Tensors) -> bool:
    for other in tensors:  # noqa: SIM110  any() of a generator takes longer than a small product
        if other is tensor:
            return True
    return False


def _copied() -> Registration:
    """Return what the copy of a module has in place of a registration: nothing that is in force."""
    registration = object.__new__(Registration)
    registration._handles = []
    return registration


def _is_copied(owner: Any) -> bool:
    return isinstance(owner, Registration) and not owner._handles


def is_in_checkpoint(name: str) -> bool:
    """Whether this is called by torch's reentrant checkpoint, in its forward or backward."""
    code = torch.utils.checkpoint.CheckpointFunction.__dict__[name].__func__.__code__
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


@dataclass
class _Seen:
    """Notes what a parametrization gave to the call of a module."""

    registration: Registration
    name: str

    @opaque
    def note(self, parametrization: nn.Module, _args: Any, output: Any) -> None:
        if not self.registration._handles:  # a copy
            drop_hooks(parametrization, lambda owner: owner is self)
        for entry in vars(self.registration._entries).get("open", ())[-1:] if self.registration._handles else ():
            entry.used[self.name] = output


@dataclass(slots=True)
class _Entry:
    """What is known of a call that has begun, and not yet ended: it goes when the call is over."""

    own: list[_Own | None] = field(default_factory=list)
    random: Tensor | None = None
    used: dict[str, Tensor] = field(default_factory=dict)
    #: The arguments that the module was given, the leaves in them, and their structure.
    made: tuple[Any, list[Any], Any] | None = None


_NOTHING = _Entry()


class _Own:
    """An input, and the one made of it for the module: a view, or a copy where the module may overwrite it.

    ``value`` is the input as it was, None where ``x`` still is.
    """

    __slots__ = ("given", "value", "version", "x")

    def __init__(self, x: Tensor, *, in_place: bool) -> None:
        # several inputs may be one tensor, or depend on each other: each needs an end of its own to differentiate to
        self.x = x
        self.value = x.clone() if in_place else None
        self.given = x.view_as(x) if self.value is None else self.value.clone()
        self.version = self.given._version

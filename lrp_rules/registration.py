"""How a rule enters the backward pass. The only file that registers anything; nothing of a formula is here.

A rule's hook lets the module run as it is, then takes the graph of that call away and puts one autograd node in its
place, whose backward is the rule. The module's own backward does not run unless a rule asks for it. What a call needs
later hangs on its node, as the saved tensors of any other node do: two calls never meet, and everything goes when the
graph goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrp_rules.derivative import Derivative
from lrp_rules.linear_map import Layer, TracedLayer, layer_type
from lrp_rules.rerun import Arguments, Rerun, is_float, random_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from lrp_rules.hooks import Hook

    Tensors = tuple[Tensor, ...]


class _Watched:
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
    names: tuple[str, ...] = ()
    #: Parameters of known layers that are None.
    absent: Mapping[str, None] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    output: _Watched | None = None
    #: How many parameters the node has as inputs, behind the call's own.
    parameters: int = 0
    #: The graph of the call itself, for each output, where the hook cannot repeat it.
    graph: Sequence[torch.autograd.graph.GradientEdge | None] = ()

    def run(
        self, parameters: Mapping[str, Tensor | None], *inputs: Tensor, below: Sequence[Tensor] | None = None
    ) -> Tensors:
        """Repeat the call with other parameters or inputs."""
        # what is known as a matrix does not depend on train or eval mode, or is in eval mode
        rerun = Rerun(self.module, modes={self.module: False}) if self.rerun is None else self.rerun
        return rerun(parameters, *inputs, below=below)


class _Node(torch.autograd.Function):
    """The node that stands for one call of a module."""

    @staticmethod
    def forward(ctx: Any, call: Call, saved: Tensors, returned: Tensors, *inputs: Tensor) -> Any:
        # behind the inputs come parameters: no relevance goes there, but the derivative of one does
        ctx.call = call
        ctx.save_for_backward(*(inputs[: len(call.shapes)] if call.hook.uses_inputs else ()), *saved)
        return returned if len(returned) > 1 else returned[0]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        call: Call = ctx.call
        if Derivative.under_way():
            return (None, None, None, *_Node._differentiated(ctx, call, relevance))
        tensors = ctx.saved_tensors
        count = len(call.shapes) if call.hook.uses_inputs else 0
        inputs, saved = tensors[:count], tensors[count:]
        device = relevance[0].device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                answer = call.hook._propagate(call, inputs, saved, relevance)
        else:
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
            answer = [r if r is None else Derivative.behind(r) for r in answer]
        return (None, None, None, *answer, *[None] * call.parameters)

    @staticmethod
    def _differentiated(ctx: Any, call: Call, gradients: Tensors) -> Sequence[Tensor | None]:
        """Return what the module's own backward pass would."""
        tensors = ctx.saved_tensors
        count = len(call.shapes) if call.hook.uses_inputs else 0
        with Derivative.inside(), torch.autocast(gradients[0].device.type, enabled=False):
            answer = call.hook._differentiate(
                call, tensors[:count], tensors[count:], gradients, ctx.next_functions[: len(call.shapes)]
            )
        return [r if r is None else Derivative.behind(r) for r in answer]


def _fits(got: Sequence[torch.Size | None], expected: Sequence[torch.Size]) -> bool:
    # None is no relevance
    return len(got) == len(expected) and all(a in (None, b) for a, b in zip(got, expected, strict=True))


def _is_among(tensor: Tensor, tensors: Tensors) -> bool:
    for other in tensors:  # noqa: SIM110  any() of a generator takes longer than a small product
        if other is tensor:
            return True
    return False


class Registration:
    """A hook on a module, until ``remove()`` or the end of the ``with`` block."""

    hook: Hook

    def __init__(self, hook: Hook, module: nn.Module) -> None:
        for other in module._forward_hooks.values():
            owner = getattr(other, "__self__", None)
            if isinstance(owner, Registration):
                msg = (
                    f"{type(hook).__name__} cannot be registered on {module}: it has {type(owner.hook).__name__} "
                    "already. Remove that one first; one module takes one rule"
                )
                raise RuntimeError(msg)  # noqa: TRY004  the type is right, the state is not
        self.hook = hook
        # first of all hooks: what hooks of others do with the output comes after the rule, and is differentiated as
        # usual
        self._handles = [module.register_forward_hook(self._after, prepend=True, with_kwargs=True)]
        if layer_type(module) is TracedLayer:
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))

    def remove(self) -> None:
        """Take the hook off the module. Graphs that were made with it keep it."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Give the module inputs of its own, that know what the call started from."""
        if not torch.is_grad_enabled():
            return None
        in_place, random = bool(getattr(module, "inplace", False)), self.hook.may_rerun
        if len(args) == 1 and not kwargs and is_float(args[0]):
            x = args[0]
            return ((_Own.of(x, self, in_place=in_place, random=random),), kwargs) if x.requires_grad else None
        leaves, structure = tree_flatten((args, kwargs))
        if not any(leaf.requires_grad for leaf in leaves if is_float(leaf)):
            return None
        own = [_Own.of(leaf, self, in_place=in_place, random=random) if is_float(leaf) else leaf for leaf in leaves]
        return tree_unflatten(own, structure)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: C901  one call, step by step
        """Put the node in the place of the call's own graph."""
        if not torch.is_grad_enabled():
            return None
        kind = layer_type(module)
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        if plain and output.is_floating_point() and self._quick(kind, args[0]):
            # one tensor in, one out, and nothing to remember of the call but these
            (x,) = args
            return self._put(Call(self.hook, module, kind, [x.shape]), args, (output,))[0] if x.requires_grad else None
        if plain:
            leaves, structure, positions, results, shell = [args[0]], None, [0], [output], None
            several = False
        else:
            leaves, structure = tree_flatten((args, kwargs))
            results, shell = tree_flatten(output)
            positions = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
            several = (
                len(positions) > 1 or sum(map(is_float, results)) > 1 or any(map(is_float, tree_flatten(kwargs)[0]))
            )
        owned = [_Own.on(leaves[i], self) for i in positions]
        inputs = tuple(
            leaves[i] if own is None or own.value is None else own.value
            for i, own in zip(positions, owned, strict=True)
        )
        outputs = tuple(result for result in results if is_float(result))
        if not outputs or not inputs:
            self._check_known(module, [*leaves, *results])
        if not outputs or not any(x.requires_grad for x in inputs):
            return None
        self._check_unwritten(module, leaves, positions, owned)
        if several and not self.hook.allows_several:
            msg = (
                f"{type(self.hook).__name__} on {module} was called with {len(inputs)} tensors and gave "
                f"{len(outputs)}; expected one tensor, by position, and one back. Use Norm, Epsilon or Pass there, or "
                "put the rule on a part of the module"
            )
            raise TypeError(msg)

        call = Call(self.hook, module, kind, [x.shape for x in inputs])
        if kind is TracedLayer:
            rest = [None if i in positions else leaf for i, leaf in enumerate(leaves)]
            arguments = None if structure is None else Arguments(rest, structure, positions)
            random = next((own.random for own in owned if own is not None), None)
            modes = {part: part.training for part in module.modules()}
            device = inputs[0].device.type
            cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            call.rerun = Rerun(module, arguments, modes, random, cast)
        made = self._put(call, inputs, outputs)
        for own in owned:
            if own is not None and own.overwritten is not None and len(made) == 1:
                # whoever else holds the input sees it overwritten, as without the rule
                return own.overwritten.copy_(made[0])
        if shell is None:
            return made[0]
        nodes = iter(made)
        return tree_unflatten([next(nodes) if is_float(result) else result for result in results], shell)

    def _quick(self, kind: type[Layer], x: Tensor) -> bool:
        if len(self._handles) == 1 and kind is not TracedLayer:
            return True  # it has no pre-hook that could have made x
        own: _Own | None = vars(x).get("_lrp_own")
        if own is None or own.owner is not self:
            return kind is not TracedLayer
        quick = own.value is None and own.version == x._version and not self.hook.may_rerun
        if quick:
            _Own.on(x, self)
        return quick

    def _put(self, call: Call, inputs: Tensors, outputs: Tensors) -> Tensors:
        """Return the outputs behind a node, in place of the graph that they have."""
        saved, parameters, keep = self.hook._record(call, inputs, outputs)
        call.parameters = len(parameters)
        # a module behind may write into what it gets, but not into what a graph that is kept goes through
        returned = tuple([o.detach().clone() if _is_among(o, saved) else o.detach() for o in outputs])
        if keep:
            call.output = _Watched(returned[0].detach())
        made = _Node.apply(call, saved, returned, *inputs, *parameters)  # type: ignore[no-untyped-call]
        return made if isinstance(made, tuple) else (made,)

    def _check_known(self, module: nn.Module, leaves: list[Any]) -> None:
        """Refuse what relevance cannot be found in; without a word, it would become the gradient."""
        strange = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _PLAIN)})
        if strange:
            msg = (
                f"{type(self.hook).__name__} on {module}: no floating-point tensor is found in its arguments or "
                f"results, which hold {', '.join(strange)}; expected tensors, or lists, tuples and dicts of them"
            )
            raise TypeError(msg)

    def _check_unwritten(
        self, module: nn.Module, leaves: list[Any], positions: list[int], owned: list[_Own | None]
    ) -> None:
        for position, own in zip(positions, owned, strict=True):
            if own is not None and own.value is None and leaves[position]._version != own.version:
                msg = (
                    f"{type(self.hook).__name__} on {module}: it writes to its input, which the rule needs; expected a "
                    "module that does not, or one with an attribute `inplace`. Put rules on its parts, or make it work "
                    "out of place"
                )
                raise RuntimeError(msg)


#: What may stand among arguments and results without carrying relevance.
_PLAIN = (Tensor, int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)


@dataclass(slots=True)
class _Own:
    """What a tensor made for one call stands for; it goes with that tensor, when the call is over.

    ``owner`` made it: a module inside may be handed the same tensor, and have a rule of its own. ``value`` is the input
    as it was, None where the tensor itself still is; ``overwritten`` is what the caller holds.
    """

    owner: Registration
    value: Tensor | None
    overwritten: Tensor | None = None
    random: Tensor | None = None
    version: int = 0

    @classmethod
    def of(cls, x: Tensor, owner: Registration, *, in_place: bool, random: bool) -> Tensor:
        """Return an input for the module: a clone if it is going to be overwritten."""
        # several inputs may be one tensor, or depend on each other: each needs an end of its own to differentiate to
        own = x.clone() if in_place else x.view_as(x)
        given = own.clone() if in_place else own
        # a leaf cannot be overwritten: torch refuses it, and so there is nobody to whom it would matter
        overwritten = x if in_place and not x.is_leaf else None
        state = random_state(x.device) if random else None
        vars(given)["_lrp_own"] = cls(owner, own if in_place else None, overwritten, state, given._version)
        return given

    @staticmethod
    def on(leaf: Tensor, owner: Registration) -> _Own | None:
        """Take what is known off a tensor that ``owner`` made: what is kept of the call must not hold it."""
        found: _Own | None = vars(leaf).get("_lrp_own")
        if found is None or found.owner is not owner:
            return None
        del vars(leaf)["_lrp_own"]
        return found

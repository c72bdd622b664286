"""How a rule enters the backward pass. The only file that registers anything; nothing of a formula is here.

A rule's hook lets the module run as it is, then takes the graph of that call away and puts one autograd node in its
place, whose backward is the rule. The module's own backward does not run unless a rule asks for it. What a call needs
later hangs on its node, as the saved tensors of any other node do: two calls never meet, and everything goes when the
graph goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrp_rules.linear_map import Layer, TracedLayer, layer_type
from lrp_rules.rerun import Arguments, Rerun, is_float, random_state

if TYPE_CHECKING:
    from types import TracebackType

    from lrp_rules.hooks import Hook

    Tensors = tuple[Tensor, ...]


@dataclass
class Call:
    """What is known of one call of a module besides its tensors."""

    hook: Hook
    module: nn.Module
    kind: type[Layer]
    run: Rerun
    names: tuple[str, ...] = ()
    count: int = 1

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of the parameters of known layers, also of those that are None."""
        return () if self.kind is TracedLayer else ("weight", "bias")


class _Node(torch.autograd.Function):
    """The node that stands for one call of a module."""

    @staticmethod
    def forward(ctx: Any, call: Call, saved: Tensors, returned: Tensors, *inputs: Tensor) -> Any:
        ctx.call = call
        ctx.save_for_backward(*inputs, *saved)
        return returned if len(returned) > 1 else returned[0]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        call: Call = ctx.call
        tensors = ctx.saved_tensors
        inputs, saved = tensors[: call.count], tensors[call.count :]
        device = inputs[0].device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                answer = call.hook._propagate(call, inputs, saved, relevance)
        else:
            answer = call.hook._propagate(call, inputs, saved, relevance)
        if len(answer) != len(inputs) or any(
            r is not None and r.shape != x.shape for r, x in zip(answer, inputs, strict=False)
        ):
            got = [None if r is None else tuple(r.shape) for r in answer]
            msg = (
                f"{type(call.hook).__name__} on {call.module}: relevance of shape {got}, expected one tensor for each "
                f"input, of shape {[tuple(x.shape) for x in inputs]}. A rule that passes relevance on unchanged needs "
                "a module whose outputs look like its inputs"
            )
            raise TypeError(msg)
        return (None, None, None, *answer)


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
        """Give a module that works in place, on several tensors, or at random, inputs of its own that say so."""
        leaves, structure = tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if is_float(leaf)]
        in_place = bool(getattr(module, "inplace", False))
        random = self.hook.may_rerun and any(part.training for part in module.modules())
        if not torch.is_grad_enabled() or not (in_place or random or len(inputs) > 1):
            return None
        if not any(x.requires_grad for x in inputs):
            return None
        own = [_Own.of(leaf, in_place=in_place, random=random) if is_float(leaf) else leaf for leaf in leaves]
        return tree_unflatten(own, structure)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Put the node in the place of the call's own graph."""
        if not torch.is_grad_enabled():
            return None
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            leaves, structure, positions, results, shell = [args[0]], None, [0], [output], None
            several = False
        else:
            leaves, structure = tree_flatten((args, kwargs))
            results, shell = tree_flatten(output)
            positions = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
            several = (
                len(positions) > 1 or sum(map(is_float, results)) > 1 or any(map(is_float, tree_flatten(kwargs)[0]))
            )
        owned = [_Own.on(leaves[i]) for i in positions]
        inputs = tuple(
            leaves[i] if own is None or own.value is None else own.value
            for i, own in zip(positions, owned, strict=True)
        )
        outputs = tuple(result for result in results if is_float(result))
        if not outputs or not any(x.requires_grad for x in inputs):
            return None
        if several and not self.hook.allows_several:
            msg = (
                f"{type(self.hook).__name__} on {module} was called with {len(inputs)} tensors and gave "
                f"{len(outputs)}; expected one tensor, by position, and one back. Use Norm, Epsilon or Pass there, or "
                "put the rule on a part of the module"
            )
            raise TypeError(msg)

        kind = layer_type(module)
        call = Call(self.hook, module, kind, Rerun(module), count=len(inputs))
        if kind is TracedLayer:
            rest = [None if i in positions else leaf for i, leaf in enumerate(leaves)]
            arguments = None if structure is None else Arguments(rest, structure, positions)
            random = next((own.random for own in owned if own is not None), None)
            call.run = Rerun(module, arguments, tuple(part.training for part in module.modules()), random)
        call, saved, fragile = self.hook._record(call, inputs, outputs)
        # a module behind may write into what it gets, but not into what a graph that is kept goes through
        returned = tuple(o.detach().clone() if any(o is kept for kept in saved) else o.detach() for o in outputs)
        made = _Node.apply(call, (*saved, *fragile), returned, *inputs)  # type: ignore[no-untyped-call]
        made = made if isinstance(made, tuple) else (made,)
        if fragile:
            # the last saved tensor is a value: where it was overwritten since, an empty one says so
            made[0].grad_fn._raw_saved_tensors[-1].register_hooks(_pack, _unpack)
        for own in owned:
            if own is not None and own.overwritten is not None and len(made) == 1:
                # whoever else holds the input sees it overwritten, as without the rule
                return own.overwritten.copy_(made[0])
        if shell is None:
            return made[0]
        nodes = iter(made)
        return tree_unflatten([next(nodes) if is_float(result) else result for result in results], shell)


@dataclass(frozen=True)
class _Own:
    """What a tensor made for one call stands for; it goes with that tensor, when the call is over.

    ``value`` is the input as it was, None where the tensor itself still is; ``overwritten`` is what the caller holds.
    """

    value: Tensor | None
    overwritten: Tensor | None = None
    random: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, *, in_place: bool, random: bool) -> Tensor:
        """Return an input for the module: a clone if it is going to be overwritten."""
        # several inputs may be one tensor, or depend on each other: each needs an end of its own to differentiate to
        own = x.clone() if in_place else x.view_as(x)
        given = own.clone() if in_place else own
        # a leaf cannot be overwritten: torch refuses it, and so there is nobody to whom it would matter
        overwritten = x if in_place and not x.is_leaf else None
        state = random_state(x.device) if random else None
        vars(given)["_lrp_own"] = cls(own if in_place else None, overwritten, state)
        return given

    @staticmethod
    def on(leaf: Tensor) -> _Own | None:
        """Return what is known of a tensor, if it was made here."""
        found: _Own | None = getattr(leaf, "_lrp_own", None)
        return found


def _pack(value: Tensor) -> tuple[Tensor, int]:
    return value.detach(), value._version


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    value, version = packed
    return value if value._version == version else value.new_empty(0)

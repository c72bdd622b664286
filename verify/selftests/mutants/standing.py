"""Pass, with the hook that anyone would write for it, and what goes wrong around such a hook.

Pass needs nothing of a module but that relevance comes back unchanged, so that a rule of a few lines is right, and each
mutant here has one mistake. None of it depends on how ``lrp_rules`` does the same.
"""
# ruff: noqa: ARG002, D102, D106  a mutant says what is wrong with it once, in the docstring of its class
# ruff: noqa: N801  what is nested in a mutant is the attribute that it replaces
# ruff: noqa: SLF001  torch has no public way to see what a tensor is inside of its transforms

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lrp_rules import Pass
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from collections.abc import Callable


class _Unchanged(torch.autograd.Function):
    """Takes the place of the module's own node."""

    @staticmethod
    def forward(_ctx: Any, _x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(_ctx: Any, *relevance: Tensor) -> Any:
        return relevance[0], None


def _refuse(why: str) -> None:
    msg = f"Pass: {why}"
    raise RuntimeError(msg)


def _under_checkpoint() -> bool:
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def _is_transformed(x: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _is_dual(x: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


class Standing:
    """The hook, and its handle. Whatever it does not understand it refuses; a subclass has the mistake."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.removed, self.pending = module, False, False
        self.handles = [module.register_forward_hook(self, prepend=True, with_kwargs=True)]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        if self.pending and not self.removed:
            self.removed = True
            _refuse("a call under a checkpoint has not come back yet")
        self.removed = True

    def __enter__(self) -> Self:
        if self.removed:
            _refuse("this handle was removed")
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: Any) -> Any:
        return _nothing

    def __reduce__(self) -> Any:
        return _nothing_at_all, ()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, y: Any) -> Any:
        values: list[Any] = [*args, *kwargs.values()]
        x, rest = values[0], values[1:]
        if not torch.is_grad_enabled():
            self.without_grad()
            return None
        self.pending = False
        if not isinstance(y, Tensor) or not isinstance(x, Tensor) or rest or x.shape != y.shape:
            return _refuse("one tensor is expected, and one of its shape back")
        if self.is_exempt(x, y):
            return None
        if x.is_nested or _is_transformed(x) or _is_dual(x):
            return _refuse("a tensor of torch's is expected, as it is")
        if x.requires_grad and not self.is_own(module, x, y):
            return _refuse("the output is another than the module's own")
        return self.stand(x, y) if x.requires_grad else None

    def without_grad(self) -> None:
        self.pending = self.pending or _under_checkpoint()

    def is_exempt(self, x: Tensor, y: Tensor) -> bool:
        """Whether the rule gives way to the gradient."""
        return False

    def is_own(self, module: nn.Module, x: Tensor, y: Tensor) -> bool:
        return not isinstance(module, nn.ReLU) or module.inplace or torch.equal(y, x.relu())

    def stand(self, x: Tensor, y: Tensor) -> Any:
        return _Unchanged.apply(x, y.detach())  # type: ignore[no-untyped-call]


def _nothing(*_: Any) -> None: ...


def _nothing_at_all() -> Callable[..., None]:
    return _nothing


class _Standing(Pass):
    hook: type[Standing] = Standing

    def register(self, module: nn.Module) -> Any:
        # what overwrites its input needs more than this
        return super().register(module) if getattr(module, "inplace", False) else self.hook(module)


# torch's transforms


@mutant()
class PassBatchedTwice(_Standing):
    """In a batch of relevances each counts twice, as it comes by two hooks."""

    class hook(Standing):
        def stand(self, x: Tensor, y: Tensor) -> Any:
            out = super().stand(x, y)
            out.register_hook(lambda R: 2 * R if torch._C._functorch.is_legacy_batchedtensor(R) else R)
            return out


@mutant()
class PassVjpGradient(_Standing):
    """torch.func.vjp of the module gives its gradient, as the hook does not know the tensors that it is called with."""

    class hook(Standing):
        def is_exempt(self, x: Tensor, y: Tensor) -> bool:
            return torch._C._functorch.is_gradtrackingtensor(x) and not _is_dual(x)


@mutant()
class PassVmapGradient(_Standing):
    """Under torch.vmap the module keeps its gradient."""

    class hook(Standing):
        def is_exempt(self, x: Tensor, y: Tensor) -> bool:
            return torch._C._functorch.is_batchedtensor(x)


@mutant()
class PassForwardModeGradient(_Standing):
    """In forward mode the module keeps its derivative."""

    class hook(Standing):
        def is_exempt(self, x: Tensor, y: Tensor) -> bool:
            return _is_dual(x)


@mutant()
class PassNestedGradient(_Standing):
    """A nested tensor keeps its gradient."""

    class hook(Standing):
        def is_exempt(self, x: Tensor, y: Tensor) -> bool:
            return x.is_nested


# Hooks of others


class _Unwary(Standing):
    def is_own(self, module: nn.Module, x: Tensor, y: Tensor) -> bool:
        return True


@mutant()
class PassPrependedHookTaken(_Standing):
    """What a hook before the rule's makes of the output is taken for the output, and is not differentiated."""

    class hook(_Unwary):
        def is_own(self, module: nn.Module, x: Tensor, y: Tensor) -> bool:
            return next(iter(module._forward_hooks.values())) is not self or super(_Unwary, self).is_own(module, x, y)


@mutant()
class PassGlobalHookTaken(_Standing):
    """What a global hook makes of the output is taken for the output, and is not differentiated."""

    class hook(_Unwary):
        def is_own(self, module: nn.Module, x: Tensor, y: Tensor) -> bool:
            return bool(nn.modules.module._global_forward_hooks) or super(_Unwary, self).is_own(module, x, y)


@mutant()
class PassAppendedHookTaken(_Standing):
    """The rule moves behind all hooks, and what these make of the output is not differentiated."""

    class hook(_Unwary):
        def __init__(self, module: nn.Module) -> None:
            super().__init__(module)
            self.handles.append(module.register_forward_pre_hook(self.move))

        def move(self, module: nn.Module, _args: Any) -> None:
            hooks: Any = module._forward_hooks
            hooks.move_to_end(self.handles[0].id)


@mutant()
class PassPreHooksForgotten(_Standing):
    """Relevance goes to what the module was called with, by-passing what hooks have made of it."""

    class hook(Standing):
        def __init__(self, module: nn.Module) -> None:
            super().__init__(module)
            self.handles.append(module.register_forward_pre_hook(self.keep, prepend=True))
            self.kept: Tensor | None = None

        def without_grad(self) -> None:
            super().without_grad()
            self.kept = None

        def keep(self, _module: nn.Module, args: Any) -> None:
            self.kept = args[0]

        def stand(self, _x: Tensor, y: Tensor) -> Any:
            kept, self.kept = self.kept, None
            return super().stand(kept, y)  # type: ignore[arg-type]


@mutant()
class PassHooksOfOthersRefused(_Standing):
    """A module that has hooks of others is refused, whatever they do."""

    class hook(Standing):
        def __call__(self, module: nn.Module, args: Any, kwargs: Any, y: Any) -> Any:
            return (
                super().__call__(module, args, kwargs, y) if len(module._forward_hooks) == 1 else _refuse("other hooks")
            )


# Copies, checkpoints and handles


@mutant()
class PassCopiesHaveIt(_Standing):
    """A copy of the module has a rule of its own, which nobody can remove (zennit)."""

    class hook(Standing):
        def __deepcopy__(self, memo: Any) -> Any:
            return _kept


@mutant()
class PassPicklesHaveIt(_Standing):
    """A module that comes out of a pickle has the rule of the one that went in."""

    class hook(Standing):
        def __reduce__(self) -> Any:
            return _kept_at_all, ()


def _kept(_module: nn.Module, args: Any, _kwargs: Any, y: Tensor) -> Any:
    return _Unchanged.apply(args[0], y.detach())  # type: ignore[no-untyped-call]


def _kept_at_all() -> Callable[..., Any]:
    return _kept


@mutant()
class PassRecomputedGradient(_Standing):
    """A module that runs again in a backward pass, as under a checkpoint, keeps its gradient there."""

    class hook(Standing):
        def is_exempt(self, x: Tensor, y: Tensor) -> bool:
            return torch._C._current_graph_task_id() != -1

        def without_grad(self) -> None: ...


@mutant()
class PassCheckpointForgotten(_Standing):
    """A call under a checkpoint comes back after remove(), and gives the gradient."""

    class hook(Standing):
        def without_grad(self) -> None: ...


@mutant()
class PassHandleEnteredInVain(_Standing):
    """A handle that was removed can be entered once more, and nothing happens there."""

    class hook(Standing):
        def __enter__(self) -> Self:
            return self

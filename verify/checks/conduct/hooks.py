"""Conduct: hooks of others on a module that has a rule, in whatever order they were registered."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from verify.checks.conduct.probing import (
    R,
    Topic,
    X,
    attached,
    differs,
    fresh,
    grad,
    layer,
    leaf,
    make,
    unless_refused,
    watched,
)
from verify.model import NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.hooks import RemovableHandle

    from verify.model import Subject

    #: Registers a hook on a module.
    Hooking = Callable[[nn.Module], RemovableHandle]


@contextlib.contextmanager
def hooked(handle: RemovableHandle) -> Iterator[None]:
    """Take somebody's hook away again, whatever happens: a global one would be there for all cases to come."""
    try:
        yield
    finally:
        handle.remove()


def _double(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
    return 2 * y


def _double_input(_module: nn.Module, args: Any) -> Any:
    return (2 * args[0],)


def _append(module: nn.Module) -> RemovableHandle:
    return module.register_forward_hook(_double)


def _prepend(module: nn.Module) -> RemovableHandle:
    return module.register_forward_hook(_double, prepend=True)


def _global(module: nn.Module) -> RemovableHandle:
    def double(m: nn.Module, args: Any, y: Tensor) -> Any:
        return _double(m, args, y) if m is module else None

    return nn.modules.module.register_module_forward_hook(double)


def _input(module: nn.Module) -> RemovableHandle:
    return module.register_forward_pre_hook(_double_input)


def _input_first(module: nn.Module) -> RemovableHandle:
    return module.register_forward_pre_hook(_double_input, prepend=True)


def _input_global(module: nn.Module) -> RemovableHandle:
    return nn.modules.module.register_module_forward_pre_hook(
        lambda m, args: _double_input(m, args) if m is module else None
    )


def _found(subject: Subject, rule: str, module: nn.Module, hook: Hooking) -> Tensor:
    x = leaf(X)
    with attached(make(subject, rule), module), hooked(hook(module)):
        return grad(module(x), x, R)


def _output_doubled(hook: Hooking, rule: str, subject: Subject) -> Iterator[str]:
    """Behind the module, the output is doubled, so that twice the relevance goes into it."""

    def ask(module: nn.Module) -> Iterator[str]:
        expected = fresh(subject, rule, module, X, 2 * R)
        found = _found(subject, rule, module, hook)
        yield from differs(found, expected, "with a hook of another that doubles the output, the relevance")

    for kind in (layer, watched):
        yield from unless_refused(ask(kind(rule)))


def _input_doubled(rule: str, subject: Subject) -> Iterator[str]:
    """Before the module, the input is doubled, so that twice what the module gives back comes out."""

    def ask(module: nn.Module, hook: Hooking) -> Iterator[str]:
        expected = 2 * fresh(subject, rule, module, 2 * X)
        found = _found(subject, rule, module, hook)
        yield from differs(found, expected, "with a pre-hook of another that doubles the input, the relevance")

    for kind, hook in ((layer, _input), (watched, _input), (watched, _input_first), (layer, _input_global)):
        yield from unless_refused(ask(kind(rule), hook))


def _looking_on(rule: str, subject: Subject) -> Iterator[str]:
    """Hooks that look on, or hand on what they get, are called, and change nothing."""
    seen: list[Tensor] = []

    def looks(_module: nn.Module, _args: Any, y: Tensor) -> None:
        seen.append(y.detach().clone())

    def hands_on(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
        seen.append(y.detach().clone())
        return y

    for module in (layer(rule), watched(rule)):
        expected, plain = fresh(subject, rule, module), module(X).detach()
        for look, prepend in ((looks, True), (hands_on, True), (hands_on, False)):
            what = f"with a hook that {look.__name__.replace('_', ' ')}{', prepended' if prepend else ''}"
            seen.clear()
            try:
                found = _found(subject, rule, module, partial(_register, look, prepend=prepend))
            except NotOfferedError:
                raise
            except Exception as error:
                yield f"{what}, the module is refused: {error}"
                return
            yield from differs(found, expected, f"{what}, the relevance")
            if len(seen) != 1:
                yield f"{what}: it is called {len(seen)} times"
            else:
                yield from differs(seen[0], plain, f"{what}, what it sees")


def _register(hook: Callable[..., Any], module: nn.Module, *, prepend: bool) -> RemovableHandle:
    return module.register_forward_hook(hook, prepend=prepend)


TOPICS = (
    Topic("hook-appended", partial(_output_doubled, _append)),
    Topic("hook-prepended", partial(_output_doubled, _prepend)),
    Topic("global-hook", partial(_output_doubled, _global)),
    Topic("pre-hooks", _input_doubled),
    Topic("hooks-that-look-on", _looking_on),
)

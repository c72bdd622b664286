"""Conduct: modules of several parts. Their parameters, their hooks and what is done to them are those of the parts."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.conduct.probing import (
    OTHER,
    WEIGHED,
    R,
    Topic,
    X,
    attached,
    differs,
    fill,
    fresh,
    gives,
    grad,
    leaf,
    linear,
    make,
    tensor,
    unless_refused,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.hooks import RemovableHandle

    from verify.model import Subject

#: Rules that change parameters: of a module that has none of its own, they would use the Jacobian.
CHANGING = tuple(rule for rule in WEIGHED if rule not in {"Epsilon", "Norm"})


class _Wrapped(nn.Module):
    """A module that hands all to its part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = linear()

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.part(input)
        return y


def _parts(rule: str, subject: Subject) -> Iterator[str]:
    """A rule that changes parameters, on a module whose parts have them: what it gives part by part, or an error."""
    containers: tuple[nn.Module, ...] = (nn.Sequential(linear(), linear(scale=-0.5)), _Wrapped())
    for module in containers:
        with contextlib.ExitStack() as stack:
            for part in module.children():
                stack.enter_context(attached(make(subject, rule), part))
            x = leaf(X)
            expected = grad(module(x), x, R)
        what = f"the relevance by a rule on {type(module).__name__.strip('_')} around Linear"
        yield from unless_refused(gives(subject, rule, module, expected, what))


class _Scaled(nn.Module):
    """A weight of its own, and a part, which may have parameters, too."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.weight, self.part = nn.Parameter(linear().weight.detach().clone()), part

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.part(nn.functional.linear(input, self.weight))
        return y


def _scaled(by: float = 1.0, bias: float = 1.0) -> _Scaled:
    part = linear()
    fill(part, weight=by * part.weight, bias=bias * part.bias)
    return _Scaled(part)


def _normalising() -> _Scaled:
    # without parameters of the part, so that the weight is that of the whole
    part = nn.BatchNorm1d(3, eps=1.0, affine=False, dtype=torch.float64)
    part.get_buffer("running_mean").copy_(tensor([0.5, -1.0, 0.25]))
    part.get_buffer("running_var").fill_(3.0)  # with eps, the square of 2
    return _Scaled(part).eval()


def _new_weight(module: Any) -> None:
    module.weight.data = tensor([[1.0, 0.0, 2.0], [0.5, 1.0, -1.0], [0.0, -1.0, 1.0]])


def _move(module: nn.Module) -> None:
    """Run another batch in train mode, as anyone may do between two passes."""
    module.train()
    with torch.no_grad():
        module(OTHER)
    module.eval()


def _between(module: nn.Module, change: Callable[[], None], what: str, rule: str, subject: Subject) -> Iterator[str]:
    expected, x = fresh(subject, rule, module), leaf(X)
    with attached(make(subject, rule), module):
        y = module(x)
        change()
        found = grad(y, x, R)
    yield from differs(
        found, expected, f"{type(module).__name__.strip('_')}, {what} after the forward pass: the relevance"
    )


def _weights_replaced(rule: str, subject: Subject) -> Iterator[str]:
    """A weight that is given other data after the forward pass: the call's own counts, or there is an error."""
    for module, part in ((linear(), None), (watched(rule), None), (_scaled(), "part")):
        owner = module if part is None else getattr(module, part)
        what = "whose weight was given other data" if part is None else "a part of which was given other data"
        yield from unless_refused(_between(module, lambda owner=owner: _new_weight(owner), what, rule, subject))  # type: ignore[misc]


def _buffers_moved(rule: str, subject: Subject) -> Iterator[str]:
    """Running statistics of a part that another batch moves after the forward pass, likewise."""
    module = _normalising()
    what = "a part of which was run in train mode"
    yield from unless_refused(_between(module, lambda: _move(module), what, rule, subject))


def _on_output(module: nn.Module) -> RemovableHandle:
    return module.register_forward_hook(lambda _module, _args, y: -2 * y)


def _on_input(module: nn.Module) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _module, args: (-2 * args[0],))


def _globally(module: nn.Module) -> RemovableHandle:
    return nn.modules.module.register_module_forward_hook(lambda m, _args, y: -2 * y if m is module else None)


#: What somebody else's hook on a part does, and the factor of the part's bias if the part did it itself.
_HOOKS: dict[str, tuple[Callable[[nn.Module], RemovableHandle], float]] = {
    "a forward hook": (_on_output, -2.0),
    "a forward pre-hook": (_on_input, 1.0),
    "a global forward hook": (_globally, -2.0),
}


def _hooks_inside(rule: str, subject: Subject) -> Iterator[str]:
    """Hooks of others on a part are a piece of the module: as if the part did what they do."""

    def ask(name: str, hook: Callable[[nn.Module], RemovableHandle], bias: float) -> Iterator[str]:
        module = _scaled()
        expected = fresh(subject, rule, _scaled(by=-2.0, bias=bias))
        with contextlib.closing(_Removed(hook(module.part))):
            yield from gives(subject, rule, module, expected, f"with {name} of another on a part, the relevance")

    for name, (hook, bias) in _HOOKS.items():
        yield from unless_refused(ask(name, hook, bias))


class _Removed:
    def __init__(self, handle: RemovableHandle) -> None:
        self.close = handle.remove


TOPICS = (
    Topic("parameters-in-parts", _parts, CHANGING),
    Topic("weights-replaced", _weights_replaced, WEIGHED),
    # where the graph of the call is used as it is, torch itself takes the statistics of the time of the backward pass
    Topic("buffers-moved-inside", _buffers_moved, CHANGING),
    Topic("hooks-inside", _hooks_inside, WEIGHED),
)

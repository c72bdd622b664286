"""Conduct: what a rule never writes, replaces or leaves behind."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from verify.checks.conduct.looking import Look
from verify.checks.conduct.probing import (
    GRADIENT,
    WEIGHED,
    R,
    Topic,
    Values,
    Watched,
    X,
    arguments,
    attached,
    complain,
    differs,
    fresh,
    grad,
    layer,
    leaf,
    linear,
    make,
    power,
    same_bits,
    tensor,
    version,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject


def _parameters(rule: str, subject: Subject) -> Iterator[str]:
    """Nothing of a parameter or buffer moves: before, between and after forward and backward, and after remove()."""
    # with many numbers, as a way there and back that rounds is exact for most
    n = 32
    weighted: tuple[nn.Module, ...] = (nn.Linear(n, n), nn.BatchNorm1d(n).eval())
    for module in weighted if rule in (*WEIGHED, "Pass") else (nn.PReLU(n),):
        module.double()
        name = type(module).__name__
        _fill_all_bits(module)
        for index, parameter in enumerate(module.parameters()):
            parameter.grad = torch.ones_like(parameter)
            parameter.requires_grad_(index == 0)  # one of each, so that flags set to either value are seen
        values, x = Values(module), leaf(torch.cos(torch.arange(2.0 * n).double()).reshape(2, n))
        with attached(make(subject, rule), module):
            yield from complain(values.changes(), f"{name}, registered")
            y = module(x)
            yield from complain(values.changes(), f"{name}, after forward")
            grad(y, x, torch.ones_like(y))
            yield from complain(values.changes(), f"{name}, after backward")
        yield from complain(values.changes(), f"{name}, after remove()")


def _fill_all_bits(module: nn.Module) -> None:
    """Give parameters and buffers numbers that use every bit, and a subnormal one: a way there and back is seen."""
    with torch.no_grad():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(1.5 + _cosines(buffer))  # positive, as a variance has to be
        for parameter in module.parameters():
            parameter.copy_(_cosines(parameter))
            parameter.view(-1)[0] = 3 * 2.0**-1074


def _cosines(like: Tensor) -> Tensor:
    return torch.cos(torch.arange(like.numel(), dtype=like.dtype)).reshape(like.shape)


class _Logged(dict[str, Any]):
    """The parameters of one module, which notes what is put in or taken out. A copy of it notes nothing."""

    def __init__(self, values: dict[str, Any], log: list[str]) -> None:
        super().__init__(values)
        self.log, self.own = log, id(self)

    def __setitem__(self, name: str, value: Any) -> None:
        if vars(self).get("own") == id(self):
            self.log.append(f"the Parameter object of {name} was replaced")
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        if vars(self).get("own") == id(self):
            self.log.append(f"the Parameter object of {name} was taken away")
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        if vars(self).get("own") == id(self):
            self.log.append(f"the Parameter object of {name} was taken away")
        return super().pop(name, *default)


def _during(rule: str, subject: Subject) -> Iterator[str]:
    """Neither while the rule works: others hold the same parameters, and other threads use them."""
    for kind in (nn.Linear, Watched):
        module, x = linear(kind), leaf(X)
        log: list[str] = []
        vars(module)["_parameters"] = _Logged(vars(module)["_parameters"], log)
        values = Values(module)

        def probe(log: list[str] = log, values: Values = values) -> None:
            log.extend(values.changes())

        def stabilizer(d: Tensor, probe: Callable[[], None] = probe) -> Tensor:
            probe()
            return power(d)

        if isinstance(module, Watched):
            module.probe = probe
        with attached(subject.get(rule)(**arguments(rule, stabilizer)), module):
            grad(module(x), x, R)
        yield from complain(log, "within forward or backward")


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(), linear()
        self.second.weight = self.first.weight

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(input))
        return out


def _optimizer(rule: str, subject: Subject) -> Iterator[str]:
    """An optimizer made before still moves the weights, and tied weights move together."""
    model, x = _Tied(), leaf(X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    untied = deepcopy(model)
    untied.second.weight = nn.Parameter(untied.first.weight.detach().clone())
    with attached(make(subject, rule), untied.first), attached(make(subject, rule), untied.second):
        expected = grad(untied(x), x, R)
    with attached(make(subject, rule), model.first), attached(make(subject, rule), model.second):
        yield from differs(grad(model(x), x, R), expected, "the relevance through tied layers")
    if model.first.weight is not model.second.weight:
        yield "tied weights are two Parameter objects afterwards"
    wanted = model.first.weight.detach() - 0.5
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    yield from differs(model.first.weight, wanted, "after a step of an optimizer made before, the weight")
    yield from differs(model.second.weight, wanted, "after a step of an optimizer made before, the tied weight")


def _tensors(rule: str, subject: Subject) -> Iterator[str]:
    """Input, output and relevance hold the same bits afterwards, whatever way they could have been written."""
    module = layer(rule)
    with attached(make(subject, rule), module):
        for inside in (False, True):  # a leaf, and the result of another module
            x, relevance = leaf(X), R.clone()
            h = x * 1 if inside else x
            versions = version(h), version(relevance)
            y = module(h)
            kept = y.detach().clone()
            for when in ("forward", "backward"):
                if when == "backward":
                    torch.autograd.grad(y, x, relevance)
                for name, now, before in (("input", h, X), ("output", y, kept), ("relevance", relevance, R)):
                    if not same_bits(now, before):
                        yield f"{when} writes to the {name}: {before.tolist()} became {now.tolist()}"
            if (version(h), version(relevance)) != versions:
                yield "input or relevance is written in place, and written back"


def _forward(rule: str, subject: Subject) -> Iterator[str]:
    """The output is that of the module alone: bits, type, strides, and whether it needs a gradient."""
    image = tensor(range(48)).reshape(2, 2, 3, 4).to(memory_format=torch.channels_last) / 8 - 3
    conv = nn.Conv2d(2, 3, 2, padding=1, dtype=torch.float64)
    zeros = tensor([[0.0, -0.0, 1e-310], [-1e-310, torch.inf, -torch.inf]])
    tried: tuple[tuple[nn.Module, Tensor], ...] = ((nn.ReLU(), zeros),) if rule in GRADIENT else ()
    for module, given in (*tried, (layer(rule), X), (nn.ReLU() if rule in GRADIENT else conv, image)):
        for needs_grad in (True, False):
            x = given.clone().requires_grad_(needs_grad)
            plain = module(x)
            with attached(make(subject, rule), module):
                y = module(x)
            of = f"the output of {module} with requires_grad={needs_grad}"
            if not same_bits(y, plain):
                yield f"{of} is {y.tolist()}, expected {plain.tolist()}"
            for name in ("requires_grad", "layout", "device"):
                if getattr(y, name) != getattr(plain, name):
                    yield f"{of} has {name}={getattr(y, name)}, expected {getattr(plain, name)}"
            if type(y) is not type(plain) or y.stride() != plain.stride():
                yield f"{of} is a {type(y).__name__} of strides {y.stride()}, expected those of the module alone"


def _remove(rule: str, subject: Subject) -> Iterator[str]:
    """After remove(), nothing is left on the module, and what others put there is still there."""
    calls: list[Tensor] = []
    for used in ("unused", "after forward", "after backward"):
        for module in (layer(rule), watched(rule)):
            x = leaf(X)
            plain, plain_y = grad(module(x), x, R), module(x)
            module.register_forward_pre_hook(lambda _module, _args: None)
            module.register_forward_hook(lambda _module, _args, y: calls.append(y.detach().clone()))
            look, values = Look(module), Values(module)
            handle = make(subject, rule).register(module)
            user = module.register_forward_hook(lambda _module, _args, y: calls.append(y.detach().clone()))
            try:
                if used != "unused":
                    calls.clear()
                    y = module(x)
                    if len(calls) != 2 or not all(same_bits(call, plain_y) for call in calls):
                        yield "another's forward hook is not called once, with the module's own output"
                    if used == "after backward":
                        grad(y, x, R)
            finally:
                handle.remove()
            if user.id not in vars(module)["_forward_hooks"]:
                yield f"{used}: remove() takes away another's hook"
            user.remove()
            yield from complain(look.changes(), f"{used}, then remove()")
            yield from complain(values.changes(), f"{used}, then remove()")
            yield from differs(grad(module(x), x, R), plain, f"{used}, then remove(): the gradient")


class _BoomError(Exception):
    """What the cases below raise."""


class _Boom(torch.autograd.Function):
    """Passes its input, and raises in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        raise _BoomError


class _Fuse:
    """Raises at call number ``count``, and never again."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self) -> None:
        self.count -= 1
        if self.count == 0:
            raise _BoomError

    def __deepcopy__(self, memo: Any) -> Self:
        return type(self)(0)


def _exceptions(rule: str, subject: Subject) -> Iterator[str]:
    """An exception of the module, at whatever run of it, or of another node leaves nothing behind, nor does it hurt."""
    for where in ("forward", "second run", "third run", "backward behind", "backward before"):
        module = watched(rule)
        expected, look, values = fresh(subject, rule, module), Look(module), Values(module)
        instance = make(subject, rule)
        with attached(instance, module):
            registered = Look(module)
            fuse = _Fuse({"forward": 1, "second run": 2, "third run": 3}.get(where, 0))
            registered.seen["probe"] = module.probe = fuse
            with suppress(_BoomError):  # a rule that runs the module once, or twice, meets no exception here
                x = leaf(X)
                h: Tensor = _Boom.apply(x) if where == "backward before" else x * 1  # type: ignore[no-untyped-call]
                y = module(h)
                behind: Tensor = _Boom.apply(y) if where == "backward behind" else y  # type: ignore[no-untyped-call]
                grad(behind, x, R)
            yield from complain(registered.changes(), f"after an exception in {where}")
            yield from complain(values.changes(), f"after an exception in {where}")
            fuse.count = 0
            x = leaf(X)
            yield from differs(grad(module(x), x, R), expected, f"after an exception in {where}, the relevance")
        look.seen["probe"] = fuse
        yield from complain(look.changes(), f"after an exception in {where}, and remove()")


def _stabilizer(rule: str, subject: Subject) -> Iterator[str]:
    """Nor does an exception of a user's own stabilizer."""
    for kind in (nn.Linear, Watched):
        for count in (1, 2):
            module, fuse = linear(kind), _Fuse(count)
            expected, look, values = fresh(subject, rule, module), Look(module), Values(module)

            def stabilizer(d: Tensor, fuse: _Fuse = fuse) -> Tensor:
                fuse()
                return power(d)

            with attached(subject.get(rule)(**arguments(rule, stabilizer)), module):
                registered = Look(module)
                with suppress(_BoomError):  # most rules ask for one denominator alone
                    x = leaf(X)
                    grad(module(x), x, R)
                yield from complain(registered.changes(), "after an exception in the stabilizer")
                yield from complain(values.changes(), "after an exception in the stabilizer")
                fuse.count = 0
                x = leaf(X)
                yield from differs(
                    grad(module(x), x, R), expected, "after an exception in the stabilizer, the relevance"
                )
            yield from complain(look.changes(), "after an exception in the stabilizer, and remove()")


TOPICS = (
    Topic("parameters", _parameters),
    Topic("parameters-during", _during, WEIGHED),
    Topic("optimizer-and-tied-weights", _optimizer, WEIGHED),
    Topic("tensors", _tensors),
    Topic("forward", _forward),
    Topic("remove", _remove),
    Topic("exception", _exceptions),
    Topic("exception-in-stabilizer", _stabilizer, WEIGHED),
)

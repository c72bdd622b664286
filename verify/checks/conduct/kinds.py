"""Conduct: kinds of numbers, of devices and of tensors, and tensors beside those of the call: right, or refused."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.conduct.probing import (
    GRADIENT,
    WEIGHED,
    R,
    Topic,
    X,
    arguments,
    attached,
    differs,
    fresh,
    grad,
    layer,
    leaf,
    linear,
    make,
    power,
    tensor,
    unless_refused,
    watched,
)
from verify.model import Level, NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject

_NUMBER = 2.0**-20


def _numbered(subject: Subject, rule: str) -> Any:
    """Return a rule with a number for its stabilizer: the exact one is for real numbers."""
    return subject.get(rule)(**arguments(rule, _NUMBER))


def _complex(rule: str, subject: Subject) -> Iterator[str]:
    """The specification knows real numbers alone; on others, a rule gives neither the gradient nor nothing."""

    def ask(name: str, module: nn.Module, x: Tensor, relevance: Tensor) -> Iterator[str]:
        own = leaf(x)
        gradient = grad(module(own), own, relevance)
        with attached(_numbered(subject, rule), module):
            found = grad(module(own), own, relevance)
        if torch.equal(found, gradient) or not bool(found.any()):
            yield f"{name}: the relevance is {found.tolist()}, the plain gradient {gradient.tolist()}"

    both = torch.complex(X, X.flip(0)), torch.complex(R, R.flip(1))
    layers = nn.Linear(3, 3, dtype=torch.complex128)
    with torch.no_grad():
        layers.weight.copy_(torch.complex(linear().weight, linear().weight.T))
        layers.bias.copy_(torch.complex(linear().bias, linear().bias.flip(0)))
    yield from unless_refused(ask("a complex Linear", layers, *both))
    if rule in {"Epsilon", "Norm"}:
        yield from unless_refused(ask("from real to complex numbers", _Spectrum(), X, both[1][:, :2]))
        yield from unless_refused(ask("from complex to real numbers", _Power(), both[0], R))


class _Spectrum(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = torch.fft.rfft(input) * 2
        return y


class _Power(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = input.real.square() + input.imag.square()
        return y


def _quantized(rule: str, subject: Subject) -> Iterator[str]:
    """A quantized layer has no gradient; beside a shortcut around it, its relevance must not be left out silently."""

    def ask(module: nn.Module) -> Iterator[str]:
        x = torch.tensor(X.tolist(), requires_grad=True)
        with attached(_numbered(subject, rule), module):
            found = grad(module(x) + x, x, R.float())
        if torch.equal(found, R.float()):
            yield "through a quantized layer goes no relevance, all that there is goes around it"

    quantized = _quantized_layer()
    if quantized is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, that it knows no derivative
            yield from unless_refused(ask(quantized))


def _quantized_layer() -> nn.Module | None:
    """Return a layer with eight bits, or None where torch has none any more, or the platform no engine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many a model
        try:
            model: Any = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear().float()), {nn.Linear})
            model(X.float())
        except (AttributeError, RuntimeError):
            return None
    part: nn.Module = model[0]
    return part


def _nested(rule: str, subject: Subject) -> Iterator[str]:
    """Samples of several lengths in one tensor: each gets what it gets alone."""
    samples, relevances = [X, X[1:].clone()], [R, 2 * R[1:]]

    def ask(module: nn.Module, layout: torch.layout) -> Iterator[str]:
        expected = [fresh(subject, rule, module, x, r) for x, r in zip(samples, relevances, strict=True)]
        x = torch.nested.nested_tensor(samples, layout=layout, requires_grad=True)
        with attached(make(subject, rule), module):
            (found,) = torch.autograd.grad(module(x), x, _like(x, relevances))
        for one, wanted in zip(found.unbind(), expected, strict=True):
            yield from differs(one, wanted, f"of a nested tensor ({layout}), the relevance")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype of torch
        for kind, layout in ((layer, torch.strided), (watched, torch.jagged)):
            yield from unless_refused(ask(kind(rule), layout))


def _like(x: Tensor, values: list[Tensor]) -> Tensor:
    if x.layout is torch.strided:
        return torch.nested.nested_tensor(values)
    # torch knows by its offsets that two have the same lengths
    relevance = torch.empty_like(x.detach())
    relevance.values().copy_(torch.cat(values))
    return relevance


def _meta(rule: str, subject: Subject) -> Iterator[str]:
    """On the device without numbers, relevance is but a shape; that the rule is at work is seen by its stabilizer."""
    asked = list[Tensor]()

    def stabilizer(d: Tensor) -> Tensor:
        asked.append(d)
        return d + 1

    def ask() -> Iterator[str]:
        module, x = linear().to("meta"), leaf(X.to("meta"))
        with attached(subject.get(rule)(**arguments(rule, stabilizer)), module):
            found = grad(module(x), x, R.to("meta"))
        if not asked:
            yield f"on meta, the relevance is {found!r}, of which the stabilizer knows nothing"

    yield from unless_refused(ask())


# Tensors that are no arguments of the module, or none that a search in lists and dicts finds


class _Beside(nn.Module):
    """y = 2 x + other, where other is an attribute, or in an object among the arguments."""

    other: Tensor | None = None

    def forward(self, input: Tensor, beside: Any = None) -> Tensor:
        other = self.other if beside is None else beside.other
        assert other is not None
        return 2 * input + other


_OTHER = tensor([[0.5, -1.0, 4.0], [2.0, 1.5, 0.25]])


def _beside(given: Callable[[_Beside, Tensor], tuple[Any, ...]], rule: str, subject: Subject) -> Iterator[str]:
    """A tensor beside the arguments that wants a gradient gets it, or its share of the relevance."""

    def ask() -> Iterator[str]:
        module, x, other = _Beside(), leaf(X), leaf(_OTHER)
        with attached(make(subject, rule), module):
            y = module(x, *given(module, other))
        s = R / power(2 * X + _OTHER)
        found, beside = torch.autograd.grad(y, (x, other), R.clone(), allow_unused=True)
        yield from differs(found, 2 * X * s, "the relevance of the argument")
        if beside is None or not (torch.equal(beside, _OTHER * s) or torch.equal(beside, R)):
            got = None if beside is None else beside.tolist()
            yield f"a tensor beside the arguments gets {got}, expected its share {(_OTHER * s).tolist()}"

    yield from unless_refused(ask())


def _as_attribute(module: _Beside, other: Tensor) -> tuple[Any, ...]:
    module.other = other
    return ()


def _in_object(_module: _Beside, other: Tensor) -> tuple[Any, ...]:
    return (SimpleNamespace(other=other),)


def _attribute(rule: str, subject: Subject) -> Iterator[str]:
    yield from _beside(_as_attribute, rule, subject)


def _object(rule: str, subject: Subject) -> Iterator[str]:
    yield from _beside(_in_object, rule, subject)


# A second argument that is constant


_MASK = tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 1.0]])


class _Masked(nn.Linear):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input * (_MASK if mask is None else mask))


class _MaskedReLU(nn.ReLU):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input * (_MASK if mask is None else mask))


def _constant(rule: str, subject: Subject) -> Iterator[str]:
    """A mask that wants no gradient is as good as one inside of the module."""

    def ask(call: Callable[[nn.Module, Tensor], Tensor], how: str) -> Iterator[str]:
        module, x = _masked(rule), leaf(X)
        expected = fresh(subject, rule, module)
        with attached(make(subject, rule), module):
            found = grad(call(module, x), x, R)
        yield from differs(found, expected, f"with a mask {how}, the relevance")

    yield from unless_refused(ask(lambda module, x: module(x, _MASK), "by position"))
    yield from unless_refused(ask(lambda module, x: module(x, mask=_MASK), "by keyword"))


def _masked(rule: str) -> nn.Module:
    return _MaskedReLU() if rule in GRADIENT else linear(_Masked)


def _constant_works(rule: str, subject: Subject) -> Iterator[str]:
    """The same, and no error."""
    module = _masked(rule)
    with attached(make(subject, rule), module):
        for how, args, kwargs in (("by position", (_MASK,), {}), ("by keyword", (), {"mask": _MASK})):
            x = leaf(X)
            try:
                grad(module(x, *args, **kwargs), x, R)
            except NotOfferedError:
                raise
            except Exception as error:
                yield f"a mask {how}, which wants no gradient, is refused: {error}"


TOPICS = (
    Topic("complex-numbers", _complex, WEIGHED),
    Topic("quantized-layer", _quantized, WEIGHED),
    Topic("nested-tensors", _nested),
    Topic("meta-device", _meta, WEIGHED),
    Topic("tensor-as-attribute", _attribute, ("Epsilon", "Norm")),
    Topic("tensor-in-an-object", _object, ("Epsilon", "Norm")),
    Topic("constant-argument", _constant),
    # The specification lets a rule refuse several tensors
    Topic("constant-argument-works", _constant_works, level=Level.SHOULD),
)

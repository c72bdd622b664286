"""Check ``errors`` for the rules for products, attention and normalisations: what is refused, and its neighbours."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.probing import fail, passed
from verify.formats.operands import Add, MatMul, Multiply
from verify.model import Case, Finding, Level, NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Subject


class _Exp(nn.Module):
    """No softmax, and no normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class _Softmax(nn.Module):
    """A softmax over its last dimension, without saying so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


class _ChannelsFirst(nn.LayerNorm):
    """A LayerNorm of another dimension."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.mT).mT


_WIDE, _SQUARE, _NARROW = (2, 3), (3, 3), (1, 3)
_Shapes = tuple[tuple[int, ...], ...]
#: Rule, what is wrong, arguments, module, shapes of its inputs, what is raised, and what its message names.
_REFUSED: tuple[tuple[str, str, dict[str, Any], Callable[[], nn.Module], _Shapes, type[Exception], str, Level], ...] = (
    ("Uniform", "matrix-product", {}, MatMul, (_WIDE, (3, 4)), ValueError, "(3, 4)", Level.SHOULD),
    ("SignalTakesAll", "both-as-large", {}, Multiply, (_WIDE, _WIDE), ValueError, "(2, 3)", Level.MUST),
    ("SignalTakesAll", "none-as-large", {}, Multiply, ((2, 1), _NARROW), ValueError, "(2, 1)", Level.MUST),
    ("SignalTakesAll", "no-such-signal", {"signal": 2}, Multiply, (_WIDE, _WIDE), ValueError, "2", Level.MUST),
    ("SignalTakesAll", "matrix-product", {"signal": 0}, MatMul, (_WIDE, (3, 4)), ValueError, "(3, 4)", Level.SHOULD),
    ("SignalTakesAll", "signal-text", {"signal": "0"}, Multiply, (_WIDE, _WIDE), TypeError, "'0'", Level.SHOULD),
    ("SignalTakesAll", "signal-negative", {"signal": -1}, Multiply, (_WIDE, _WIDE), ValueError, "-1", Level.SHOULD),
    ("Bilinear", "sum", {}, Add, (_WIDE, _WIDE), ValueError, "linear", Level.SHOULD),
    ("Bilinear", "not-linear", {}, _Exp, (_WIDE,), ValueError, "linear", Level.SHOULD),
    ("Bilinear", "stabilizer-text", {"stabilizer": "0.1"}, MatMul, (_WIDE, _SQUARE), TypeError, "0.1", Level.MUST),
    ("Bilinear", "stabilizer-negative", {"stabilizer": -0.1}, MatMul, (_WIDE, _SQUARE), ValueError, "-0.1",
     Level.SHOULD),
    ("Softmax", "no-dimension", {}, _Softmax, (_WIDE,), ValueError, "dim", Level.MUST),
    ("Softmax", "no-softmax", {"dim": -1}, _Exp, (_WIDE,), ValueError, "softmax", Level.SHOULD),
    ("Softmax", "other-dimension", {"dim": 0}, _Softmax, (_WIDE,), ValueError, "0", Level.SHOULD),
    ("Softmax", "dim-text", {"dim": "0"}, _Softmax, (_WIDE,), TypeError, "'0'", Level.SHOULD),
    ("LayerNormRule", "no-normalization", {}, _Exp, (_WIDE,), TypeError, "LayerNorm", Level.MUST),
    ("LayerNormRule", "other-forward", {}, partial(_ChannelsFirst, 2), (_WIDE,), TypeError, "forward", Level.SHOULD),
    ("LayerNormRule", "stabilizer-text", {"stabilizer": "0.1"}, partial(nn.LayerNorm, 3), (_WIDE,), TypeError, "0.1",
     Level.MUST),
    ("LayerNormRule", "stabilizer-negative", {"stabilizer": -0.1}, partial(nn.LayerNorm, 3), (_WIDE,), ValueError,
     "-0.1", Level.SHOULD),
)  # fmt: skip
#: What is close to that, and right.
_ACCEPTED: tuple[tuple[str, str, dict[str, Any], Callable[[], nn.Module], _Shapes], ...] = (
    ("Uniform", "outer-product", {}, Multiply, ((2, 1), _NARROW)),
    ("SignalTakesAll", "one-as-large", {}, Multiply, (_NARROW, _WIDE)),
    ("SignalTakesAll", "smaller-signal", {"signal": 0}, Multiply, (_NARROW, _WIDE)),
    ("Bilinear", "product", {}, Multiply, (_WIDE, _WIDE)),
    ("Bilinear", "stabilizer-callable", {"stabilizer": lambda d: d + 100.0}, MatMul, (_WIDE, _SQUARE)),
    ("Softmax", "dimension-given", {"dim": 1}, _Softmax, (_WIDE,)),
    ("Softmax", "negative-dimension", {"dim": -1}, _Softmax, (_WIDE,)),
    ("Stop", "anything", {}, _Exp, (_WIDE,)),
    ("LayerNormRule", "statistics-learned", {}, partial(nn.InstanceNorm1d, 2, track_running_stats=True), ((1, 2, 3),)),
)


def cases() -> Iterator[Case]:
    """Yield the cases of this check."""
    for rule, what, arguments, build, shapes, error, text, level in _REFUSED:
        yield _case(rule, what, level, partial(_refused, rule, arguments, build, shapes, error, text))
    for rule, what, arguments, build, shapes in _ACCEPTED:
        yield _case(rule, f"accepts-{what}", Level.MUST, partial(_accepted, rule, arguments, build, shapes))


def _case(rule: str, what: str, level: Level, run: Callable[[Subject], Finding]) -> Case:
    return Case(id=f"errors/{rule}/{what}", rule=rule, layer="-", check="errors", dtype="-", level=level, run=run)


def _relevance(make: Any, build: Callable[[], nn.Module], shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    module = build().double().eval()
    sizes = [torch.Size(shape).numel() for shape in shapes]
    # of both signs, all different
    inputs = [
        ((torch.arange(size) * 5 % 7 - 2.5) / (k + 2)).double().reshape(shape).requires_grad_()
        for k, (size, shape) in enumerate(zip(sizes, shapes, strict=True))
    ]
    handle = make().register(module)
    try:
        output = module(*inputs)
        return torch.autograd.grad(output, inputs, torch.arange(1.0, output.numel() + 1).to(output).view_as(output))
    finally:
        handle.remove()


def _refused(
    rule: str,
    arguments: dict[str, Any],
    build: Callable[[], nn.Module],
    shapes: _Shapes,
    expected: type[Exception],
    text: str,
    subject: Subject,
) -> Finding:
    make = subject.get(rule)
    try:
        _relevance(lambda: make(**arguments), build, shapes)
    except NotOfferedError:
        raise
    except expected as error:
        return passed() if text in str(error) else fail(f"{expected.__name__} says {str(error)!r}, without {text!r}")
    except Exception as error:
        return fail(f"raises {type(error).__name__}: {error}; expected {expected.__name__}")
    return fail(f"is accepted, expected {expected.__name__}")


def _accepted(
    rule: str, arguments: dict[str, Any], build: Callable[[], nn.Module], shapes: _Shapes, subject: Subject
) -> Finding:
    make = subject.get(rule)
    try:
        found = _relevance(lambda: make(**arguments), build, shapes)
    except NotOfferedError:
        raise
    except Exception as error:
        return fail(f"raises {type(error).__name__}: {error}; expected it to be accepted")
    return passed() if all(bool(r.isfinite().all()) for r in found) else fail(f"gives {[r.tolist() for r in found]}")

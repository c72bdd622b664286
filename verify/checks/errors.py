"""Check ``errors``: every row of "Bad input" in the specification, with its level, and the legal neighbours of each."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from verify.checks.probing import fail, layer_and_data, passed, same
from verify.model import Case, Finding, Level, NotOfferedError
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject

    Arguments = dict[str, Any]

STABILIZED = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
ONE_INPUT = (
    "ZPlus",
    "AlphaBeta",
    "Gamma",
    "ZBox",
    "WSquare",
    "Flat",
    "ReLUDeconvNet",
    "ReLUGuidedBackprop",
    "ReLUBetaSmooth",
)
SHARING = ("Norm", "Epsilon")


def cases() -> Iterator[Case]:
    """Yield the cases of this check."""
    yield from _alpha_beta()
    yield from _stabilizers()
    yield from _bounds()
    yield from _ranges()
    yield from _missing()
    yield from _several()


def _case(name: str, rule: str, run: Callable[[Subject], Finding], level: Level) -> Case:
    return Case(id=f"errors/{rule}/{name}", rule=rule, layer="-", check="errors", dtype="-", level=level, run=run)


def _box(rule: str) -> Arguments:
    return {"low": -4.0, "high": 3.0} if rule == "ZBox" else {}


def _refused(
    rule: str, arguments: Arguments, expected: type[Exception], named: tuple[str, ...] = ()
) -> Callable[[Subject], Finding]:
    """Check that making or using the rule raises ``expected``, and that its message has one of the texts ``named``."""

    def run(subject: Subject) -> Finding:
        make = subject.get(rule)
        module, x, R = layer_and_data(rule)
        try:
            relevance_of(make(**_box(rule) | deepcopy(arguments)), module, x, R)
        except NotOfferedError:
            raise
        except expected as error:
            if named and not all(text in str(error) for text in named):
                return fail(f"{type(error).__name__} says {str(error)!r}, expected it to name {', '.join(named)}")
            return passed()
        except Exception as error:
            return fail(
                f"{_spell(rule, arguments)} raises {type(error).__name__}: {error}; expected {expected.__name__}"
            )
        return fail(f"{_spell(rule, arguments)} is accepted, expected {expected.__name__}")

    return run


def _accepted(rule: str, arguments: Arguments) -> Callable[[Subject], Finding]:
    def run(subject: Subject) -> Finding:
        make = subject.get(rule)
        module, x, R = layer_and_data(rule)
        try:
            r = relevance_of(make(**_box(rule) | deepcopy(arguments)), module, x, R)
        except NotOfferedError:
            raise
        except Exception as error:
            return fail(f"{_spell(rule, arguments)} raises {type(error).__name__}: {error}; expected it to be accepted")
        return passed() if bool(r.isfinite().all()) else fail(f"{_spell(rule, arguments)} gives {r.tolist()}")

    return run


def _spell(rule: str, arguments: Arguments) -> str:
    return f"{rule}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _alpha_beta() -> Iterator[Case]:
    wrong = {
        "negative-beta": (0.5, -0.5, "-0.5"),
        "negative-both": (-1.0, -2.0, "-1.0"),
        "equal": (1.0, 1.0, "1.0"),
        "sum-is-one": (0.5, 0.5, "0.5"),
        "difference-two": (3.0, 1.0, "3.0"),
        "difference-minus-one": (1.0, 2.0, "2.0"),
        "slightly-off": (2.0, 1.0 + 1e-9, "1.000000001"),
        "inf": (inf, inf, "inf"),
        "inf-alpha": (inf, 1.0, "inf"),
        "nan-alpha": (nan, 1.0, "nan"),
        "nan-beta": (1.0, nan, "nan"),
    }
    for name, (alpha, beta, text) in wrong.items():
        arguments = {"alpha": alpha, "beta": beta}
        yield _case(name, "AlphaBeta", _refused("AlphaBeta", arguments, ValueError), Level.MUST)
        yield _case(
            f"{name}-is-named", "AlphaBeta", _refused("AlphaBeta", arguments, ValueError, (text,)), Level.SHOULD
        )
    for alpha, beta in (
        (1.4, 0.4),
        (2.2, 1.2),
        (2.3, 1.3),
        (1.15, 0.15),
        (1.1, 0.1),
        (1.0, 0.0),
        (2, 1),
        (1.5, 0.5),
        (11.3, 10.3),
    ):
        arguments = {"alpha": alpha, "beta": beta}
        yield _case(f"accepts-{alpha}-{beta}", "AlphaBeta", _accepted("AlphaBeta", arguments), Level.MUST)


def _stabilizers() -> Iterator[Case]:
    for rule in STABILIZED:
        name = "epsilon" if rule == "Epsilon" else "stabilizer"
        for kind, value in (("text", "0.1"), ("none", None), ("list", [0.1]), ("tensor", torch.tensor([0.1, 0.2]))):
            yield _case(f"{name}-{kind}", rule, _refused(rule, {name: value}, TypeError), Level.MUST)
        yield _case(f"{name}-text-is-named", rule, _refused(rule, {name: "0.1"}, TypeError, ("0.1",)), Level.SHOULD)
        for kind, number in (("negative", -0.1), ("inf", inf), ("nan", nan)):
            yield _case(
                f"{name}-{kind}", rule, _refused(rule, {name: number}, ValueError, (str(number),)), Level.SHOULD
            )
        accepted: dict[str, Any] = {"integer": 1, "numpy": np.float64(0.5), "callable": lambda d: d + 4.0}
        for kind, value in accepted.items():
            yield _case(f"accepts-{name}-{kind}", rule, _accepted(rule, {name: value}), Level.MUST)


def _bounds() -> Iterator[Case]:
    bad = torch.zeros(1, 4, dtype=torch.float64)
    for name in ("low", "high"):
        other = {"low": {"high": 3.0}, "high": {"low": -4.0}}[name]
        filled = bad - 4.0 if name == "low" else bad + 3.0
        arguments = {name: filled, **other}
        yield _case(f"{name}-does-not-broadcast", "ZBox", _refused("ZBox", arguments, Exception), Level.MUST)
        yield _case(
            f"{name}-does-not-broadcast-is-named",
            "ZBox",
            _refused("ZBox", arguments, ValueError, ("(1, 4)", "(2, 3)")),
            Level.SHOULD,
        )
    # of an input of (2, 3): what would fit if it were repeated, reshaped, transposed or cut
    for shape in ((1, 2), (1, 6), (2, 6), (3, 2), (2, 2), (2, 4), (1, 1, 3), (2, 1, 3), (6, 1, 1)):
        spelled = "x".join(map(str, shape))
        for name, beside, value in (("low", "high", -4.0), ("high", "low", 3.0)):
            box: Arguments = {name: torch.full(shape, value, dtype=torch.float64), beside: -value - 1.0}
            yield _case(f"{name}-of-shape-{spelled}", "ZBox", _refused("ZBox", box, Exception), Level.MUST)
    high = torch.tensor([[3.0, 3.0, -5.0]], dtype=torch.float64)
    low = torch.full((1, 3), -4.0, dtype=torch.float64)
    refused: dict[str, Arguments] = {
        "low-above-high": {"low": 1.0, "high": 0.5},
        "low-above-high-somewhere": {"low": -4.0, "high": high},
        "low-above-high-in-tensors": {"low": low, "high": high},
    }
    for name, arguments in refused.items():
        yield _case(name, "ZBox", _refused("ZBox", arguments, ValueError), Level.SHOULD)
    accepted: dict[str, Arguments] = {
        "one-tensor": {"low": low, "high": 3.0},
        "integers": {"low": -4, "high": 3},
        "tensor-of-every-entry": {"low": low.expand(2, 3), "high": low.abs().expand(2, 3)},
        "tensor-without-dimensions": {"low": torch.tensor(-4.0), "high": torch.tensor(3.0)},
    }
    for name, arguments in accepted.items():
        yield _case(f"accepts-{name}", "ZBox", _accepted("ZBox", arguments), Level.MUST)


def _ranges() -> Iterator[Case]:
    for value in (-0.25, inf, nan):
        yield _case(
            f"gamma-{value}", "Gamma", _refused("Gamma", {"gamma": value}, ValueError, (str(value),)), Level.SHOULD
        )
    for value in (0.0, -1.0, inf, nan):
        run = _refused("ReLUBetaSmooth", {"beta_smooth": value}, ValueError, (str(value),))
        yield _case(f"beta_smooth-{value}", "ReLUBetaSmooth", run, Level.SHOULD)
    yield _case("accepts-gamma-0", "Gamma", _accepted("Gamma", {"gamma": 0}), Level.MUST)
    yield _case("accepts-beta_smooth-1", "ReLUBetaSmooth", _accepted("ReLUBetaSmooth", {"beta_smooth": 1}), Level.MUST)


def _missing() -> Iterator[Case]:
    def run(modifier: str, subject: Subject) -> Finding:
        make = subject.get(modifier)
        try:
            with make(param_keys=["weigth"])(nn.Linear(2, 2)):
                pass
        except RuntimeError as error:
            return (
                passed()
                if "weigth" in str(error)
                else fail(f"RuntimeError says {str(error)!r}, without the name 'weigth'")
            )
        return fail("a parameter 'weigth' that the module lacks is accepted, expected RuntimeError")

    for modifier in ("ClampMod", "GammaMod", "NoMod"):
        yield _case("missing-parameter", modifier, partial(run, modifier), Level.MUST)


class Add(nn.Module):
    """Two inputs, one output."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + 2 * b


class Fork(nn.Module):
    """One input, two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 3 * x, x + 1


_A = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.5]], dtype=torch.float64)
_B = torch.tensor([[2.0, 0.5, 1.0], [-1.0, 2.0, 4.0]], dtype=torch.float64)
_R = torch.tensor([[1.5, -0.5, 2.0], [0.0, 2.0, -3.0]], dtype=torch.float64)


def _several() -> Iterator[Case]:
    for rule in ONE_INPUT:
        for name, module, call in (
            ("two-inputs", Add(), lambda m, x: m(x, x * 0.5)),
            ("keyword", nn.Linear(3, 3, dtype=torch.float64), lambda m, x: m(input=x)),
            ("two-outputs", Fork(), lambda m, x: sum(m(x))),
        ):
            yield _case(f"refuses-{name}", rule, partial(_is_refused, rule, module, call), Level.SHOULD)
    for rule in SHARING:
        yield _case("shares-two-inputs", rule, partial(_shares_inputs, rule), Level.SHOULD)
        yield _case("takes-keyword", rule, partial(_takes_keyword, rule), Level.SHOULD)
        yield _case("takes-two-outputs", rule, partial(_takes_outputs, rule), Level.SHOULD)
    yield _case("takes-keyword", "Pass", partial(_takes_keyword, "Pass"), Level.SHOULD)


def _is_refused(rule: str, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], subject: Subject) -> Finding:
    x, module = _A.clone().requires_grad_(), deepcopy(module)
    handle = subject.get(rule)(**_box(rule)).register(module)
    try:
        torch.autograd.grad(call(module, x), x, _R.clone())
    except NotOfferedError:
        raise
    except TypeError as error:
        unnamed = [text for text in (rule, type(module).__name__) if text not in str(error)]
        return fail(f"TypeError says {str(error)!r}, without {unnamed}") if unnamed else passed()
    except Exception as error:
        return fail(f"raises {type(error).__name__}: {error}; expected a TypeError that names rule and module")
    finally:
        handle.remove()
    return fail("is accepted, expected a TypeError that names rule and module")


def _stabilized(d: Tensor) -> Tensor:
    return torch.where(d < 0, d - 1e-6, d + 1e-6)


def _shares_inputs(rule: str, subject: Subject) -> Finding:
    a, b = _A.clone().requires_grad_(), _B.clone().requires_grad_()
    handle = subject.get(rule)().register(module := Add())
    try:
        found = torch.autograd.grad(module(a, b), (a, b), _R.clone())
    finally:
        handle.remove()
    s = _R / _stabilized(_A + 2 * _B)
    return _agree(found, (_A * s, _B * (2 * s)))


def _takes_keyword(rule: str, subject: Subject) -> Finding:
    module: nn.Module = nn.Identity() if rule == "Pass" else nn.Linear(3, 3, dtype=torch.float64)
    by_position = relevance_of(subject.get(rule)(), module, _A.clone(), _R.clone())
    x = _A.clone().requires_grad_()
    handle = subject.get(rule)().register(module)
    try:
        (found,) = torch.autograd.grad(module(input=x), x, _R.clone())
    finally:
        handle.remove()
    return (
        passed()
        if same(found, by_position)
        else fail("a tensor passed by keyword gets another relevance than by position")
    )


def _takes_outputs(rule: str, subject: Subject) -> Finding:
    x = _A.clone().requires_grad_()
    handle = subject.get(rule)().register(module := Fork())
    try:
        found = torch.autograd.grad(module(x), x, (_R.clone(), -2 * _R))
    finally:
        handle.remove()
    first, second = _R / _stabilized(3 * _A), -2 * _R / _stabilized(_A + 1)
    return _agree(found, (_A * (3 * first + second),))


def _agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Finding:
    for index, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        # a handful of roundings, each relative to the largest term
        room = 16 * torch.finfo(wanted.dtype).eps * wanted.abs().max()
        if not bool(((got - wanted).abs() <= room).all()):
            return fail(f"input {index} gets {got.tolist()}, expected its share {wanted.tolist()}")
    return passed()

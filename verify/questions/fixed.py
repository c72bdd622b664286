"""Parameters that a subject cannot change: it is asked with its values in place of our defaults, and with no others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from reference.rules import Stabilizer
from verify.formats.text import shortened
from verify.model import NotOfferedError, SubjectError, other_value
from verify.questions.variants import drawn

if TYPE_CHECKING:
    from verify.questions.variants import Variant

_STABILIZED = {"stabilizer": 1e-6, "zero_params": None}
#: The parameters that a subject may fix, with our defaults; the bounds of ZBox have those that it is asked with.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "Epsilon": {"epsilon": 1e-6, "zero_params": None},
    "Norm": {"stabilizer": 1e-6},
    "ZPlus": _STABILIZED,
    "AlphaBeta": {"alpha": 2.0, "beta": 1.0, **_STABILIZED},
    "Gamma": {"gamma": 0.25, **_STABILIZED},
    "ZBox": {"low": -4.0, "high": 3.0, **_STABILIZED},
    "WSquare": _STABILIZED,
    "Flat": _STABILIZED,
    "ReLUBetaSmooth": {"beta_smooth": 10.0},
    "Bilinear": {"stabilizer": 1e-6},
    "LayerNormRule": {"stabilizer": 1e-6},
}
#: Parameters that are fixed together, or not at all.
_TOGETHER = {"AlphaBeta": {"alpha", "beta"}, "ZBox": {"low", "high"}}


class Fixing(Protocol):
    """A subject, or what a report says of one."""

    @property
    def spec(self) -> str:
        """What it is called."""

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """Parameters that it cannot change, rule by rule."""


def checked(spec: str, given: Any) -> dict[str, dict[str, Any]]:
    """Return what a subject says of its parameters: rule -> parameter -> its one value.

    Raises
    ------
    SubjectError
        If it is not that, or names what cannot be fixed.

    """
    if not isinstance(given, Mapping):
        raise _wrong(spec, f"is {_short(given)}", 'a dictionary such as {"Epsilon": {"epsilon": 0.1}}')
    found: dict[str, dict[str, Any]] = {}
    for rule, values in given.items():
        known = DEFAULTS.get(rule, {}) if isinstance(rule, str) else {}
        if not known:
            raise _wrong(spec, f"has the key {_short(rule)}", f"a rule with parameters: {', '.join(DEFAULTS)}")
        if not isinstance(values, Mapping):
            raise _wrong(spec, f"has {_short(values)} for {rule}", f"a dictionary of {', '.join(known)}")
        found[rule] = {}
        for name, value in values.items():
            if name not in known:
                raise _wrong(spec, f"has the key {_short(name)} for {rule}", f"some of {', '.join(known)}")
            found[rule][name] = _value(spec, rule, name, value)
        together = _TOGETHER.get(rule, set())
        if missing := together - found[rule].keys() if together & found[rule].keys() else set():
            raise _wrong(spec, f"fixes {rule} without {', '.join(sorted(missing))}", "both values or none")
    return found


def _value(spec: str, rule: str, name: str, value: Any) -> Any:
    if name == "zero_params":
        names = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
            raise _wrong(spec, f"has {_short(value)} as {name} of {rule}", "names of parameters, or None")
        return list(names)
    if type(value) not in {int, float} or not math.isfinite(value):
        raise _wrong(spec, f"has {_short(value)} as {name} of {rule}", "a finite number")
    return float(value)


def _short(value: Any) -> str:
    return shortened(repr(value))


def _wrong(spec: str, given: str, expected: str) -> SubjectError:
    return SubjectError(f"`parameters` of {spec} {given}; expected {expected}, see docs/how-to/adapter.md")


def as_fixed(of: Variant, subject: Fixing) -> Variant:
    """Return a variant as it is asked of a subject: with the values that it fixes in place of our defaults.

    Raises
    ------
    NotOfferedError
        If the variant has another value of such a parameter than our default.

    """
    fixed = subject.parameters.get(of.rule)
    if not fixed:
        return of
    given = _given(of)
    for name, value in given.items():
        if name in fixed and not _is_default(of, name, value) and other_value(value, fixed[name]):
            msg = f"{subject.spec} has {of.rule} with {name}={fixed[name]} alone, not with {name}={_short(value)}"
            raise NotOfferedError(msg)
    numbers = {name: value for name, value in {**given, **fixed}.items() if type(value) in {int, float}}
    zero_params = tuple(fixed.get("zero_params", of.zero_params))
    stabilizing = "epsilon" if of.rule == "Epsilon" else "stabilizer"

    def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
        return {**of.arguments(shape, dtype), **fixed}

    formula = {name for name in fixed if name not in {stabilizing, "zero_params"}}
    return replace(
        of,
        arguments=arguments,
        parts=drawn(of.rule, numbers).parts if formula else of.parts,
        stabilizer=Stabilizer(fixed[stabilizing]) if stabilizing in fixed else of.stabilizer,
        zero_params=zero_params,
    )


def arguments_as_fixed(rule: str, given: Mapping[str, float], subject: Fixing) -> dict[str, float]:
    """Return the same of the arguments of a rule that has no variants."""
    fixed = subject.parameters.get(rule, {})
    for name, value in given.items():
        if name in fixed and value not in {fixed[name], DEFAULTS[rule][name]}:
            msg = f"{subject.spec} has {rule} with {name}={fixed[name]} alone, not with {name}={value}"
            raise NotOfferedError(msg)
    return {**given, **fixed}


def _given(of: Variant) -> dict[str, Any]:
    """Return the arguments of a variant; bounds that are tensors are so for an input of any shape."""
    given = of.arguments((2, 2, 2), torch.float64)
    names = given.get("zero_params")
    if names is not None and not isinstance(names, str):  # an iterator can be read once
        given["zero_params"] = list(names)
    return given


def _is_default(of: Variant, name: str, value: Any) -> bool:
    return not other_value(value, DEFAULTS[of.rule][name])

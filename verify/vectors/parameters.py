"""The parameters that the vectors ask each rule with. Every parameter is written out: a port needs no defaults.

A stabilizer is a number or {"epsilon", "clip", "norm_scale"}. What JSON has no number for is the string "NaN",
"Infinity" or "-Infinity"; any other string is one, and therefore no number.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from reference.windows import Array, Shape
from verify.vectors.layers import Layer

Parameters = dict[str, Any]
#: By name: parameters, the kind of error, and the flag that explains it.
Refused = dict[str, tuple[Parameters, str, str]]

GRADIENT_RULES = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")

#: The defaults of the API, written out.
DEFAULTS: dict[str, Parameters] = {
    "Epsilon": {"epsilon": 1e-6, "zero_params": []},
    "Norm": {"stabilizer": 1e-6},
    "ZPlus": {"stabilizer": 1e-6, "zero_params": []},
    "AlphaBeta": {"alpha": 2.0, "beta": 1.0, "stabilizer": 1e-6, "zero_params": []},
    "Gamma": {"gamma": 0.25, "stabilizer": 1e-6, "zero_params": []},
    "ZBox": {"low": -4.0, "high": 3.0, "stabilizer": 1e-6, "zero_params": []},
    "WSquare": {"stabilizer": 1e-6, "zero_params": []},
    "Flat": {"stabilizer": 1e-6, "zero_params": []},
    "Pass": {},
    "ReLUDeconvNet": {},
    "ReLUGuidedBackprop": {},
    "ReLUBetaSmooth": {"beta_smooth": 10.0},
}
RULES = tuple(DEFAULTS)

_STABILIZERS = {
    "0": 0.0,
    "1e-30": 1e-30,
    "0.3": 0.3,
    "10": 10.0,
    "clip": {"epsilon": 0.5, "clip": True, "norm_scale": False},
    "norm-scale": {"epsilon": 0.1, "clip": False, "norm_scale": True},
    "clip-norm-scale": {"epsilon": 0.5, "clip": True, "norm_scale": True},
}


def stabilizer_name(rule: str) -> str:
    """Return what the rule calls its stabilizer."""
    return "epsilon" if rule == "Epsilon" else "stabilizer"


# --- bounds that depend on the shape of the input ---------------------------------------------------------------------


def channels(scale: float) -> Callable[[Shape], Array]:
    """A bound for each channel, as (1, C, 1, ...); multiples of 1/8, exact in every dtype."""

    def bound(shape: Shape) -> Array:
        return np.asarray(scale * (1 + 0.125 * np.arange(shape[1])), np.float64).reshape(
            1, -1, *(1,) * (len(shape) - 2)
        )

    return bound


def samples(scale: float) -> Callable[[Shape], Array]:
    """A bound for each sample, with fewer dimensions than the input."""
    return lambda shape: np.asarray(scale * (1 + 0.25 * np.arange(shape[0])))


def longer(scale: float) -> Callable[[Shape], Array]:
    """A bound for each entry of the input, and one more sample than there is."""

    def bound(shape: Shape) -> Array:
        longer_shape = (shape[0] + 1, *shape[1:])
        return np.asarray(scale * (1 + 0.125 * (np.arange(prod(longer_shape)) % 7)).reshape(longer_shape))

    return bound


def resolved(parameters: Parameters, shape: Shape) -> Parameters:
    """Return the parameters with their bounds made for an input of this shape, the batch's axis first."""
    return {name: value(shape) if callable(value) else value for name, value in parameters.items()}


# --- families ---------------------------------------------------------------------------------------------------------


def _own(rule: str) -> dict[str, dict[str, Parameters]]:
    match rule:
        case "AlphaBeta":
            pairs = ((1.0, 0.0), (1.5, 0.5), (4.0, 3.0), (1.4, 0.4))
            return {"alpha-beta": {f"alpha-{a:g}-beta-{b:g}": {"alpha": a, "beta": b} for a, b in pairs}}
        case "Gamma":
            return {"gamma": {f"gamma-{g:g}": {"gamma": g} for g in (0.0, 1.0, 10.0, 1000.0)}}
        case "ZBox":
            return {
                "bounds": {
                    "low-0-high-1": {"low": 0.0, "high": 1.0},
                    # decimals that float32 does not have: a bound that is rounded to it shows in float64
                    "low--2.1-high-2.6": {"low": -2.1, "high": 2.6},
                    "channels": {"low": channels(-3.0), "high": channels(4.0)},
                    "low-channels-high-5": {"low": channels(-3.0), "high": 5.0},
                    "samples": {"low": samples(-3.0), "high": samples(4.0)},
                    "longer-batch": {"low": longer(-3.0), "high": longer(4.0)},
                }
            }
        case "ReLUBetaSmooth":
            return {"beta-smooth": {f"beta-smooth-{b:g}": {"beta_smooth": b} for b in (0.5, 100.0)}}
    return {}


def _families(rule: str) -> dict[str, dict[str, Parameters]]:
    found: dict[str, dict[str, Parameters]] = {"layers": {"default": {}}, **_own(rule)}
    if rule not in GRADIENT_RULES:
        name = stabilizer_name(rule)
        # Gamma has a denominator for z > 0 and one for z < 0; over which outputs their mean is taken is not settled
        keys = [key for key in _STABILIZERS if rule != "Gamma" or "norm-scale" not in key]
        found["stabilizer"] = {f"{name}-{key}": {name: _STABILIZERS[key]} for key in keys}
    if "zero_params" in DEFAULTS[rule]:
        names = {"bias": ["bias"], "weight": ["weight"], "other": ["bias_weight"], "several": ["bias_weight", "bias"]}
        found["zero-params"] = {f"zero-params-{key}": {"zero_params": value} for key, value in names.items()}
    return {
        family: {name: {**DEFAULTS[rule], **given} for name, given in variants.items()}
        for family, variants in found.items()
    }


FAMILIES: dict[str, dict[str, dict[str, Parameters]]] = {rule: _families(rule) for rule in RULES}


def taken(rule: str, layer: Layer) -> bool:
    """Whether the rule is asked on this layer with its defaults."""
    if rule == "Pass":
        return layer.name in {"identity", "relu", "tanh", "softmax", "batchnorm-images"}
    if rule == "ReLUGuidedBackprop":
        return layer.type == "Elementwise" and layer.name != "identity"
    if rule in GRADIENT_RULES:
        return layer.name == "relu"
    return not layer.smooth or rule in {"Epsilon", "Norm"}


# --- arguments --------------------------------------------------------------------------------------------------------


def invalid(rule: str) -> Refused:
    """Return what every implementation must refuse."""
    found: dict[str, tuple[Parameters, str, str]] = {}
    if rule == "AlphaBeta":
        pairs: dict[str, tuple[Any, Any]] = {
            "negative-beta": (0.5, -0.5),
            "negative-both": (-1.0, -2.0),
            "equal": (1.0, 1.0),
            "sum-is-one": (0.5, 0.5),
            "difference-two": (3.0, 1.0),
            "difference-minus-one": (1.0, 2.0),
            "slightly-off": (2.0, 1.0 + 1e-9),
            "alpha-inf": ("Infinity", 1.0),
            "both-inf": ("Infinity", "Infinity"),
            "alpha-nan": ("NaN", 1.0),
            "beta-nan": (1.0, "NaN"),
        }
        found |= {name: ({"alpha": a, "beta": b}, "value", "AlphaMinusBeta") for name, (a, b) in pairs.items()}
    if rule not in GRADIENT_RULES:
        name = stabilizer_name(rule)
        values = {"text": "0.1", "null": None, "list": [0.1]}
        found |= {f"{name}-{key}": ({name: value}, "type", "NotANumber") for key, value in values.items()}
    if rule == "ZBox":
        for name in ("low", "high"):
            bound = np.full((1, 4), -4.0 if name == "low" else 3.0)
            found[f"{name}-does-not-broadcast"] = ({name: bound}, "any", "DoesNotBroadcast")
    return _completed(rule, found)


def advised(rule: str) -> Refused:
    """Return what we advise everyone to refuse."""
    found: dict[str, tuple[Parameters, str, str]] = {}
    numbers = {"negative": -0.1, "inf": "Infinity", "nan": "NaN"}
    if rule not in GRADIENT_RULES:
        name = stabilizer_name(rule)
        found |= {f"{name}-{key}": ({name: value}, "value", "OutOfRange") for key, value in numbers.items()}
    if rule == "Gamma":
        found |= {f"gamma-{key}": ({"gamma": value}, "value", "OutOfRange") for key, value in numbers.items()}
    if rule == "ReLUBetaSmooth":
        found |= {
            f"beta-smooth-{key}": ({"beta_smooth": value}, "value", "OutOfRange")
            for key, value in {**numbers, "zero": 0.0}.items()
        }
    if rule == "ZBox":
        somewhere = np.array([[3.0, 3.0, -5.0]])
        found["low-above-high"] = ({"low": 1.0, "high": 0.5}, "value", "OutOfRange")
        found["low-above-high-somewhere"] = ({"low": -4.0, "high": somewhere}, "value", "OutOfRange")
    return _completed(rule, found)


def neighbours(rule: str) -> dict[str, Parameters]:
    """Return what is legal, though close to what is not."""
    found: dict[str, Parameters] = {}
    if rule == "AlphaBeta":
        # the difference is 1 but for rounding
        pairs = ((1.4, 0.4), (2.2, 1.2), (2.3, 1.3), (1.15, 0.15), (1.1, 0.1), (11.3, 10.3), (1.0, 0.0))
        found |= {f"{a:g}-{b:g}": {"alpha": a, "beta": b} for a, b in pairs}
        found["integers"] = {"alpha": 3, "beta": 2}
    if rule not in GRADIENT_RULES:
        found["integer"] = {stabilizer_name(rule): 1}
    if rule == "Gamma":
        found["gamma-0"] = {"gamma": 0}
    if rule == "ZBox":
        found["integers"] = {"low": -4, "high": 3}
        found["equal-bounds"] = {"low": 0.5, "high": 0.5}
        found["tensor-without-dimensions"] = {"low": np.array(-4.0), "high": np.array(3.0)}
    if rule == "ReLUBetaSmooth":
        found["integer"] = {"beta_smooth": 1}
    return {name: {**DEFAULTS[rule], **given} for name, given in found.items()}


def _completed(rule: str, found: Refused) -> Refused:
    return {name: ({**DEFAULTS[rule], **given}, error, flag) for name, (given, error, flag) in found.items()}

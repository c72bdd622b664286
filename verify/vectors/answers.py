"""What is expected of a question: the relevance, a bound for each entry, and where the rest went."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from reference import network_rules, rules
from reference.affine import Affine
from reference.base import Layer
from reference.nonlinear import Elementwise
from reference.operations import Product
from reference.precision import Model, model_for
from reference.rounding import Bound, CallableStabilizer, beta_smooth_bound, bound, product_bound
from reference.rules import Parts, Stabilizer
from reference.windows import Array, Shape
from verify.vectors import exact, smooth
from verify.vectors.numbers import tidied
from verify.vectors.parameters import GRADIENT_RULES, Parameters, stabilizer_name

Stabilize = Stabilizer | CallableStabilizer
SINKS = ("inputs", "bias", "stabilizer", "zero_branch")


@dataclass(frozen=True)
class Expected:
    """Relevance and bound in the shape of x; one row of sinks a sample, none for the rules that have no ledger.

    ``poles``: a stabilized denominator is zero, and the formula has no finite value.
    """

    relevance: Array
    bound: Array
    sinks: tuple[dict[str, float], ...]
    poles: bool

    @property
    def inconclusive(self) -> int:
        """How many entries have no finite bound."""
        return int(np.isinf(self.bound).sum())


#: Of rules for networks that have none to give.
_FIXED: dict[str, Stabilize] = {
    "Uniform": network_rules.COUNTED,
    "SignalTakesAll": network_rules.COUNTED,
    "Softmax": network_rules.UNDIVIDED,
    "Stop": Stabilizer(1.0),
}


def stabilizer_of(rule: str, parameters: Parameters) -> Stabilize:
    """Return the stabilizer that the parameters name: a number, or the fields of `Stabilizer`."""
    if rule in _FIXED:
        return _FIXED[rule]
    given = parameters[stabilizer_name(rule)]
    return Stabilizer(**given) if isinstance(given, dict) else Stabilizer(float(given))


_PARTS: dict[str, Callable[[Affine, Parameters], Parts]] = {
    "Epsilon": lambda layer, _: rules.epsilon(layer),
    "Norm": lambda layer, _: rules.norm(layer),
    "ZPlus": lambda layer, _: rules.zplus(layer),
    "AlphaBeta": lambda layer, given: rules.alpha_beta(layer, given["alpha"], given["beta"]),
    "Gamma": lambda layer, given: rules.gamma(layer, given["gamma"]),
    "ZBox": lambda layer, given: rules.zbox(layer, given["low"], given["high"]),
    "WSquare": lambda layer, _: rules.wsquare(layer),
    "Flat": lambda layer, _: rules.flat(layer),
    "Uniform": lambda layer, _: network_rules.uniform(layer),
    "SignalTakesAll": lambda layer, given: network_rules.signal_takes_all(layer, _signal(layer, given["signal"])),
    "Bilinear": lambda layer, _: network_rules.bilinear(layer),
    "Softmax": lambda layer, _: network_rules.softmax(layer),
    "Stop": lambda layer, _: network_rules.stop(layer),
    "LayerNormRule": lambda layer, _: network_rules.layer_norm(layer),
}
#: Rules whose parts have numbers that no rational operation gives.
_SMOOTH = ("Softmax", "LayerNormRule")


def _signal(layer: Affine, given: int | None) -> int:
    """The position of the signal; None: the only variable factor, else the only one as large as the output."""
    product = layer.layer
    assert isinstance(product, Product)
    if given is not None:
        return given
    whole = [k for k in product.variables if product.shapes[k] == product.output_shape]
    (found,) = product.variables if len(product.variables) == 1 else whole
    return found


def parts_of(rule: str, layer: Layer, x: Array, parameters: Parameters, sample: int, batch: Shape) -> Parts:
    """Return the parts of a rule at one sample (any shape) of a batch of that shape."""
    given = {**parameters, **{name: _of_sample(parameters[name], sample, batch) for name in _BOUNDS & set(parameters)}}
    return _PARTS[rule](Affine(layer, x.ravel(), tuple(given.get("zero_params", ()))), given)


_BOUNDS = {"low", "high"}


def _of_sample(given: float | Array, sample: int, batch: Shape) -> Array:
    """A bound of ZBox for one sample: trailing ones where it has fewer dimensions, cut to the batch where longer."""
    values = np.asarray(given, np.float64)
    if 0 < values.ndim < len(batch):
        values = values.reshape(*values.shape, *(1,) * (len(batch) - values.ndim))
    if values.ndim == len(batch):
        values = values[: batch[0]]
    return np.asarray(np.broadcast_to(values, batch)[sample])


def expected(rule: str, layer: Layer, parameters: Parameters, x: Array, R: Array, dtype: str) -> Expected:
    """Return the answer to a question; x and R with the batch's axis, in float64, of values of the dtype."""
    model = model_for(dtype)
    if rule in GRADIENT_RULES:
        pairs = [
            expected_of_gradient(rule, layer, parameters, x_i.ravel(), R_i.ravel(), model, smooth)
            for x_i, R_i in zip(x, R, strict=True)
        ]
        found = np.array([relevance for relevance, _ in pairs]).reshape(x.shape)
        return Expected(found, tidied(np.array([limit.worst for _, limit in pairs]).reshape(x.shape)), (), poles=False)
    stabilizer = stabilizer_of(rule, parameters)
    answers: list[exact.Answer] = []
    bounds: list[Bound] = []
    for sample, (x_i, R_i) in enumerate(zip(x, R, strict=True)):
        parts = parts_of(rule, layer, x_i, parameters, sample, x.shape)
        if rule in _SMOOTH:
            correct = smooth.of_networks(layer, x_i.ravel(), parts, tuple(parameters.get("zero_params", ())))
        else:
            correct = smooth.parts_of(layer, x_i.ravel(), parts)
        answers.append(exact.answer(correct, R_i.ravel(), stabilizer))
        bounds.append(bound(parts, R_i, stabilizer, model))
    return Expected(
        np.array([one.relevance for one in answers]).reshape(x.shape),
        tidied(np.array([limit.worst for limit in bounds]).reshape(x.shape)),
        tuple(one.sinks for one in answers),
        any(one.poles for one in answers),
    )


class Functions(Protocol):
    """The functions that the gradient rules need, in one of two computations."""

    def sigmoid(self, t: Array, /) -> Array:
        """1 / (1 + exp(-t))."""

    def slopes(self, layer: Any, x: Array, /) -> Array:
        """f'(x) of an elementwise layer."""


def expected_of_gradient(
    rule: str, layer: Layer, parameters: Parameters, x: Array, R: Array, model: Model, functions: Functions
) -> tuple[Array, Bound]:
    """Return what a rule that looks only at the gradient makes of one sample, flattened, and its bound."""
    if rule == "ReLUBetaSmooth":
        beta: Any = parameters["beta_smooth"]
        return functions.sigmoid(beta * x) * R, beta_smooth_bound(x, R, beta, model)
    if rule == "ReLUGuidedBackprop":
        assert isinstance(layer, Elementwise)
        size = np.diagonal(layer.sizes(x)[1])
        return rules.relu_guided(functions.slopes(layer, x), R), product_bound(size, R, layer.roundings, model)
    own = rules.pass_(R) if rule == "Pass" else rules.relu_deconvnet(R)
    return own, product_bound(np.zeros_like(R), R, 0, model)

"""How one precision on one device rounds: units, extremes, and how errors grow over k roundings."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reference.windows import Array


@dataclass(frozen=True)
class Model:
    """How one precision on one device rounds.

    name                  what it models, to be printed beside a verdict
    unit, tiny, huge      unit roundoff, half the smallest subnormal and the largest number of the stored type
    sum_unit, sum_tiny    the same inside a sum of products
    stored                whether a finished sum is rounded once more, to the stored type
    input_unit            relative error with which a product reads its two factors (TF32)
    unbiased              whether sums round to nearest, so that errors have mean zero and `probable` holds
    confidence            the lambda of the probabilistic bound
    """

    name: str
    unit: float
    tiny: float
    huge: float
    sum_unit: float
    sum_tiny: float
    stored: bool = False
    input_unit: float = 0.0
    unbiased: bool = True
    confidence: float = 5.0

    def gamma(self, k: npt.ArrayLike) -> Array:
        """Worst relative error of k roundings, k u / (1 - k u); inf from k u = 1."""
        return worst(np.asarray(k, np.float64), self.unit)

    def probable(self, k: npt.ArrayLike) -> Array:
        """Probable relative error of k roundings; never above the worst."""
        return probable(np.asarray(k, np.float64), self.unit, self.confidence)

    @property
    def coarsest(self) -> float:
        """The unit within which an integer must fit to be exact everywhere."""
        return max(self.unit, self.sum_unit, self.input_unit)


def worst(k: Array, unit: Array | float) -> Array:
    """Worst relative error of k roundings of this unit: gamma(k) = k u / (1 - k u), inf from k u = 1."""
    ku = k * unit
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(ku < 1, ku / (1 - ku), np.inf))


def probable(k: Array, unit: float, confidence: float) -> Array:
    """Probable relative error of k roundings of this unit (Higham and Mary 2019), where below the worst."""
    likely = np.expm1(confidence * np.sqrt(k) * unit + k * unit * unit / (1 - unit))
    return np.minimum(likely, worst(k, unit))


FLOAT64 = Model("float64", 2.0**-53, 2.0**-1074, np.finfo(np.float64).max.item(), 2.0**-53, 2.0**-1074)
FLOAT32 = Model("float32", 2.0**-24, 2.0**-150, np.finfo(np.float32).max.item(), 2.0**-24, 2.0**-150)
_HALF = {
    "float16": Model("float16, sums in float32", 2.0**-11, 2.0**-25, 65504.0, 2.0**-24, 2.0**-150, stored=True),
    "bfloat16": Model(
        "bfloat16, sums in float32", 2.0**-8, 2.0**-134, (2 - 2.0**-7) * 2.0**127, 2.0**-24, 2.0**-150, stored=True
    ),
}
# Tensor cores add products in blocks, aligned to the largest and cut off, at worst with no guard digits (Fasi et al.
# 2021): a block of b loses b + 1 units of 2^-23, so n products lose n (b + 1) / b <= 2 n of them.
_TENSOR_CORE_UNIT = 2.0**-22


def model_for(dtype: str, device: str = "cpu", *, tf32: bool = False) -> Model:
    """Return the model for a dtype ("float32", "torch.float32") on a device ("cpu", "cuda:0").

    `tf32` says that float32 products read their factors with ten bits, cut off: a relative error of 2^-10 each.
    Algorithms that are accurate only in norm (Winograd, FFT) have no bound here: switch them off.
    """
    name = dtype.removeprefix("torch.")
    cuda = device.startswith("cuda")
    if tf32 and not (name == "float32" and cuda):
        message = f"model_for: given tf32 with {dtype} on {device}, expected float32 on cuda; leave tf32 out"
        raise ValueError(message)
    if tf32:
        model = replace(
            FLOAT32, name="TF32 products, float32 sums", sum_unit=_TENSOR_CORE_UNIT, input_unit=2.0**-10, unbiased=False
        )
    elif name in _HALF:
        model = _HALF[name]
        if cuda:
            model = replace(model, name=f"{model.name} on tensor cores", sum_unit=_TENSOR_CORE_UNIT, unbiased=False)
    elif name in {"float64", "float32"}:
        model = FLOAT64 if name == "float64" else FLOAT32
    else:
        message = f"model_for: given {dtype!r}, expected float64, float32, float16 or bfloat16"
        raise ValueError(message)
    return model

"""What can be asked, as factors with levels, and which levels cannot meet.

A space is a set of factors; each rule is asked the rows of one covering array for each of its spaces. The first level
of a factor is its base, which ids do not name. Nothing here imports torch: the arrays are made from this alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    Levels = tuple[str, ...]
    #: Levels that cannot meet all at once: a set of levels for each of some factors.
    Never = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Space:
    """Factors with their levels, and combinations that cannot be asked."""

    factors: Mapping[str, Levels]
    never: tuple[Never, ...]

    @property
    def telling(self) -> Space:
        """The space without the levels that hide what others do: its pairs are covered by themselves, and first."""
        kept = {
            factor: tuple(level for level in levels if level not in _HIDING.get(factor, ()))
            for factor, levels in self.factors.items()
        }
        return Space(kept, _known(self.never, kept))

    def allows(self, row: Mapping[str, str]) -> bool:
        """Whether a row can be asked."""
        return not any(all(row[factor] in levels for factor, levels in one.items()) for one in self.never)


#: Levels that hide what others do: a relevance that is zero nearly everywhere is right for whatever reason, and float32
#: has wide bounds. Those of large batches are here, too, as they take long.
_HIDING: Mapping[str, Levels] = {
    "x": ("zero", "single", "sample-zero"),
    "zero_params": ("weight", "both"),
    "R": ("one-hot", "sample-zero"),
    "dtype": ("float32",),
    "batch": ("13", "33"),
    "w": ("small",),
}
#: Rules with a formula, and the factor that each has beside stabilizer and zero_params.
FORMULAS = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
GRADIENTS = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")
RULES = (*FORMULAS, *GRADIENTS)

#: Ranges are drawn from log-uniformly; the single values are those at which code branches, and 0.1 and 1.4, which
#: float32 does not have.
_OWN: dict[str, tuple[str, Levels]] = {
    "Gamma": ("gamma", ("0.25", "0", "0.001..0.1", "0.1", "0.25..1", "1", "1..10", "10..1000", "1e3..1e5")),
    "AlphaBeta": ("alpha", ("2", "1", "1..2", "1.4", "2..4", "4..50", "50..1e3")),
    "ZBox": (
        "box",
        ("around", "0..1", "above", "below", "far", "integers", "scalars", "channels", "mixed", "samples", "entries",
         "longer"),
    ),
    "ReLUBetaSmooth": ("beta_smooth", ("10", "0.01..0.5", "1", "1..10", "10..100", "100..1e4")),
}  # fmt: skip
_STABILIZER = ("1e-6", "1e-12..1e-7", "1e-5..1e-2", "0.1..10", "0", "callable", "clip", "whole")
_ZERO_PARAMS = ("none", "bias", "list", "tuple", "iterator", "weight", "both", "first", "second", "other", "empty")

_NUMBERS: dict[str, Levels] = {
    "batch": ("2", "1", "3", "none", "13", "33"),
    "dtype": ("float64", "float32"),
    "x": (
        "signed", "nonnegative", "nonpositive", "integers", "zero", "large", "tiny", "single", "sample-zero", "spread",
    ),
    "w": ("signed", "positive", "negative", "small", "dead", "spread", "integers"),
    "b": ("signed", "none", "positive", "negative", "zero", "large"),
    "R": (
        "signed", "one-hot", "output", "sample-zero", "sum-zero", "nonnegative", "nonpositive", "tiny", "spread",
    ),
    "call": (
        "grad", "backward", "create-graph", "copy", "again", "frozen", "inner", "no-grad-first", "train",
    ),
}  # fmt: skip

#: A module of torch, one of a subclass that adds nothing, one whose weight a parametrization makes.
_FORMS = ("plain", "subclass", "parametrized")
_LAYERS = ("conv1d", "conv2d", "conv3d", "convtranspose1d", "convtranspose2d", "convtranspose3d")
_WINDOWS: dict[str, Levels] = {
    "layer": _LAYERS,
    "kernel": ("3", "1", "2", "uneven", "whole", "9"),
    "stride": ("1", "2", "uneven", "4"),
    "padding": ("0", "1", "uneven", "most", "same", "valid"),
    "mode": ("zeros", "circular", "reflect", "replicate"),
    "dilation": ("1", "2", "uneven"),
    "groups": ("1", "2", "depthwise", "multiplied"),
    "extra": ("0", "1"),  # output_padding
    "channels": ("few", "equal", "many", "one-in", "one-out"),
    "size": ("small", "square", "wide"),
    "memory": ("plain", "strided", "channels-last", "expanded", "offset"),
    "form": _FORMS,
}
_LINEAR: dict[str, Levels] = {
    "layer": ("linear",),
    "features": ("5-4", "1-3", "6-1", "4-4", "70-9", "9-140", "130-130"),
    "memory": ("plain", "strided", "expanded", "offset", "transposed"),
    "form": _FORMS,
}
_FIXED = (
    "avgpool1d", "avgpool1d-nopadcount", "avgpool2d", "avgpool2d-ceil", "avgpool2d-divisor", "avgpool2d-uneven",
    "avgpool2d-global", "avgpool3d", "avgpool3d-nopadcount", "adaptiveavgpool1d", "adaptiveavgpool2d",
    "adaptiveavgpool2d-none", "adaptiveavgpool3d",
)  # fmt: skip
_NORMS = ("batchnorm1d", "batchnorm1d-length", "batchnorm2d", "batchnorm3d", "batchnorm2d-plain")
_BENT = (
    "maxpool1d", "maxpool2d", "maxpool2d-ceil", "maxpool2d-uneven", "maxpool3d", "relu", "leakyrelu", "tanh", "sigmoid",
    "softplus", "softmax", "gelu", "silu", "elu", "identity", "relu-subclass",
)  # fmt: skip
#: The slopes of these are what ReLUGuidedBackprop multiplies with.
_SLOPES = ("relu", "leakyrelu", "tanh", "sigmoid", "softplus", "silu", "elu", "relu-inplace", "relu-subclass")

#: Levels at which finite differences say little.
_ROUGH = frozenset({"0", "whole", "1e-12..1e-7", "1e3..1e5", "clip", "far"})
_DIFFERENTIATED: dict[str, Levels] = {
    "by": ("input", "parameters"),
    "batch": ("2", "1", "none"),
    "x": ("signed", "positive", "negative"),
    "w": ("signed", "positive", "negative"),
    "b": ("signed", "none", "positive", "negative"),
    "R": ("signed", "one-hot", "sum-zero", "positive"),
}


def _set(*levels: str) -> frozenset[str]:
    return frozenset(levels)


_TRANSPOSED = frozenset(layer for layer in _LAYERS if "transpose" in layer)
_DENSE = frozenset(_LAYERS) - _TRANSPOSED
_NEVER_WINDOWS: tuple[Never, ...] = (
    {"layer": _TRANSPOSED, "mode": _set("circular", "reflect", "replicate")},
    {"layer": _TRANSPOSED, "padding": _set("same", "valid")},
    {"layer": _DENSE, "extra": _set("1")},
    {"extra": _set("1"), "stride": _set("1"), "dilation": _set("1")},
    {"padding": _set("same"), "stride": _set("2", "uneven", "4")},
    {"kernel": _set("whole"), "dilation": _set("2", "uneven")},
    {"channels": _set("one-in", "one-out"), "groups": _set("2", "depthwise", "multiplied")},
    # of one dimension there is nothing uneven but the number itself, and memory has no other order
    {"layer": _set("conv1d", "convtranspose1d"), "memory": _set("channels-last")},
    {"batch": _set("none"), "memory": _set("channels-last")},
    # what would take long to write out as a matrix
    {"batch": _set("13", "33"), "channels": _set("many")},
    {"batch": _set("33"), "size": _set("wide")},
    {"batch": _set("33"), "layer": _set("conv3d", "convtranspose3d")},
    {"layer": _set("conv3d", "convtranspose3d"), "channels": _set("many"), "size": _set("square", "wide")},
    # between strides, and within padding, there are outputs without an input
    {"layer": _TRANSPOSED, "stabilizer": _set("0")},
    {"padding": _set("1", "uneven", "most"), "stabilizer": _set("0")},
    {"layer": _TRANSPOSED, "stride": _set("4"), "channels": _set("many")},
    {"layer": _set("convtranspose3d"), "kernel": _set("9"), "batch": _set("13", "3")},
    {"layer": _set("convtranspose3d"), "stride": _set("4"), "size": _set("square", "wide")},
)  # fmt: skip
_NEVER_NUMBERS: tuple[Never, ...] = (
    {"batch": _set("none", "1"), "x": _set("sample-zero")},
    {"batch": _set("none", "1"), "R": _set("sample-zero")},
)
_NEVER_EXPANDED: Never = {"batch": _set("none", "1"), "memory": _set("expanded")}
#: A denominator that nothing stabilizes, or that is stabilized by a share of the others, must not be zero.
_UNSTABLE = _set("0", "whole")
_NEVER_UNSTABLE: tuple[Never, ...] = (
    {"stabilizer": _UNSTABLE, "x": _set("integers", "zero", "single", "sample-zero", "tiny", "nonnegative")},
    {"stabilizer": _UNSTABLE, "w": _set("dead", "integers", "small", "positive", "negative")},
    {"stabilizer": _UNSTABLE, "b": _set("zero", "none", "negative")},
    {"stabilizer": _UNSTABLE, "zero_params": _set("weight", "both")},
)
#: What looks at a whole sample has to know where one begins.
_NEVER_WHOLE: Never = {"stabilizer": _set("whole"), "batch": _set("none")}
_NEVER_BOX: tuple[Never, ...] = ({"box": _set("samples", "longer"), "batch": _set("none")},)


#: The levels that are asked of layers without an option of their own.
_FEW: dict[str, Levels] = {
    "batch": ("2", "1", "3", "13"),
    "x": ("signed", "nonnegative", "nonpositive", "zero", "sample-zero", "spread"),
    "w": ("signed", "positive", "negative", "spread"),
    "b": ("signed", "positive", "negative", "zero"),
    "R": ("signed", "output", "sum-zero", "spread"),
    "call": ("grad", "create-graph", "copy", "again"),
    "zero_params": ("none", "bias", "list", "weight", "other"),
    "stabilizer": ("1e-6", "1e-5..1e-2", "0.1..10", "callable", "clip", "whole"),
}


def _fewer(factors: Mapping[str, Levels]) -> dict[str, Levels]:
    return {
        name: tuple(level for level in levels if name not in _FEW or level in _FEW[name])
        for name, levels in factors.items()
    }


def _own(rule: str) -> dict[str, Levels]:
    """Return the factors of a rule's arguments."""
    found: dict[str, Levels] = {}
    if rule in _OWN:
        name, levels = _OWN[rule]
        found[name] = levels
    if rule in FORMULAS:
        # without a number, a half of a signed rule that is empty would be 0 / 0; which denominators a callable of
        # Gamma gets, where each has outputs of its own, nobody says
        gone = {"ZPlus": _UNSTABLE, "AlphaBeta": _UNSTABLE, "Gamma": _set("whole")}.get(rule, _set())
        found["stabilizer"] = tuple(level for level in _STABILIZER if level not in gone)
        if rule == "Flat":  # whether it sets a weight to zero before it is one is advice
            found["zero_params"] = tuple(
                level for level in _ZERO_PARAMS if level in {"none", "bias", "list", "tuple", "iterator", "other"}
            )
        elif rule != "Norm":
            found["zero_params"] = _ZERO_PARAMS
    return found


def _known(never: tuple[Never, ...], factors: Mapping[str, Levels]) -> tuple[Never, ...]:
    """Return what can be excluded in a space: its factors have these levels."""
    return tuple(
        one for one in never if all(set(levels) & set(factors.get(factor, ())) for factor, levels in one.items())
    )


def spaces(rule: str) -> dict[str, Space]:
    """Return the spaces of a rule by name."""
    if rule in GRADIENTS:
        return {"elementwise": _elementwise(rule)}
    own = _own(rule)
    never = (*_NEVER_NUMBERS, *_NEVER_UNSTABLE, _NEVER_WHOLE, *_NEVER_BOX, _NEVER_EXPANDED)
    bent = rule in {"Epsilon", "Norm"}
    memory = ("plain", "strided", "expanded", "offset")
    norms = {"layer": tuple(name for name in _NORMS if name != "batchnorm2d-plain"), "memory": memory}
    fixed = {"layer": ("batchnorm2d-plain", *_FIXED, *(_BENT if bent else ())), "memory": memory}
    differentiated = {
        "layer": ("linear", "conv1d", "conv2d", "conv3d", "convtranspose1d", "convtranspose2d", "convtranspose3d",
                  "batchnorm1d", "batchnorm2d", "avgpool1d", "avgpool2d", "adaptiveavgpool2d",
                  *(("tanh", "softmax", "softplus", "maxpool1d") if bent else ())),
        "shape": ("plain", "groups", "circular", "strided"),
        **_DIFFERENTIATED,
        **{name: tuple(level for level in levels if level not in _ROUGH)
           for name, levels in own.items() if name != "zero_params"},
        **({"zero_params": ("none", "bias", "list", "weight")} if "zero_params" in own and rule != "Flat" else {}),
    }  # fmt: skip
    flat = frozenset(layer for layer in differentiated["layer"] if "conv" not in layer)
    weightless = frozenset(
        layer for layer in differentiated["layer"] if "pool" in layer or layer.startswith(("t", "s"))
    )
    smooth: tuple[Never, ...] = (
        {"layer": flat, "shape": _set("groups", "circular", "strided")},
        {"layer": _TRANSPOSED, "shape": _set("circular")},
        {"layer": weightless, "by": _set("parameters")},
        {"layer": weightless, "w": _set("positive", "negative")},
        {"layer": weightless, "b": _set("none", "positive", "negative")},
        {"layer": _set("batchnorm1d", "batchnorm2d"), "b": _set("none")},
        {"layer": _set("batchnorm1d", "batchnorm2d", "softmax"), "batch": _set("none")},
    )
    found = {
        "windows": Space(_WINDOWS | own | _NUMBERS, (*_NEVER_WINDOWS, *never)),
        "linear": Space(
            _LINEAR | own | _NUMBERS | {"batch": (*_NUMBERS["batch"], "2x3", "2x1x3")},
            (*never, {"batch": _set("13", "33"), "features": _set("70-9", "9-140", "130-130")},
             {"batch": _set("2x3", "2x1x3"), "features": _set("130-130")}),
        ),
        # what options do to the numbers is asked on convolutions; here it is which layer it is that counts
        "norms": Space(norms | own | _fewer(_NUMBERS), never),
        "fixed": Space(
            fixed | _fewer({name: levels for name, levels in (own | _NUMBERS).items() if name not in {"w", "b"}}), never
        ),
        "derivatives": Space(differentiated, (*never, *smooth)),
    }  # fmt: skip
    return {name: Space(space.factors, _known(space.never, space.factors)) for name, space in found.items()}


def _elementwise(rule: str) -> Space:
    layers = {
        "Pass": ("relu", "tanh", "identity", "softmax", "batchnorm2d", "linear", "conv2d"),
        "ReLUDeconvNet": ("relu", "relu-inplace", "relu-subclass"),
        "ReLUGuidedBackprop": _SLOPES,
        "ReLUBetaSmooth": ("relu", "relu-inplace", "relu-subclass"),
    }[rule]
    factors = {
        "layer": layers,
        "dims": ("2", "1", "3", "4", "5"),
        **_own(rule),
        **{name: _NUMBERS[name] for name in ("dtype", "x", "R", "call")},
        "batch": ("2", "1", "3", "33"),
        "memory": ("plain", "strided", "expanded", "offset"),
    }
    never: tuple[Never, ...] = (
        *_NEVER_NUMBERS,
        _NEVER_EXPANDED,
        {"layer": _set("softmax", "linear"), "dims": _set("1", "3", "4", "5")},
        {"layer": _set("batchnorm2d", "conv2d"), "dims": _set("1", "2", "3", "5")},
        {"dims": _set("1"), "batch": _set("1", "3", "33")},
        {"dims": _set("1"), "x": _set("sample-zero")},
        {"dims": _set("1"), "R": _set("sample-zero")},
        {"dims": _set("1"), "memory": _set("expanded")},
        {"layer": _set("batchnorm2d"), "call": _set("train")},
        # where a ReLU works in place, its input is no leaf and not asked of again
        {"layer": _set("relu-inplace"), "memory": _set("expanded")},
        {"layer": _set("relu-inplace"), "call": frozenset(_NUMBERS["call"]) - {"inner"}},
    )  # fmt: skip
    return Space(factors, _known(never, factors))

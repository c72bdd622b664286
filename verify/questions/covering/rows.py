"""From a row to a question: a layer, a rule with arguments, and the data that both are asked about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reference import rules as ref
from reference.rounding import CallableStabilizer
from verify.model import Problem
from verify.questions.covering import numbers, others, windows
from verify.questions.covering.arrays import read
from verify.questions.covering.factors import FORMULAS, spaces
from verify.questions.layers import LayerCase
from verify.questions.variants import Variant, clipped, drawn, unsigned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from verify.questions.covering.factors import Space

    Array = NDArray[np.float64]

#: Factors of an id that say what the layer is, and how the rule is made; all others say what the data are.
_OF_LAYER = (
    "layer", "features", "kernel", "stride", "padding", "mode", "dilation", "groups", "extra", "channels", "size",
    "form", "shape", "dims",
)  # fmt: skip
_OF_RULE = ("gamma", "alpha", "box", "beta_smooth", "stabilizer", "zero_params")
_FAMILIES = {
    "linear": "Linear", "batch": "BatchNorm", "avgpool": "AvgPool", "adaptive": "AdaptiveAvgPool", "maxpool": "MaxPool",
    "convtranspose": "ConvTranspose", "conv": "Conv",
}  # fmt: skip


@dataclass(frozen=True)
class Covered(LayerCase):
    """A layer of a row of a covering array."""


def whole(d: Tensor) -> Tensor:
    """Stabilize by a tenth of the root mean square of the denominators of a sample."""
    scale = d.square().mean(tuple(range(1, d.ndim)), keepdim=True).sqrt()
    return torch.where(d < 0, d - 0.1 * scale, d + 0.1 * scale)


@dataclass(frozen=True)
class Question:
    """A rule and a row."""

    rule: str
    space: str
    row: Mapping[str, str]
    seed: int = 0

    @cached_property
    def id(self) -> str:
        """Rule, layer, arguments, data and dtype, with the levels that are no base."""
        base = {name: levels[0] for name, levels in spaces_of(self.rule)[self.space].factors.items()}
        named = {name: f"{name}={level}" for name, level in self.row.items() if level != base[name]}
        layer = ",".join([self.row["layer"], *(named[name] for name in _OF_LAYER if name in named and name != "layer")])
        made = ",".join(named[name] for name in _OF_RULE if name in named) or "default"
        known = {*_OF_LAYER, *_OF_RULE, "dtype"}
        data = ",".join(text for name, text in named.items() if name not in known) or "base"
        return f"{self.rule}/{layer}/{made}/{data}/{self.dtype}"

    @property
    def dtype(self) -> str:
        """The dtype."""
        return self.row.get("dtype", "float64")

    @cached_property
    def _source(self) -> numbers.Source:
        return numbers.Source(f"{self.seed}/{self.id.rpartition('/')[0]}")

    @property
    def call(self) -> str:
        """How the relevance is asked for."""
        return self.row.get("call", "grad")

    @cached_property
    def layer(self) -> Covered:
        """The layer, as the grid knows layers."""
        name = self.row["layer"]
        build: Callable[[], nn.Module]
        if "conv" in name and "kernel" in self.row:
            kind, options, sample = windows.window(self.row)
            build = lambda: kind(**options)  # noqa: E731  a name for either
        elif self.space == "derivatives" and name != "linear" and "conv" in name:
            kind, options, sample = windows.window(_plain_window(self.row))
            build = lambda: kind(**options)  # noqa: E731
        else:
            build, sample = others.layer(self.row)
        batched = self.row["batch"] != "none" and self.row.get("dims") != "1"
        count = int(self.row["batch"].partition("x")[0]) if batched else 0
        family = next((long for short, long in _FAMILIES.items() if name.startswith(short)), "Activation")
        family = f"{family}{name[-2]}d" if family.startswith("Conv") else family
        linear = family not in {"MaxPool", "Activation"}
        weighted = family.startswith(("Linear", "Conv", "Batch")) and name != "batchnorm2d-plain"
        return Covered(self.id.split("/")[1], family, build, (count, *sample) if batched else sample, linear, weighted,
                       batched)  # fmt: skip

    def problem(self, device: str = "cpu") -> Problem:
        """Draw the data. In float32 they are those of float64, rounded."""
        row, layer, target = self.row, self.layer, getattr(torch, self.dtype)
        module = layer.build().double().eval()
        numbers.parameters(module, row, self._source)
        module = others.formed(module, row.get("form", "plain"))
        x = numbers.inputs(row["x"], self._source, layer.shape, batched=layer.batched)
        if row.get("memory") == "expanded":
            x = x[:1].expand(x.shape)
        with torch.no_grad():
            z = module(x.clone())  # some work in place
        R = numbers.relevance(row["R"], self._source, z, batched=layer.batched)
        module = module.to(device, target)
        if self.call == "train":
            module.train()
        if self.call == "frozen":
            module.requires_grad_(requires_grad=False)
        x = numbers.laid_out(x.to(device, target), row.get("memory", "plain"))
        return Problem(module, x, R.to(device, target), layer.batched, self.call)

    @cached_property
    def variant(self) -> Variant:
        """The rule with its arguments, for the subject and for the reference."""
        arguments, source, row = self._numbers(), self._source, self.row
        zero = _ZERO_PARAMS[row.get("zero_params", "none")]
        given = arguments | ({} if row.get("zero_params", "none") == "none" else {"zero_params": zero})
        stabilizer = ref.Stabilizer(1e-6)
        name, level = "epsilon" if self.rule == "Epsilon" else "stabilizer", row.get("stabilizer", "1e-6")
        if level in _CALLABLES:
            given[name], stabilizer = _CALLABLES[level]
        elif level != "1e-6":
            given[name] = numbers.ranged(source, name, level)
            stabilizer = ref.Stabilizer(given[name])
        base = drawn(self.rule, arguments)

        def fresh(_shape: tuple[int, ...], _dtype: torch.dtype) -> dict[str, Any]:
            # a list and an iterator of its own for each rule, which may append to it or go through it
            made = {key: value.clone() if isinstance(value, Tensor) else value for key, value in given.items()}
            if row.get("zero_params") == "iterator":
                made["zero_params"] = iter(["bias"])
            elif isinstance(made.get("zero_params"), list):
                made["zero_params"] = list(made["zero_params"])
            return made

        zeroed = (zero,) if isinstance(zero, str) else tuple(zero or ())
        return Variant(self.rule, self.id.split("/")[2], base.parts, fresh, stabilizer, zeroed)

    def _numbers(self) -> dict[str, Any]:
        """Return the arguments that are numbers, or tensors of them."""
        row, source, target = self.row, self._source, getattr(torch, self.dtype)
        match self.rule:
            case "Gamma" if row["gamma"] != "0.25":
                return {"gamma": numbers.ranged(source, "gamma", row["gamma"])}
            case "AlphaBeta" if row["alpha"] != "2":
                beta = numbers.ranged(source, "alpha", row["alpha"]) - 1.0
                # the sum is rounded so that the difference is 1, or nearly: as people write (1.4, 0.4)
                return {"alpha": 1.4, "beta": 0.4} if row["alpha"] == "1.4" else {"alpha": beta + 1.0, "beta": beta}
            case "ZBox":
                found = numbers.box(row["box"], source, self.layer.shape, batched=self.layer.batched)
                return {name: v.to(target) if isinstance(v, Tensor) else v for name, v in found.items()}
            case "ReLUBetaSmooth" if row["beta_smooth"] != "10":
                return {"beta_smooth": numbers.ranged(source, "beta_smooth", row["beta_smooth"])}
        return {}

    @property
    def gradient_arguments(self) -> dict[str, float]:
        """Return the arguments of a rule that looks only at the gradient."""
        return self._numbers()


_CALLABLES: dict[str, tuple[Any, Any]] = {
    "callable": (unsigned, CallableStabilizer(lambda d: (d * d + 4.0) ** 0.5)),
    "clip": (clipped, ref.Stabilizer(0.5, clip=True)),
    "whole": (whole, ref.Stabilizer(0.1, norm_scale=True)),
}
_ZERO_PARAMS: dict[str, Any] = {
    "none": None, "bias": "bias", "list": ["bias"], "tuple": ("bias",), "iterator": ["bias"], "weight": "weight",
    "both": ["weight", "bias"], "first": ["bias", "scale"], "second": ["scale", "bias"], "other": "bias_weight",
    "empty": [],
}  # fmt: skip


def _plain_window(row: Mapping[str, str]) -> dict[str, str]:
    """Return the row of a small convolution, for what is differentiated."""
    shape = row["shape"]
    return {
        "layer": row["layer"], "b": row["b"], "kernel": "uneven" if row["layer"][-2] == "2" else "2",
        "stride": "2" if shape == "strided" else "1", "padding": "0" if shape in {"plain", "strided"} else "1",
        "mode": "circular" if shape == "circular" else "zeros", "dilation": "1",
        "groups": "2" if shape == "groups" else "1", "extra": "0", "channels": "equal" if shape == "groups" else "few",
        "size": "small",
    }  # fmt: skip


_known: dict[str, dict[str, Space]] = {}


def spaces_of(rule: str) -> dict[str, Space]:
    """Return the spaces of a rule, which are made once."""
    if rule not in _known:
        _known[rule] = spaces(rule)
    return _known[rule]


def questions(depth: int, seed: int) -> Iterator[Question]:
    """Yield the questions of a depth."""
    for name, rows in read(depth).items():
        rule, _, space = name.partition("/")
        for row in rows:
            yield Question(rule, space, row, seed)


@cache
def by_id(depth: int, seed: int) -> dict[str, Question]:
    """Return the questions by id."""
    return {question.id: question for question in questions(depth, seed)}


__all__ = ["FORMULAS", "Covered", "Question", "by_id", "questions", "spaces_of"]

"""Calls that few rules are defined for: several inputs, several outputs, a tensor passed by keyword."""
# ruff: noqa: D102  a mutant says its mistake once, in the docstring of its class

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lrp_rules import BasicHook, Epsilon, Flat, Norm, Pass, ReLUDeconvNet, ReLUGuidedBackprop, WSquare, ZPlus
from lrp_rules.linear_map import LinearLayer
from verify.mutants.registry import mutant

if TYPE_CHECKING:
    from torch import Tensor

    from lrp_rules.layer import Layer

    Tensors = tuple[Tensor, ...]


class _Silent(BasicHook):
    """A rule for one input that takes several, and gives all to the first."""

    allows_several = True

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if len(layer.inputs) == len(R) == 1:
            return super().relevances(layer, R)
        return tuple(torch.zeros_like(x) if i else x * R[0].sum() for i, x in enumerate(layer.inputs))


@mutant()
class ZPlusSeveralAccepted(_Silent, ZPlus):
    """Several inputs or outputs are taken, and those after the first get nothing."""


@mutant()
class FlatSeveralAccepted(_Silent, Flat):
    """Several inputs or outputs are taken, and those after the first get nothing."""


@mutant()
class ReLUDeconvNetSeveralAccepted(ReLUDeconvNet):
    """Several outputs are taken, and those after the first give nothing."""

    allows_several = True


@mutant()
class WSquareRefusesWithoutNames(WSquare):
    """Several inputs are refused with a message that names neither rule nor module."""

    allows_several = True

    def _record(self, call: Any, inputs: Tensors, outputs: Tensors) -> Any:
        if isinstance(call.run, partial):
            msg = "unsupported call"
            raise TypeError(msg)
        return super()._record(call, inputs, outputs)


@mutant()
class ReLUGuidedBackpropRefusesByRuntimeError(ReLUGuidedBackprop):
    """Several outputs are refused with a RuntimeError."""

    allows_several = True

    def _record(self, call: Any, inputs: Tensors, outputs: Tensors) -> Any:
        if isinstance(call.run, partial):
            msg = f"ReLUGuidedBackprop on {call.module}: one input by position, please"
            raise RuntimeError(msg)
        return super()._record(call, inputs, outputs)


@mutant()
class NormInputsAllGetEverything(Norm):
    """Of several inputs, each gets all of the relevance (zennit)."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        r = super().relevances(layer, R)
        return tuple(torch.stack(r).sum(0) for _ in r) if len(r) > 1 else r


@mutant()
class EpsilonFirstOutputAlone(Epsilon):
    """Of several outputs, the first gives its relevance, and the others give nothing."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return super().relevances(layer, (R[0], *(torch.zeros_like(R_k) for R_k in R[1:])))


@mutant()
class EpsilonKeywordGradient(Epsilon):
    """A tensor that is passed by keyword gets the plain gradient (zennit)."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if isinstance(layer.run, partial) and isinstance(layer, LinearLayer):
            return layer.pull(R)
        return super().relevances(layer, R)


@mutant()
class PassKeywordRefused(Pass):
    """A tensor that is passed by keyword is refused, though Pass gives it its share."""

    def _record(self, call: Any, inputs: Tensors, outputs: Tensors) -> Any:
        if isinstance(call.run, partial):
            msg = f"Pass on {call.module}: by position, please"
            raise TypeError(msg)
        return super()._record(call, inputs, outputs)

"""Calls that few rules are defined for: several inputs, several outputs, a tensor passed by keyword."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lrp_rules import (
    BasicHook,
    Epsilon,
    Flat,
    Norm,
    Pass,
    Registration,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    WSquare,
    ZPlus,
)
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lrp_rules.layers.layer import Layer

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

    def register(self, module: nn.Module) -> Registration:
        return _Curt(self, module)


class _Curt(Registration):
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        try:
            return super()._after(module, args, kwargs, output)
        except TypeError:
            msg = "unsupported call"
            raise TypeError(msg) from None


@mutant()
class ReLUGuidedBackpropRefusesByRuntimeError(ReLUGuidedBackprop):
    """Several inputs are refused with a RuntimeError."""

    def register(self, module: nn.Module) -> Registration:
        return _AtRuntime(self, module)


class _AtRuntime(Registration):
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        try:
            return super()._after(module, args, kwargs, output)
        except TypeError as error:
            raise RuntimeError(*error.args) from None


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

    def register(self, module: nn.Module) -> Registration:
        return _Positional(self, module)


class _Positional(Registration):
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return None if kwargs else super()._after(module, args, kwargs, output)


@mutant()
class PassKeywordRefused(Pass):
    """A tensor that is passed by keyword is refused, though Pass gives it its share."""

    def register(self, module: nn.Module) -> Registration:
        return _PositionalAlone(self, module)


class _PositionalAlone(Registration):
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if kwargs:
            msg = f"Pass on {module}: expected tensors by position"
            raise TypeError(msg)
        return super()._after(module, args, kwargs, output)

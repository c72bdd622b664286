"""What a rule does besides its arithmetic: to the module, its parameters, the tensors, and torch's own state."""
# ruff: noqa: ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class
# ruff: noqa: SLF001  a mutant reaches where it should not

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrp_rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Registration,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    WSquare,
    ZBox,
    ZPlus,
)
from lrp_rules.layers.known import TracedLayer
from lrp_rules.layers.traced import pull
from lrp_rules.modules import twin
from verify.selftests.mutants.registry import Handles, mutant, traced

if TYPE_CHECKING:
    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


def _weight(layer: Layer) -> Tensor | None:
    """Return the module's own weight, if it is a plain parameter."""
    return layer.module._parameters.get("weight")


# The module and its parameters


@mutant()
class GammaWeightLeftModified(Gamma):
    """The module keeps the modified weight (zennit #237)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if (weight := _weight(layer)) is not None:
            weight.data += self.gamma * weight.data.clamp(min=0)
        return r


@mutant()
class WSquareWeightScaledBack(WSquare):
    """The weight is scaled in place, and scaled back: but for a rounding, it is what it was."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if (weight := _weight(layer)) is not None:
            weight.data.mul_(1.1).div_(1.1)
        return r


@mutant()
class AlphaBetaParameterReplaced(AlphaBeta):
    """The weight is another Parameter object afterwards, which optimizers and tied layers do not know (zennit)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if (weight := _weight(layer)) is not None:
            layer.module.weight = nn.Parameter(weight.detach().clone())
        return r


@mutant()
class ZPlusParameterSwapped(ZPlus):
    """While the rule works, the module has another Parameter object; the own one is put back at the end."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if (weight := _weight(layer)) is None:
            return super().relevance(layer, R)
        layer.module.weight = nn.Parameter(weight.detach().clamp(min=0))
        try:
            return super().relevance(layer, R)
        finally:
            layer.module.weight = weight


@mutant()
class ZBoxExceptionLeavesWeight(ZBox):
    """The weight is doubled while the rule works, and not halved again when a stabilizer raises."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if (weight := _weight(layer)) is None:
            return super().relevance(layer, R)
        given = {name: None if value is None else value.clone() for name, value in layer.given.items()}
        weight.data *= 2
        r = super().relevance(replace(layer, given=given), R)
        weight.data /= 2
        return r


@mutant()
class ZPlusParametersFrozen(ZPlus):
    """The parameters no longer require a gradient."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        layer.module.requires_grad_(requires_grad=False)
        return r


@mutant()
class NormParametersGetGradients(Norm):
    """A backward pass inside of the rule adds to the gradients of the parameters."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        for parameter in layer.module.parameters():
            parameter.grad = torch.ones_like(parameter) + (0 if parameter.grad is None else parameter.grad)
        return super().relevances(layer, R)


@mutant()
class WSquareModuleLeftInEval(WSquare):
    """The module is put into eval mode, and left there."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        layer.module.eval()
        return super().relevance(layer, R)


@mutant()
class FlatInputLeftOnModule(Flat):
    """The input becomes an attribute of the module, and stays there (captum)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        vars(layer.module)["lrp_input"] = layer.x
        return super().relevance(layer, R)


@mutant()
class GammaWeightNormIgnored(Gamma):
    """Under weight_norm, the direction is taken for the weight (zennit)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if not parametrize.is_parametrized(layer.module, "weight"):
            return super().relevance(layer, R)
        parts: Any = layer.module.parametrizations
        direction = getattr(parts.weight, "original1", None)
        if direction is None:
            return super().relevance(layer, R)
        return super().relevance(replace(layer, given={**layer.given, "weight": direction.detach()}), R)


@mutant()
class EpsilonSpectralNormMoved(Epsilon):
    """The weight is evaluated once more, so that the power iteration of spectral_norm takes a step more."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if parametrize.is_parametrized(layer.module, "weight"):
            _ = layer.module.weight
        return super().relevances(layer, R)


# Running the module


@mutant()
class NormRunsModuleTwice(Norm):
    """The module is run once more, which moves the statistics of a batch norm and draws another mask (zennit)."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if isinstance(layer, TracedLayer):
            layer.module(*(x.detach() for x in layer.inputs))
        return super().relevances(layer, R)


@mutant()
class EpsilonMaskRedrawn(Epsilon):
    """In train mode, the relevance goes through another mask of dropout than the output did."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return super().relevances(traced(layer, twin(layer.module, {})) if layer.module.training else layer, R)


@mutant()
class GammaRandomNumberDrawn(Gamma):
    """A random number is drawn, which moves the state of torch."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        torch.rand(1)
        return super().relevance(layer, R)


@mutant()
class ReLUGuidedBackpropSeeds(ReLUGuidedBackprop):
    """Torch's random state is seeded, for the sake of the same answer twice."""

    def backward(self, module: nn.Module, grad_input: Tensors, grad_output: Tensors) -> Any:
        torch.manual_seed(0)
        return super().backward(module, grad_input, grad_output)


# What is written


def _up(_module: nn.Module, _args: Any, output: Any) -> Any:
    if not isinstance(output, Tensor):
        return output
    value = output.detach()
    return output + (torch.nextafter(value, torch.full_like(value, torch.inf)) - value)


@mutant()
class EpsilonOutputOffByOne(Epsilon):
    """The output differs from the module's own by a unit in the last place, as that of another algorithm does."""

    def register(self, module: nn.Module) -> Registration:
        return Handles(self, module, module.register_forward_hook(_up))


class _Untraced(Registration):
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return None if torch._C._get_tracing_state() is not None else super()._after(module, args, kwargs, output)


@mutant()
class ZPlusGoneFromTraces(ZPlus):
    """What torch.jit.trace records while the rule is in force has the plain gradient, without a word."""

    def register(self, module: nn.Module) -> Registration:
        return _Untraced(self, module)


@mutant()
class ZPlusInputClampedInPlace(ZPlus):
    """The input is clamped in place, through .data."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        layer.x.data.clamp_(min=0)
        return r


@mutant()
class NormInputWrittenInForward(Norm):
    """Zeros of the input are nudged in the forward pass, against 0 / 0."""

    def register(self, module: nn.Module) -> Registration:
        return Handles(self, module, module.register_forward_pre_hook(_nudge))


def _nudge(_module: nn.Module, args: Any) -> None:
    for x in args:
        x.data[x.data == 0] = 1e-12


@mutant()
class AlphaBetaRelevanceWritten(AlphaBeta):
    """The relevance is divided in place, and whoever gave it has another one."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        with torch.no_grad():  # through .data, a batched relevance would end the process
            R.detach().div_(2)
        return r


@mutant()
class ReLUDeconvNetInPlace(ReLUDeconvNet):
    """The relevance is clamped in place."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return (grad_output[0].data.clamp_(min=0),)


@mutant()
class EpsilonOutputReadLate(Epsilon):
    """The output is read when relevance comes back, and an in-place ReLU behind the module has written to it."""

    def _record(self, call: Any, inputs: Tensors, outputs: Tensors) -> Any:
        vars(call)["late"] = outputs[0].detach()
        return super()._record(call, inputs, outputs)

    def _propagate(self, call: Any, inputs: Tensors, saved: Tensors, relevance: Tensors) -> Any:
        rule = copy.copy(self)
        vars(rule)["late"] = vars(call)["late"]
        return super(EpsilonOutputReadLate, rule)._propagate(call, inputs, saved, relevance)

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        z = vars(self)["late"]
        if torch.is_grad_enabled() or isinstance(layer, TracedLayer) or self.zero_params or z.dtype != layer.x.dtype:
            return super().relevances(layer, R)
        return (layer.x * layer.pull((R[0] / self.stabilizer(z),))[0],)


@mutant()
class NormThroughRulesInside(Norm):
    """The graph that is gone through has the rules of the module's parts in it, which are no Jacobians (zennit)."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if not isinstance(layer, TracedLayer):
            return super().relevances(layer, R)
        s = tuple(R_k / self.stabilizer(d) for R_k, d in zip(R, layer.linear_outputs, strict=True))
        assert layer.outputs is not None
        pulled = pull(layer.outputs, layer.inputs, s, create_graph=torch.is_grad_enabled())
        return tuple(x * c for x, c in zip(layer.inputs, pulled, strict=True))

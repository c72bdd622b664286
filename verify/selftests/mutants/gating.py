"""Which branch an output takes: the gate of Gamma, and those of the rules that look only at the gradient."""
# ruff: noqa: ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softplus

from lrp_rules import Gamma, Pass, ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop
from verify.selftests.mutants.registry import mutant, negative, positive, propagate, split

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lrp_rules.layers.layer import Layer, Matrix

    Tensors = tuple[Tensor, ...]


class _Gated(Gamma):
    """Gamma with gates of its own."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        g, b = self.gamma, layer.bias
        plus, minus = layer.matrix(lambda w: w + g * positive(w)), layer.matrix(lambda w: w + g * negative(w))
        terms = split(layer.x, plus, minus), split(layer.x, minus, plus)
        biases = b + g * positive(b), b + g * negative(b)
        above, below = self.gates(layer, R, (_sum(terms[0]) + biases[0], _sum(terms[1]) + biases[1]))
        r = propagate(terms[0], biases[0], R * above, self.stabilizer)
        return r + propagate(terms[1], biases[1], R * below, self.stabilizer)

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the factors of R above and below zero."""
        return layer.z > 0, layer.z < 0


def _sum(terms: list[tuple[Matrix, Tensor]]) -> Tensor:
    return torch.stack([A @ v for A, v in terms]).sum(0)


@mutant("gate-relevance")
class GammaGatedByRelevance(_Gated):
    """The sign of R decides, which is that of z only where R is the output itself."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return R > 0, R < 0


@mutant("gate-modified-output")
class GammaGatedByModifiedOutput(_Gated):
    """The sign of each branch's own denominator decides, so that an output may take both branches."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return d[0] > 0, d[1] < 0


@mutant("gate-none")
class GammaUngated(_Gated):
    """The branch for z > 0 is taken everywhere, as in the Gamma rule of 2019."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.ones_like(R), torch.zeros_like(R)


@mutant("gate-both")
class GammaBothBranches(_Gated):
    """Both branches are added everywhere."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.ones_like(R), torch.ones_like(R)


@mutant("gate-positive-only")
class GammaNegativeOutputsDropped(_Gated):
    """Where z < 0, the relevance goes nowhere, as behind a ReLU."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return layer.z > 0, torch.zeros_like(R)


@mutant("gate-swapped")
class GammaGatesSwapped(_Gated):
    """The branch for z > 0 is taken where z < 0, and the other way round."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return layer.z < 0, layer.z > 0


@mutant("gate-zero-above")
class GammaZeroAbove(_Gated):
    """Where z = 0, the branch for z > 0 is taken."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return layer.z >= 0, layer.z < 0


@mutant("gate-zero-below")
class GammaZeroBelow(_Gated):
    """Where z = 0, the branch for z < 0 is taken."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return layer.z > 0, layer.z <= 0


@mutant("gate-without-bias")
class GammaGateWithoutBias(_Gated):
    """The sign of A x decides, without the bias."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z = layer.matrix() @ layer.x
        return z > 0, z < 0


@mutant("gate-zeroed")
class GammaGateAfterZeroParams(_Gated):
    """The gate sees the parameters that zero_params leaves, and not the real output."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z = layer.linear_outputs[0]
        return z > 0, z < 0


@mutant("gate-by-sample")
class GammaGatedBySample(_Gated):
    """One gate serves all outputs of a sample: the sign of their sum."""

    def gates(self, layer: Layer, R: Tensor, d: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z = layer.z.flatten(1).sum(1).view(-1, *(1,) * (R.ndim - 1)) if R.ndim > 1 else layer.z.sum()
        return z > 0, z < 0


@mutant()
class GammaGateSaturates(Gamma):
    """The gate opens above 0.01 and below -0.01, so that weak outputs are taken for zero."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R * (layer.z.abs() > 0.01))


@mutant("gradient")
class PassGradient(Pass):
    """The module's own gradient is returned."""

    needs_grad_input = True

    def backward(self, module: nn.Module, grad_input: Tensors, grad_output: Tensors) -> Tensors:
        return grad_input


@mutant()
class PassWhereActive(Pass):
    """Relevance passes only where the module's gradient is not zero."""

    needs_grad_input = True

    def backward(self, module: nn.Module, grad_input: Tensors, grad_output: Tensors) -> Tensors:
        return (grad_output[0] * (grad_input[0] != 0),)


@mutant("relevance-positive")
class PassPositive(Pass):
    """Only positive relevance passes."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return (positive(grad_output[0]),)


@mutant("gate-input")
class ReLUDeconvNetGatedByInput(ReLUDeconvNet):
    """The gate is x > 0, that of the gradient, and not R > 0."""

    needs_grad_input = True

    def backward(self, module: nn.Module, grad_input: Tensors, grad_output: Tensors) -> Tensors:
        return grad_input


@mutant("gate-both")
class ReLUDeconvNetGuided(ReLUDeconvNet):
    """The gate of the gradient is kept besides its own: that is guided backpropagation."""

    needs_grad_input = True

    def backward(self, module: nn.Module, grad_input: Tensors, grad_output: Tensors) -> Tensors:
        return (positive(grad_input[0]),)


@mutant("relevance-magnitude")
class ReLUDeconvNetMagnitude(ReLUDeconvNet):
    """The magnitude of the relevance is passed on."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return (grad_output[0].abs(),)


@mutant("ungated")
class ReLUDeconvNetUngated(ReLUDeconvNet):
    """Negative relevance is passed on, too."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return grad_output


@mutant("derivative-ignored")
class ReLUGuidedBackpropDerivativeIgnored(ReLUGuidedBackprop):
    """Relevance passes whole where the gradient is not zero: right for a ReLU, and for no other activation."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return positive(R) * (layer.matrix().T @ R != 0)


@mutant("ungated")
class ReLUGuidedBackpropUngated(ReLUGuidedBackprop):
    """The sign of the relevance is not looked at: the plain gradient."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return layer.matrix().T @ R


@mutant("gate-swapped")
class ReLUGuidedBackpropNegative(ReLUGuidedBackprop):
    """Negative relevance is passed on, and positive is not."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return (layer.matrix().T @ R) * (R < 0)


@mutant("gate-input")
class ReLUGuidedBackpropDeconvNet(ReLUGuidedBackprop):
    """Positive relevance passes everywhere, and the derivative is left out: DeconvNet."""

    def backward(self, module: nn.Module, grad_input: Tensors, grad_output: Tensors) -> Tensors:
        return (positive(grad_output[0]),)


class _Smooth(ReLUBetaSmooth):
    """BetaSmooth with another factor."""

    def factor(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return self.factor(layer.x) * R


@mutant()
class ReLUBetaSmoothFixed(_Smooth):
    """Beta is 10 whatever number is given."""

    def factor(self, x: Tensor) -> Tensor:
        return torch.sigmoid(10 * x)


@mutant()
class ReLUBetaSmoothForgotten(_Smooth):
    """Beta is forgotten: sigmoid(x)."""

    def factor(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@mutant()
class ReLUBetaSmoothInverted(_Smooth):
    """The input is divided by beta."""

    def factor(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x / self.beta_smooth)


@mutant("softplus")
class ReLUBetaSmoothSoftplus(_Smooth):
    """The softplus itself is the factor, and not its derivative."""

    def factor(self, x: Tensor) -> Tensor:
        return softplus(x, beta=self.beta_smooth)


@mutant()
class ReLUBetaSmoothOfOutput(_Smooth):
    """The output of the ReLU is remembered in the place of its input."""

    def factor(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.beta_smooth * positive(x))


@mutant()
class ReLUBetaSmoothScaled(_Smooth):
    """The derivative has beta as a factor: that of sigmoid's argument, taken once too often."""

    def factor(self, x: Tensor) -> Tensor:
        return self.beta_smooth * torch.sigmoid(self.beta_smooth * x)


@mutant("relevance-positive")
class ReLUBetaSmoothPositive(_Smooth):
    """Negative relevance is dropped."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return torch.sigmoid(self.beta_smooth * layer.x) * positive(R)

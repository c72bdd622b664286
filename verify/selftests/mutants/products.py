"""The rules for products, elementwise and of matrices, as people get them wrong."""
# ruff: noqa: A002, ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrp_rules import Bilinear, SignalTakesAll, Uniform
from verify.selftests.mutants.registry import Stabilized, mutant

if TYPE_CHECKING:
    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


# --- products ---------------------------------------------------------------------------------------------------------


@mutant("relevance-copied")
class UniformCopied(Uniform):
    """Each factor gets all of R, so that relevance doubles at each product."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        return super().backward(module, grad_input, (grad_output[0] * self.variables,))

    @property
    def variables(self) -> int:
        """How many factors there are that are not constant."""
        return sum(factor.needs_grad for factor in self.factors)


@mutant("constants-share")
class UniformConstantsCounted(Uniform):
    """Constant factors count, and what they would get is lost."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        wanted = sum(factor.needs_grad for factor in self.factors)
        return super().backward(module, grad_input, (grad_output[0] * (wanted / len(self.factors)),))


@mutant("halves")
class UniformAlwaysHalves(Uniform):
    """Half of R goes to each factor, however many there are."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        wanted = sum(factor.needs_grad for factor in self.factors)
        return super().backward(module, grad_input, (grad_output[0] * max(wanted, 2) / 2,))


@mutant("broadcast-averaged")
class UniformBroadcastAveraged(Uniform):
    """Where a factor was broadcast, the mean of the relevance is taken, and not the sum."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        found = super().backward(module, grad_input, grad_output)
        return [r * (r.numel() / grad_output[0].numel()) for r in found]


@mutant("gradient")
class UniformByGradient(Uniform):
    """The gradient stands in the place of the rule: each factor is multiplied by the others."""

    needs_grad_input = True

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        return list(grad_input)


@mutant("signal-and-gate-swapped")
class SignalTakesAllSwapped(SignalTakesAll):
    """The first of the other factors gets all, and the signal nothing."""

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        super().forward(module, input, output)
        self.signal = next((k for k in range(len(self.factors)) if k != self.signal), 0)


@mutant("shared-with-gate")
class SignalTakesAllShared(SignalTakesAll):
    """The gate gets a share as large as the signal's."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        half = grad_output[0] / max(1, sum(factor.needs_grad for factor in self.factors))
        return [factor.share(half) for factor in self.factors]


@mutant("relevance-copied", name="signaltakesall-relevance-copied")
class SignalTakesAllCopied(SignalTakesAll):
    """The gate gets all of R, too."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        return [factor.share(grad_output[0]) for factor in self.factors]


@mutant("gate-scales-relevance")
class SignalTakesAllScaled(SignalTakesAll):
    """The signal gets the gradient, so that its gate scales the relevance."""

    needs_grad_input = True

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        return [g if place == self.signal else torch.zeros_like(g) for place, g in enumerate(grad_input)]


@mutant()
class SignalTakesAllFirstGuessed(SignalTakesAll):
    """Where nothing tells the signal, the first factor is taken for it, without a word."""

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        try:
            super().forward(module, input, output)
        except ValueError:
            self.signal = 0


@mutant("broadcast-averaged", name="signaltakesall-broadcast-averaged")
class SignalTakesAllBroadcastAveraged(SignalTakesAll):
    """Where the signal was broadcast, the mean of the relevance is taken, and not the sum."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        found = super().backward(module, grad_input, grad_output)
        return [r * (r.numel() / grad_output[0].numel()) for r in found]


# --- matrix products --------------------------------------------------------------------------------------------------


class _Shares(Bilinear):
    """Bilinear with another s, and another way from there to each share."""

    def s(self, layer: Layer, R: Tensor) -> Tensor:
        return R / self.stabilizer(len(layer.inputs) * layer.linear_outputs[0])

    def share(self, x: Tensor, c: Tensor) -> Tensor:
        return x * c

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        pulled = layer.pull((self.s(layer, R[0]),))
        return tuple(self.share(x, c) for x, c in zip(layer.inputs, pulled, strict=True))


@mutant("relevance-copied", name="bilinear-relevance-copied")
class BilinearNotHalved(_Shares):
    """The two is forgotten: each factor gets all that Epsilon would give it."""

    def s(self, layer: Layer, R: Tensor) -> Tensor:
        return R / self.stabilizer(layer.linear_outputs[0])


@mutant("halved-before-stabilizer")
class BilinearHalvedAfterwards(_Shares):
    """R is halved, and O stabilized, so that the stabilizer counts twice: 2 S(O) in the place of S(2 O)."""

    def s(self, layer: Layer, R: Tensor) -> Tensor:
        return R / len(layer.inputs) / self.stabilizer(layer.linear_outputs[0])


@mutant("constants-share", name="bilinear-constants-share")
class BilinearConstantsCounted(_Shares):
    """A constant factor counts, and what it would get is lost."""

    def s(self, layer: Layer, R: Tensor) -> Tensor:
        return R / self.stabilizer(2 * layer.linear_outputs[0])


@mutant("one-operand")
class BilinearOneOperand(Bilinear):
    """The second operand is taken for a constant, and gets nothing."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        first, *others = super().relevances(layer, R)
        return (first * (1 + len(others)), *map(torch.zeros_like, others))


@mutant("input-not-multiplied")
class BilinearUnmultiplied(_Shares):
    """What flows back is not multiplied by the operand."""

    def share(self, x: Tensor, c: Tensor) -> Tensor:
        return c


@mutant("gradient-times-input", name="bilinear-gradient-times-input")
class BilinearUndivided(_Shares):
    """Nothing is divided: gradient times input."""

    def s(self, layer: Layer, R: Tensor) -> Tensor:
        return R


@mutant("epsilon-unsigned")
class BilinearUnsigned(Stabilized, Bilinear):
    """The stabilizer is added without the sign of the denominator (LXT)."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return d + epsilon


@mutant("denominator-detached")
class BilinearDenominatorDetached(_Shares):
    """The denominator is taken for a constant where a relevance is differentiated."""

    def s(self, layer: Layer, R: Tensor) -> Tensor:
        return R / self.stabilizer(len(layer.inputs) * layer.linear_outputs[0].detach())

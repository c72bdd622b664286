"""Layers with small integer parameters, and what the rules mean on them, written out with dense matrices.

Small integers make every product and every sum exact in any order, and ``power_of_two`` every quotient. So relevances
are compared bit by bit, and no tolerance is needed.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everyone knows

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Hook,
    Norm,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    WSquare,
    ZBox,
    ZPlus,
)

Change = Callable[[Tensor], Tensor]


class TracedLinear(nn.Linear):
    """A layer that computes its output in a way of its own, so that it is not recognised."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.linear(input, self.weight, self.bias)


class TracedConv2d(nn.Conv2d):
    """The same for a convolution."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input)


class Add(nn.Module):
    """Several inputs, by position or by keyword."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@dataclass(frozen=True)
class Case:
    """A layer and the shape of one sample of its input."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def module(self, seed: int = 0) -> nn.Module:
        """The layer in eval mode, its parameters integers from -3 to 3, its statistics powers of four."""
        generator = torch.Generator().manual_seed(seed)
        module = self.make().double().eval()
        with torch.no_grad():
            for tensor in module.parameters():
                tensor.copy_(torch.randint(-3, 4, tensor.shape, generator=generator))
            for name, buffer in module.named_buffers():
                if name == "running_mean":
                    buffer.copy_(torch.randint(-3, 4, buffer.shape, generator=generator))
                if name == "running_var":
                    buffer.copy_(4.0 ** torch.randint(-1, 2, buffer.shape, generator=generator))
        return module

    def input(self, samples: int = 3, seed: int = 1) -> Tensor:
        """Integers from -3 to 3."""
        return integers((samples, *self.shape), seed)


def integers(shape: tuple[int, ...] | torch.Size, seed: int, low: int = -3, high: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).double()


KNOWN: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(4, 3), (4,)),
    "linear-one-to-one": Case(lambda: nn.Linear(1, 1), (1,)),
    "linear-no-bias": Case(lambda: nn.Linear(4, 3, bias=False), (4,)),
    "linear-of-sequences": Case(lambda: nn.Linear(3, 2), (5, 3)),
    "conv1d": Case(lambda: nn.Conv1d(2, 3, 3), (2, 7)),
    "conv1d-stride-padding-dilation": Case(lambda: nn.Conv1d(2, 3, 2, stride=3, padding=2, dilation=2), (2, 8)),
    "conv1d-same-even": Case(lambda: nn.Conv1d(2, 2, 4, padding="same"), (2, 5)),
    "conv1d-reflect": Case(lambda: nn.Conv1d(2, 2, 3, padding=2, padding_mode="reflect"), (2, 5)),
    "conv2d-asymmetric": Case(lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 5, 4)),
    "conv2d-groups": Case(lambda: nn.Conv2d(4, 6, 2, groups=2, bias=False), (4, 3, 4)),
    "conv2d-depthwise": Case(lambda: nn.Conv2d(3, 3, 3, groups=3, padding=1), (3, 4, 3)),
    "conv2d-unseen-border": Case(lambda: nn.Conv2d(1, 2, 2, stride=3), (1, 6, 7)),
    "conv2d-valid": Case(lambda: nn.Conv2d(2, 2, 2, padding="valid"), (2, 3, 4)),
    "conv2d-same-dilated": Case(lambda: nn.Conv2d(1, 2, (2, 3), padding="same", dilation=(1, 2)), (1, 4, 5)),
    "conv2d-circular": Case(lambda: nn.Conv2d(2, 2, 3, padding=(1, 2), padding_mode="circular"), (2, 3, 4)),
    "conv2d-replicate": Case(lambda: nn.Conv2d(2, 2, 3, padding=(2, 1), padding_mode="replicate"), (2, 3, 4)),
    "conv2d-reflect-same": Case(lambda: nn.Conv2d(1, 2, 2, padding="same", padding_mode="reflect"), (1, 3, 4)),
    "conv3d": Case(lambda: nn.Conv3d(1, 2, (2, 1, 3), stride=(1, 2, 1), padding=(0, 1, 1)), (1, 3, 4, 3)),
    "conv3d-circular": Case(lambda: nn.Conv3d(1, 1, 2, padding=1, padding_mode="circular"), (1, 2, 3, 2)),
    "transposed1d": Case(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 4)),
    "transposed1d-wide-output-padding": Case(
        lambda: nn.ConvTranspose1d(1, 2, 2, stride=2, output_padding=2, dilation=3), (1, 3)
    ),
    "transposed2d-groups-dilation": Case(
        lambda: nn.ConvTranspose2d(4, 2, (2, 3), stride=(1, 2), dilation=(2, 1), groups=2), (4, 3, 2)
    ),
    "transposed3d": Case(lambda: nn.ConvTranspose3d(1, 2, 2, stride=(2, 1, 1), bias=False), (1, 2, 2, 3)),
    "batchnorm1d": Case(lambda: nn.BatchNorm1d(4, eps=0.0), (4,)),
    "batchnorm1d-of-sequences": Case(lambda: nn.BatchNorm1d(3, eps=0.0), (3, 4)),
    "batchnorm2d": Case(lambda: nn.BatchNorm2d(2, eps=0.0), (2, 3, 2)),
    "batchnorm3d-not-affine": Case(lambda: nn.BatchNorm3d(2, eps=0.0, affine=False), (2, 2, 1, 3)),
    "avgpool1d": Case(lambda: nn.AvgPool1d(2), (2, 6)),
    "avgpool2d": Case(lambda: nn.AvgPool2d(2, stride=1, padding=1), (2, 3, 4)),
    "avgpool2d-ceil": Case(lambda: nn.AvgPool2d(2, padding=1, ceil_mode=True, count_include_pad=False), (2, 4, 3)),
    "avgpool2d-divisor": Case(lambda: nn.AvgPool2d(2, divisor_override=8), (2, 4, 4)),
    "avgpool3d": Case(lambda: nn.AvgPool3d((1, 2, 2), padding=(0, 1, 0)), (2, 2, 2, 4)),
}
TRACED: dict[str, Case] = {
    "traced-linear": Case(lambda: TracedLinear(4, 3), (4,)),
    "traced-conv2d": Case(lambda: TracedConv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 3, 4)),
    "adaptive-avgpool2d": Case(lambda: nn.AdaptiveAvgPool2d((1, 2)), (2, 2, 4)),
    "flatten": Case(nn.Flatten, (2, 3)),
}
CASES = KNOWN | TRACED


def power_of_two(d: Tensor) -> Tensor:
    """A stabilizer: sgn(d) times the first power of two above |d|, so that dividing by it is exact."""
    magnitude = torch.frexp(d).exponent.to(d.dtype).exp2()
    return torch.where(d < 0, -magnitude, magnitude)


def relevance(hook: Hook, module: nn.Module, x: Tensor, R: Tensor, *, create_graph: bool = False) -> Tensor:
    """What the rule gives on a module, through ordinary autograd."""
    if not x.requires_grad:
        x = x.clone().requires_grad_()
    with hook.register(module):
        output = module(x)
    (r,) = torch.autograd.grad(output, x, R, create_graph=create_graph)
    return r


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301  its own


def output_of(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output = module(x)
    assert isinstance(output, Tensor)
    return output


def dense(module: nn.Module, shape: tuple[int, ...], change: Change | None = None) -> tuple[Tensor, Tensor]:
    """A(change(w)), m x n, column by column by what the layer makes of unit vectors; and b, by what of zeros."""
    changed = copy.deepcopy(module)
    weight = getattr(changed, "weight", None)
    zeros = torch.zeros(1, *shape)
    units = torch.eye(zeros.numel()).view(-1, *shape)
    with torch.no_grad():
        b = changed(zeros).flatten()
        if change is not None and weight is not None:
            weight.copy_(change(weight))
        A = (changed(units) - changed(zeros)).flatten(1).T
    return A, b


@dataclass(frozen=True)
class Dense:
    """The formulas of the rules, with A(.) and b at hand, samples in rows."""

    module: nn.Module
    x: Tensor
    R: Tensor
    S: Callable[[Tensor], Tensor] = power_of_two

    def A(self, change: Change | None = None) -> Tensor:  # noqa: N802  the name in the formulas
        return dense(self.module, tuple(self.x.shape[1:]), change)[0]

    @property
    def b(self) -> Tensor:
        return dense(self.module, tuple(self.x.shape[1:]))[1]

    def share(self, *terms: tuple[Tensor, Tensor], bias: Tensor | float = 0.0, where: Tensor | None = None) -> Tensor:
        """Sum of v * A^T (R / S(d)) over the terms (A, v), with d the sum of A v and the bias."""
        d = sum((v @ A.T for A, v in terms), start=torch.zeros(())) + bias
        s = self.R.flatten(1) / self.S(d)
        if where is not None:
            s = torch.where(where, s, 0.0)
        r = sum((v * (s @ A) for A, v in terms), start=torch.zeros(()))
        return r.expand(self.x.flatten(1).shape).reshape(self.x.shape)

    def epsilon(self) -> Tensor:
        return self.share((self.A(), self.x.flatten(1)), bias=self.b)

    def zplus(self) -> Tensor:
        x = self.x.flatten(1)
        return self.share((self.A(up), up(x)), (self.A(down), down(x)), bias=up(self.b))

    def alpha_beta(self, alpha: float, beta: float) -> Tensor:
        x = self.x.flatten(1)
        return alpha * self.zplus() - beta * self.share((self.A(down), up(x)), (self.A(up), down(x)), bias=down(self.b))

    def gamma(self, g: float) -> Tensor:
        x, b = self.x.flatten(1), self.b
        A_up, A_down = self.A(lambda w: w + g * up(w)), self.A(lambda w: w + g * down(w))
        z = output_of(self.module, self.x).flatten(1)
        return self.share((A_up, up(x)), (A_down, down(x)), bias=b + g * up(b), where=z > 0) + self.share(
            (A_down, up(x)), (A_up, down(x)), bias=b + g * down(b), where=z < 0
        )

    def zbox(self, low: Tensor | float, high: Tensor | float) -> Tensor:
        x, ones = self.x.flatten(1), torch.ones_like(self.x)
        low, high = (low * ones).flatten(1), (high * ones).flatten(1)
        return self.share((self.A(), x), (-self.A(up), low), (-self.A(down), high))

    def wsquare(self) -> Tensor:
        return self.share((self.A(torch.square), torch.ones(1, self.x[0].numel())), bias=self.b.square())

    def flat(self) -> Tensor:
        return self.share((self.A(torch.ones_like), torch.ones(1, self.x[0].numel())))


def up(v: Tensor) -> Tensor:
    return v.clamp(min=0)


def down(v: Tensor) -> Tensor:
    return v.clamp(max=0)


#: Rules with the exact stabilizer, each beside its formula.
FORMULAS: dict[str, tuple[Callable[..., Hook], Callable[[Dense], Tensor]]] = {
    "Epsilon": (lambda **k: Epsilon(power_of_two, **k), Dense.epsilon),
    "Norm": (lambda: Norm(power_of_two), Dense.epsilon),
    "ZPlus": (lambda **k: ZPlus(power_of_two, **k), Dense.zplus),
    "AlphaBeta(1,0)": (lambda **k: AlphaBeta(1, 0, power_of_two, **k), lambda o: o.alpha_beta(1, 0)),
    "AlphaBeta(2,1)": (lambda **k: AlphaBeta(2, 1, power_of_two, **k), lambda o: o.alpha_beta(2, 1)),
    "AlphaBeta(1.5,0.5)": (lambda **k: AlphaBeta(1.5, 0.5, power_of_two, **k), lambda o: o.alpha_beta(1.5, 0.5)),
    "Gamma(0)": (lambda **k: Gamma(0, power_of_two, **k), lambda o: o.gamma(0)),
    "Gamma(0.25)": (lambda **k: Gamma(0.25, power_of_two, **k), lambda o: o.gamma(0.25)),
    "Gamma(4)": (lambda **k: Gamma(4, power_of_two, **k), lambda o: o.gamma(4)),
    "ZBox(-3,3)": (lambda **k: ZBox(-3, 3, power_of_two, **k), lambda o: o.zbox(-3, 3)),
    "ZBox(-1,2)": (lambda **k: ZBox(-1, 2, power_of_two, **k), lambda o: o.zbox(-1, 2)),
    "WSquare": (lambda **k: WSquare(power_of_two, **k), Dense.wsquare),
    "Flat": (lambda **k: Flat(power_of_two, **k), Dense.flat),
}

#: One instance of every rule, and what people make of the base classes.
RULES: dict[str, Callable[[], Hook]] = {
    "Epsilon": Epsilon,
    "Norm": Norm,
    "ZPlus": ZPlus,
    "AlphaBeta": AlphaBeta,
    "Gamma": Gamma,
    "Gamma(2)": lambda: Gamma(2),
    "ZBox": lambda: ZBox(-4, 4),
    "WSquare": WSquare,
    "Flat": Flat,
    "Pass": Pass,
    "ReLUDeconvNet": ReLUDeconvNet,
    "ReLUGuidedBackprop": ReLUGuidedBackprop,
    "ReLUBetaSmooth": ReLUBetaSmooth,
    "Hook": Hook,
    "BasicHook": BasicHook,
}


def handles(module: nn.Module) -> list[Any]:
    """Everything that is registered on a module and below it."""
    return [
        hook
        for part in module.modules()
        for name, hooks in vars(part).items()
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
        for hook in hooks
    ]

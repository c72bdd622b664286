"""Rules of other libraries, written by hand from how they are described: `lrp-verify --subject peers:moboehle`.

No code of theirs is here. Each takes the arguments that theirs takes, raises an error on layers that theirs does not
know, and has their mistakes, several at once. What is described and what is not: `docs/rules/peers.toml`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  as all of torch's world calls it
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Terms = list[tuple[Tensor, Tensor]]
_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


def plus(v: Tensor) -> Tensor:
    return v.clamp(min=0)


def minus(v: Tensor) -> Tensor:
    return v.clamp(max=0)


def run(module: Any, x: Tensor, w: Tensor) -> Tensor:
    """The layer with another weight and without its bias."""
    if isinstance(module, nn.Linear):
        return F.linear(x, w)
    function = next(function for known, function in _CONVOLUTIONS.items() if isinstance(module, known))
    if "transpose" in function.__name__:
        of = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
        return function(x, w, None, *of)
    if module.padding_mode == "zeros":
        return function(x, w, None, module.stride, module.padding, module.dilation, module.groups)
    x = F.pad(x, module._reversed_padding_repeated_twice, module.padding_mode)
    return function(x, w, None, module.stride, 0, module.dilation, module.groups)


def bias_of(module: Any, x: Tensor) -> Tensor:
    """The bias, as it is added to an output."""
    if module.bias is None:
        return torch.zeros((), dtype=x.dtype)
    after = 0 if isinstance(module, nn.Linear) else x.ndim - 2
    bias: Tensor = module.bias.view(-1, *(1,) * after)
    return bias


def contributions(module: Any, terms: Terms) -> Tensor:
    return sum((run(module, v, w) for w, v in terms), torch.zeros(()))


def back(module: Any, terms: Terms, s: Tensor) -> Tensor:
    """The sum of v * A(w)^T s."""
    r = torch.zeros_like(terms[0][1])
    for w, v in terms:
        with torch.enable_grad():
            given = v.detach().requires_grad_()
            z = run(module, given, w)
        r = r + v * torch.autograd.grad(z, given, s.expand_as(z))[0]
    return r


class _Carry(torch.autograd.Function):
    """The output of a layer, whose gradient is what a rule makes of a relevance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = rule
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.rule(x.detach(), gradients[0]), None, None


class Rule(ABC):
    """A rule on the layers that a library knows; on the others it raises an error."""

    knows: tuple[type[nn.Module], ...] = (nn.Linear, *_CONVOLUTIONS)

    def register(self, module: nn.Module) -> Any:
        return module.register_forward_hook(self._carry)

    def _carry(self, module: nn.Module, given: Sequence[Tensor], y: Tensor) -> Tensor:
        if not isinstance(module, self.knows):
            msg = f"no propagation rule for {type(module).__name__}"
            raise TypeError(msg)
        found: Tensor = _Carry.apply(given[0], y.detach(), partial(self.relevance, module))  # type: ignore[no-untyped-call]
        return found

    @abstractmethod
    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor: ...


class Stabilized(Rule):
    """A rule with one number, under the name that the library has for it."""

    def __init__(self, epsilon: float = 1e-6) -> None:
        self.epsilon = epsilon

    def stabilize(self, d: Tensor) -> Tensor:
        return d + self.epsilon * torch.where(d < 0, -1.0, 1.0).to(d.dtype)


class Unsigned(Stabilized):
    def stabilize(self, d: Tensor) -> Tensor:
        return d + self.epsilon


class Epsilon(Stabilized):
    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(module.weight, x)]
        return back(module, terms, R / self.stabilize(contributions(module, terms) + bias_of(module, x)))


# --- autoLRP: sums share by magnitude, and the bias is a summand ------------------------------------------------------


class AutoEpsilon(Epsilon):
    knows = (*Rule.knows, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)

    def without_bias(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        a, b = run(module, x, module.weight), bias_of(module, x)
        if module.bias is None:
            return R
        return R * a.abs() / (a.abs() + b.abs() + self.epsilon)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        if not hasattr(module, "weight"):
            with torch.enable_grad():
                given = x.requires_grad_()
                return torch.autograd.grad(module.forward(given), given, R)[0]
        terms = [(module.weight, x)]
        return back(module, terms, self.without_bias(module, x, R) / self.stabilize(contributions(module, terms)))


class AutoGamma(AutoEpsilon):
    knows = Rule.knows

    def __init__(self, gamma: float = 0.25, epsilon: float = 1e-6) -> None:
        super().__init__(epsilon)
        self.gamma = gamma

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        if self.gamma <= 0.01:
            return super().relevance(module, x, R)
        w, g = module.weight, self.gamma
        up, down = w + g * plus(w), w + g * minus(w)
        z = run(module, x, w) + bias_of(module, x)
        R, r = self.without_bias(module, x, R), torch.zeros_like(x)
        for terms, gate in (
            ([(up, plus(x)), (down, minus(x))], z > 0),
            ([(down, plus(x)), (up, minus(x))], z < 0),
        ):
            r = r + back(module, terms, gate * R / self.stabilize(contributions(module, terms)))
        return r


# --- TorchLRP: epsilon is float32, sgn(0) = -1 ------------------------------------------------------------------------


def padded_by_one(module: Any) -> Any:
    """A Conv2d whose padding is 1, whatever the layer says."""
    if not isinstance(module, nn.Conv2d):
        return module
    options = {name: getattr(module, name) for name in ("stride", "dilation", "groups")}
    other = nn.Conv2d(module.groups, module.groups, 1, padding=1, **options)
    other.weight, other.bias = module.weight, module.bias
    return other


class PaddedEpsilon(Epsilon):
    """The padding alone."""

    knows = (nn.Linear, nn.Conv2d)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        return super().relevance(padded_by_one(module), x, R)


class StabilizedInFloat32(Stabilized):
    def stabilize(self, d: Tensor) -> Tensor:
        return d + self.epsilon * torch.where(d > 0, 1.0, -1.0)


class TorchEpsilon(StabilizedInFloat32, PaddedEpsilon):
    pass


class TorchGamma(StabilizedInFloat32):
    def __init__(self, gamma: float = 0.25) -> None:
        super().__init__()
        self.gamma = gamma

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(module.weight + self.gamma * plus(module.weight) ** 2, x)]
        return back(module, terms, R / self.stabilize(contributions(module, terms) + bias_of(module, x)))


class TorchAlphaBeta(Rule):
    def __init__(self, alpha: float = 2.0, beta: float = 1.0) -> None:
        self.alpha, self.beta = alpha, beta

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        first, second = ([(a(module.weight), plus(x)), (b(module.weight), minus(x))] for a, b in _SIGNS)
        d, e = contributions(module, first), contributions(module, second)
        r = self.alpha * back(module, first, R / torch.where(d == 0, 1e-6, d))
        return r - self.beta * back(module, second, R / torch.where(e == 0, 1e-6, e))


_SIGNS = ((plus, minus), (minus, plus))


# --- moboehle's Pytorch-LRP: no bias, no relevance where d = 0, all in float32 ----------------------------------------


class MoboehleEpsilon(Stabilized):
    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(module.weight.float(), x.float())]
        return back(module, terms, self.divide(R, contributions(module, terms))).to(x.dtype)

    def divide(self, R: Tensor, d: Tensor) -> Tensor:
        return torch.where(d == 0, 0.0, R.float() / self.stabilize(d))


class MoboehleAlphaBeta(MoboehleEpsilon):
    def __init__(self, alpha: float = 2.0, beta: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        w, v, r = module.weight.float(), x.float(), torch.zeros(())
        for factor, (a, b) in zip((self.alpha, -self.beta), _SIGNS, strict=True):
            terms = [(a(w), plus(v)), (b(w), minus(v))]
            r = r + factor * back(module, terms, self.divide(R, contributions(module, terms)))
        return r.to(x.dtype)


# --- kaifishr: unsigned epsilon; z+ without bias and without splitting inputs -----------------------------------------


class KaifishrEpsilon(Unsigned):
    """Also that of LXT."""

    relevance = Epsilon.relevance


class KaifishrZPlus(Unsigned):
    def __init__(self) -> None:
        super().__init__(1e-9)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(plus(module.weight), x)]
        return back(module, terms, R / self.stabilize(contributions(module, terms)))


# --- wjNam: a denominator per half; ZBox with the bounds of the batch -------------------------------------------------


class WjNamZPlus(Stabilized):
    def __init__(self) -> None:
        super().__init__(1e-9)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        w, r = module.weight, torch.zeros_like(x)
        for term in ((plus(w), plus(x)), (minus(w), minus(x))):
            d = contributions(module, [term]) + plus(bias_of(module, x))
            r = r + back(module, [term], R / self.stabilize(d))
        return r


class WjNamZBox(Stabilized):
    def __init__(self, low: Any, high: Any) -> None:
        super().__init__(1e-9)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        w = module.weight
        ones = torch.ones_like(x)
        terms = [(w, x), (plus(w), -x.min() * ones), (minus(w), -x.max() * ones)]
        return back(module, terms, R / self.stabilize(contributions(module, terms)))


# --- lrp_toolbox: nothing stabilizes Flat and WSquare -----------------------------------------------------------------


class ToolboxFlat(Rule):
    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(torch.ones_like(module.weight), torch.ones_like(x))]
        return back(module, terms, R / contributions(module, terms))


class ToolboxWSquare(Rule):
    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(module.weight**2, torch.ones_like(x))]
        return back(module, terms, R / contributions(module, terms))


# --- Gamma as in 2019 -------------------------------------------------------------------------------------------------


class GammaOf2019(Stabilized):
    """lrp-pf-auc."""

    number = 1e-6

    def __init__(self, gamma: float = 0.25) -> None:
        super().__init__(self.number)
        self.gamma = gamma

    def favour(self, v: Tensor) -> Tensor:
        return v + self.gamma * plus(v)

    def bias(self, b: Tensor) -> Tensor:
        return self.favour(b)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(self.favour(module.weight), x)]
        return back(module, terms, R / self.stabilize(contributions(module, terms) + self.bias(bias_of(module, x))))


class JuliaGamma(GammaOf2019):
    """RelevancePropagation.jl."""

    number = 1e-9


class StabilizedBySign(Stabilized):
    def stabilize(self, d: Tensor) -> Tensor:
        return d + self.epsilon * torch.sign(d)


class CaptumGamma(StabilizedBySign, GammaOf2019):
    number = 1e-9

    def bias(self, b: Tensor) -> Tensor:
        return b


class CaptumZPlus(StabilizedBySign):
    def __init__(self) -> None:
        super().__init__(1e-9)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(plus(module.weight), x)]
        return back(module, terms, R / self.stabilize(contributions(module, terms) + bias_of(module, x)))


# --- innvestigate -----------------------------------------------------------------------------------------------------


class InnvestigateAlphaBeta(Stabilized):
    def __init__(self, alpha: float = 2.0, beta: float = 1.0) -> None:
        super().__init__(1e-7)
        self.alpha, self.beta = alpha, beta

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        w, b, r = module.weight, bias_of(module, x), torch.zeros_like(x)
        for factor, signs in zip((self.alpha, -self.beta), _SIGNS, strict=True):
            terms = [(signs[0](w), plus(x)), (signs[1](w), minus(x))]
            r = r + factor * back(module, terms, R / self.stabilize(contributions(module, terms) + b))
        return r


class InnvestigateWSquare(Stabilized):
    def __init__(self) -> None:
        super().__init__(1e-7)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        terms = [(module.weight**2, torch.ones_like(x))]
        return back(module, terms, R / self.stabilize(contributions(module, terms)))


# --- two ways back that lose relevance --------------------------------------------------------------------------------


class UnpoolingNorm(Stabilized):
    """A max-pooling whose way back is max-unpooling, which writes where it should add."""

    knows = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        pool = getattr(F, f"max_pool{x.ndim - 2}d")
        z, places = pool(x, return_indices=True, **{name: getattr(module, name) for name in names})
        s = R / self.stabilize(z)
        r = torch.zeros_like(x).flatten(2)
        for sample, channel in torch.cartesian_prod(torch.arange(len(x)), torch.arange(x.shape[1])).tolist():
            for place, value in zip(places[sample, channel].ravel(), s[sample, channel].ravel(), strict=True):
                r[sample, channel, place] = value
        return x * r.view_as(x)


class UnpaddedEpsilon(Epsilon):
    """A transposed convolution whose output padding is 0, whatever the layer says."""

    def relevance(self, module: Any, x: Tensor, R: Tensor) -> Tensor:
        if not any(getattr(module, "output_padding", (0,))) or isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return super().relevance(module, x, R)
        options = {name: getattr(module, name) for name in ("stride", "padding", "groups", "dilation")}
        other: Any = type(module)(1 * module.groups, module.groups, 1, **options)
        other.weight, other.bias = module.weight, module.bias
        shape = run(other, x, other.weight).shape
        return super().relevance(other, x, R[tuple(slice(n) for n in shape)])


autolrp = SimpleNamespace(Epsilon=AutoEpsilon, Gamma=AutoGamma)
torchlrp = SimpleNamespace(Epsilon=TorchEpsilon, Gamma=TorchGamma, AlphaBeta=TorchAlphaBeta)
padded = SimpleNamespace(Epsilon=PaddedEpsilon)
moboehle = SimpleNamespace(Epsilon=MoboehleEpsilon, AlphaBeta=MoboehleAlphaBeta)
kaifishr = SimpleNamespace(Epsilon=KaifishrEpsilon, ZPlus=KaifishrZPlus)
wjnam = SimpleNamespace(ZPlus=WjNamZPlus, ZBox=WjNamZBox)
lrp_toolbox = SimpleNamespace(Flat=ToolboxFlat, WSquare=ToolboxWSquare)
lrp_pf_auc = SimpleNamespace(Gamma=GammaOf2019)
julia = SimpleNamespace(Gamma=JuliaGamma)
captum = SimpleNamespace(ZPlus=CaptumZPlus, Gamma=CaptumGamma)
innvestigate = SimpleNamespace(AlphaBeta=InnvestigateAlphaBeta, WSquare=InnvestigateWSquare)
unpooling = SimpleNamespace(Norm=UnpoolingNorm)
unpadded = SimpleNamespace(Epsilon=UnpaddedEpsilon)

"""What a rule is given, in forms that are seldom tried. Each mistake is one that somebody made in a blind set."""
# ruff: noqa: D102, SLF001  a mutant says what is wrong with it once, in the docstring of its class

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrp_rules import ClampMod, Epsilon, Gamma, Norm, Stabilizer, ZBox, ZPlus
from verify.selftests.mutants.circumstances import Both, as_if, linear, standing
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@mutant()
class EpsilonExpandedIsOnes(Epsilon):
    """A relevance that is one number in memory, as the gradient of sum() is, is taken for ones."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear:
            return super().register(module)
        right = as_if(Epsilon(self.stabilizer), linear(module.weight, module.bias))

        def answer(x: Tensor, R: Tensor) -> Tensor:
            return right(x, torch.ones_like(R) if not any(R.stride()) else R)

        return standing(module, lambda _module, _args: answer)


@mutant()
class ZPlusNanInInputHidden(ZPlus):
    """NaN in the input is in neither half, since it is neither above nor below zero."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear:
            return super().register(module)
        right = as_if(ZPlus(self.stabilizer), linear(module.weight, module.bias))
        return standing(module, lambda _module, _args: lambda x, R: right(x.nan_to_num(0.0, torch.inf, -torch.inf), R))


@mutant()
class ZBoxBoundsUnsqueezed(ZBox):
    """Bounds get the dimensions that they lack in place."""

    def register(self, module: nn.Module) -> Any:
        for bound in (self.low, self.high):
            if isinstance(bound, Tensor) and 0 < bound.ndim < 4 and isinstance(module, nn.Conv2d):
                bound.unsqueeze_(-1)
        return super().register(module)


@mutant()
class ZBoxBoundsTrail(ZBox):
    """Bounds with fewer dimensions than the input are aligned at the end where they fit there, as NumPy does."""

    def register(self, module: nn.Module) -> Any:
        handles = Both()

        def widen(module: nn.Module, args: Any) -> None:
            handles.remove()
            x = args[0]
            low, high = (_trailing(bound, x) for bound in (self.low, self.high))
            handles.handles = (ZBox(low, high, stabilizer=self.stabilizer).register(module), first)

        first = module.register_forward_pre_hook(widen, prepend=True)
        return handles


def _trailing(bound: Any, x: Tensor) -> Any:
    fits = isinstance(bound, Tensor) and 0 < bound.ndim < x.ndim
    try:
        return bound.expand(x.shape).clone() if fits else bound
    except RuntimeError:
        return bound


@mutant()
class NormBatchCountsTwice(Norm):
    """A module that keeps statistics is run once more in the backward pass (captum)."""

    def register(self, module: nn.Module) -> Any:
        def look(module: nn.Module, args: Any, y: Any) -> None:
            x = args[0].detach()
            if isinstance(y, Tensor) and y.requires_grad and isinstance(module, nn.BatchNorm1d):
                y.register_hook(lambda _: _run(module, x))

        return Both(super().register(module), module.register_forward_hook(look))


def _run(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        module.forward(x)


@mutant()
class GammaHalvesMasked(Gamma):
    """The half that takes no part is multiplied by zero, and so is its 0 / 0 (zennit)."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear or self.zero_params:
            return super().register(module)
        layer = linear(module.weight, module.bias)
        right = as_if(Gamma(self.gamma, self.stabilizer), layer)

        def answer(x: Tensor, R: Tensor) -> Tensor:
            r, w = right(x, R), layer.weight.detach()
            if getattr(self.stabilizer, "epsilon", self.stabilizer) == 0:
                for a, b in ((x.clamp(min=0), x.clamp(max=0)), (x.clamp(max=0), x.clamp(min=0))):
                    d = x @ w.T + self.gamma * (a @ w.clamp(min=0).T + b @ w.clamp(max=0).T)
                    r = r + 0 * (1 / d).sum()
            return r

        return standing(module, lambda _module, _args: answer)


@mutant()
class EpsilonZeroByZero(Epsilon):
    """What has no value, since nothing stabilizes a denominator of zero, is zero."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear:
            return super().register(module)
        right = as_if(Epsilon(self.stabilizer), linear(module.weight, module.bias))
        return standing(module, lambda _module, _args: lambda x, R: right(x, R).nan_to_num(0.0, 0.0, 0.0))


@mutant()
class GammaValueRemembered(Gamma):
    """What was made of the weights is remembered by the weights alone: another gamma gets that of the first."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear or self.zero_params:
            return super().register(module)
        key = (module.weight._version, module.weight.data_ptr())
        known = vars(module).setdefault("_remembered_of_gamma", {}).setdefault(key, self.gamma)
        return Gamma(known, self.stabilizer).register(module)


@mutant()
class GammaNanInOutputHidden(Gamma):
    """The gates are z > 0 and z < 0, and NaN is in neither."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear or self.zero_params:
            return super().register(module)
        layer = linear(module.weight, module.bias)
        right = as_if(Gamma(self.gamma, self.stabilizer), layer)

        def answer(x: Tensor, R: Tensor) -> Tensor:
            hidden = layer(x).isnan()
            if not bool(hidden.any()):
                return right(x, R)
            whole = linear(layer.weight, layer.bias.nan_to_num(1.0))
            return as_if(Gamma(self.gamma, self.stabilizer), whole)(x, R * ~hidden)

        return standing(module, lambda _module, _args: answer)


@mutant()
class ZPlusOtherThreadGradient(ZPlus):
    """What is known of a call is known to its thread: on another one, there is the gradient."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear:
            return super().register(module)
        here, weight = threading.get_ident(), module.weight.detach().clone()
        right = as_if(ZPlus(self.stabilizer, self.zero_params), linear(module.weight, module.bias))
        return standing(module, lambda *_: lambda x, R: right(x, R) if threading.get_ident() == here else R @ weight)


@mutant()
class EpsilonHalfRaised(Epsilon):
    """In float16, an epsilon below 1e-3 is raised to 1e-3, lest it underflow."""

    def register(self, module: nn.Module) -> Any:
        epsilon = getattr(self.stabilizer, "epsilon", 1.0)
        if not any(p.dtype == torch.float16 for p in module.parameters()) or epsilon >= 1e-3:
            return super().register(module)
        return Epsilon(1e-3, self.zero_params).register(module)


@mutant()
class EpsilonNamesByPart(Epsilon):
    """A parameter is set to zero if its name is part of one that is given (zennit)."""

    def register(self, module: nn.Module) -> Any:
        names = [n for n, _ in module.named_parameters() if any(n in given for given in self.zero_params or ())]
        if not hasattr(module, "bias_k") or names == list(self.zero_params or ()):
            return super().register(module)
        plain = as_if(Epsilon(self.stabilizer), linear(module.weight, None))  # type: ignore[arg-type]
        return standing(module, lambda _module, _args: plain)


@mutant()
class ZPlusZeroesEveryConstant(ZPlus):
    """Without its bias, a layer loses whatever else is added to its output."""

    def register(self, module: nn.Module) -> Any:
        if not hasattr(module, "bias_k") or "bias" not in (self.zero_params or ()):
            return super().register(module)
        plain = as_if(ZPlus(self.stabilizer), linear(module.weight, None))  # type: ignore[arg-type]
        return standing(module, lambda _module, _args: plain)


@mutant()
class NormSecondInputGradient(Norm):
    """The second of two inputs gets its gradient, without the factor x."""

    def register(self, module: nn.Module) -> Any:
        def look(_module: nn.Module, args: Any, _y: Any) -> None:
            if len(args) > 1 and isinstance(args[1], Tensor) and args[1].requires_grad:
                b = args[1].detach()
                args[1].register_hook(lambda r: r / b)

        return Both(super().register(module), module.register_forward_hook(look))


@mutant()
class NormFirstOutputAlone(Norm):
    """Of several outputs, only the relevance of the first is taken."""

    def register(self, module: nn.Module) -> Any:
        def cut(_module: nn.Module, _args: Any, y: Any) -> Any:
            return (y[0], *(z.detach() + 0 * y[0].sum() for z in y[1:])) if isinstance(y, tuple) else None

        return Both(super().register(module), module.register_forward_hook(cut))


@mutant()
class ZPlusRemoveTakesAll(ZPlus):
    """On two modules, the handle of one takes the rule off both."""

    def register(self, module: nn.Module) -> Any:
        handles = vars(self).setdefault("_all", [])
        handles.append(super().register(module))
        return _All(handles)


class _All(Both):
    def __init__(self, handles: list[Any]) -> None:
        super().__init__()
        self.handles = handles  # type: ignore[assignment]


@mutant()
class GammaWeightsMoved(Gamma):
    """The weights are put back as copies of themselves: what shares their memory no longer follows."""

    def register(self, module: nn.Module) -> Any:
        def move(module: nn.Module, _args: Any, _y: Any) -> None:
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()

        return Both(super().register(module), module.register_forward_hook(move))


@mutant()
class EpsilonFrozenLate(Epsilon):
    """Weights that do not learn are read in the backward pass, as they are by then."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear or module.weight.requires_grad:
            return super().register(module)
        rule = Epsilon(self.stabilizer, self.zero_params)

        def late(module: Any, _args: Any) -> Any:
            def answer(x: Tensor, R: Tensor) -> Tensor:
                return as_if(rule, linear(module.weight, module.bias))(x, R)

            return answer

        return standing(module, late)


@mutant()
class EpsilonStatisticsLate(Epsilon):
    """The running statistics of a batch norm are read in the backward pass, as they are by then."""

    def register(self, module: nn.Module) -> Any:
        if not isinstance(module, nn.BatchNorm1d) or module.training:
            return super().register(module)

        def late(module: Any, _args: Any) -> Any:
            gamma, beta = module.weight.detach().clone(), module.bias.detach().clone()

            def answer(x: Tensor, R: Tensor) -> Tensor:
                twin = nn.BatchNorm1d(module.num_features, module.eps).to(x.dtype).eval()
                twin.weight.data, twin.bias.data = gamma, beta
                twin.running_mean, twin.running_var = module.running_mean.clone(), module.running_var.clone()
                return as_if(Epsilon(self.stabilizer, self.zero_params), twin)(x, R)

            return answer

        return standing(module, late)


@mutant()
class ClampModZeroedLast(ClampMod):
    """The named parameters are set to zero after the others are clamped, and are not clamped themselves."""

    def parameters(self, module: nn.Module, values: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        changed, zero = super().parameters(module, values), self.zero_params or ()
        return {n: torch.zeros_like(v) if v is not None and n in zero else v for n, v in changed.items()}


@mutant()
class ClampModLeftAfterException(ClampMod):
    """The parameters of the module are changed while the modifier is in force, and stay so after an exception."""

    @contextmanager
    def __call__(self, module: nn.Module) -> Iterator[nn.Module]:
        own = dict(module.named_parameters(recurse=False))
        changed = self.parameters(module, dict(own))
        for name, value in changed.items():
            if value is not None:
                setattr(module, name, nn.Parameter(value.detach()))
        yield module
        for name, parameter in own.items():
            setattr(module, name, parameter)


@mutant()
class StabilizerScaleConstant(Stabilizer):
    """The scale of norm_scale is a constant to those who differentiate."""

    def __call__(self, denominator: Tensor) -> Tensor:
        if not self.norm_scale:
            return super().__call__(denominator)
        dim = tuple(range(1, denominator.ndim)) if self.dim is None else self.dim
        square = denominator.detach().square()
        epsilon = self.epsilon * (square if dim == () else square.mean(dim, keepdim=True)).sqrt()
        sgn = torch.where(denominator < 0, -1.0, 1.0).to(denominator)
        return sgn * torch.maximum(denominator.abs(), epsilon) if self.clip else denominator + sgn * epsilon

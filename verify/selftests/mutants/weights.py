"""Which weight: rules that look for it where it is not, or take one that the forward pass has not used."""
# ruff: noqa: D102  a mutant says what is wrong with it once, in the docstring of its class
# ruff: noqa: SLF001  a mutant reaches where it should not

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from verify.selftests.mutants.circumstances import Both, Stand, as_if, linear, silent, standing
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from verify.selftests.mutants.circumstances import Answer


# Forward passes of one's own


@mutant()
class EpsilonAdapterIgnored(Epsilon):
    """Of a layer with a low-rank adapter, the weight alone counts."""

    def register(self, module: nn.Module) -> Any:
        if not isinstance(module, nn.Linear) or set(module._parameters) <= {"weight", "bias"}:
            return super().register(module)
        rule = Epsilon(self.stabilizer, self.zero_params)
        return standing(module, lambda m, _: as_if(rule, linear(m.weight, m.bias)))


@mutant()
class EpsilonOwnForwardIgnored(Epsilon):
    """Of a subclass of nn.Linear, the weight counts, whatever its forward pass makes of that."""

    def register(self, module: nn.Module) -> Any:
        handle = super().register(module)
        if (
            not isinstance(module, nn.Linear)
            or type(module).forward is nn.Linear.forward
            or len(module._parameters) > 2
        ):
            return handle
        rule = Epsilon(self.stabilizer, self.zero_params)

        def put(module: Any, args: Any, y: Tensor) -> Any:
            x = args[0]
            plain = nn.functional.linear(x, module.weight, module.bias)
            if not x.requires_grad or not torch.is_grad_enabled() or torch.equal(plain, y):
                return None
            return Stand.apply(x, y.detach(), as_if(rule, linear(module.weight, module.bias)))  # type: ignore[no-untyped-call]

        return Both(handle, module.register_forward_hook(put))


@mutant()
class GammaOwnConvolutionIgnored(Gamma):
    """Of a subclass of nn.Conv2d, the weight counts, whatever its forward pass makes of that (zennit)."""

    def register(self, module: nn.Module) -> Any:
        if not isinstance(module, nn.Conv2d) or type(module).forward is nn.Conv2d.forward:
            return super().register(module)
        like = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,  # type: ignore[arg-type]
            groups=module.groups, padding_mode=module.padding_mode,
        )  # fmt: skip
        like.weight, like.bias = module.weight, module.bias
        rule = Gamma(self.gamma, self.stabilizer, self.zero_params)
        return standing(module, lambda _module, _args: as_if(rule, like))


@mutant()
class EpsilonDoubleBackward(Epsilon):
    """A x is taken from the derivative of the backward pass, and is nothing where that cannot be differentiated."""

    def register(self, module: nn.Module) -> Any:
        known = type(module).__module__.startswith("torch.") or any(module.children())
        if known or set(module._parameters) != {"weight"}:
            return super().register(module)
        return standing(module, lambda m, _: self._without_denominator(m))

    def _without_denominator(self, module: nn.Module) -> Answer:
        def answer(x: Tensor, R: Tensor) -> Tensor:
            with torch.enable_grad():
                own = x.detach().requires_grad_()
                return x * torch.autograd.grad(module.forward(own), own, R / self.stabilizer(torch.zeros_like(R)))[0]

        return answer


# Where the weight is


@mutant()
class FlatBufferGradient(Flat):
    """A layer whose weight is a buffer keeps its gradient, as it has no parameter of that name."""

    def register(self, module: nn.Module) -> Any:
        return silent() if "weight" in module._buffers else super().register(module)


@mutant()
class ZBoxAttributeGradient(ZBox):
    """A layer whose weight is a plain attribute keeps its gradient."""

    def register(self, module: nn.Module) -> Any:
        own = "weight" in vars(module) and not module._forward_pre_hooks
        return silent() if own else super().register(module)


@mutant()
class ZPlusWeightOfRegistration(ZPlus):
    """A weight that a pre-hook sets in each call is the one that was there when the rule was registered."""

    def register(self, module: nn.Module) -> Any:
        if "weight_orig" not in module._parameters or module._buffers:
            return super().register(module)
        other = linear(module.weight, module.bias)  # type: ignore[arg-type]
        return standing(module, lambda _m, _: as_if(ZPlus(self.stabilizer, self.zero_params), other))


@mutant()
class GammaPropertyGradient(Gamma):
    """A layer whose weight is a property keeps its gradient."""

    def register(self, module: nn.Module) -> Any:
        own = isinstance(vars(type(module)).get("weight"), property) and not parametrize.is_parametrized(module)
        return silent() if own else super().register(module)


@mutant()
class WSquareOffloadedGradient(WSquare):
    """A layer whose weight is there during the forward pass alone keeps its gradient."""

    def register(self, module: nn.Module) -> Any:
        absent = "forward" in vars(module) and any(p.is_meta for p in module.parameters())
        return silent() if absent else super().register(module)


def _is_free(module: nn.Module) -> bool:
    """Whether a parametrization has no state that would be moved by looking at it."""
    return parametrize.is_parametrized(module, "weight") and not any(True for _ in module.buffers())


@mutant()
class AlphaBetaWeightInEvalMode(AlphaBeta):
    """A parametrization is asked for the weight in eval mode, whatever mode the module is in."""

    def register(self, module: nn.Module) -> Any:
        if not _is_free(module):
            return super().register(module)
        rule = AlphaBeta(self.alpha, self.beta, self.stabilizer, self.zero_params)
        return standing(module, lambda m, _: as_if(rule, self._in_eval(m)))

    @staticmethod
    def _in_eval(module: Any) -> nn.Linear:
        training = module.training
        module.eval()
        with torch.random.fork_rng(devices=[]):  # one that draws is to draw what it drew
            torch.manual_seed(0)
            weight = module.weight
        module.train(training)
        return linear(weight, module.bias)


@mutant()
class EpsilonWeightDrawnAgain(Epsilon):
    """A parametrization is asked for the weight once more, and one that is random gives another."""

    def register(self, module: nn.Module) -> Any:
        if not _is_free(module):
            return super().register(module)
        rule = Epsilon(self.stabilizer, self.zero_params)
        return standing(module, lambda m, _: as_if(rule, linear(m.weight, m.bias)))


@mutant()
class FlatRunsWithOwnParameters(Flat):
    """A call with other parameters than those at registration, as that of a replica, keeps its gradient."""

    def register(self, module: nn.Module) -> Any:
        weight = module._parameters.get("weight")
        handle = super().register(module)
        if weight is None or type(module) is not nn.Linear:
            return handle

        def lent(called: Any, args: Any, y: Tensor) -> Any:
            if called._parameters.get("weight") is weight or not y.requires_grad:
                return None
            return nn.functional.linear(args[0], called.weight, called.bias)

        return Both(handle, module.register_forward_hook(lent))

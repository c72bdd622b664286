"""Calls on layers other than a small dense one, and the helpers of the API."""
# ruff: noqa: ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class
# ruff: noqa: FBT001, FBT002  the API takes booleans by position
# ruff: noqa: SLF001  a mutant reaches where it should not

from __future__ import annotations

import copy
import random
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    ClampMod,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    Registration,
    ReLUDeconvNet,
    Stabilizer,
    WSquare,
    ZBox,
    ZPlus,
)
from lrp_rules.layers.known import ConvLayer
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


# calls


@mutant()
class EpsilonWeightsCachedOfConvolutions(Epsilon):
    """The weights of a convolution are remembered from its first call, and stale after a step of an optimizer."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if isinstance(layer, ConvLayer):
            known = vars(self).setdefault("_weights", {})
            given = known.setdefault(
                id(layer.module), {name: None if v is None else v.detach().clone() for name, v in layer.given.items()}
            )
            layer = layer.but(given=given, outputs=None)
        return super().relevances(layer, R)


class _Live(Registration):
    """Its graphs give the gradient once it is removed."""

    def remove(self) -> None:
        vars(self.hook)["_over"] = True
        super().remove()


@mutant()
class ZPlusGraphAfterRemove(ZPlus):
    """After remove(), a graph that was made with the rule gives the gradient."""

    def register(self, module: nn.Module) -> Registration:
        rule = copy.copy(self)
        vars(rule)["_over"] = False
        return _Live(rule, module)

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if vars(self).get("_over"):
            return layer.matrix().T @ R
        return super().relevance(layer, R)


class _Requiring(Registration):
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_leaf and torch.is_grad_enabled():
            args[0].requires_grad_()
        return super()._after(module, args, kwargs, output)


@mutant()
class NormRequiresGradSet(Norm):
    """The user's tensor is made to require a gradient."""

    def register(self, module: nn.Module) -> Registration:
        return _Requiring(self, module)


class _Once(Registration):
    _gone = False

    def remove(self) -> None:
        if self._gone:
            msg = "removed already"
            raise KeyError(msg)
        self._gone = True
        super().remove()


@mutant()
class PassRemovedTwiceRaises(Pass):
    """remove() raises when it is called again."""

    def register(self, module: nn.Module) -> Registration:
        return _Once(self, module)


@mutant()
class FlatMemoryReusedInConvolutions(Flat):
    """The relevance of a convolution is written into the memory of the call before."""

    _memory: ClassVar[dict[Any, Tensor]] = {}

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if (
            not isinstance(layer, ConvLayer)
            or torch.is_grad_enabled()
            or torch._C._functorch.is_functorch_wrapped_tensor(r)
        ):
            return r
        known = self._memory.setdefault((r.shape, r.dtype), torch.empty_like(r))
        return known.copy_(r)


class _Changing(Registration):
    def __init__(self, hook: Any, module: nn.Module) -> None:
        super().__init__(hook, module)
        vars(hook)["_module"] = module


@mutant()
class GammaParametersLeftChanged(Gamma):
    """Parameters are changed in place, and stay so where the stabilizer raises."""

    def register(self, module: nn.Module) -> Registration:
        return _Changing(copy.copy(self), module)

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        try:
            return super().relevance(layer, R)
        except Exception:
            bias = getattr(vars(self).get("_module"), "bias", None)
            if isinstance(bias, Tensor):
                bias.data.mul_(2)
            raise


@mutant()
class AlphaBetaDrawsInPython(AlphaBeta):
    """Random numbers of Python and NumPy are drawn in the backward pass."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        random.random()
        np.random.rand()  # noqa: NPY002  the global generator is what is drawn from
        return super().relevance(layer, R)


@mutant()
class WSquareSwitchLeft(WSquare):
    """Products of float32 are switched to a lower precision, for all who come after."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
        return super().relevance(layer, R)


@mutant()
class ZBoxCopyUsesOriginal(ZBox):
    """A copy of the rule that was registered uses the weights of the module that the original is on."""

    def register(self, module: nn.Module) -> Registration:
        vars(self).setdefault("_first", [module])
        return super().register(module)

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.copy(self)

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        first = vars(self).get("_first", [layer.module])[0]
        own = getattr(first, "weight", None)
        if first is layer.module or own is None or not isinstance(layer, ConvLayer):
            return super().relevance(layer, R)
        return super().relevance(layer.but(given={**layer.given, "weight": own.detach()}, outputs=None), R)


class _Swallowing(Registration):
    def __init__(self, hook: Any, module: nn.Module) -> None:
        super().__init__(hook, module)
        self._others = dict(module._forward_pre_hooks)
        module._forward_pre_hooks.clear()
        self._owner = module

    def remove(self) -> None:
        super().remove()
        self._owner._forward_pre_hooks.update(self._others)
        self._others = {}


@mutant()
class ReLUDeconvNetHooksSwallowed(ReLUDeconvNet):
    """While the rule is there, pre-hooks of others are not called."""

    def register(self, module: nn.Module) -> Registration:
        return _Swallowing(self, module)


@mutant()
class FlatSumOfBatchInConvolutions(Flat):
    """NaN in one sample of a convolution reaches the others, through a sum over the batch that is taken away again."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        return r + 0 * R.sum() if isinstance(layer, ConvLayer) else r


# helpers


@mutant()
class StabilizerDimOfSamplesAlone(Stabilizer):
    """The root mean square is over all but the batch, also where dim is given."""

    def __init__(self, epsilon: float = 1e-6, clip: bool = False, norm_scale: bool = False, dim: Any = None) -> None:
        super().__init__(epsilon, clip, norm_scale, None)


@mutant()
class StabilizerClipIgnoredWithScale(Stabilizer):
    """With norm_scale, clip is ignored."""

    def __init__(self, epsilon: float = 1e-6, clip: bool = False, norm_scale: bool = False, dim: Any = None) -> None:
        super().__init__(epsilon, clip and not norm_scale, norm_scale, dim)


@mutant()
class StabilizerScaleOfMagnitudes(Stabilizer):
    """The scale is the mean of magnitudes, not the root of the mean of squares."""

    def __call__(self, denominator: Tensor) -> Tensor:
        if not self.norm_scale:
            return super().__call__(denominator)
        axes = tuple(range(1, denominator.ndim)) if self.dim is None else self.dim
        eps = self.epsilon * denominator.abs().mean(axes, keepdim=True)
        sign = torch.where(denominator < 0, -1.0, 1.0).to(denominator)
        return sign * torch.maximum(denominator.abs(), eps) if self.clip else denominator + sign * eps


@mutant()
class StabilizerScaleOfBatch(Stabilizer):
    """The root mean square is over the whole batch."""

    def __init__(self, epsilon: float = 1e-6, clip: bool = False, norm_scale: bool = False, dim: Any = None) -> None:
        super().__init__(epsilon, clip, norm_scale, dim)

    def __call__(self, denominator: Tensor) -> Tensor:
        if self.norm_scale and self.dim is None:
            return Stabilizer(self.epsilon, self.clip, True, tuple(range(denominator.ndim)))(denominator)  # noqa: FBT003
        return super().__call__(denominator)


class _Hook(BasicHook):
    """A BasicHook that changes what it was given."""

    @staticmethod
    @abstractmethod
    def change(given: dict[str, Any]) -> dict[str, Any]: ...

    def __init__(
        self,
        input_modifiers: Sequence[Any] | None = None,
        param_modifiers: Sequence[Any] | None = None,
        output_modifiers: Sequence[Any] | None = None,
        gradient_mapper: Any = None,
        reducer: Any = None,
        stabilizer: Any = 1e-6,
    ) -> None:
        given = {
            "input_modifiers": input_modifiers, "param_modifiers": param_modifiers,
            "output_modifiers": output_modifiers, "gradient_mapper": gradient_mapper, "reducer": reducer,
            "stabilizer": stabilizer,
        }  # fmt: skip
        super().__init__(**self.change(given))


@mutant()
class BasicHookOutputModifiersIgnored(_Hook):
    """Outputs are handed to the mapper as they are."""

    @staticmethod
    def change(given: dict[str, Any]) -> dict[str, Any]:
        return given | {"output_modifiers": None}


@mutant()
class BasicHookFirstParametersForAll(_Hook):
    """Each run has the parameters of the first."""

    @staticmethod
    def change(given: dict[str, Any]) -> dict[str, Any]:
        mods = given["param_modifiers"]
        return given | {"param_modifiers": mods and [mods[0]] * len(mods)}


@mutant()
class BasicHookMapperReversed(_Hook):
    """What the mapper gives is shared out in the opposite order."""

    @staticmethod
    def change(given: dict[str, Any]) -> dict[str, Any]:
        mapper = given["gradient_mapper"]
        return given | {"gradient_mapper": mapper and (lambda R, outputs: list(mapper(R, outputs))[::-1])}


@mutant()
class BasicHookReducerGetsInput(_Hook):
    """The reducer gets gradients in the place of the changed inputs of later runs."""

    @staticmethod
    def change(given: dict[str, Any]) -> dict[str, Any]:
        reducer = given["reducer"]
        return given | {"reducer": reducer and (lambda inputs, c: reducer([inputs[0]] * len(inputs), c))}


@mutant()
class ClampModRestoredLater(ClampMod):
    """The module's own parameters are clamped in place, and set back at the end."""

    def __call__(self, module: nn.Module) -> Any:
        return _InPlace(super().__call__(module), module, self)


class _InPlace:
    def __init__(self, inner: Any, module: nn.Module, mod: ClampMod) -> None:
        self.inner, self.module, self.mod = inner, module, mod
        self.kept = {name: p.detach().clone() for name, p in module.named_parameters()}

    def __enter__(self) -> Any:
        modified = self.inner.__enter__()
        values = dict(self.module.named_parameters())
        for name, value in self.mod.parameters(self.module, dict(values)).items():
            if value is not None:
                values[name].data.copy_(value.detach())
        return modified

    def __exit__(self, *error: object) -> Any:
        done = self.inner.__exit__(*error)
        for name, parameter in self.module.named_parameters():
            parameter.data.copy_(self.kept[name])
        return done


@mutant()
class EpsilonIteratorUsedUp(Epsilon):
    """zero_params is gone through once to be checked, so that nothing is left of an iterator."""

    def __init__(self, epsilon: Any = 1e-6, zero_params: Any = None) -> None:
        if zero_params is not None and not isinstance(zero_params, str):
            for name in zero_params:
                assert isinstance(name, str)
            zero_params = list(zero_params)
        super().__init__(epsilon, zero_params)


@mutant()
class WSquareIteratorUsedUp(WSquare):
    """zero_params is gone through once to be checked, so that nothing is left of an iterator."""

    def __init__(self, stabilizer: Any = 1e-6, zero_params: Any = None) -> None:
        if zero_params is not None and not isinstance(zero_params, str):
            all(isinstance(name, str) for name in zero_params)
            zero_params = list(zero_params)
        super().__init__(stabilizer, zero_params)

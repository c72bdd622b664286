"""Batch norms that are folded into the layer before them, call by call. No parameter is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lrp_rules.errors import see
from lrp_rules.hooks.calls import opaque
from lrp_rules.hooks.hook import Hook
from lrp_rules.hooks.registration import Registration, is_in_checkpoint
from lrp_rules.layers.convolution import ConvLayer, ConvTransposeLayer
from lrp_rules.layers.known import BatchNormLayer, LinearLayer, layer_type
from lrp_rules.modules import effective_parameters
from lrp_rules.networks.layers import bare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lrp_rules.networks.flow import Flow

BatchNorm = nn.modules.batchnorm._BatchNorm


class FoldBatchNorm(Hook):
    """A batch norm in eval mode as a part of the layer that it follows: the layer's rule sees both as one layer.

        w' = w * scale        b' = (b - mean) * scale + shift        scale = weight / sqrt(var + eps)

    For batch norms in ``attach``. Whether one follows a linear layer or a convolution is seen in the call itself: its
    input is the layer's output. Where it follows something else, ``otherwise`` is its rule.

    Parameters
    ----------
    otherwise
        The rule of a batch norm that does not follow a layer with a rule, such as Epsilon().

    Raises
    ------
    RuntimeError
        When a batch norm in train mode is called: it mixes the samples, and no layer before it can hold that.

    """

    allows_several: ClassVar[bool] = False

    def __init__(self, otherwise: Hook) -> None:
        if not isinstance(otherwise, Hook):
            msg = f"otherwise is {otherwise!r}; expected the rule of a batch norm that follows no layer, as Epsilon()"
            raise TypeError(msg)
        self.otherwise = otherwise

    def register(self, module: nn.Module) -> Registration:
        """Refuse to stand alone: what a batch norm follows is known to ``attach``."""
        msg = (
            f"FoldBatchNorm cannot be registered on {module}: only attach knows which layer a batch norm follows. Use "
            f"attach(model, {{nn.BatchNorm2d: FoldBatchNorm(Epsilon()), ...}})"
        )
        raise TypeError(msg)

    def fold(self, module: nn.Module, inputs: Sequence[Tensor], flow: Flow) -> Tensor:
        """Call a batch norm that is no module of the model, and fold it."""
        registration = Folding(self, module, lambda: flow)
        registration.asked, registration.around = flow.between.asked, flow.between.around
        try:
            return module(*inputs)  # type: ignore[no-any-return]
        finally:
            registration.remove()


class Folding(Registration):
    """The registration of a batch norm's ``otherwise``, that folds where it can."""

    def __init__(self, rule: FoldBatchNorm, module: nn.Module, flow: Callable[[], Flow | None]) -> None:
        super().__init__(rule.otherwise, module)
        self._flow, self.folded = flow, 0

    @property
    def rule_name(self) -> str:
        """What a table calls the rule."""
        return "folded" if self.folded else type(self.hook).__name__

    @opaque
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self._handles and torch.is_grad_enabled() and isinstance(output, Tensor):
            if isinstance(module, BatchNorm) and (module.training or module.running_mean is None):
                msg = (
                    f"FoldBatchNorm on {module}: it normalises by the statistics of its batch, so that no sample "
                    "stands for itself; expected a batch norm in eval mode. Call model.eval() first"
                    f"{see('batch-norms')}"
                )
                raise RuntimeError(msg)
            x, flow = (*args, *kwargs.values())[0], self._flow()
            layer = None if flow is None or not isinstance(x, Tensor) else flow.layer_of(x)
            folded = None if layer is None else _folded(layer.module, layer.x, module)
            if folded is not None and layer is not None:
                # what has been noted of the call before is not needed
                vars(self._entries).pop("open", None)
                self.calls += 1
                self.folded += 1
                if self.unrepeated:
                    self.unrepeated -= is_in_checkpoint("backward")
                return self.put(layer.hook, folded, layer.x, output, self._asked_of(layer.module, module))
        return super()._after(module, args, kwargs, output)

    def _asked_of(self, layer: nn.Module, norm: nn.Module) -> dict[str, Tensor]:
        """Return what is asked of the pair: each weight of the layer is one of its own there, and no bias is."""
        if not self.asked:
            return {}
        if id(layer._parameters.get("bias")) in self.asked:
            msg = (
                f"the relevance of the bias of {layer} is asked for, and {norm} is folded into that layer: both are in "
                "the constant of the two, which has one relevance; expected the bias of a layer without a batch norm. "
                f"Ask for the weight of the layer{see('relevance-of-parameters')}"
            )
            raise ValueError(msg)
        weight = id(layer._parameters.get("weight"))
        return {"weight": self.asked[weight]} if weight in self.asked else {}


def _folded(layer: nn.Module, x: Tensor, norm: nn.Module) -> nn.Module | None:
    """Return the layer with the batch norm in it; None where that is no layer of the same kind."""
    kind = layer_type(layer)
    if kind not in {LinearLayer, ConvLayer, ConvTransposeLayer} or layer_type(norm) is not BatchNormLayer:
        return None
    assert isinstance(norm, BatchNorm)
    if x.ndim != (2 if kind is LinearLayer else len(layer.kernel_size) + 2):  # type: ignore[arg-type]
        return None  # its channels are not those of the batch norm
    given = effective_parameters(layer, kind.used_parameters)
    weight, bias, mean, variance = given["weight"], given["bias"], norm.running_mean, norm.running_var
    assert weight is not None
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.eps).rsqrt() if norm.weight is None else norm.weight / (variance + norm.eps).sqrt()
    if kind is ConvTransposeLayer:  # (in, out / groups, ...)
        groups = layer.groups
        assert isinstance(groups, int)
        by_groups = weight.unflatten(0, (groups, -1))
        spread = scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
        changed = (by_groups * spread).flatten(0, 1)
    else:
        changed = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    constant = (-mean if bias is None else bias - mean) * scale
    if norm.bias is not None:
        constant = constant + norm.bias
    own = next(c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn.modules"))
    names = (*getattr(own, "__constants__", ()), "_reversed_padding_repeated_twice", "transposed", "training")
    state = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    return bare(own, {"weight": changed, "bias": constant}, **state)  # type: ignore[no-any-return]

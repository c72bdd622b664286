"""Normalisations over parts of a sample, as linear layers: their deviation is taken for a constant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from lrp_rules.layers.layer import Layer, Map, Matrix

if TYPE_CHECKING:
    from lrp_rules.layers.layer import Change

#: Those that are known, by what they run: a subclass with a forward of its own may compute anything.
_KNOWN = {
    nn.LayerNorm.forward,
    nn.RMSNorm.forward,
    nn.GroupNorm.forward,
    _InstanceNorm.forward,
}


def is_normalization(module: nn.Module) -> bool:
    """Whether the module can be seen as a :class:`NormalizationLayer`."""
    return "forward" not in vars(module) and type(module).forward in _KNOWN


@dataclass
class NormalizationLayer(Layer):
    """LayerNorm, RMSNorm, GroupNorm and InstanceNorm by the statistics of the input: z = g / sd * (x - mean(x)) + b.

    The deviation sd is a number here, though one that depends on x: A = g / sd * (1 - mean), without the mean for
    RMSNorm.
    """

    module: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | _InstanceNorm

    #: What is added to the variance.
    eps: float = field(kw_only=True)

    @classmethod
    def of(cls, layer: Layer, eps: float) -> NormalizationLayer:
        """Return the layer of a call."""
        module: Any = layer.module
        return cls(
            module, layer.inputs, layer.outputs, layer.shape, layer.given, layer.zero_params,
            run=layer.run, eps=eps, known_right=layer.known_right,
        )  # fmt: skip

    def matrix(self, change: Change | None = None) -> Matrix:
        assert change is None  # the rule for them leaves weights as they are
        scale = self._scale()
        return Map(lambda v: self._centred(v) * scale, lambda s: self._centred(s * scale), fresh=True)

    @property
    def bias(self) -> Tensor:
        bias = self.parameters.get("bias")
        return self.x.new_zeros(()) if bias is None else self._per_channel(bias)

    def output(self) -> Tensor:
        real = self.but(zero_params=())
        return real.matrix() @ self.x + real.bias

    @property
    def takes_samples(self) -> bool:
        return False  # the first dimension need not hold samples

    def _scale(self) -> Tensor:
        """Return g / sd."""
        deviation = (self._mean(self._centred(self.x).square()) + self.eps).sqrt()
        weight = self.parameters.get("weight")
        if weight is None:
            return deviation.reciprocal()
        return self._per_channel(weight) / deviation

    def _centred(self, v: Tensor) -> Tensor:
        return v if isinstance(self.module, nn.RMSNorm) else v - self._mean(v)

    def _mean(self, v: Tensor) -> Tensor:
        """Return the mean of the group that each entry belongs to."""
        module = self.module
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            return v.mean(tuple(range(-len(module.normalized_shape), 0)), keepdim=True)
        if isinstance(module, nn.GroupNorm):
            groups = v.reshape(v.shape[0], module.num_groups, -1)
            return groups.mean(-1, keepdim=True).expand_as(groups).reshape(v.shape)
        return v.mean(tuple(range(-self._dims, 0)), keepdim=True)

    def _per_channel(self, parameter: Tensor) -> Tensor:
        if isinstance(self.module, (nn.LayerNorm, nn.RMSNorm)):
            return parameter
        return parameter.view((-1,) + (1,) * self._dims)

    @property
    def _dims(self) -> int:
        """How many dimensions follow that of the channels."""
        name = type(self.module).__name__
        return int(name[-2]) if isinstance(self.module, _InstanceNorm) else self.x.ndim - 2


def added_to_variance(module: nn.Module, x: Tensor) -> float:
    """Return what the module adds to a variance."""
    eps: float | None = module.eps  # type: ignore[assignment]
    # in float16 and bfloat16, torch computes with the digits of a float32
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if eps is None else eps


def is_affine(module: nn.Module) -> bool:
    """Whether the module normalises by statistics that it has learned, and not by those of its input."""
    return isinstance(module, _InstanceNorm) and not module.training and module.running_mean is not None

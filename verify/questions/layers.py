"""The layers that every rule is tried on. Shapes are asymmetric, so that a transposed axis is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class LayerCase:
    """A configuration of a layer: a readable name, its family (the column of the table), and the shape of its input.

    ``linear`` tells whether the reference knows it as A(w) x + b; ``weighted`` whether it has parameters.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    linear: bool = True
    weighted: bool = True
    batched: bool = True

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.shape[1:] if self.batched else self.shape


def _weighted(name: str, family: str, build: Callable[[], nn.Module], *shape: int) -> LayerCase:
    return LayerCase(name, family, build, shape)


def _unbatched(name: str, family: str, build: Callable[[], nn.Module], *shape: int) -> LayerCase:
    return LayerCase(name, family, build, shape, batched=False)


def _pool(name: str, family: str, build: Callable[[], nn.Module], *shape: int) -> LayerCase:
    return LayerCase(name, family, build, shape, weighted=False)


def _nonlinear(name: str, family: str, build: Callable[[], nn.Module], *shape: int) -> LayerCase:
    return LayerCase(name, family, build, shape, linear=False, weighted=False)


LAYERS: tuple[LayerCase, ...] = (
    _weighted("linear-5-4", "Linear", lambda: nn.Linear(5, 4), 3, 5),
    _weighted("linear-7-3-nobias", "Linear", lambda: nn.Linear(7, 3, bias=False), 2, 7),
    _weighted("linear-1-3", "Linear", lambda: nn.Linear(1, 3), 2, 1),
    _weighted("linear-6-1", "Linear", lambda: nn.Linear(6, 1), 1, 6),
    _weighted("linear-3d-input", "Linear", lambda: nn.Linear(4, 3), 2, 5, 4),
    _unbatched("linear-1d-input", "Linear", lambda: nn.Linear(5, 3), 5),
    _weighted("linear-60-20", "Linear", lambda: nn.Linear(60, 20), 2, 60),
    _weighted("conv1d-k3", "Conv1d", lambda: nn.Conv1d(2, 3, 3), 2, 2, 7),
    _weighted("conv1d-k3-s2-p1-d2", "Conv1d", lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), 2, 2, 11),
    _weighted("conv1d-k4-same-d3", "Conv1d", lambda: nn.Conv1d(2, 3, 4, padding="same", dilation=3), 2, 2, 13),
    _weighted("conv1d-k5-valid-nobias", "Conv1d", lambda: nn.Conv1d(3, 2, 5, padding="valid", bias=False), 2, 3, 8),
    _weighted("conv1d-k3-circular", "Conv1d", lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), 2, 2, 5),
    _weighted("conv2d-k3", "Conv2d", lambda: nn.Conv2d(2, 3, 3), 2, 2, 5, 6),
    _weighted("conv2d-k1", "Conv2d", lambda: nn.Conv2d(3, 2, 1), 2, 3, 3, 4),
    _weighted("conv2d-k3x2-s2x1-p1x0", "Conv2d", lambda: nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 0)), 2, 2, 6, 5),
    _weighted("conv2d-s3-rest", "Conv2d", lambda: nn.Conv2d(2, 2, 2, stride=3), 2, 2, 7, 6),
    _weighted("conv2d-d2-p2", "Conv2d", lambda: nn.Conv2d(2, 2, 3, dilation=2, padding=2), 2, 2, 6, 5),
    _weighted("conv2d-g2", "Conv2d", lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), 2, 4, 4, 3),
    _weighted("conv2d-depthwise", "Conv2d", lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), 2, 3, 4, 5),
    _weighted("conv2d-k4x3-same", "Conv2d", lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), 2, 2, 5, 4),
    _weighted("conv2d-nobias", "Conv2d", lambda: nn.Conv2d(2, 3, 3, padding=1, bias=False), 2, 2, 4, 5),
    _weighted(
        "conv2d-circular", "Conv2d", lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="circular"), 2, 2, 4, 5
    ),
    _weighted(
        "conv2d-reflect", "Conv2d", lambda: nn.Conv2d(2, 2, 3, padding=(1, 2), padding_mode="reflect"), 2, 2, 4, 5
    ),
    _weighted(
        "conv2d-replicate-s2",
        "Conv2d",
        lambda: nn.Conv2d(2, 2, 3, stride=2, padding=2, padding_mode="replicate"),
        2,
        2,
        5,
        4,
    ),
    _unbatched("conv2d-unbatched", "Conv2d", lambda: nn.Conv2d(2, 3, 3, padding=1), 2, 4, 5),
    _weighted("conv3d-k2", "Conv3d", lambda: nn.Conv3d(2, 2, 2), 2, 2, 3, 4, 3),
    _weighted("conv3d-s2-p1", "Conv3d", lambda: nn.Conv3d(1, 3, 3, stride=(1, 2, 2), padding=1), 2, 1, 3, 5, 4),
    _weighted(
        "conv3d-replicate", "Conv3d", lambda: nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate"), 2, 1, 2, 3, 4
    ),
    _weighted("convtranspose1d-k3", "ConvTranspose1d", lambda: nn.ConvTranspose1d(2, 3, 3), 2, 2, 5),
    _weighted(
        "convtranspose1d-s2-d3-op2",
        "ConvTranspose1d",
        lambda: nn.ConvTranspose1d(2, 2, 3, stride=2, dilation=3, output_padding=2, padding=1),
        2,
        2,
        5,
    ),
    _weighted("convtranspose2d-k3", "ConvTranspose2d", lambda: nn.ConvTranspose2d(2, 3, (3, 2)), 2, 2, 3, 4),
    _weighted(
        "convtranspose2d-s2-p1-op1",
        "ConvTranspose2d",
        lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1),
        2,
        3,
        3,
        2,
    ),
    _weighted(
        "convtranspose2d-g2-d2-nobias",
        "ConvTranspose2d",
        lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2, bias=False),
        2,
        4,
        3,
        2,
    ),
    _weighted("convtranspose3d-s2", "ConvTranspose3d", lambda: nn.ConvTranspose3d(1, 2, 2, stride=2), 2, 1, 2, 3, 2),
    _weighted("batchnorm1d", "BatchNorm", lambda: nn.BatchNorm1d(4), 3, 4),
    _weighted("batchnorm2d", "BatchNorm", lambda: nn.BatchNorm2d(3), 2, 3, 2, 4),
    _pool("batchnorm2d-plain", "BatchNorm", lambda: nn.BatchNorm2d(3, affine=False), 2, 3, 2, 4),
    _pool("avgpool1d", "AvgPool", lambda: nn.AvgPool1d(3, 2), 2, 2, 8),
    _pool("avgpool2d", "AvgPool", lambda: nn.AvgPool2d(2), 2, 2, 4, 6),
    _pool("avgpool2d-p1-ceil", "AvgPool", lambda: nn.AvgPool2d((3, 2), 2, (1, 0), ceil_mode=True), 2, 2, 6, 5),
    _pool("avgpool2d-p1-nopadcount", "AvgPool", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), 2, 2, 5, 6),
    _pool("avgpool2d-divisor", "AvgPool", lambda: nn.AvgPool2d(2, divisor_override=3), 2, 2, 4, 5),
    _pool("avgpool3d", "AvgPool", lambda: nn.AvgPool3d(2), 2, 1, 2, 4, 4),
    _pool("adaptiveavgpool1d", "AdaptiveAvgPool", lambda: nn.AdaptiveAvgPool1d(3), 2, 2, 7),
    _pool("adaptiveavgpool2d", "AdaptiveAvgPool", lambda: nn.AdaptiveAvgPool2d((3, 2)), 2, 2, 5, 3),
    _pool("adaptiveavgpool3d", "AdaptiveAvgPool", lambda: nn.AdaptiveAvgPool3d((2, 1, 2)), 2, 1, 3, 2, 5),
    _nonlinear("maxpool1d", "MaxPool", lambda: nn.MaxPool1d(2), 2, 2, 7),
    _nonlinear("maxpool2d-s1-p1", "MaxPool", lambda: nn.MaxPool2d((3, 2), 1, 1), 2, 2, 4, 5),
    _nonlinear("maxpool2d-d2", "MaxPool", lambda: nn.MaxPool2d(2, 1, dilation=2), 2, 2, 5, 4),
    _nonlinear("maxpool3d", "MaxPool", lambda: nn.MaxPool3d(2), 2, 1, 2, 4, 5),
    _nonlinear("identity", "Activation", nn.Identity, 2, 6),
    _nonlinear("relu", "Activation", nn.ReLU, 3, 5),
    _nonlinear("leakyrelu", "Activation", lambda: nn.LeakyReLU(0.1), 3, 5),
    _nonlinear("tanh", "Activation", nn.Tanh, 3, 5),
    _nonlinear("sigmoid", "Activation", nn.Sigmoid, 3, 5),
    _nonlinear("softplus", "Activation", lambda: nn.Softplus(beta=2.0), 3, 5),
    _nonlinear("softmax", "Activation", lambda: nn.Softmax(dim=1), 3, 5),
)

FAMILIES = tuple(dict.fromkeys(layer.family for layer in LAYERS))

#: One of each kind, on which variants of rules and of inputs are tried; all others get the defaults.
CORE = frozenset(
    {"linear-5-4", "conv2d-k3x2-s2x1-p1x0", "conv2d-circular", "convtranspose2d-s2-p1-op1", "avgpool2d-p1-ceil"}
)

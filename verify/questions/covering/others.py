"""The layers of a row that are no convolutions, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Shape = tuple[int, ...]


class OwnReLU(nn.ReLU):
    """A subclass that adds nothing."""


#: Type, arguments, and the shape of one sample.
_FIXED: dict[str, tuple[type[nn.Module], tuple[Any, ...], dict[str, Any], Shape]] = {
    "batchnorm1d": (nn.BatchNorm1d, (4,), {}, (4,)),
    "batchnorm1d-length": (nn.BatchNorm1d, (3,), {}, (3, 5)),
    "batchnorm2d": (nn.BatchNorm2d, (3,), {}, (3, 2, 4)),
    "batchnorm3d": (nn.BatchNorm3d, (2,), {}, (2, 3, 2, 2)),
    "batchnorm2d-plain": (nn.BatchNorm2d, (3,), {"affine": False}, (3, 2, 4)),
    "avgpool1d": (nn.AvgPool1d, (3, 2), {}, (2, 8)),
    "avgpool1d-nopadcount": (nn.AvgPool1d, (3, 2, 1), {"count_include_pad": False, "ceil_mode": True}, (2, 8)),
    "avgpool2d": (nn.AvgPool2d, (2,), {}, (2, 4, 6)),
    "avgpool2d-ceil": (nn.AvgPool2d, ((3, 2), 2, (1, 0)), {"ceil_mode": True}, (2, 6, 5)),
    "avgpool2d-divisor": (nn.AvgPool2d, (2, 1), {"divisor_override": 3}, (2, 4, 5)),
    "avgpool2d-uneven": (nn.AvgPool2d, ((3, 2), (1, 2), (1, 1)), {"count_include_pad": False}, (2, 5, 4)),
    "avgpool2d-global": (nn.AvgPool2d, ((4, 5),), {}, (3, 4, 5)),
    "avgpool3d": (nn.AvgPool3d, (2,), {}, (1, 2, 4, 5)),
    "avgpool3d-nopadcount": (nn.AvgPool3d, (2, 2, 1), {"count_include_pad": False, "ceil_mode": True}, (2, 3, 2, 4)),
    "adaptiveavgpool1d": (nn.AdaptiveAvgPool1d, (3,), {}, (2, 7)),
    "adaptiveavgpool2d": (nn.AdaptiveAvgPool2d, ((3, 2),), {}, (2, 5, 3)),
    "adaptiveavgpool2d-none": (nn.AdaptiveAvgPool2d, ((None, 1),), {}, (2, 3, 4)),
    "adaptiveavgpool3d": (nn.AdaptiveAvgPool3d, ((2, 1, 2),), {}, (1, 3, 2, 5)),
    "maxpool1d": (nn.MaxPool1d, (3, 2, 1), {}, (2, 7)),
    "maxpool2d": (nn.MaxPool2d, (2,), {}, (2, 4, 6)),
    "maxpool2d-ceil": (nn.MaxPool2d, (2, 2), {"ceil_mode": True}, (2, 5, 3)),
    "maxpool2d-uneven": (nn.MaxPool2d, ((3, 2), (1, 2), (1, 0)), {"dilation": (1, 2)}, (2, 4, 5)),
    "maxpool3d": (nn.MaxPool3d, (2, 1), {}, (1, 2, 3, 4)),
}
_ELEMENTWISE: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "relu-inplace": lambda: nn.ReLU(inplace=True), "relu-subclass": OwnReLU,
    "leakyrelu": lambda: nn.LeakyReLU(0.2), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(beta=2.0), "gelu": nn.GELU, "silu": nn.SiLU, "elu": lambda: nn.ELU(0.7),
    "identity": nn.Identity, "softmax": lambda: nn.Softmax(dim=-1),
}  # fmt: skip
#: Of a sample, by the number of dimensions that the whole input has.
_SHAPES: dict[str, Shape] = {"1": (7,), "2": (6,), "3": (2, 5), "4": (2, 3, 4), "5": (2, 2, 3, 2)}


class _Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


#: A subclass for each type, which adds nothing.
_SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {
    kind: type(f"Own{kind.__name__}", (kind,), {"__doc__": "A subclass that adds nothing."})
    for kind in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
    )
}  # fmt: skip


def formed(module: nn.Module, form: str) -> nn.Module:
    """Return the same layer in the form that a level names."""
    if form == "subclass":
        module.__class__ = _SUBCLASSES[type(module)]
    elif form == "parametrized":
        parametrize.register_parametrization(module, "weight", _Halved())
    return module


def layer(row: Mapping[str, str]) -> tuple[Callable[[], nn.Module], Shape]:
    """Return what makes a layer, and the shape of one sample."""
    name = row["layer"]
    if name == "linear":
        ins, outs = (int(size) for size in row.get("features", "6-6").split("-"))
        leading = {"2x3": (3,), "2x1x3": (1, 3)}.get(row["batch"], ())
        return lambda: nn.Linear(ins, outs, bias=row.get("b") != "none"), (*leading, ins)
    if name == "conv2d":  # whose output has the shape of its input
        return lambda: nn.Conv2d(2, 2, 3, padding=1), (2, 3, 4)
    if name in _FIXED:
        kind, arguments, options, shape = _FIXED[name]
        return lambda: kind(*arguments, **options), shape
    return _ELEMENTWISE[name], _SHAPES[row.get("dims", "2")]

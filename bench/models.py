"""Whole models and the composites on them, the same model for every subject.

VGG16 and ResNet18 are written out plainly: the layers of torchvision's, without its dropout (which does nothing in
eval mode) and without writing in place, with random weights that keep the size of activations. In ResNet18 each batch
normalisation, with statistics and parameters drawn at random, is folded into its convolution by
``torch.nn.utils.fusion.fuse_conv_bn_eval``. A residual sum is a module of its own, :class:`Residual`, that adds up the
last axis of its two inputs stacked, as zennit's canonizer writes it; every subject puts Norm on it. Max pooling has no
rule: its gradient is what relevance follows.
"""

from __future__ import annotations

import importlib
import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import lrp_rules
from verify.model import NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject

LOW, HIGH = -3.0, 3.0


class Residual(nn.Module):
    """The sum over the last axis: a shortcut and what it goes around, stacked."""

    def forward(self, stacked: Tensor) -> Tensor:
        """Return the sum."""
        return stacked.sum(-1)


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = _folded(channels, outputs, 3, stride), nn.ReLU()
        self.conv2, self.sum, self.relu2 = _folded(outputs, outputs, 3, 1), Residual(), nn.ReLU()
        self.shortcut = None if channels == outputs else _folded(channels, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        around = x if self.shortcut is None else self.shortcut(x)
        output: Tensor = self.relu2(self.sum(torch.stack([around, self.conv2(self.relu1(self.conv1(x)))], -1)))
        return output


def _folded(channels: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    """Return a convolution with a batch normalisation folded into it."""
    conv = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=False)
    norm = nn.BatchNorm2d(outputs)
    _drawn(conv)
    for tensor, low, high in ((norm.weight, 0.3, 0.9), (norm.running_var, 0.5, 1.5)):
        nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]
    for tensor in (norm.bias, norm.running_mean):
        nn.init.normal_(tensor, 0, 0.1)  # type: ignore[arg-type]
    return fuse_conv_bn_eval(conv.eval(), norm.eval())


def _drawn(module: nn.Module) -> None:
    """Draw weights that keep the size of activations, and small biases."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.05)


def vgg16() -> nn.Module:
    """VGG16 (Simonyan and Zisserman 2015), 138 million parameters."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()] if outputs else [nn.MaxPool2d(2)]
        channels = outputs or channels
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU()]
    layers += [nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers).apply(_drawn)


def resnet18() -> nn.Module:
    """ResNet18 (He et al. 2016), batch normalisation folded, 12 million parameters."""
    widths = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
    blocks = [Block(*width) for width in (*widths, (512, 512, 1))]
    last = nn.Linear(512, 1000)
    _drawn(last)
    stem = (_folded(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def mlp() -> nn.Module:
    """Three layers of 512."""
    widths = (784, 512, 512, 10)
    layers = [part for n, m in itertools.pairwise(widths) for part in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).apply(_drawn)


def audio_cnn() -> nn.Module:
    """Convolutions over a waveform, as M5 (Dai et al. 2017)."""
    layers: list[nn.Module] = [nn.Conv1d(1, 32, 80, stride=4), nn.ReLU(), nn.MaxPool1d(4)]
    for channels, outputs in ((32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv1d(channels, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool1d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 35)).apply(_drawn)


@dataclass(frozen=True)
class Model:
    """A model, the shape of one sample, and the batch it is timed with."""

    family: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    regime: str


MODELS = {
    "vgg16@224": Model("VGG16", vgg16, (3, 224, 224), 2, "compute"),
    "resnet18@224": Model("ResNet18", resnet18, (3, 224, 224), 2, "compute"),
    "mlp": Model("MLP", mlp, (784,), 4, "overhead"),
    "audio-cnn": Model("AudioCNN", audio_cnn, (1, 8000), 4, "compute"),
}

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Composite:
    """Which rule goes on convolutions, and which on the first layer if it is of the given types."""

    convolutions: tuple[str, dict[str, Any]]
    first: tuple[str, dict[str, Any]] | None = None
    first_types: tuple[type[nn.Module], ...] = ()

    def rules(self, model: nn.Module) -> dict[nn.Module, tuple[str, dict[str, Any]]]:
        """Return the rule of each module that has one, by name and arguments."""
        table: dict[nn.Module, tuple[str, dict[str, Any]]] = {}
        visited = self.first is None
        for module in model.modules():
            if not visited and self.first and isinstance(module, self.first_types):
                table[module], visited = self.first, True
            elif isinstance(module, _CONVOLUTIONS):
                table[module] = self.convolutions
            elif isinstance(module, nn.Linear):
                table[module] = ("Epsilon", {})
            elif isinstance(module, nn.ReLU):
                table[module] = ("Pass", {})
            elif isinstance(module, (Residual, *_AVERAGES)):
                table[module] = ("Norm", {})
        return table


#: Named as zennit's, which hold the same rules.
COMPOSITES = {
    "EpsilonPlus": Composite(("ZPlus", {})),
    "EpsilonGammaBox": Composite(
        ("Gamma", {"gamma": 0.25}), ("ZBox", {"low": LOW, "high": HIGH}), (nn.Conv1d, nn.Conv2d)
    ),
    "EpsilonAlpha2Beta1Flat": Composite(
        ("AlphaBeta", {"alpha": 2.0, "beta": 1.0}), ("Flat", {}), (nn.Conv1d, nn.Conv2d, nn.Linear)
    ),
}


@contextmanager
def attached(model: nn.Module, composite: str, subject: Subject) -> Iterator[None]:
    """Put a composite on a model, in the subject's own way: zennit's composites, ``attach`` for all others.

    Raises
    ------
    NotOfferedError
        If the subject lacks a rule, or explains only whole calls, as captum does.

    """
    table = COMPOSITES[composite].rules(model)
    if subject.spec.startswith("zennit"):
        composites = importlib.import_module("zennit.composites")
        norm = importlib.import_module("zennit.rules").Norm
        arguments = {"low": LOW, "high": HIGH} if composite == "EpsilonGammaBox" else {}
        with getattr(composites, composite)(layer_map=[(Residual, norm())], **arguments).context(model):
            yield
        return
    if subject.spec.startswith("verify.subjects."):
        msg = f"{subject.spec} takes one layer at a time, not {composite} on a model"
        raise NotOfferedError(msg)
    names = {module: name for name, module in model.named_modules()}
    rules = {names[module]: subject.get(rule)(**arguments) for module, (rule, arguments) in table.items()}
    with lrp_rules.attach(model, rules):
        yield

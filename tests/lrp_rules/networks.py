"""Small networks of every make that people explain, with what lies between their layers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by

from tests.lrp_rules.peer import load_torchvision

if TYPE_CHECKING:
    from collections.abc import Callable


class Residual(nn.Module):
    """Two convolutions with batch norms, and a shortcut that is added in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        found: Tensor = self.relu(out)
        return found


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.down, self.up = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, 2, 1),
            nn.Conv2d(2, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return x * gate


class UNet(nn.Module):
    """Down, up, and the two concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.down(x))
        found: Tensor = self.out(torch.cat([first, F.interpolate(F.relu(self.up(self.middle(first))), size=8)], 1))
        return found.mean((2, 3))


class Decoder(nn.Module):
    """Causal attention as GPT has it: fused projections, pre-normalisation, GELU."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.position = nn.Parameter(torch.randn(1, 5, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        n, length, width = x.shape
        q, k, v = (t.view(n, length, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(width, 2))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(n, length, width))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x[:, -1]


class Graph(nn.Module):
    """Message passing: neighbours are gathered and added."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.others, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.edges: Tensor
        self.register_buffer("edges", torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]]))

    def forward(self, x: Tensor) -> Tensor:
        messages = self.others(x)[:, self.edges[0]]
        summed = torch.zeros_like(self.own(x)).index_add(1, self.edges[1], messages)
        found: Tensor = self.out(F.relu(self.own(x) + summed).mean(1))
        return found


class Audio(nn.Module):
    """Convolutions in one dimension, a fixed pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 4, 5, stride=2), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 6, 3), nn.GELU()
        )
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.layers(x).mean(-1))
        return found


class Recurrent(nn.Module):
    """A recurrent layer, of which the last step is classified."""

    def __init__(self, kind: type[nn.RNNBase], **kwargs: Any) -> None:
        super().__init__()
        self.layer = kind(8, 4, batch_first=True, **kwargs)  # type: ignore[arg-type]
        self.out = nn.Linear(4 * (1 + self.layer.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.layer(x)[0][:, -1])
        return found


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), Residual(4), Residual(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def gated() -> nn.Module:
    return nn.Sequential(Gated(3), nn.GroupNorm(3, 3), Gated(3), nn.Flatten(), nn.Linear(192, 3))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))


IMAGE, SEQUENCE = (2, 3, 8, 8), (2, 5, 8)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (residual, IMAGE), "gated": (gated, IMAGE), "u-net": (UNet, IMAGE), "encoder": (encoder, SEQUENCE),
    "decoder": (Decoder, SEQUENCE), "lstm": (lambda: Recurrent(nn.LSTM, num_layers=2), SEQUENCE),
    "gru": (lambda: Recurrent(nn.GRU, bidirectional=True), SEQUENCE), "rnn": (lambda: Recurrent(nn.RNN), SEQUENCE),
    "graph": (Graph, (2, 4, 4)), "audio": (Audio, (2, 1, 40)),
}  # fmt: skip


def _torchvision(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models: Any = importlib.import_module(f"{load_torchvision().__name__}.models")
        found = getattr(models, name)
        model: nn.Module = found(**kwargs)
        return model

    return make


def _swin(name: str) -> Callable[[], nn.Module]:
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": [2, 2]}

    def make() -> nn.Module:
        load_torchvision()
        swin: Any = importlib.import_module("torchvision.models.swin_transformer")
        if name == "v1":
            model: nn.Module = swin.SwinTransformer(**sizes, num_classes=5)
        else:
            merging, block = swin.PatchMergingV2, swin.SwinTransformerBlockV2
            model = swin.SwinTransformer(**sizes, num_classes=5, block=block, downsample_layer=merging)
        return model

    return make


def _vgg() -> nn.Module:
    load_torchvision()
    vgg: Any = importlib.import_module("torchvision.models.vgg")
    # its classifier has a hundred million weights
    return nn.Sequential(
        vgg.make_layers([8, "M", 8, 8, "M"], batch_norm=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )


def _convnext() -> nn.Module:
    load_torchvision()
    convnext: Any = importlib.import_module("torchvision.models.convnext")
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    model: nn.Module = convnext.ConvNeXt(blocks, num_classes=5, layer_scale=0.5)
    return model


_BIG = (1, 3, 32, 32)
#: The families of torchvision's classifiers, in the smallest sizes that they come in.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg": (_vgg, _BIG),
    "resnet": (_torchvision("resnet18", num_classes=5), _BIG),
    "resnext": (_torchvision("resnext50_32x4d", num_classes=5), _BIG),
    "squeezenet": (_torchvision("squeezenet1_1", num_classes=5), _BIG),
    "densenet": (
        _torchvision("DenseNet", growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=5), _BIG
    ),
    "googlenet": (_torchvision("googlenet", num_classes=5, aux_logits=False, init_weights=False), _BIG),
    "inception": (_torchvision("inception_v3", num_classes=5, aux_logits=False, init_weights=False), (1, 3, 75, 75)),
    "shufflenet": (_torchvision("shufflenet_v2_x0_5", num_classes=5), _BIG),
    "mobilenet_v2": (_torchvision("mobilenet_v2", num_classes=5, width_mult=0.25), _BIG),
    "mobilenet_v3": (_torchvision("mobilenet_v3_small", num_classes=5), _BIG),
    "mnasnet": (_torchvision("mnasnet0_5", num_classes=5), _BIG),
    "regnet": (_torchvision("regnet_y_400mf", num_classes=5), _BIG),
    "efficientnet": (_torchvision("efficientnet_b0", num_classes=5), _BIG),
    "convnext": (_convnext, _BIG),
    "vit": (
        _torchvision(
            "VisionTransformer", image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16,
            num_classes=5,
        ),
        (1, 3, 16, 16),
    ),
    "swin": (_swin("v1"), _BIG),
    "swin_v2": (_swin("v2"), _BIG),
    "maxvit": (
        _torchvision(
            "MaxVit", input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[8, 16],
            block_layers=[1, 1], head_dim=4, stochastic_depth_prob=0.0, num_classes=5,
        ),
        _BIG,
    ),
}  # fmt: skip


def prepared(make: Callable[[], nn.Module], *, constants: bool) -> nn.Module:
    """Return a network in eval mode and float64, all of its numbers drawn with a fixed seed; constants may be zero."""
    model = make().double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if not value.is_floating_point():
                    continue
                drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                if name == "running_var":
                    value.copy_(drawn.abs() + 0.5)
                elif (name.endswith("weight") or name.startswith("weight_")) and value.ndim > 1:
                    value.copy_(drawn / value[0].numel() ** 0.5)
                elif name == "weight" or "scale" in name:
                    value.copy_(1 + drawn / 4)
                elif "coords" not in name:
                    value.copy_(drawn / 4 if constants else torch.zeros_like(drawn))
    return model

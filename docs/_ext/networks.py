"""The networks of the gallery: small ones, as anybody would write them. The page shows this source."""

# ruff: noqa: D102 - forward needs no words

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by


class CNN(nn.Module):
    """Convolutions, ReLU, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.out = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 4)
        return self.out(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResNet(nn.Module):
    """Batch norms, and a shortcut that is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        branch += x
        return self.out(F.max_pool2d(F.relu(branch), 4).mean((2, 3)))


class MobileNet(nn.Module):
    """An inverted residual: wide in between, a depthwise convolution, channels weighed by their means, no ReLU last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.widen, self.norm1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depthwise, self.norm2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.narrow, self.norm3, self.out = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        wide = F.hardswish(self.norm1(self.widen(x)))
        wide = F.hardswish(self.norm2(self.depthwise(wide)))
        weights = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(wide, 1)))))
        x = x + self.norm3(self.narrow(wide * weights))
        return self.out(F.hardswish(x).amax((2, 3)))


class DenseNet(nn.Module):
    """Each layer reads all layers before it, which are concatenated; batch norm and ReLU come before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.norm3, self.out = nn.BatchNorm2d(24), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        return self.out(F.max_pool2d(F.relu(self.norm3(x)), 4).mean((2, 3)))


class ConvNeXt(nn.Module):
    """A depthwise convolution, layer norm over channels, GELU, and a learned scale of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(1, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale, self.out = nn.Parameter(torch.full((8,), 0.5)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        branch = self.scale * self.down(F.gelu(self.up(branch)))
        return self.out((x + branch.permute(0, 3, 1, 2)).amax((2, 3)))


class ViT(nn.Module):
    """Patches, a class token, position embeddings, and a transformer's encoder."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches, self.out = nn.Conv2d(1, width, 4, stride=4), nn.Linear(width, 2)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.out(self.encoder(tokens)[:, 0])


class Swin(nn.Module):
    """Attention within windows, then within shifted ones, with a learned bias; at the end, four patches become one."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches, self.norms = nn.Conv2d(1, width, 2, stride=2), nn.ModuleList(nn.LayerNorm(width) for _ in "ab")
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in "ab")
        self.project = nn.ModuleList(nn.Linear(width, width) for _ in "ab")
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(16, 16)) for _ in "ab")
        self.merge, self.out = nn.Linear(4 * width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)  # 8 x 8 tokens
        for block, shift in enumerate((0, 2)):
            x = x + self.attend(block, self.norms[block](x).roll((-shift, -shift), (1, 2))).roll((shift, shift), (1, 2))
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.out(F.gelu(self.merge(x)).mean((1, 2)))

    def attend(self, block: int, x: Tensor) -> Tensor:
        """Return the attention within windows of 4 x 4 tokens."""
        windows = x.unflatten(1, (2, 4)).unflatten(3, (2, 4)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4)
        q, k, v = self.qkv[block](windows).chunk(3, -1)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self.bias[block]).softmax(-1)
        attended = self.project[block](weights @ v).unflatten(3, (4, 4)).permute(0, 1, 3, 2, 4, 5)
        return attended.flatten(3, 4).flatten(1, 2)


class TextEncoder(nn.Module):
    """Words, as rows of a one-hot matrix, are embedded and encoded as in BERT; those that are padding are masked."""

    def __init__(self, words: int = 8, width: int = 16) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(words, width, bias=False), nn.Linear(width, 2)
        self.position = nn.Parameter(0.1 * torch.randn(1, 10, width))
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        padding = x[..., 0] == 1
        x = self.encoder(self.norm(self.embed(x) + self.position), src_key_padding_mask=padding)
        return self.out(torch.tanh(x[:, 0]))


class Decoder(nn.Module):
    """Causal attention: each step sees itself and those before it. The last one answers."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.heads = nn.Linear(4, width), heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.out = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.out(x[:, -1])


class LSTM(nn.Module):
    """A recurrent layer; its last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.LSTM(4, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.layer(x)
        return self.out(steps[:, -1])


class UNet(nn.Module):
    """Down, up again by a transposed convolution, and both concatenated: a number for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.down(x))
        coarse = F.relu(self.up(F.relu(self.middle(fine))))
        return self.out(torch.cat([fine, coarse], 1))


class Graph(nn.Module):
    """Each node adds up messages of its neighbours; the mean over nodes is classified."""

    def __init__(self, nodes: int = 10) -> None:
        super().__init__()
        self.own, self.others, self.out = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(16, 2)
        ring = torch.arange(nodes)
        self.edges: Tensor
        self.register_buffer("edges", torch.stack([torch.cat([ring, ring]), torch.cat([ring.roll(1), ring.roll(3)])]))

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.edges
        own = self.own(x)
        own = own.index_add(1, target, self.others(x)[:, source])
        return self.out(F.relu(own).mean(1))


class Audio(nn.Module):
    """Convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 8, 9, stride=2, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.AvgPool1d(2),
            nn.Conv1d(8, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

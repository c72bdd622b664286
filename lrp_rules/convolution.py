"""Convolutions and transposed convolutions as matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from lrp_rules.layer import Matrix, WeightedLayer

if TYPE_CHECKING:
    from lrp_rules.layer import Change


@dataclass(frozen=True)
class ConvLayer(WeightedLayer):
    """:class:`torch.nn.Conv1d`, Conv2d and Conv3d, with every option they have."""

    module: nn.Conv1d | nn.Conv2d | nn.Conv3d

    def matrix(self, change: Change | None = None) -> Matrix:
        weight, module, n = self._weight(change), self.module, self._dims
        run = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        run_back = (conv1d_input, conv2d_input, conv3d_input)[n - 1]
        pads, mode = self._pads(), module.padding_mode
        # the convolution itself can pad with zeros, as many on either side; any other padding is a map of its own
        # before it
        inside = mode == "zeros" and all(before == after for before, after in pads)
        padding = tuple(before for before, _ in pads) if inside else (0,) * n
        outside = [] if inside else [side for pair in reversed(pads) for side in pair]
        pad_mode = "constant" if mode == "zeros" else mode
        channels, *spatial = self.x.shape[-n - 1 :]
        padded = (
            spatial if inside else [size + before + after for size, (before, after) in zip(spatial, pads, strict=True)]
        )

        def forward(v: Tensor) -> Tensor:
            return run(
                F.pad(v, outside, mode=pad_mode) if outside else v,
                weight, None, module.stride, padding, module.dilation, module.groups,
            )  # fmt: skip

        def transposed(s: Tensor) -> Tensor:
            batch = s if s.ndim == n + 2 else s[None]
            size = (batch.shape[0], channels, *padded)
            r = run_back(size, weight, batch, module.stride, padding, module.dilation, module.groups)  # type: ignore[no-untyped-call]
            r = _pad_transposed(r, (batch.shape[0], channels, *spatial), outside, pad_mode) if outside else r
            return r if s.ndim == n + 2 else r[0]

        return Matrix(forward, transposed)

    def _pads(self) -> list[tuple[int, int]]:
        """How much is padded before and after, for each dimension."""
        module = self.module
        if module.padding == "valid":
            return [(0, 0) for _ in module.kernel_size]
        if module.padding == "same":
            # an odd total puts its extra element behind
            totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        assert not isinstance(module.padding, str)
        return [(p, p) for p in module.padding]


def _pad_transposed(g: Tensor, shape: tuple[int, ...], pads: list[int], mode: str) -> Tensor:
    """Transpose of ``F.pad``: every padded element gives what it has to the element that it copies."""
    if mode == "constant":
        return F.pad(g, [-side for side in pads])
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        v = g.new_zeros(shape, requires_grad=True)
        padded = F.pad(v, pads, mode=mode)
    return torch.autograd.grad(padded, v, g, create_graph=create_graph)[0]


@dataclass(frozen=True)
class ConvTransposeLayer(WeightedLayer):
    """:class:`torch.nn.ConvTranspose1d`, ConvTranspose2d and ConvTranspose3d, also with ``output_size`` in the call."""

    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

    def matrix(self, change: Change | None = None) -> Matrix:
        weight, module, n = self._weight(change), self.module, self._dims
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
        run_back = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        assert not isinstance(module.padding, str)
        padding: tuple[int, ...] = module.padding
        sizes = self.x.shape[-n:]
        # output_size is an argument of the call, so only the output tells how much was added behind
        geometry = zip(self.shape[-n:], sizes, module.stride, padding, module.dilation, module.kernel_size, strict=True)
        extra = tuple(out - ((size - 1) * s - 2 * p + d * (k - 1) + 1) for out, size, s, p, d, k in geometry)

        def forward(v: Tensor) -> Tensor:
            return run(v, weight, None, module.stride, padding, extra, module.groups, module.dilation)

        def transposed(s: Tensor) -> Tensor:
            r = run_back(s, weight, None, module.stride, padding, module.dilation, module.groups)
            # an output_padding of a stride or more makes room for windows that no input has
            for dim, size in enumerate(sizes, start=-n):
                r = r.narrow(dim, 0, size)
            return r

        return Matrix(forward, transposed)

"""Convolutions and transposed convolutions of a row: every option as its levels say, on an image that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shape = tuple[int, ...]

_KINDS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d,
    "convtranspose1d": nn.ConvTranspose1d, "convtranspose2d": nn.ConvTranspose2d,
    "convtranspose3d": nn.ConvTranspose3d,
}  # fmt: skip

#: By level, for one, two and three dimensions; shapes are asymmetric wherever they can be.
_IMAGES: dict[str, tuple[Shape, Shape, Shape]] = {
    "small": ((7,), (5, 4), (3, 4, 2)), "square": ((8,), (6, 6), (4, 4, 4)), "wide": ((35,), (3, 18), (2, 2, 17)),
}  # fmt: skip
_KERNELS: dict[str, tuple[Shape, Shape, Shape]] = {
    "3": ((3,), (3, 3), (3, 3, 3)), "1": ((1,), (1, 1), (1, 1, 1)), "2": ((2,), (2, 2), (2, 2, 2)),
    "uneven": ((4,), (3, 2), (2, 3, 1)), "9": ((9,), (1, 9), (1, 1, 9)),
}  # fmt: skip
_STRIDES: dict[str, tuple[Shape, Shape, Shape]] = {
    "1": ((1,), (1, 1), (1, 1, 1)), "2": ((2,), (2, 2), (2, 2, 2)), "uneven": ((3,), (2, 1), (1, 2, 1)),
    "4": ((4,), (4, 4), (4, 4, 4)),
}  # fmt: skip
_PADDINGS: dict[str, tuple[Shape, Shape, Shape]] = {
    "0": ((0,), (0, 0), (0, 0, 0)), "1": ((1,), (1, 1), (1, 1, 1)), "uneven": ((2,), (2, 1), (0, 1, 2)),
}  # fmt: skip
_DILATIONS: dict[str, tuple[Shape, Shape, Shape]] = {
    "1": ((1,), (1, 1), (1, 1, 1)), "2": ((2,), (2, 2), (2, 2, 2)), "uneven": ((3,), (1, 2), (2, 1, 1)),
}  # fmt: skip
#: Channels in and out, by level of channels and of groups.
_CHANNELS: dict[str, dict[str, tuple[int, int]]] = {
    "few": {"1": (2, 3), "2": (4, 6), "depthwise": (3, 3), "multiplied": (3, 6)},
    "equal": {"1": (3, 3), "2": (4, 4), "depthwise": (2, 2), "multiplied": (2, 4)},
    "many": {"1": (10, 12), "2": (10, 12), "depthwise": (10, 10), "multiplied": (9, 18)},
    "one-in": {"1": (1, 3)},
    "one-out": {"1": (3, 1)},
}


def window(row: Mapping[str, str]) -> tuple[type[nn.Module], dict[str, Any], Shape]:
    """Return the type of a layer, its options, and the shape of one sample.

    The image is as small as the level of size says, and larger where the kernel or the padding asks for it.
    """
    kind = _KINDS[row["layer"]]
    dims = int(row["layer"][-2])
    place, transposed = dims - 1, "transpose" in row["layer"]
    ins, outs = _CHANNELS[row["channels"]][row["groups"]]
    image = _IMAGES[row["size"]][place]
    kernel = image if row["kernel"] == "whole" else _KERNELS[row["kernel"]][place]
    stride, dilation = _STRIDES[row["stride"]][place], _DILATIONS[row["dilation"]][place]
    groups = {"1": 1, "2": 2}.get(row["groups"], ins)
    padding: Any = row["padding"]
    sides = _sides(padding, kernel, place)
    if not transposed:
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        most = [(span - 1) // 2 + 1 for span in spans] if padding == "same" else list(sides)
        # a window has to fit, a reflection to stay inside, and a circle to go round once
        inside = [p + 1 for p in most] if row["mode"] != "zeros" else [1] * dims
        room = [span if padding == "same" else span - 2 * p for span, p in zip(spans, most, strict=True)]
        if row["kernel"] != "whole":
            image = tuple(max(n, need, fits) for n, need, fits in zip(image, room, inside, strict=True))
        else:
            sides = tuple(min(p, n - 1) for p, n in zip(sides, image, strict=True))
    options: dict[str, Any] = {
        "in_channels": ins, "out_channels": outs, "kernel_size": kernel, "stride": stride, "dilation": dilation,
        "groups": groups, "bias": row["b"] != "none",
    }  # fmt: skip
    if transposed:
        sides = tuple(
            min(p, ((n - 1) * s + d * (k - 1)) // 2)
            for p, n, s, d, k in zip(sides, image, stride, dilation, kernel, strict=True)
        )
        extra = tuple(int(row["extra"]) if max(s, d) > 1 else 0 for s, d in zip(stride, dilation, strict=True))
        return kind, options | {"padding": sides, "output_padding": extra}, (ins, *image)
    given = padding if padding in {"same", "valid"} else sides
    return kind, options | {"padding": given, "padding_mode": row["mode"]}, (ins, *image)


def _sides(level: str, kernel: Shape, place: int) -> Shape:
    if level == "most":
        return tuple(max(1, k - 1) for k in kernel)
    return (0,) * len(kernel) if level in {"same", "valid"} else _PADDINGS[level][place]

"""Index arithmetic: which input position each tap of a window reads, and the matrices that follow from it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Shape = tuple[int, ...]


def taps(outputs: int, kernel: int, stride: int, before: int, dilation: int) -> Index:
    """Position that each tap of each output reads along one axis (outputs, kernel); it may lie outside the input."""
    return np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - before


def wrap(position: Index, length: int, mode: str) -> Index:
    """Position inside the input that stands at a padded position; -1 where a zero stands there."""
    match mode:
        case "zeros":
            return np.where((position >= 0) & (position < length), position, -1)
        case "reflect":
            position = np.abs(position)
            return np.where(position < length, position, 2 * (length - 1) - position)
        case "replicate":
            return np.clip(position, 0, length - 1)
        case "circular":
            return position % length
    message = f"padding_mode is {mode!r}, expected one of 'zeros', 'reflect', 'replicate', 'circular'"
    raise ValueError(message)


def combine(axes: Sequence[Index], lengths: Shape) -> Index:
    """Flat input position of every flat output position and flat tap (P, K), from one array per axis; -1 is outside."""
    flat = np.zeros((1, 1), np.intp)
    for position, length in zip(axes, lengths, strict=True):
        before, here = flat[:, None, :, None], position[None, :, None, :]
        joined = np.where((before < 0) | (here < 0), -1, before * length + here)
        flat = joined.reshape(len(flat) * len(position), -1)
    return flat


def convolve(weight: Array, groups: int, position: Index, inputs: int) -> Array:
    """Matrix of a convolution: weight (O, C/groups, *k), position (P, K) as `combine` gives it; (O P) x (C inputs)."""
    outputs, channels = weight.shape[0] // groups, weight.shape[1]
    per_tap = weight.reshape(groups, outputs, channels, -1)
    matrix = np.zeros((groups, outputs, len(position), groups, channels, inputs))
    own = np.einsum("gopgcn->gopcn", matrix)  # a view: a group of outputs reads only its own group of inputs
    for tap in range(position.shape[1]):
        # Within one tap no entry occurs twice, so += adds up where several taps read the same input.
        (rows,) = np.nonzero(position[:, tap] >= 0)
        own[:, :, rows, :, position[rows, tap]] += per_tap[None, :, :, :, tap]
    return matrix.reshape(groups * outputs * len(position), groups * channels * inputs)


def channelwise(window: Array, channels: int) -> Array:
    """Matrix of a layer that does the same to every channel: window (P, N) -> (C P) x (C N)."""
    matrix = np.zeros((channels, window.shape[0], channels, window.shape[1]))
    np.einsum("cpcn->cpn", matrix)[...] = window
    return matrix.reshape(channels * window.shape[0], channels * window.shape[1])


def pooled(length: int, extent: int, stride: int, padding: int, *, ceil_mode: bool) -> int:
    """Outputs of a pooling along one axis; under ceil_mode the last window still starts before the right padding."""
    rest = length + 2 * padding - extent
    if not ceil_mode:
        return rest // stride + 1
    outputs = -(-rest // stride) + 1
    return outputs - 1 if (outputs - 1) * stride >= length + padding else outputs

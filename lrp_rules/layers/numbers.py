"""Numbers as tensors, comparisons, and vectors that probe a matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lrp_rules.layers.blocks import into, stands_for_many

#: torch makes a tensor of each number at each operation, which takes as long as a small operation. So many
#: are kept, for good; they are a few dozen bytes each.
_KEPT = 256
_made: dict[tuple[float, torch.dtype], Tensor] = {}


def number(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor for operations on any device. It is shared, so nothing may write to it."""
    found = _made.get((value, dtype))
    return _new(value, dtype) if found is None else found


def _new(value: float, dtype: torch.dtype) -> Tensor:
    # tensors made in inference mode cannot be used in a graph
    with torch.inference_mode(mode=False):
        made = torch.tensor(value, dtype=dtype, device="cpu")
    if type(made) is Tensor and len(_made) < _KEPT:  # not a fake tensor, as some modes make
        _made[value, dtype] = made
    return made


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree up to the rounding of sums. A real difference would be much larger."""
    if a.shape != b.shape:
        return False
    if stands_for_many():
        a, b = innermost(a), innermost(b)
    if _is_batch(a) or _is_batch(b) or a.is_meta or not a.numel():
        return True  # there are no values to compare
    a, b = a.detach(), b.detach()
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    room = min(256 * eps, math.sqrt(eps)) * b.nan_to_num(0, 0, 0).abs().amax()
    difference = (a - b).abs()
    # if both are infinite or NaN, there is no difference
    return bool(((difference <= room) | (a == b) | (a.isnan() & b.isnan())).all())


def innermost(tensor: Tensor) -> Tensor:
    """Return what torch.func has wrapped to derive by it."""
    functorch: Any = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor) or functorch.is_dead_tensor_wrapper(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def _is_batch(tensor: Tensor) -> bool:
    return stands_for_many() and (
        torch._C._functorch.is_batchedtensor(tensor) or torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def probe(like: Tensor) -> Tensor:
    """Return numbers of both signs, all different, without a random generator."""
    entries = torch.arange(1, like.numel() + 1, dtype=torch.float64, device=like.device).cos()
    return entries.to(like.dtype).view(like.shape)


def times(v: Tensor, factor: float) -> Tensor:
    """Return v times the factor. It may write to v."""
    # as for a number that is no tensor, the operation rounds it, or computes with more digits than v has
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return torch.mul(v, number(factor, dtype), out=into(v))

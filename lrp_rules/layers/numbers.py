"""Numbers: as tensors, compared, and to probe a matrix with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrp_rules.layers.blocks import into, stands_for_many

#: torch makes a tensor of each number at each operation, which takes as long as a small operation. So many
#: are kept, for good; they are a few dozen bytes each.
_KEPT = 256
_made: dict[tuple[float, torch.dtype], Tensor] = {}


def number(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number for operations with tensors on any device. They may not write to it: others have it, too."""
    found = _made.get((value, dtype))
    return _new(value, dtype) if found is None else found


def _new(value: float, dtype: torch.dtype) -> Tensor:
    # those that are made in inference mode are of no use to a graph
    with torch.inference_mode(mode=False):
        made = torch.tensor(value, dtype=dtype, device="cpu")
    if type(made) is Tensor and len(_made) < _KEPT:  # none that only pretends to be a tensor, as under a mode
        _made[value, dtype] = made
    return made


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same number, but for the order of sums. A mistake is larger by far."""
    if a.shape != b.shape:
        return False
    if stands_for_many() or a.is_meta or not a.numel():
        return True  # there are no values to look at
    a, b = a.detach(), b.detach()
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    room = min(256 * eps, math.sqrt(eps)) * b.nan_to_num(0, 0, 0).abs().amax()
    difference = (a - b).abs()
    # where both are infinite or NaN there is no difference to take
    return bool(((difference <= room) | (a == b) | (a.isnan() & b.isnan())).all())


def probe(like: Tensor) -> Tensor:
    """Return numbers of both signs, all different, without asking a generator for them."""
    entries = torch.arange(1, like.numel() + 1, dtype=torch.float64, device=like.device).cos()
    return entries.to(like.dtype).view(like.shape)


def times(v: Tensor, factor: float) -> Tensor:
    """Return v times the factor; v is not needed any more."""
    # as for a number that is no tensor, the operation rounds it, or computes with more digits than v has
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return torch.mul(v, number(factor, dtype), out=into(v))

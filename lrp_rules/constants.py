"""Numbers as tensors: torch makes one of each number at each operation, which takes as long as a small operation."""

from __future__ import annotations

import torch
from torch import Tensor

#: So many are kept, for good; they are a few dozen bytes each.
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

"""What a rule is asked about: a layer, its input, and the relevance of its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """A module, its input, and the relevance of its output, which has nothing to do with the output."""

    module: nn.Module
    x: Tensor
    relevance: Tensor
    batched: bool

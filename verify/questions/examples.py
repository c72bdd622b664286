"""An example that carries its data in its own id: what a search finds can be run again anywhere, by its id alone."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from verify.model import Problem
from verify.questions.layers import LayerCase

#: Examples that a search once found, one id a line: part of the grid from then on.
FOUND = Path(__file__).parent / "found.txt"
CHECK = "search"


@dataclass(frozen=True)
class Example:
    """A rule with parameters, a layer, and every number that goes in."""

    rule: str
    arguments: dict[str, Any]
    kind: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    weight: tuple[float, ...]
    bias: tuple[float, ...]
    x: tuple[float, ...]
    relevance: tuple[float, ...]
    dtype: str

    @property
    def id(self) -> str:
        """Everything above: readable first, then all of it, packed."""
        plain = json.dumps(asdict(self), default=str, separators=(",", ":"))
        packed = base64.urlsafe_b64encode(zlib.compress(plain.encode(), 9)).decode().rstrip("=")
        return f"{CHECK}/{self.rule}/{self.kind.lower()}/{self.dtype}/{packed}"

    @classmethod
    def from_id(cls, id_: str) -> Example:
        """Read an id again.

        Raises
        ------
        ValueError
            If it is not one that ``id`` made.

        """
        try:
            packed = id_.split("/")[4]
            plain = zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
            fields = json.loads(plain)
            tuples = {name: tuple(fields[name]) for name in ("shape", "weight", "bias", "x", "relevance")}
            return cls(**(fields | tuples))
        except (IndexError, KeyError, TypeError, ValueError, zlib.error) as error:
            msg = f"{id_!r} is no id of an example: {error}; copy the whole of it, from {CHECK}/ to the end"
            raise ValueError(msg) from error

    @property
    def layer(self) -> LayerCase:
        """The layer, as the grid knows layers."""
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()}
        make = getattr(nn, self.kind)
        return LayerCase(self.kind, self.kind, lambda: make(**options), self.shape, weighted=bool(self.weight))

    def problem(self) -> Problem:
        """The layer with its numbers; of a relevance that is too short or too long, what fits, over and over."""
        module = self.layer.build().double().eval()
        with torch.no_grad():
            for name, values in (("weight", self.weight), ("bias", self.bias)):
                parameter = getattr(module, name, None)
                if parameter is not None:
                    parameter.copy_(_filled(values, parameter.shape))
        dtype = getattr(torch, self.dtype)
        module = module.to(dtype)
        x = _filled(self.x, self.shape).to(dtype)
        with torch.no_grad():
            shape = module(x).shape
        return Problem(module, x, _filled(self.relevance, shape).to(dtype), batched=True)


def _filled(values: tuple[float, ...], shape: tuple[int, ...] | torch.Size) -> torch.Tensor:
    count = prod(shape)
    repeated = (list(values) or [0.0]) * (count // max(len(values), 1) + 1)
    return torch.tensor(repeated[:count], dtype=torch.float64).reshape(shape)

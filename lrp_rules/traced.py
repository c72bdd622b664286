"""Any module, linearised at its inputs by the graph of its call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrp_rules.derivative import Derivative
from lrp_rules.layer import Layer, Map, Matrix

if TYPE_CHECKING:
    from lrp_rules.layer import Change

    Tensors = tuple[Tensor, ...]


@dataclass
class TracedLayer(Layer):
    """Any other module, linearised at its inputs: A is its Jacobian there, through the graph of the call.

    The module is run again, by ``run``, only for changed parameters or inputs.
    """

    def matrix(self, change: Change | None = None) -> Matrix:
        inputs, outputs = self._trace(change)
        create_graph = torch.is_grad_enabled()

        def transposed(s: Tensor) -> Tensor:
            return _jacobian_pull(outputs, inputs, (s,), create_graph=create_graph)[0]

        def forward(v: Tensor) -> Tensor:
            # A^T u is linear in u, so its own transpose is A
            with torch.enable_grad():
                u = torch.zeros_like(outputs[0], requires_grad=True)
                (pulled,) = _jacobian_pull(outputs, inputs[:1], (u,), create_graph=True)
            return _jacobian_pull((pulled,), (u,), (v.expand_as(pulled),), create_graph=create_graph)[0]

        return Map(forward, transposed)

    @property
    def bias(self) -> Tensor:
        return self.linear_outputs[0] - self.matrix() @ self.x

    @property
    def batched(self) -> bool:
        # AvgPool2d and its like take a batch of one dimension more, or a single sample
        name = type(self.module).__name__
        return self.x.ndim == int(name[-2]) + 2 if name[-2:] in {"1d", "2d", "3d"} else self.x.ndim > 1

    @property
    def takes_samples(self) -> bool:
        return False  # there is one graph for all of them

    @property
    def fixed(self) -> bool:
        return all(value is None for name, value in self.given.items() if name != "bias")

    @property
    def additive(self) -> bool:
        return False  # nobody knows how the module uses its parameters, if it has any

    @property
    def linear_outputs(self) -> Tensors:
        return self._trace(None)[1]

    @property
    def real_outputs(self) -> Tensors:
        return self.but(zero_params=())._trace(None)[1]

    def pull(self, s: Tensors) -> Tensors:
        inputs, outputs = self._trace(None)
        return _jacobian_pull(outputs, inputs, s, create_graph=torch.is_grad_enabled())

    def ones(self) -> Tensor:
        return torch.ones_like(self.x)

    def _trace(self, change: Change | None) -> tuple[Tensors, Tensors]:
        """Return inputs and outputs with a graph between them."""
        unchanged = not self.zeroes and (change is None or self.fixed)
        if unchanged and self.outputs is not None:
            return self.inputs, self.outputs
        parameters = {
            name: value if value is None or change is None or name == "bias" else change(value)
            for name, value in self.parameters.items()
        }
        with torch.enable_grad():
            inputs = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in self.inputs)
            return inputs, self.run(parameters, *inputs)


def _jacobian_pull(outputs: Tensors, inputs: Tensors, s: Tensors, *, create_graph: bool) -> Tensors:
    """A^T s, where modules inside may have rules of their own: A is the Jacobian, whatever they say."""
    with Derivative.inside(by_parameters=False):
        return pull(outputs, inputs, s, create_graph=create_graph)


def pull(outputs: Tensors, inputs: Tensors, s: Tensors, *, create_graph: bool) -> Tensors:
    """A^T s, by the graph between inputs and outputs; zero where there is none."""
    pairs = [(output, part) for output, part in zip(outputs, s, strict=True) if output.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    pulled = torch.autograd.grad(
        [output for output, _ in pairs], wanted, [part for _, part in pairs],
        retain_graph=True, create_graph=create_graph, allow_unused=True,
    ) if wanted else ()  # fmt: skip
    found = iter(pulled)
    gradients = [next(found) if x.requires_grad else None for x in inputs]
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))

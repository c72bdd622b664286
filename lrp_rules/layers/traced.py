"""Any module, linearised at its inputs by the graph of its call."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lrp_rules.errors import see
from lrp_rules.layers.blocks import stands_for_many
from lrp_rules.layers.derivative import Derivative
from lrp_rules.layers.layer import Layer, Map, Matrix
from lrp_rules.layers.numbers import probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.layers.layer import Change

    Tensors = tuple[Tensor, ...]


@dataclass
class TracedLayer(Layer):
    """Any other module, linearised at its inputs: A is its Jacobian there, from the graph of the call.

    ``run`` runs the module again, only if parameters or inputs are changed. So does ``again``, under torch.func, where
    the call has left no graph that could be asked: the Jacobian is that of another run.
    """

    again: Callable[..., Tensors] | None = field(kw_only=True, default=None)

    def matrix(self, change: Change | None = None) -> Matrix:
        if self.again is not None:
            return self._matrix_of_torch_func(change)
        inputs, outputs = self._trace(change)
        create_graph = torch.is_grad_enabled()

        def transposed(s: Tensor) -> Tensor:
            return _jacobian_pull(outputs, inputs, (s,), create_graph=create_graph, module=self.module)[0]

        def forward(v: Tensor) -> Tensor:
            return self._push(change, inputs, outputs, v)

        return Map(forward, transposed)

    def _push(self, change: Change | None, inputs: Tensors, outputs: Tensors, v: Tensor) -> Tensor:
        """Return A v."""
        create_graph = torch.is_grad_enabled()
        v = v.expand_as(inputs[0])
        failure: RuntimeError | None = None
        try:
            found = _twice(outputs, inputs, v, create_graph=create_graph)
            if self._is_right("A v", outputs, inputs, v, found):
                return found
        except RuntimeError as error:  # as torch raises where it knows no derivative
            failure = error
        if not create_graph:
            with torch.no_grad():
                parameters = self._changed(change)
                found = self.run(parameters, v)[0] - self.run(parameters, torch.zeros_like(v))[0]
            if _is_transposed(outputs, inputs, v, found):
                return found  # the module is affine
        msg = (
            f"a rule on {self.module} needs A v, which is a second derivative of the module, and torch gives "
            f"{'a wrong one' if failure is None else 'none'}; expected a module that can be differentiated twice, or "
            "an affine one and no derivative of its relevance. Fused kernels and custom functions often cannot: put "
            f"rules on its parts, or write it with plain operations{see('modules-that-cannot-be-differentiated-twice')}"
        )
        raise RuntimeError(msg) from failure

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
        return False  # all outputs share one graph

    @property
    def fixed(self) -> bool:
        return all(value is None for name, value in self.given.items() if name != "bias")

    @property
    def additive(self) -> bool:
        return False  # how the module uses its parameters is unknown

    @property
    def linear_outputs(self) -> Tensors:
        return self._trace(None)[1]

    @property
    def real_outputs(self) -> Tensors:
        return self.but(zero_params=())._trace(None)[1]

    def pull(self, s: Tensors) -> Tensors:
        if self.again is not None:
            return self._pull_of_torch_func(None, s)
        inputs, outputs = self._trace(None)
        create_graph = torch.is_grad_enabled()
        if create_graph and len(inputs) == len(outputs) == 1 and "twice" not in self.known_right:
            # a derivative of this would silently be incomplete
            v = self.x.detach()
            found = _twice(outputs, inputs, v, create_graph=False)
            if not self._is_right("twice", outputs, inputs, v, found):
                msg = (
                    f"the derivative of a relevance of {self.module} is asked for, and the module cannot be "
                    "differentiated twice; expected one that can. Put rules on its parts, or write it with plain "
                    f"operations{see('modules-that-cannot-be-differentiated-twice')}"
                )
                raise RuntimeError(msg)
        return _jacobian_pull(outputs, inputs, s, create_graph=create_graph, module=self.module)

    def _matrix_of_torch_func(self, change: Change | None) -> Matrix:
        def transposed(s: Tensor) -> Tensor:
            return self._pull_of_torch_func(change, (s,))[0]

        def forward(v: Tensor) -> Tensor:
            zeros = v.new_zeros(self.shape)  # A^T s is linear in s, and the transpose of that map is A
            (found,) = torch.func.vjp(transposed, zeros)[1](v)
            return found  # type: ignore[no-any-return]

        return Map(forward, transposed)

    def _pull_of_torch_func(self, change: Change | None, s: Tensors) -> Tensors:
        again = self.again
        assert again is not None
        return torch.func.vjp(lambda *xs: again(self._changed(change), *xs), *self.inputs)[1](tuple(s))  # type: ignore[no-any-return]

    def ones(self) -> Tensor:
        return torch.ones_like(self.x)

    def _is_right(self, what: str, outputs: Tensors, inputs: Tensors, v: Tensor, found: Tensor) -> bool:
        """Whether A v fits A^T. Checked again for each call until it does, as some vectors do not show a difference."""
        if what in self.known_right or stands_for_many() or v.is_meta:
            return True
        right = _is_transposed(outputs, inputs, v, found)
        if right:
            self.known_right.add(what)
        return right

    def _changed(self, change: Change | None) -> dict[str, Tensor | None]:
        return {
            name: value if value is None or change is None or name == "bias" else change(value)
            for name, value in self.parameters.items()
        }

    def _trace(self, change: Change | None) -> tuple[Tensors, Tensors]:
        """Return inputs and outputs with a graph between them."""
        unchanged = not self.zeroes and (change is None or self.fixed)
        if unchanged and self.outputs is not None:
            return self.inputs, self.outputs
        with torch.enable_grad():
            inputs = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in self.inputs)
            return inputs, self.run(self._changed(change), *inputs)


def _twice(outputs: Tensors, inputs: Tensors, v: Tensor, *, create_graph: bool) -> Tensor:
    """A v as a derivative of A^T u: A^T u is linear in u, and the transpose of that map is A."""
    with torch.enable_grad():
        u = torch.zeros_like(outputs[0], requires_grad=True)
        (pulled,) = _jacobian_pull(outputs, inputs[:1], (u,), create_graph=True)
    return _jacobian_pull((pulled,), (u,), (v,), create_graph=create_graph)[0]


def _is_transposed(outputs: Tensors, inputs: Tensors, v: Tensor, found: Tensor) -> bool:
    """Whether <A v, s> equals <v, A^T s> within rounding."""
    s = probe(outputs[0])
    (pulled,) = _jacobian_pull(outputs, inputs[:1], (s,), create_graph=False)
    left, right = found.detach() * s, v.detach() * pulled.detach()
    room = math.sqrt(torch.finfo(s.dtype).eps) * (left.abs().sum() + right.abs().sum())
    difference = (left.sum() - right.sum()).abs()
    return bool((difference <= room) | ~difference.isfinite())  # infinity and NaN are visible anyway


def _jacobian_pull(
    outputs: Tensors, inputs: Tensors, s: Tensors, *, create_graph: bool, module: nn.Module | None = None
) -> Tensors:
    """A^T s, if modules inside may have rules of their own: A is the Jacobian without these rules."""
    with torch.enable_grad():
        # the engine knows what it will execute below where it begins, but not that itself
        begin = tuple(output.view_as(output) for output in outputs)
    with Derivative.linearising(outputs):
        return pull(begin, inputs, s, create_graph=create_graph, module=module)


def pull(
    outputs: Tensors, inputs: Tensors, s: Tensors, *, create_graph: bool, module: nn.Module | None = None
) -> Tensors:
    """A^T s, from the graph between inputs and outputs; zero without a graph, which is refused for a ``module``."""
    pairs = [(output, part) for output, part in zip(outputs, s, strict=True) if output.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    pulled = torch.autograd.grad(
        [output for output, _ in pairs], wanted, [part for _, part in pairs],
        retain_graph=True, create_graph=create_graph, allow_unused=True,
    ) if wanted else ()  # fmt: skip
    if module is not None and pulled and all(g is None for g in pulled):
        msg = (
            f"autograd has no derivative of {module}, so that nothing is known of how its output depends on its input; "
            "expected a module that can be differentiated. Quantized ones cannot be; use Pass there, or put the rule "
            f"on the module before it was quantized{see('tensors-that-are-refused')}"
        )
        raise RuntimeError(msg)
    found = iter(pulled)
    gradients = [next(found) if x.requires_grad else None for x in inputs]
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))

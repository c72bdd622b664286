"""A layer as a matrix and a constant, z = A(w) x + b, and what makes rules fast: the matrix is never formed.

``A @ x`` runs the layer without its bias, ``A.T @ s`` runs its transpose. Layers known here do both directly, without a graph; any
other module is linearised at x: A is its Jacobian there, and b is what the linearisation leaves over, f(x) - A x.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everyone knows

from lrp_rules.params import twin, undisturbed, zeroed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Change = Callable[[Tensor], Tensor]
    Parameters = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class Matrix:
    """A matrix known by what it does: ``A @ v`` and ``A.T @ s``."""

    forward: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.forward(vector)

    @property
    def T(self) -> Matrix:  # noqa: N802  as in NumPy and torch
        """The transpose."""
        return Matrix(self.transposed, self.forward)


@dataclass(frozen=True)
class Layer:
    """One call of a module, as rules see it: z = A(w) x + b.

    Parameters
    ----------
    module
        The module that was called.
    inputs
        The tensors it was called with; most rules know one, ``x``.
    outputs
        What it returned. None where that is no longer known, as after an in-place operation behind the module.
    shape
        The shape of the output.
    given
        The parameters that the call used, by name.
    zero_params
        Names of those that the rule sets to zero.
    run
        ``run(module, *inputs)`` repeats the call on another module, and returns its outputs.

    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] | None
    shape: torch.Size
    given: Parameters
    zero_params: tuple[str, ...] = ()
    run: Callable[..., tuple[Tensor, ...]] = field(kw_only=True)

    def matrix(self, change: Change | None = None) -> Matrix:
        """Return A(w), or A(change(w))."""
        raise NotImplementedError

    @property
    def bias(self) -> Tensor:
        """b, in a shape that broadcasts to the output."""
        raise NotImplementedError

    def at_ones(self) -> Layer:
        """Return the layer with ones as its input: one sample of them, since all samples are the same."""
        return replace(self, inputs=(torch.ones_like(self.x[:1] if self.batched else self.x),), outputs=None)

    def pull(self, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return A^T s for each input."""
        return (self.matrix().T @ s[0],)

    @property
    def real_outputs(self) -> tuple[Tensor, ...]:
        """What the module itself returned, whatever the rule sets to zero."""
        if self.outputs is not None:
            return self.outputs
        real = replace(self, zero_params=())
        return (real.matrix() @ self.x + real.bias,)

    @property
    def linear_outputs(self) -> tuple[Tensor, ...]:
        """A(w) x + b. Where nothing is set to zero, the forward pass has computed it already."""
        # not z - b: where b outweighs A x, that difference would have lost the digits of A x
        return (self.matrix() @ self.x + self.bias,) if self.zeroes else self.real_outputs

    @property
    def x(self) -> Tensor:
        """The only input."""
        return self.inputs[0]

    @property
    def z(self) -> Tensor:
        """The only output of the module itself."""
        return self.real_outputs[0]

    @property
    def zeroes(self) -> bool:
        """Whether ``zero_params`` names a parameter that is there."""
        return any(self.given.get(name) is not None for name in self.zero_params)

    @property
    def parameters(self) -> Parameters:
        """The parameters, with those in ``zero_params`` set to zero."""
        return zeroed(self.given, self.zero_params) if self.zeroes else self.given

    @property
    def batched(self) -> bool:
        """Whether the first dimension of the input holds samples."""
        return True

    @property
    def additive(self) -> bool:
        """Whether A(v + w) = A(v) + A(w), so that a formula may be put together from fewer maps."""
        return self.parameters.get("weight") is not None


@dataclass(frozen=True)
class WeightedLayer(Layer):
    """What the layers with one weight and at most one bias have in common."""

    @property
    def batched(self) -> bool:
        return self.x.ndim == self._dims + 2

    @property
    def bias(self) -> Tensor:
        bias = self.parameters["bias"]
        return self.x.new_zeros(()) if bias is None else bias.view((-1,) + (1,) * self._dims)

    def _weight(self, change: Change | None) -> Tensor:
        weight = self.parameters["weight"]
        assert weight is not None
        return weight if change is None else change(weight)

    @property
    def _dims(self) -> int:
        """How many spatial dimensions the layer has."""
        size = self.module.kernel_size
        assert isinstance(size, tuple)
        return len(size)


@dataclass(frozen=True)
class LinearLayer(WeightedLayer):
    """:class:`torch.nn.Linear`, over the last dimension of inputs of any rank."""

    def matrix(self, change: Change | None = None) -> Matrix:
        weight = self._weight(change)
        return Matrix(lambda v: F.linear(v, weight), lambda s: s @ weight)

    def at_ones(self) -> Layer:
        # every leading dimension holds samples
        return replace(self, inputs=(self.x.new_ones(self.x.shape[-1]),), outputs=None)

    @property
    def _dims(self) -> int:
        return 0


@dataclass(frozen=True)
class ConvLayer(WeightedLayer):
    """:class:`torch.nn.Conv1d`, Conv2d and Conv3d with every stride, padding, dilation, number of groups and padding mode."""

    module: nn.Conv1d | nn.Conv2d | nn.Conv3d

    def matrix(self, change: Change | None = None) -> Matrix:
        weight, module, n = self._weight(change), self.module, self._dims
        run = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        run_back = (nn.grad.conv1d_input, nn.grad.conv2d_input, nn.grad.conv3d_input)[n - 1]
        pads, mode = self._pads(), module.padding_mode
        # the convolution itself can pad with zeros, as many on either side; any other padding is a map of its own before it
        inside = mode == "zeros" and all(before == after for before, after in pads)
        padding = tuple(before for before, _ in pads) if inside else (0,) * n
        outside = [] if inside else [side for pair in reversed(pads) for side in pair]
        pad_mode = "constant" if mode == "zeros" else mode
        channels, *spatial = self.x.shape[-n - 1 :]
        padded = spatial if inside else [size + before + after for size, (before, after) in zip(spatial, pads, strict=True)]

        def forward(v: Tensor) -> Tensor:
            return run(
                F.pad(v, outside, mode=pad_mode) if outside else v,
                weight, None, module.stride, padding, module.dilation, module.groups,
            )  # fmt: skip

        def transposed(s: Tensor) -> Tensor:
            batch = s if s.ndim == n + 2 else s[None]
            size = (batch.shape[0], channels, *padded)
            r = run_back(size, weight, batch, module.stride, padding, module.dilation, module.groups)
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
        sizes = self.x.shape[-n:]
        # output_size is an argument of the call, so only the output tells how much was added behind
        geometry = zip(self.shape[-n:], sizes, module.stride, module.padding, module.dilation, module.kernel_size, strict=True)
        extra = tuple(out - ((size - 1) * s - 2 * p + d * (k - 1) + 1) for out, size, s, p, d, k in geometry)

        def forward(v: Tensor) -> Tensor:
            return run(v, weight, None, module.stride, module.padding, extra, module.groups, module.dilation)

        def transposed(s: Tensor) -> Tensor:
            r = run_back(s, weight, None, module.stride, module.padding, module.dilation, module.groups)
            # an output_padding of a stride or more makes room for windows that no input has
            for dim, size in enumerate(sizes, start=-n):
                r = r.narrow(dim, 0, size)
            return r

        return Matrix(forward, transposed)


@dataclass(frozen=True)
class BatchNormLayer(Layer):
    """:class:`torch.nn.BatchNorm1d`, 2d and 3d in eval mode: a scale and a constant for each channel."""

    module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

    def matrix(self, change: Change | None = None) -> Matrix:
        scale = self._scale(change)
        return Matrix(lambda v: v * scale, lambda s: s * scale)

    @property
    def bias(self) -> Tensor:
        mean, bias = self.module.running_mean, self.parameters["bias"]
        assert mean is not None
        offset = -self._scale(None) * self._per_channel(mean)
        return offset if bias is None else offset + self._per_channel(bias)

    def _scale(self, change: Change | None) -> Tensor:
        variance, weight = self.module.running_var, self.parameters["weight"]
        assert variance is not None
        deviation = (variance + self.module.eps).sqrt()
        if weight is None:
            return self._per_channel(deviation.reciprocal())
        return self._per_channel((weight if change is None else change(weight)) / deviation)

    def _per_channel(self, v: Tensor) -> Tensor:
        return v.view((-1,) + (1,) * (self.x.ndim - 2)).to(self.x.dtype)


@dataclass(frozen=True)
class TracedLayer(Layer):
    """Any other module, linearised at its inputs: A is its Jacobian there, through the graph of the call.

    The module is run again, by ``run``, only for changed parameters or inputs.
    """

    def matrix(self, change: Change | None = None) -> Matrix:
        inputs, outputs = self._trace(change)
        create_graph = torch.is_grad_enabled()

        def transposed(s: Tensor) -> Tensor:
            return pull(outputs, inputs, (s,), create_graph=create_graph)[0]

        def forward(v: Tensor) -> Tensor:
            # A^T u is linear in u, so its own transpose is A
            with torch.enable_grad():
                u = torch.zeros_like(outputs[0], requires_grad=True)
                (pulled,) = pull(outputs, inputs[:1], (u,), create_graph=True)
            return pull((pulled,), (u,), (v.expand_as(pulled),), create_graph=create_graph)[0]

        return Matrix(forward, transposed)

    @property
    def bias(self) -> Tensor:
        return self.linear_outputs[0] - self.matrix() @ self.x

    @property
    def additive(self) -> bool:
        return False  # nobody knows how the module uses its parameters, if it has any

    @property
    def linear_outputs(self) -> tuple[Tensor, ...]:
        return self._values(self._trace(None)[1])

    @property
    def real_outputs(self) -> tuple[Tensor, ...]:
        return self._values(replace(self, zero_params=())._trace(None)[1])

    def pull(self, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs, outputs = self._trace(None)
        return pull(outputs, inputs, s, create_graph=torch.is_grad_enabled())

    def at_ones(self) -> Layer:
        return replace(self, inputs=(torch.ones_like(self.x),), outputs=None)

    def _trace(self, change: Change | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return inputs and outputs with a graph between them."""
        unchanged = not self.zeroes and (change is None or all(v is None for n, v in self.given.items() if n != "bias"))
        if unchanged and self.outputs is not None:
            return self.inputs, self.outputs
        create_graph = torch.is_grad_enabled()
        parameters = {
            name: value if value is None or change is None or name == "bias" else change(value)
            for name, value in self.parameters.items()
        }
        with undisturbed(self.module, self.x.device) as copy, torch.enable_grad():
            # a path of their own: several inputs may be one tensor, or depend on each other
            inputs = tuple(
                x.view_as(x) if create_graph and x.requires_grad else x.detach().requires_grad_() for x in self.inputs
            )
            return inputs, self.run(twin(copy, parameters), *inputs)

    @staticmethod
    def _values(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return outputs if torch.is_grad_enabled() else tuple(output.detach() for output in outputs)


def pull(
    outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], s: tuple[Tensor, ...], *, create_graph: bool
) -> tuple[Tensor, ...]:
    """A^T s, by the graph between inputs and outputs; zero where there is none."""
    pairs = [(output, part.to(output.dtype)) for output, part in zip(outputs, s, strict=True) if output.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    pulled = torch.autograd.grad(
        [output for output, _ in pairs], wanted, [part for _, part in pairs],
        retain_graph=True, create_graph=create_graph, allow_unused=True,
    ) if pairs and wanted else [None] * len(wanted)  # fmt: skip
    gradients = iter(pulled)
    found = (next(gradients) if x.requires_grad else None for x in inputs)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))


_KNOWN: dict[Callable[..., Tensor], type[Layer]] = {
    nn.Linear.forward: LinearLayer,
    nn.Conv1d.forward: ConvLayer,
    nn.Conv2d.forward: ConvLayer,
    nn.Conv3d.forward: ConvLayer,
    nn.ConvTranspose1d.forward: ConvTransposeLayer,
    nn.ConvTranspose2d.forward: ConvTransposeLayer,
    nn.ConvTranspose3d.forward: ConvTransposeLayer,
    nn.BatchNorm1d.forward: BatchNormLayer,
}
_CONVOLUTIONS = {nn.Conv1d._conv_forward, nn.Conv2d._conv_forward, nn.Conv3d._conv_forward}


def layer_type(module: nn.Module) -> type[Layer]:
    """Return how ``module`` is to be seen. A subclass that computes its output in a way of its own is traced."""
    if "forward" in module.__dict__:
        return TracedLayer
    found = _KNOWN.get(type(module).forward, TracedLayer)
    if found is ConvLayer and type(module)._conv_forward not in _CONVOLUTIONS:
        return TracedLayer
    if found is BatchNormLayer and (module.training or module.running_mean is None):
        return TracedLayer
    return found

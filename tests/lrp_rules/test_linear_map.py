"""A layer as a matrix: against columns of the layer itself, against autograd, and against its own transpose."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import BasicHook, Norm, Pass
from lrp_rules.layers.known import Layer, TracedLayer, layer_type
from tests.lrp_rules.cases import (
    CASES,
    KNOWN,
    Case,
    TracedConv2d,
    TracedLinear,
    dense,
    down,
    integers,
    output_of,
    power_of_two,
    relevance,
    up,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[Tensor], Tensor]

CHANGES: dict[str, Change | None] = {
    "A(w)": None,
    "A(w+)": up,
    "A(w-)": down,
    "A(|w|)": torch.abs,
    "A(w^2)": torch.square,
    "A(1)": torch.ones_like,
    "A(w+w+/4)": lambda w: w + w.clamp(min=0) / 4,
}
each_layer = pytest.mark.parametrize("name", CASES)
each_change = pytest.mark.parametrize("change", CHANGES)


class Caught(BasicHook):
    """A rule that only shows what rules get to see."""

    layer: Layer

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        type(self).layer = layer
        return torch.zeros_like(layer.x)


def as_layer(module: nn.Module, x: Tensor) -> Layer:
    relevance(Caught(), module, x, output_of(module, x))
    return Caught.layer


def as_traced(module: nn.Module) -> nn.Module:
    """The same module, but nobody recognises it."""
    cls = type(module)
    traced = copy.copy(module)

    def forward(self: nn.Module, x: Tensor) -> Any:
        return cls.forward(self, x)

    traced.__class__ = type(f"Traced{cls.__name__}", (cls,), {"forward": forward})
    return traced


@each_change
@each_layer
def test_matrix_and_its_transpose(name: str, change: str) -> None:
    case, samples = CASES[name], 3
    module, x = case.module(), case.input(samples)
    A = dense(module, case.shape, CHANGES[change])[0]
    found = as_layer(module, x).matrix(CHANGES[change])
    v, s = integers(x.shape, 3), integers(output_of(module, x).shape, 4)
    assert torch.equal((found @ v).flatten(1), v.flatten(1) @ A.T)
    assert torch.equal((found.T @ s).flatten(1), s.flatten(1) @ A)
    assert (found @ v).shape == s.shape
    assert (found.T @ s).shape == v.shape


class SquaredLinear(nn.Linear):
    """A layer whose Jacobian depends on its bias."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).square()


def test_a_change_of_the_weights_leaves_the_bias_of_a_traced_layer_as_it_is() -> None:
    module, x, s = SquaredLinear(3, 2).double(), integers((4, 3), 1), integers((4, 2), 2)
    weight, bias = integers((2, 3), 3), torch.tensor([5.0, -7.0]).double()
    module.weight.data, module.bias.data = weight, bias
    slope = 2 * (x @ up(weight).T + bias)
    A = as_layer(module, x).matrix(up)
    assert torch.equal(A.T @ s, (slope * s) @ up(weight))
    assert torch.equal(A @ x, slope * (x @ up(weight).T))


@each_change
@each_layer
def test_transpose_is_the_adjoint(name: str, change: str) -> None:
    module, x = CASES[name].module(), CASES[name].input()
    A = as_layer(module, x).matrix(CHANGES[change])
    v, s = integers(x.shape, 3), integers(output_of(module, x).shape, 4)
    assert torch.equal(((A @ v) * s).sum(), (v * (A.T @ s)).sum())
    assert torch.equal(A.T.T @ v, A @ v)


@each_layer
def test_transpose_is_what_autograd_gives(name: str) -> None:
    module, x = CASES[name].module(), CASES[name].input()
    s = integers(output_of(module, x).shape, 4)
    (gradient,) = torch.autograd.grad(module(x.requires_grad_()), x, s)
    assert torch.equal(as_layer(module, x.detach()).matrix().T @ s, gradient)
    jacobian = torch.autograd.functional.jacobian(module, x.detach()[:1])
    assert isinstance(jacobian, Tensor)
    assert torch.equal(dense(module, CASES[name].shape)[0], jacobian.reshape(-1, x[0].numel()))


@each_layer
def test_bias_is_what_remains(name: str) -> None:
    module, x = CASES[name].module(), CASES[name].input()
    layer = as_layer(module, x)
    b = layer.bias.expand(layer.shape)
    assert torch.equal(b.flatten(1), dense(module, CASES[name].shape)[1].expand(3, -1))
    assert torch.equal(layer.matrix() @ x + b, output_of(module, x))
    assert torch.equal(layer.z, output_of(module, x))


@pytest.mark.parametrize("name", KNOWN)
def test_known_layers_traced(name: str) -> None:
    # nothing about a layer that is known may differ from what its own graph says
    module, x = KNOWN[name].module(), KNOWN[name].input()
    known, traced = as_layer(module, x), as_layer(as_traced(module), x)
    s = integers(output_of(module, x).shape, 4)
    assert type(known) is not TracedLayer
    assert type(traced) is TracedLayer
    for change in (None, up, torch.square):
        assert torch.equal(known.matrix(change).T @ s, traced.matrix(change).T @ s)
        assert torch.equal(known.matrix(change) @ x, traced.matrix(change) @ x)
    assert torch.equal(known.bias.expand(known.shape), traced.bias)


@pytest.mark.parametrize("samples", [0, 1])
@each_layer
def test_batches_of_none_and_one(name: str, samples: int) -> None:
    case = CASES[name]
    module, x = case.module(), case.input(samples)
    z = output_of(module, x)
    A = as_layer(module, x).matrix()
    assert (A @ x).shape == z.shape
    assert (A.T @ z).shape == x.shape


@pytest.mark.parametrize(
    "name",
    ["linear", "conv1d-same-even", "conv2d-circular", "conv2d-reflect-same", "conv3d", "transposed1d", "transposed3d"],
)
def test_unbatched(name: str) -> None:
    module, x = KNOWN[name].module(), KNOWN[name].input(1)
    s = integers(output_of(module, x).shape, 4)
    many, one = as_layer(module, x).matrix(), as_layer(module, x[0]).matrix()
    assert torch.equal(one @ x[0], (many @ x)[0])
    assert torch.equal(one.T @ s[0], (many.T @ s)[0])
    assert torch.equal(as_layer(module, x[0]).ones(), torch.ones(KNOWN[name].shape))


@pytest.mark.parametrize("size", [(7, 3), (8, 3), (8, 4), (7, 4)], ids=str)
def test_output_size_in_the_call(size: tuple[int, int]) -> None:
    case = Case(lambda: nn.ConvTranspose2d(2, 1, 3, stride=(2, 2), padding=(0, 1)), (2, 3, 2))
    module, x = case.module(), case.input()
    assert isinstance(module, nn.ConvTranspose2d)
    x.requires_grad_()
    output = module(x, output_size=size)
    with Caught().register(module):
        torch.autograd.grad(module(x, output_size=size), x, output.detach())
    layer = Caught.layer
    s = integers(output.shape, 4)
    assert torch.equal(layer.z, output.detach())
    assert torch.equal(layer.matrix().T @ s, torch.autograd.grad(output, x, s)[0])


def test_which_layers_are_known() -> None:
    assert {name for name, case in CASES.items() if layer_type(case.module()) is TracedLayer} == {*CASES} - {*KNOWN}
    own = nn.Linear(2, 2)
    own.forward = lambda input: input  # type: ignore[method-assign]  # noqa: A006
    traced = [
        own,
        TracedLinear(2, 2),
        TracedConv2d(1, 1, 1),
        nn.BatchNorm1d(2),
        nn.BatchNorm1d(2, track_running_stats=False).eval(),
        nn.InstanceNorm1d(2).eval(),
        nn.SyncBatchNorm(2).eval(),
        nn.Bilinear(1, 1, 1),
        nn.Sequential(nn.Linear(1, 1)),
    ]
    assert {layer_type(module) for module in traced} == {TracedLayer}


def test_planted_transposes_are_caught() -> None:
    module, x = KNOWN["conv2d-circular"].module(), KNOWN["conv2d-circular"].input()
    layer = as_layer(module, x)
    s = integers(layer.shape, 4)
    zeros = nn.Conv2d(2, 2, 3, padding=(1, 2)).double()
    zeros.load_state_dict(module.state_dict())
    wrong = as_layer(zeros, x).matrix()  # zeros in place of the other side of the image
    v = integers(x.shape, 3)
    assert not torch.equal(((layer.matrix() @ v) * s).sum(), (v * (wrong.T @ s)).sum())
    assert not torch.equal(wrong.T @ s, layer.matrix().T @ s)
    assert not torch.equal(layer.matrix(torch.abs).T @ s, layer.matrix().T @ s)


def test_a_module_whose_graph_is_cut_is_refused() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach() * 2

    x, R = torch.randn(2, 3), torch.randn(2, 3)
    with pytest.raises(RuntimeError, match="its output has no graph to its input"):
        relevance(Norm(), Detached(), x, R)
    assert torch.equal(relevance(Pass(), Detached(), x, R), R)  # it asks nothing of the graph


def test_a_pooling_whose_sizes_are_numbers() -> None:
    module, x, R = nn.AvgPool1d(2, stride=1, padding=1), integers((2, 3, 4), 1), integers((2, 3, 5), 2)
    expected = relevance(Norm(power_of_two), module, x, R)
    vars(module).update(kernel_size=2, stride=1, padding=1)  # as forward takes them, too
    assert torch.equal(relevance(Norm(power_of_two), module, x, R), expected)

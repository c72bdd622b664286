"""Rules on the functions that a model calls between its modules.

A function with a rule is to give, to the last bit, what a module that calls it gives with that rule.
"""

from __future__ import annotations

import copy
import operator
import pickle
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.checkpoint import checkpoint

from lrp_rules import (
    Bilinear,
    Epsilon,
    Norm,
    Pass,
    SignalTakesAll,
    Stop,
    Uniform,
    UnruledWarning,
    ZPlus,
    attach,
)
from lrp_rules.networks import operations
from lrp_rules.networks.between import here
from tests.lrp_rules.cases import handles

if TYPE_CHECKING:
    from collections.abc import Callable

NORM = Norm(1e-3)


class Calls(nn.Module):
    """Calls a function; its modules are for the function's use."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.parts, *inputs)


def leaf(shape: tuple[int, ...] = (2, 4), seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def relevances(model: Callable[..., Any], inputs: tuple[Tensor, ...], seed: int = 9) -> tuple[Tensor, ...]:
    output = model(*inputs)
    return torch.autograd.grad(output, inputs, leaf(tuple(output.shape), seed).detach())


def registered(rule: Any, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    model = Calls(function)
    with rule.register(model):
        return relevances(model, inputs)


def in_statement(a: Tensor, b: Tensor) -> Tensor:
    a = a.clone()
    a += b
    return a


def without_rebinding(a: Tensor, b: Tensor) -> Tensor:
    a = a.view_as(a).clone()
    a.add_(b)
    return a


def into_a_constant(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros_like(a)
    total.add_(torch.add(a, b))
    return total


SUMS: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b, "torch.add": torch.add, "Tensor.add": Tensor.add, "operator": operator.add,
    "aten": torch.ops.aten.add, "aten.Tensor": torch.ops.aten.add.Tensor, "keyword": lambda a, b: torch.add(a, other=b),
    "method-in-place": lambda a, b: a.clone().add_(b),
    "operator-in-place": lambda a, b: operator.iadd(a.clone(), b),  # type: ignore[no-untyped-call]
    "without-rebinding": without_rebinding, "statement": in_statement,
}  # fmt: skip


@pytest.mark.parametrize("spelling", SUMS)
def test_every_spelling_of_a_sum_has_its_rule(spelling: str) -> None:
    a, b = leaf(), leaf(seed=2)
    expected = registered(NORM, torch.add, (a, b))
    model = Calls(SUMS[spelling])
    with attach(model, {torch.add: NORM}):
        found = relevances(model, (a, b))
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], relevances(model, (a, b))[0])  # which is the gradient


def test_a_sum_into_a_constant_has_its_rule_in_every_step() -> None:
    a, b = leaf(), leaf(seed=2)
    model = Calls(into_a_constant)
    with attach(model, {operator.add: Norm(0)}) as rules:
        found = relevances(model, (a, b))
    expected = registered(Norm(0), torch.add, (a, b))
    assert all(map(torch.equal, found, expected))
    assert sum(rules.between.calls.values()) == 2


OTHERS: dict[str, tuple[Any, Any, Callable[..., Any]]] = {
    "difference": (torch.add, NORM, lambda a, b: a - b),
    "scaled": (torch.add, NORM, lambda a, b: torch.add(a, b, alpha=0.3)),
    "product": (torch.mul, Uniform(), lambda a, b: a * b),
    "gate": (torch.mul, SignalTakesAll(), lambda a, b: a * b.mean(1, keepdim=True)),
    "quotient": (torch.div, SignalTakesAll(signal=0), lambda a, b: a / b),
    "matmul": (torch.matmul, Bilinear(), lambda a, b: a @ b.T),
    "einsum": (torch.matmul, Bilinear(), lambda a, b: torch.einsum("ij,kj->ik", a, b)),
    "mean": (torch.mean, NORM, lambda a, _b: a.mean(1)),
    "sum": (torch.sum, NORM, lambda a, _b: torch.sum(a, 1)),
    "avg_pool": (F.avg_pool2d, NORM, lambda a, _b: F.avg_pool1d(a[None], 2, padding=1)),
    "activation": (F.gelu, Pass(), lambda a, _b: F.silu(a)),
    "power": (torch.pow, Pass(), lambda a, _b: a**2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_have_their_rules(name: str) -> None:
    key, rule, function = OTHERS[name]
    a, b = leaf(), leaf(seed=2)
    model = Calls(function)
    with attach(model, {key: rule}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UnruledWarning)  # what stands beside the operation
        output = model(a, b)
        found = torch.autograd.grad(output, (a, b), torch.ones_like(output), allow_unused=True)
    given = list(filter(torch.is_tensor, found))
    total = float(torch.stack([r.sum() for r in given]).sum())
    room = 1e3 * torch.finfo(torch.float64).eps * float(torch.stack([r.abs().sum() for r in given]).sum())
    lost = 2e-3 * output.numel() if rule is NORM else 0.0  # at most what the stabilizer takes
    if name not in {"matmul", "einsum"}:
        assert abs(total - output.numel()) <= room + lost * 50
    assert found[0] is not None


@pytest.mark.parametrize("key", [torch.reshape, len, print, torch.zeros, nn.functional.mse_loss])
def test_a_function_that_no_rule_can_be_given_for(key: Any) -> None:
    with pytest.raises(ValueError, match="no function that a rule can be given for"):
        attach(Calls(torch.add), {key: NORM})


def test_gates_are_told_by_what_has_made_them() -> None:
    a, b = leaf(), leaf(seed=2)
    model = Calls(lambda a, b: torch.sigmoid(a) * b)
    with attach(model, {torch.mul: SignalTakesAll(), torch.sigmoid: Pass()}):
        ra, rb = relevances(model, (a, b))
    assert not ra.any()
    assert torch.equal(rb, leaf((2, 4), 9).detach())


def test_gates_that_are_parameters_are_told_too() -> None:
    model, x = (
        Calls(lambda scale, x: scale.weight * torch.sigmoid(x) * x, nn.LayerNorm((2, 4), bias=False).double()),
        leaf(),
    )
    with attach(model, {torch.mul: SignalTakesAll(), torch.sigmoid: Pass()}, ignore=nn.LayerNorm):
        (r,) = relevances(model, (x,))
    assert torch.equal(r, leaf((2, 4), 9).detach())


def test_complex_numbers_are_refused() -> None:
    model = Calls(lambda x: torch.view_as_real(torch.view_as_complex(x.view(2, 2, 2)) * (2 + 1j)))
    with pytest.raises(ValueError, match="complex numbers"), attach(model, {torch.mul: Uniform()}):
        model(leaf())


def test_a_product_of_two_signals_is_refused_at_its_place() -> None:
    model = Calls(lambda a, b: a * b)
    with (
        pytest.raises(ValueError, match=r"Tensor\.mul at .*test_functions\.py:\d+.*SignalTakesAll\(signal=0\)"),
        attach(model, {torch.mul: SignalTakesAll()}),
    ):
        model(leaf(), leaf(seed=2))
    assert _get_current_function_mode() is None


def test_what_has_no_rule_is_said_with_its_place_and_once() -> None:
    model, x = Calls(lambda layer, x: layer(x) + x, nn.Linear(4, 4, dtype=torch.float64)), leaf()
    with attach(model, {nn.Linear: Epsilon()}) as rules:
        with pytest.warns(UnruledWarning, match=r"Tensor\.add at lrp_rules/test_functions\.py:\d+ \(once\)") as said:
            model(x)
        model(x)
    assert said[0].filename == __file__
    assert "Tensor.add" in repr(rules)
    assert "none: its gradient" in repr(rules)


def test_strict_makes_it_an_error() -> None:
    model, x = Calls(lambda layer, x: layer(x) + x, nn.Linear(4, 4, dtype=torch.float64)), leaf()
    with (
        pytest.raises(ValueError, match=r"Tensor\.add at .*test_functions\.py:\d+ has no rule"),
        attach(model, {nn.Linear: Epsilon()}, strict=True),
    ):
        model(x)
    assert _get_current_function_mode() is None
    assert not here.flows


def test_what_is_ignored_keeps_its_gradient_in_silence() -> None:
    model, x = Calls(lambda layer, x: layer(x) + x, nn.Linear(4, 4, dtype=torch.float64)), leaf()
    with attach(model, {nn.Linear: Epsilon()}, ignore=[torch.add]):
        model(x)


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


@pytest.mark.parametrize("last", [True, False], ids=["at-the-end", "in-the-middle"])
def test_a_function_that_torch_shows_to_nobody_is_found(last: bool) -> None:
    layer = nn.Linear(4, 4, dtype=torch.float64)
    model = Calls(lambda layer, x: Doubles.apply(layer(x)) if last else layer(Doubles.apply(x)), layer)  # type: ignore[no-untyped-call]
    with attach(model, {nn.Linear: Epsilon()}), pytest.warns(UnruledWarning, match="Doubles"):
        model(leaf())


def test_computations_with_parameters_alone_have_no_rules() -> None:
    layer, x, R = nn.Linear(4, 4, bias=False, dtype=torch.float64), leaf(), leaf(seed=9).detach()
    model = Calls(lambda layer, x: F.linear(x, (layer.weight - layer.weight.mean()) * 2), layer)
    with attach(model, {F.linear: ZPlus(), torch.mul: Stop(), torch.add: NORM}, ignore=nn.Linear):
        r = torch.autograd.grad(model(x), x, R)[0]
    layer.weight.data = (layer.weight.data - layer.weight.data.mean()) * 2
    with ZPlus().register(layer):
        assert torch.equal(r, torch.autograd.grad(layer(x), x, R)[0])


def test_what_does_not_depend_on_the_input_is_a_constant_for_products() -> None:
    weight = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    x, R = leaf(), leaf(seed=9).detach()
    model = Calls(lambda layer, x: x @ (layer.weight * 2), weight)
    with attach(model, {torch.matmul: Bilinear(1e-6)}, ignore=nn.Linear):
        r = torch.autograd.grad(model(x), x, R)[0]
    z = (x @ (weight.weight * 2)).detach()
    s = R / (z + 1e-6 * torch.where(z < 0, -1.0, 1.0))
    assert torch.equal(r, x.detach() * (s @ (weight.weight.detach() * 2).T))


def test_a_derivative_of_a_relevance_reaches_the_constants() -> None:
    layer, x = nn.Linear(4, 4, bias=False, dtype=torch.float64), leaf()
    model = Calls(lambda layer, x: torch.matmul(x, layer.weight * 2), layer)

    def total(weight: Tensor) -> Tensor:
        z = x @ (weight * 2)
        return (x * ((1 / (z + 1e-2 * torch.where(z < 0, -1.0, 1.0))) @ (weight * 2).T)).square().sum()

    with attach(model, {torch.matmul: Bilinear(1e-2)}, ignore=nn.Linear):
        (r,) = torch.autograd.grad(model(x), x, torch.ones(2, 4, dtype=torch.float64), create_graph=True)
    found = torch.autograd.grad(r.square().sum(), layer.weight)[0]
    weight = layer.weight.detach().clone().requires_grad_()
    expected = torch.autograd.grad(total(weight), weight)[0]
    bound = 1e4 * torch.finfo(torch.float64).eps * expected.abs().max()
    assert bool(((found - expected).abs() <= bound).all())


def test_embeddings_are_where_relevance_ends() -> None:
    table, layer = nn.Embedding(5, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)
    model = Calls(lambda table, layer, i: layer(table(i)) + table(i), table, layer)
    with attach(model, {nn.Linear: Epsilon(0), torch.add: Norm(0)}, ignore=nn.Embedding) as rules:
        model(torch.tensor([0, 3]))
    assert sum(rules.between.calls.values()) == 1


def network() -> Calls:
    return Calls(lambda a, b, x: torch.relu(a(x)) + b(x), *(nn.Linear(4, 4, dtype=torch.float64) for _ in range(2)))


RULES = {nn.Linear: Epsilon(1e-2), torch.add: NORM}


def test_nothing_is_left_after_the_block_or_an_exception() -> None:
    model, x = network(), leaf()
    before, plain = handles(model), relevances(model, (x,))[0]
    with attach(model, RULES):
        assert not torch.equal(relevances(model, (x,))[0], plain)
    with pytest.raises(RuntimeError, match="shapes"), attach(model, RULES):
        model(leaf((2, 5)))
    for _ in range(2):
        handle = model.parts[1].register_forward_hook(_interrupt)
        with pytest.raises(KeyboardInterrupt), attach(model, RULES):
            model(x)
        handle.remove()
        with attach(model, RULES):  # whatever was left by the interruption is gone
            assert not torch.equal(relevances(model, (x,))[0], plain)
    assert handles(model) == before
    assert torch.equal(relevances(model, (x,))[0], plain)
    assert not here.flows
    assert not here.inside


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _pickled(model: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(model))  # noqa: S301  its own
    return copied


@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled], ids=["deepcopy", "pickle"])
def test_copies_carry_no_rule(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, x = Pickled(), leaf()
    plain = relevances(model, (x,))[0]
    with attach(model, RULES):
        other = copied(model)
        assert torch.equal(relevances(other, (x,))[0], plain)
        assert not torch.equal(relevances(model, (x,))[0], plain)
    assert handles(other) == []


class Pickled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.a(x) + x
        return summed


def test_threads_have_flows_of_their_own() -> None:
    model = network()
    xs = [leaf(seed=seed) for seed in range(8)]
    with attach(model, RULES):
        expected = [relevances(model, (x,))[0] for x in xs]
        found: dict[int, Tensor] = {}

        def run(place: int) -> None:
            for _ in range(5):
                found[place] = relevances(model, (xs[place],))[0]

        threads = [threading.Thread(target=run, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(found[place], expected[place]) for place in range(8))


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool, closure: bool) -> None:
        super().__init__()
        self.first, self.block, self.reentrant, self.closure = nn.Linear(4, 4), network(), reentrant, closure
        self.double()

    def forward(self, x: Tensor) -> Any:
        part = (lambda t: self.block(t) + t) if self.closure else self.block
        return checkpoint(part, self.first(x), use_reentrant=self.reentrant)

    def plainly(self, x: Tensor) -> Any:
        return self.block(self.first(x)) + (self.first(x) if self.closure else 0)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_a_checkpoint_repeats_functions_with_their_rules(reentrant: bool) -> None:
    model, x, R = Checkpointed(reentrant=reentrant, closure=False), leaf(), leaf(seed=9).detach()
    plain = Calls(lambda first, block, x: block(first(x)), model.first, model.block)
    with attach(plain, RULES):
        expected = torch.autograd.grad(plain(x), x, R)[0]
    with attach(model, RULES):
        model(x).backward(R)
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


def test_a_reentrant_checkpoint_of_functions_outside_of_modules_is_refused() -> None:
    model, x = Checkpointed(reentrant=True, closure=True), leaf()
    with pytest.raises(RuntimeError, match="use_reentrant=False"), attach(model, RULES):
        model(x).backward(torch.ones(2, 4, dtype=torch.float64))


def test_attachments_in_each_other_keep_to_their_own() -> None:
    model, x = nn.Sequential(network(), network()), leaf()
    with attach(model[1], {nn.Linear: Epsilon(1e-2), torch.add: Norm(1)}), attach(model, RULES, ignore="1"):
        output = model(x)
    found = torch.autograd.grad(output, x, leaf(seed=9).detach())[0]
    with attach(model[0], RULES), attach(model[1], {nn.Linear: Epsilon(1e-2), torch.add: Norm(1)}):
        output = model(x)
    assert torch.equal(found, torch.autograd.grad(output, x, leaf(seed=9).detach())[0])


def test_modes_of_others_stay_as_they_are() -> None:
    class Counts(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counts.calls += 1
            return func(*args, **(kwargs or {}))

    model, x = network(), leaf()
    with attach(model, RULES):
        expected = relevances(model, (x,))[0]
        with Counts() as mode:
            found = relevances(model, (x,))[0]
            assert _get_current_function_mode() is mode
    assert torch.equal(found, expected)
    assert Counts.calls


def test_a_traced_graph_has_the_same_rules() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            summed: Tensor = torch.relu(self.a(x)) + self.b(x)
            return summed

    model, x = Net(), leaf()
    with attach(model, RULES):
        expected = relevances(model, (x,))[0]
    traced = torch.fx.symbolic_trace(model)
    with attach(traced, RULES):
        assert torch.equal(relevances(traced, (x,))[0], expected)


def test_relevance_under_no_grad_asks_for_nothing() -> None:
    model, x = network(), leaf()
    expected = model(x).detach()
    with attach(model, RULES), torch.no_grad():
        assert torch.equal(model(x), expected)


def _set(x: Tensor) -> Tensor:
    y = torch.zeros(3, 4).double()
    y[1:] = x[1:]
    return y


#: A call of each function that routes, on a small tensor.
ROUTED: dict[str, Callable[[Tensor], Any]] = {
    "alias": torch.ops.aten.alias, "as_strided": lambda x: x.as_strided((2,), (3,)),
    "atleast_1d": torch.atleast_1d, "atleast_2d": torch.atleast_2d, "atleast_3d": torch.atleast_3d,
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:1]), "broadcast_to": lambda x: x.broadcast_to(2, 3, 4),
    "cat": lambda x: torch.cat([x, x]), "chunk": lambda x: x.chunk(2), "clone": torch.clone,
    "column_stack": lambda x: torch.column_stack([x, x]), "concat": lambda x: torch.concat([x, x]),
    "concatenate": lambda x: torch.concatenate([x, x]), "contiguous": lambda x: x.T.contiguous(),
    "diagonal": torch.diagonal, "double": Tensor.double, "dsplit": lambda x: torch.dsplit(x[None], 2),
    "dstack": lambda x: torch.dstack([x, x]), "expand": lambda x: x.expand(2, 3, 4),
    "expand_as": lambda x: x.expand_as(torch.zeros(2, 3, 4)), "flatten": torch.flatten,
    "flip": lambda x: x.flip(0), "fliplr": torch.fliplr, "flipud": torch.flipud, "float": Tensor.float,
    "gather": lambda x: x.gather(0, torch.tensor([[2, 1, 0, 0]])), "half": Tensor.half,
    "hsplit": lambda x: x.hsplit(2), "hstack": lambda x: torch.hstack([x, x]),
    "index_select": lambda x: x.index_select(0, torch.tensor([1, 1])), "masked_fill": lambda x: x.masked_fill(x > 0, 0),
    "masked_select": lambda x: x.masked_select(x > 0), "meshgrid": lambda x: torch.meshgrid(x[0], x[0], indexing="ij"),
    "moveaxis": lambda x: x.moveaxis(0, 1), "movedim": lambda x: x.movedim(0, 1), "narrow": lambda x: x.narrow(0, 1, 2),
    "pad": lambda x: F.pad(x[None], (1, 1), mode="reflect"), "permute": lambda x: x.permute(1, 0),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.view(4, 3, 1), 2), "positive": torch.positive,
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x.view(1, 2, 6), 2), "ravel": torch.ravel,
    "repeat": lambda x: x.repeat(2, 1), "repeat_interleave": lambda x: x.repeat_interleave(2, 0),
    "reshape": lambda x: x.reshape(4, 3), "reshape_as": lambda x: x.reshape_as(torch.zeros(4, 3)),
    "roll": lambda x: x.roll(1, 0), "rot90": torch.rot90,
    "scatter": lambda x: torch.zeros(3, 4).double().scatter(0, torch.tensor([[2, 1, 0, 0]]), x[:1]),
    "select": lambda x: x.select(0, 1), "split": lambda x: x.split(2),
    "split_with_sizes": lambda x: x.split_with_sizes([1, 2]), "squeeze": lambda x: x[:1].squeeze(0),
    "stack": lambda x: torch.stack([x, x]), "swapaxes": lambda x: x.swapaxes(0, 1),
    "swapdims": lambda x: x.swapdims(0, 1), "t": torch.t, "take": lambda x: x.take(torch.tensor([0, 5])),
    "take_along_dim": lambda x: x.take_along_dim(torch.tensor([[2, 1, 0, 0]]), 0),
    "tensor_split": lambda x: x.tensor_split(2), "tile": lambda x: x.tile(2), "to": lambda x: x.to(torch.float32),
    "transpose": lambda x: x.transpose(0, 1), "tril": torch.tril, "triu": torch.triu,
    "type": lambda x: x.type(torch.float32), "type_as": lambda x: x.type_as(torch.zeros(1)), "unbind": torch.unbind,
    "unflatten": lambda x: x.unflatten(1, (2, 2)), "unfold": lambda x: x.unfold(0, 2, 1),
    "unsqueeze": lambda x: x.unsqueeze(0), "view": lambda x: x.view(4, 3),
    "view_as": lambda x: x.view_as(torch.zeros(4, 3)), "vsplit": lambda x: x[:2].vsplit(2),
    "vstack": lambda x: torch.vstack([x, x]), "where": lambda x: torch.where(x > 0, x, 0.0),
    "max_pool1d": lambda x: F.max_pool1d(x[None], 2), "max_pool2d": lambda x: F.max_pool2d(x[None, None], 2),
    "max_pool3d": lambda x: F.max_pool3d(x[None, None, None], (1, 2, 2)),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x[None], 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x[None, None], 2),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x[None, None, None], (1, 2, 2)),
    "amax": lambda x: x.amax(0), "amin": lambda x: x.amin(0), "max": torch.max, "min": lambda x: x.min(0)[0],
    "topk": lambda x: x.topk(2)[0], "sort": lambda x: x.sort()[0], "kthvalue": lambda x: x.kthvalue(2)[0],
    "median": lambda x: x.median(0)[0], "maximum": lambda x: torch.maximum(x, torch.zeros(3, 4).double()),
    "minimum": lambda x: torch.minimum(x, torch.zeros(3, 4).double()),
    "index_put": lambda x: x.index_put((torch.tensor([0]),), torch.tensor(0.0).double()),
    "index_copy": lambda x: torch.zeros(3, 4).double().index_copy(0, torch.tensor([2]), x[:1]),
    "slice_scatter": lambda x: torch.zeros(3, 4).double().slice_scatter(x[:1], 0, 0, 1),
    "select_scatter": lambda x: torch.zeros(3, 4).double().select_scatter(x[0], 0, 0),
    "masked_scatter": lambda x: torch.zeros(3, 4).double().masked_scatter(torch.ones(3, 4).bool(), x),
    "adjoint": lambda x: x.adjoint(), "cpu": Tensor.cpu, "cuda": Tensor.cpu, "bfloat16": Tensor.bfloat16,
    "channel_shuffle": lambda x: F.channel_shuffle(x.view(1, 4, 3, 1), 2), "diag_embed": torch.diag_embed,
    "index_fill": lambda x: x.index_fill(0, torch.tensor([1]), 0.0), "nan_to_num": torch.nan_to_num,
    "max_pool1d_with_indices": lambda x: F.max_pool1d(x[None], 2, return_indices=True)[0],
    "max_pool2d_with_indices": lambda x: F.max_pool2d(x[None, None], 2, return_indices=True)[0],
    "max_pool3d_with_indices": lambda x: F.max_pool3d(x[None, None, None], (1, 2, 2), return_indices=True)[0],
    "copy": lambda x: torch.zeros(3, 4).double().copy_(x), "__getitem__": lambda x: x[1:, ::2],
    "getitem": lambda x: operator.getitem(x, 1), "__setitem__": _set, "setitem": _set,
}  # fmt: skip
#: Those that are no functions of numbers, or a part of others.
NOT_ASKED = {"detach", "requires_grad_", "retain_grad"}


def test_every_function_that_routes_is_asked() -> None:
    assert {*ROUTED} | NOT_ASKED == {*operations.ROUTING}


@pytest.mark.parametrize("name", ROUTED)
def test_functions_that_route_give_each_relevance_to_one_entry(name: str) -> None:
    x = leaf((3, 4))
    with torch.no_grad():
        x += torch.arange(12.0).view(3, 4) * 0.01  # no ties

    def flat(t: Tensor) -> Tensor:
        found = ROUTED[name](t)
        found = found if isinstance(found, Tensor) else torch.cat([part.reshape(-1) for part in found])
        return found.double().reshape(-1)

    jacobian = torch.autograd.functional.jacobian(flat, x).reshape(-1, 12)
    assert bool(((jacobian == 0) | (jacobian == 1)).all())
    assert bool((jacobian.sum(1) <= 1).all())
    assert bool(jacobian.any())
    model = Calls(ROUTED[name])
    with attach(model, {torch.add: NORM}, strict=True):  # it is no function without a rule
        model(x)

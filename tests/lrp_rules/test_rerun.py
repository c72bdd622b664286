"""A call is repeated as it was: other arguments, buffers that are no numbers, the dtype of its autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from lrp_rules import BasicHook, Epsilon, Hook, NoMod, Norm, ZBox, ZPlus, attach

if TYPE_CHECKING:
    from lrp_rules.layers.layer import Layer


def relevance(rule: Any, module: nn.Module, x: Tensor, R: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with rule.register(module):
        output = module(x)
    (r,) = torch.autograd.grad(output, x, R)
    return r


class Picks(nn.Module):
    """Takes columns by their numbers, and returns those, too."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x[:, columns] + self.bias, columns


def test_tensors_of_integers_carry_no_relevance() -> None:
    x, R, columns = torch.tensor([[1.0, -2.0, 4.0]]).requires_grad_(), torch.tensor([[3.0, 5.0]]), torch.tensor([2, 0])
    with Epsilon(0.0, zero_params="bias").register(module := Picks()):
        output, returned = module(x, columns)
    (r,) = torch.autograd.grad(output, x, R)
    assert torch.equal(r, torch.tensor([[5.0, 0.0, 3.0]]))
    assert returned is columns


class Holds(nn.Linear):
    """A linear layer of its own kind, with a buffer of integers, and a buffer and a parameter that are None."""

    columns: Tensor
    nothing: Tensor | None
    none: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__(3, 2, bias=False)
        self.register_buffer("columns", torch.tensor([2, 0, 1]))
        self.register_buffer("nothing", None)
        self.register_parameter("none", None)

    def forward(self, x: Tensor) -> Tensor:
        assert self.nothing is None
        assert self.none is None
        return super().forward(x[:, self.columns])


def test_buffers_that_are_no_numbers_or_none() -> None:
    module, plain = Holds(), nn.Linear(3, 2, bias=False)
    x, R = torch.randn(4, 3), torch.randn(4, 2)
    with torch.no_grad():
        plain.weight.copy_(module.weight[:, [1, 2, 0]])
    got, expected = (relevance(ZPlus(1.0), m, x, R) for m in (module, plain))
    assert (got - expected).abs().max() <= 2**-40 * expected.abs().max()


class Sees(nn.Linear):
    """A linear layer of its own kind, which remembers the dtypes of its outputs."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        self.seen.append(output.dtype)
        return output


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_call_is_repeated_under_the_autocast_it_was_made_under(dtype: torch.dtype | None) -> None:
    module, x = Sees().float(), torch.randn(4, 3, dtype=torch.float32, requires_grad=True)
    with Epsilon(1.0, zero_params="bias").register(module):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            output = module(x)
        torch.autograd.grad(output, x, torch.ones_like(output))
    assert len(module.seen) > 1
    assert set(module.seen) == {dtype or torch.float32}


class Own(nn.Linear):
    """A linear layer of its own kind."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_bounds_of_a_longer_batch_are_cut_where_there_is_a_batch() -> None:
    low, high = torch.zeros(5, 3), torch.ones(5, 3)
    x, R, module = torch.rand(2, 3), torch.randn(2, 2), Own(3, 2)
    expected = relevance(ZBox(low[:2], high[:2]), module, x, R)
    assert torch.equal(relevance(ZBox(low, high), module, x, R), expected)
    with pytest.raises(ValueError, match="does not broadcast to the input"):
        relevance(ZBox(low[:, 0], high[:, 0]), module, x[0], R[0])


class Drops(nn.Module):
    """Its first layer is called with the very tensor that it is called with itself."""

    def __init__(self, *, by_keyword: bool) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 64), nn.Dropout(0.5)
        self.by_keyword = by_keyword

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(self.linear(input=x) if self.by_keyword else self.linear(x))
        return dropped


class WritesAfterwards(nn.Module):
    """Overwrites its input once its first layer is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y + x.mul_(2)


@pytest.mark.parametrize("by_keyword", [False, True], ids=["by-position", "by-keyword"])
@pytest.mark.parametrize("inner", [False, True], ids=["alone", "with-a-rule-inside"])
def test_a_call_is_repeated_with_the_mask_it_was_made_with(inner: bool, by_keyword: bool) -> None:
    # what was dropped has no relevance to give, unless another mask is drawn
    module, x = Drops(by_keyword=by_keyword), torch.rand(1, 8, requires_grad=True)
    with BasicHook().register(module), Epsilon().register(module.linear if inner else nn.Identity()):
        output = module(x)
        torch.randn(7)
        (r,) = torch.autograd.grad(output, x, (output == 0).to(output))
    assert torch.equal(r, torch.zeros_like(r))


@pytest.mark.parametrize("inner", [False, True], ids=["alone", "with-a-rule-inside"])
def test_a_module_that_writes_to_its_input_is_refused(inner: bool) -> None:
    module, x = WritesAfterwards(), torch.rand(1, 3, requires_grad=True)
    with (
        Norm().register(module),
        Epsilon().register(module.linear if inner else nn.Identity()),
        pytest.raises(RuntimeError, match="it writes to its input"),
    ):
        module(x * 1)


class Keeps(BasicHook):
    """Keeps the input of its call itself, and says that it does not need the gradient."""

    needs_grad_input = False
    kept: Tensor

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:  # noqa: A002  as in Hook
        self.kept = input[0]

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return self.kept + layer.x


def test_a_formula_sees_what_the_rule_kept_of_the_call() -> None:
    module, x, R = nn.Linear(3, 2), torch.randn(2, 3), torch.randn(2, 2)
    assert torch.equal(relevance(Keeps(), module, x, R), 2 * x)


def test_a_pruned_layer_is_the_layer_that_is_left() -> None:
    module, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    prune.l1_unstructured(module, "weight", 0.5)
    with torch.no_grad():
        plain.weight.copy_(module.weight)
        plain.bias.copy_(module.bias)
    x, R = torch.randn(2, 3), torch.randn(2, 2)
    for rule in (Epsilon(), ZPlus(), BasicHook()):
        assert torch.equal(relevance(rule, module, x, R), relevance(rule, plain, x, R))


@pytest.mark.parametrize("dropout", [nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_parameters_that_are_drawn_at_random_are_refused_where_nobody_has_seen_them(dropout: type[nn.Module]) -> None:
    module = nn.Linear(3, 2)
    x = torch.randn(2, 3, requires_grad=True)
    with Epsilon().register(module):
        parametrize.register_parametrization(module, "weight", dropout())
        with pytest.raises(RuntimeError, match="drawn at random"):
            module(x)


def test_a_parametrized_layer_without_a_bias_is_matched_itself() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2, bias=False)))
    with attach(model, {"*": Epsilon()}) as attached:
        assert len(attached.registrations) == 1
        x = torch.randn(2, 3, requires_grad=True)
        output = model(x)
        (r,) = torch.autograd.grad(output, x, output.detach())
    expected = relevance(Epsilon(), model[0], x, output.detach())
    assert torch.equal(r, expected)


class ReturnsAParameter(nn.Module):
    """Returns one of its parameters as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, self.scale


def test_a_module_may_return_one_of_its_parameters() -> None:
    module, x = ReturnsAParameter(), torch.randn(2, 3, requires_grad=True)
    with Hook().register(module):
        output, _ = module(x)
        (r,) = torch.autograd.grad(output, x, torch.ones(2, 3))
    assert torch.equal(r, torch.full((2, 3), 2.0))
    assert module.scale.grad is None


def test_what_is_done_to_a_changed_module_leaves_the_buffers_of_its_own() -> None:
    module = nn.BatchNorm1d(3)
    with NoMod()(module) as changed:
        changed.float()
    assert module.running_mean is not None
    assert module.running_mean.dtype == torch.float64


def test_parameters_below_a_container_that_is_called_twice() -> None:
    # the input of the second call depends on the same parameters, which the second call must not count again
    block, top = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Identity()
    x, parameters = torch.randn(2, 3, requires_grad=True), list(block.parameters())
    with Norm(0.5).register(block), Norm(0.5).register(top):
        output = top(block(block(x)))
    (r,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    once = torch.autograd.grad(r.sum(), parameters, retain_graph=True)
    again = torch.autograd.grad(r.sum(), parameters, create_graph=True)
    for a, b in zip(once, again, strict=True):
        assert (a - b).abs().max() <= 2**-40 * a.abs().max()


class Grows(nn.Module):
    """Returns what it has computed on the way, too, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.tells = nn.Linear(3, 2), False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden = self.part(x)
        return (hidden.tanh(), hidden) if self.tells else (hidden.tanh(),)


def test_a_module_that_gives_another_number_of_outputs_now_is_refused() -> None:
    module, x = Grows(), torch.randn(2, 3, requires_grad=True)
    with Epsilon(0.5).register(module):
        (z,) = module(x)
    (r,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    module.tells = True
    with pytest.raises(RuntimeError, match="has to run the module once more, and that gives another output"):
        torch.autograd.grad(r.sum() + z.sum(), x)


def test_a_part_that_was_replaced_by_one_of_fewer_parameters_is_refused() -> None:
    module, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(2, 3, requires_grad=True)
    with Norm(0.5).register(module):
        z = module(x)
    (r,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    module[0] = nn.Linear(3, 2, bias=False)
    with pytest.raises(RuntimeError, match="has to run the module once more, and that gives another output"):
        torch.autograd.grad(r.sum() + z.sum(), x)


@pytest.mark.parametrize("rule", [Epsilon(0.5), Norm(0.5)], ids=["Epsilon", "Norm"])
@pytest.mark.parametrize("kind", [nn.Linear, Own], ids=["known", "traced"])
def test_the_meta_device_has_shapes_for_derivatives_too(kind: type[nn.Linear], rule: Hook) -> None:
    module, x = kind(3, 2).to("meta"), torch.randn(4, 3, device="meta", requires_grad=True)
    with rule.register(module):
        z = module(x)
    (r,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    ends = (x, module.weight)
    for found, of in zip(torch.autograd.grad(r.sum() + z.sum(), ends), ends, strict=True):
        assert found.is_meta
        assert found.shape == of.shape


class Scaled(nn.Module):
    """A layer with a part, and with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.scale = nn.Tanh(), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.part(x) * self.scale
        return scaled


def test_a_pattern_takes_a_module_with_a_parameter_of_its_own_before_its_parts() -> None:
    model = nn.Sequential(Scaled())
    attached = attach(model, {"*": Norm()})
    assert len(attached.registrations) == 1
    assert attached.registrations[0].module is model[0]
    attached.remove()

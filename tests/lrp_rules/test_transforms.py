"""Batched relevance, torch.func, torch.compile: right for all rules, or refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lrp_rules import BasicHook, Epsilon, Gamma, Norm, Pass, Stabilizer, ZPlus, attach, without_rewriting
from tests.lrp_rules.cases import CASES, FORMULAS, RULES, integers, power_of_two, relevance

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Hook


def several(z: Tensor, count: int = 3) -> Tensor:
    return torch.stack([integers(z.shape, seed) for seed in range(count)])


@pytest.mark.parametrize("layer", CASES)
@pytest.mark.parametrize("rule", FORMULAS)
@pytest.mark.parametrize("create_graph", [False, True], ids=["mere-numbers", "with-a-graph"])
def test_batched_relevance_is_that_of_a_loop(rule: str, layer: str, create_graph: bool) -> None:
    module, x = CASES[layer].module(), CASES[layer].input().requires_grad_()
    with FORMULAS[rule][0]().register(module):
        z = module(x)
    Rs = several(z)
    expected = torch.stack([torch.autograd.grad(z, x, R, retain_graph=True)[0] for R in Rs])
    (found,) = torch.autograd.grad(z, x, Rs, is_grads_batched=True, create_graph=create_graph)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Tanh()], ids=repr)
@pytest.mark.parametrize("rule", RULES)
def test_batched_relevance_of_an_activation(rule: str, module: nn.Module) -> None:
    x = integers((2, 3), 1).requires_grad_()
    with RULES[rule]().register(module):
        z = module(x)
    Rs = several(z)
    with without_rewriting():  # as a batch of relevances is computed, too
        expected = torch.stack([torch.autograd.grad(z, x, R, retain_graph=True)[0] for R in Rs])
    assert torch.equal(torch.autograd.grad(z, x, Rs, is_grads_batched=True)[0], expected)


@pytest.mark.parametrize(
    "stabilizer", [Stabilizer(0.5, clip=True), Stabilizer(0.5, norm_scale=True)], ids=["clip", "norm"]
)
def test_batched_relevance_with_a_stabilizer_of_its_own_kind(stabilizer: Stabilizer) -> None:
    module, x = nn.Linear(1200, 30), torch.randn(64, 1200, requires_grad=True)  # large enough to be done in parts
    with Epsilon(stabilizer, "bias").register(module):
        z = module(x)
    Rs = several(z)
    expected = torch.stack([torch.autograd.grad(z, x, R, retain_graph=True)[0] for R in Rs])
    (found,) = torch.autograd.grad(z, x, Rs, is_grads_batched=True)
    # another order of sums over 1200 products
    assert bool(((found - expected).abs() <= 1200 * torch.finfo(x.dtype).eps * expected.abs().max()).all())


def network() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for seed, parameter in enumerate(made.parameters()):
        parameter.data = integers(parameter.shape, 10 + seed)
    return made


NETWORK: dict[str, Callable[[], Hook]] = {
    "Epsilon": lambda: Epsilon(power_of_two),
    "ZPlus": lambda: ZPlus(power_of_two),
    "Gamma": lambda: Gamma(0.5, power_of_two),
    "Norm": lambda: Norm(power_of_two),
}


def second(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the second output of a model."""

    def of(x: Tensor) -> Tensor:
        output: Tensor = model(x)
        return output[1]

    return of


def loop(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    z = model(x)
    return torch.stack([torch.autograd.grad(z[k], x, retain_graph=True)[0] for k in range(len(z))])


@pytest.mark.parametrize("rule", NETWORK)
def test_jacobians_of_torch_func_and_of_autograd(rule: str) -> None:
    model, x = network(), integers((3,), 1)
    with attach(model, {nn.Linear: NETWORK[rule](), nn.ReLU: Pass()}):
        expected = loop(model, x)
        assert torch.equal(torch.func.jacrev(model)(x), expected)
        assert torch.equal(torch.autograd.functional.jacobian(model, x, vectorize=True), expected)
        assert torch.equal(torch.func.grad(second(model))(x), expected[1])
        made: Any = torch.func.vjp(model, x)
        output, pull = made
        R = integers((2,), 2)
        assert torch.equal(output, model(x))
        assert torch.equal(pull(R)[0], torch.func.vmap(lambda s: pull(s)[0])(R[None])[0])
    assert not torch.equal(torch.func.jacrev(model)(x), expected)


def test_the_derivative_of_a_relevance_by_torch_func() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3)
    with attach(model, {"0": Epsilon(0.5), "1": Gamma(0.5, 0.5), "2": Epsilon(0.5)}):
        leaf = x.clone().requires_grad_()
        (r,) = torch.autograd.grad(model(leaf)[1], leaf, create_graph=True)
        expected = torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in r])
        found = torch.func.jacrev(torch.func.grad(second(model)))(x)
    # the same operations, but for the order in which gradients are added up
    assert bool(((found - expected).abs() <= 64 * torch.finfo(x.dtype).eps * expected.abs().max()).all())


def test_such_a_derivative_through_a_rule_that_keeps_the_graph_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with (
        attach(model, {nn.Linear: Epsilon(0.5), nn.Tanh: Pass()}),
        pytest.raises(RuntimeError, match=r"Pass on Tanh.*expected a derivative by torch\.autograd"),
    ):
        torch.func.jacrev(torch.func.grad(second(model)))(torch.randn(3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("rule", ["Epsilon", "Pass"])
def test_a_forward_pass_that_is_mapped_or_in_forward_mode_is_refused(rule: str) -> None:
    module, x = nn.Linear(3, 3), torch.randn(2, 3)
    with RULES[rule]().register(module):
        with pytest.raises(RuntimeError, match=r"under torch.func's vmap"):
            torch.func.vmap(module)(x.clone().requires_grad_())
        with pytest.raises(RuntimeError, match="in forward mode"):
            torch.func.jvp(module, (x,), (x,))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="in forward mode"):
            module(forward_ad.make_dual(x, x))
        with forward_ad.dual_level():
            module(x.clone().requires_grad_())  # no tangent is asked for


@pytest.mark.parametrize("rule", [BasicHook(), ZPlus()], ids=["BasicHook", "ZPlus"])
def test_a_second_run_of_the_module_under_torch_func_is_refused(rule: Hook) -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input)

    module = Own(3, 3)
    with rule.register(module), pytest.raises(RuntimeError, match=r"once more, which torch\.func cannot do"):
        torch.func.grad(lambda v: module(v).sum())(torch.randn(2, 3))


# --- torch.compile ----------------------------------------------------------------------------------------------------

WITH_COMPILER = [
    pytest.mark.inductor,
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++, and there is no g++"),
]


@pytest.fixture(params=["eager", "aot_eager", pytest.param("inductor", marks=WITH_COMPILER)])
def compiled(request: pytest.FixtureRequest) -> Any:
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, backend=request.param)
    torch._dynamo.reset()


RULES_OF: dict[str, dict[Any, Hook]] = {
    "known": {nn.Linear: Epsilon(power_of_two), nn.ReLU: Pass()},
    "traced": {nn.Sequential: Norm(power_of_two)},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("rules", RULES_OF)
def test_a_model_that_is_compiled_after_the_rules_were_attached(rules: str, compiled: Callable[..., Any]) -> None:
    model, x, R = network(), integers((2, 3), 1).requires_grad_(), integers((2, 2), 2)
    with attach(model, RULES_OF[rules]):
        z = model(x)
    (expected,) = torch.autograd.grad(z, x, R)
    (gradient,) = torch.autograd.grad(model(x), x, R)
    fast = compiled(model)
    with attach(model, RULES_OF[rules]):
        z = fast(x)
    assert torch.equal(torch.autograd.grad(z, x, R)[0], expected)
    assert torch.equal(torch.autograd.grad(fast(x), x, R)[0], gradient)  # and after them


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("to", ["model", "compiled"])
def test_a_model_that_was_compiled_before_is_refused(to: str, compiled: Callable[..., Any]) -> None:
    model, x = network(), integers((2, 3), 1).requires_grad_()
    fast = compiled(model)
    fast(x)
    attached = attach(model if to == "model" else fast, {nn.Linear: Epsilon(), nn.ReLU: Pass()})
    fast(x)
    with pytest.raises(RuntimeError, match=r"was compiled by torch.compile, and called before"):
        attached.remove()


def test_relevance_under_a_mode_that_stands_for_many_is_not_written_over() -> None:
    # the same tensors, one by one and together, and one by one again
    module, x = nn.Linear(3, 4), integers((2, 3), 1).requires_grad_()
    with Epsilon(0.5).register(module):
        z = module(x)
    Rs = several(z)
    first = [torch.autograd.grad(z, x, R, retain_graph=True)[0] for R in Rs]
    torch.autograd.grad(z, x, Rs, is_grads_batched=True, retain_graph=True)
    assert all(
        torch.equal(torch.autograd.grad(z, x, R, retain_graph=True)[0], r) for R, r in zip(Rs, first, strict=True)
    )
    assert torch.equal(first[0], relevance(Epsilon(0.5), module, x.detach(), Rs[0]))

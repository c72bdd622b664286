"""What a rule never does: it writes to nothing, leaves nothing behind, and keeps nothing alive."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from tests.lrp_rules.cases import (
    CASES,
    FORMULAS,
    RULES,
    handles,
    output_of,
    relevance,
)
from tests.lrp_rules.conduct import (
    MODULES,
    PAIRS,
    Snapshot,
    each_formula,
    each_pair,
    each_rule,
    some_input,
)


@each_pair
def test_forward_is_the_modules_own_and_backward_leaves_no_trace(rule: str, module: str) -> None:
    layer, x = MODULES[module](), some_input()
    plain = copy.deepcopy(layer)
    torch.manual_seed(1)
    expected = plain(x.detach().clone())
    state = torch.get_rng_state()
    torch.manual_seed(1)
    registration = RULES[rule]().register(layer)
    given = x.clone()
    output = layer(given)
    assert torch.equal(output, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), plain.state_dict().values(), strict=True))

    R = torch.randn_like(output)
    before = Snapshot(layer)
    kept = {
        name: (tensor, tensor.detach().clone())
        for name, tensor in {"x": x, "given": given, "output": output, "R": R}.items()
    }
    first = torch.autograd.grad(output, x, R, retain_graph=True)[0]
    second = torch.autograd.grad(output, x, R, retain_graph=True, create_graph=True)[0]
    before.assert_same(layer)
    assert all(torch.equal(tensor, bits) for tensor, bits in kept.values())
    assert first.shape == x.shape
    if not ("train" in module and rule not in {"Pass", "Hook"}):
        assert torch.equal(first, torch.autograd.grad(output, x, R, retain_graph=True)[0])  # twice the same
        assert second.shape == x.shape
    registration.remove()
    assert handles(layer) == []
    assert list(vars(layer)) == list(vars(plain))


def test_planted_writing_is_caught() -> None:
    layer = nn.Linear(4, 4)
    before = Snapshot(layer)
    before.assert_same(layer)
    with torch.no_grad():
        layer.weight.add_(0)  # the same bits, yet written
    with pytest.raises(AssertionError):
        before.assert_same(layer)
    for spoil in (
        lambda: setattr(layer, "weight", nn.Parameter(layer.weight.detach())),  # zennit's way
        lambda: layer.register_forward_hook(lambda *_: None),
        lambda: setattr(layer, "stored", 1),
        lambda: torch.randn(1),
        layer.eval,
    ):
        before = Snapshot(layer)
        spoil()
        with pytest.raises(AssertionError):
            before.assert_same(layer)


@each_rule
def test_references_of_an_optimizer_and_tied_weights_survive(rule: str) -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    network = nn.Sequential(first, second)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    x = torch.randn(2, 4)
    relevance(RULES[rule](), first, x, torch.randn(2, 4))
    relevance(RULES[rule](), second, x, torch.randn(2, 4))
    assert first.weight is second.weight
    before = first.weight.detach().clone()
    network(x).sum().backward()
    assert first.weight.grad is not None
    optimizer.step()
    assert torch.equal(first.weight, before - 0.5 * first.weight.grad)


@each_rule
def test_inputs_that_need_no_gradient(rule: str) -> None:
    for module in (nn.Linear(3, 3), nn.ReLU(inplace=True)):
        x = torch.randn(2, 3)
        expected = module(x.clone())
        with RULES[rule]().register(module):
            output = module(x.clone())
        assert torch.equal(output, expected)
        assert output.requires_grad is expected.requires_grad


@each_rule
def test_forward_without_gradients(rule: str) -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    with RULES[rule]().register(layer):
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                output = layer(x)
            assert not output.requires_grad
            assert torch.equal(output.clone(), output_of(layer, x))
        # and then with them: nothing of the calls above is left
        assert layer(x).requires_grad


@each_rule
def test_state_dict_knows_nothing_of_a_rule(rule: str) -> None:
    layer = nn.BatchNorm1d(3)
    before = list(layer.state_dict())
    with RULES[rule]().register(layer):
        assert list(layer.state_dict()) == before
        layer.load_state_dict(copy.deepcopy(layer.state_dict()))


class Raises(nn.Module):
    """Fails in its forward or in its backward."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "forward":
            raise KeyError(self.where)
        y = x * 1
        if self.where == "backward":
            y.register_hook(self.fail)
        return y

    def fail(self, _: Tensor) -> Tensor:
        raise KeyError(self.where)


@pytest.mark.parametrize("where", ["forward", "backward"])
@each_rule
def test_an_exception_of_the_module_leaves_nothing(rule: str, where: str) -> None:
    if where == "backward" and rule in {"Pass", "ReLUDeconvNet", "ReLUBetaSmooth"}:
        relevance(RULES[rule](), Raises(where), torch.randn(2, 3), torch.randn(2, 3))  # they have no use for it
        return
    module = Raises(where)
    before = list(vars(module))
    with pytest.raises(KeyError, match=where):
        relevance(RULES[rule](), module, torch.randn(2, 3), torch.randn(2, 3))
    assert handles(module) == []
    assert list(vars(module)) == before


#: These need the graph of the module's own call.
KEEPS_GRAPH = ["Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "Gamma(2)", "ZBox", "ReLUGuidedBackprop", "Hook"]


@pytest.mark.parametrize(
    ("rule", "module", "computed"),
    [
        pytest.param(
            rule,
            module,
            computed,
            id=f"{rule}-{module}-{'with-backward' if computed else 'forward-alone'}",
        )
        for rule, module in PAIRS
        for computed in (False, True)
    ],
)
def test_everything_goes_when_the_graph_goes(rule: str, module: str, computed: bool) -> None:
    layer, hook = MODULES[module](), RULES[rule]()
    inner: list[weakref.ref[Tensor]] = []
    own = type(layer).forward
    x = some_input()

    def forward(self: nn.Module, given: Tensor) -> Tensor:
        inner.append(weakref.ref(given))
        output: Tensor = own(self, given)
        inner.append(weakref.ref(output))
        return output

    if module != "block-train":  # traced, as any module with a forward of its own; the block stands for known layers
        layer.__class__ = type("Watched", (type(layer),), {"forward": forward})
    gc.disable()
    try:
        with hook.register(layer):
            hidden = x * 1
            output = layer(hidden)
            refs = [weakref.ref(hidden), weakref.ref(output), *inner]
            if computed:
                torch.autograd.grad(output, x, torch.ones_like(output))
            del hidden, output
            assert [ref() for ref in refs] == [None] * len(refs)  # while the rule is still there
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["linear", "conv2d-circular", "transposed1d", "batchnorm1d"])
@each_formula
def test_everything_of_known_layers_goes(rule: str, name: str) -> None:
    layer, x = CASES[name].module(), CASES[name].input().requires_grad_()
    gc.disable()
    try:
        with FORMULAS[rule][0]().register(layer):
            hidden = x * 1
            output = layer(hidden)
            refs = [weakref.ref(hidden), weakref.ref(output), weakref.ref(output.grad_fn)]
            torch.autograd.grad(output, x, torch.ones_like(output))
            del hidden, output
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


def test_a_graph_that_went_backward_is_freed() -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    for rule in RULES.values():
        with rule().register(layer):
            output = layer(x)
        torch.autograd.grad(output, x, torch.ones_like(output))
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(output, x, torch.ones_like(output))


def test_planted_leak_is_caught() -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    gc.disable()
    try:
        handle = layer.register_forward_hook(lambda module, _, output: setattr(module, "stored", output))
        output = layer(x)
        ref = weakref.ref(output)
        del output
        assert ref() is not None
        handle.remove()
        assert "stored" in vars(layer)
    finally:
        gc.enable()

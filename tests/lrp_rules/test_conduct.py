"""What a rule never does: everything in the specification's list, for every rule."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import types
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    ReLUBetaSmooth,
    Stabilizer,
    WSquare,
    ZBox,
    ZPlus,
)
from tests.lrp_rules.cases import (
    CASES,
    FORMULAS,
    RULES,
    Add,
    Case,
    TracedConv2d,
    TracedLinear,
    handles,
    integers,
    output_of,
    power_of_two,
    relevance,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Hook

each_rule = pytest.mark.parametrize("rule", RULES)
each_formula = pytest.mark.parametrize("rule", FORMULAS)

#: Modules whose output looks like their input, so that every rule may go there.
MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "traced-linear": lambda: TracedLinear(4, 4),
    "conv1d-circular": lambda: nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"),
    "batchnorm-eval": lambda: nn.BatchNorm1d(3).eval(),
    "batchnorm-train": lambda: nn.BatchNorm1d(3),
    "relu": nn.ReLU,
    "relu-in-place": lambda: nn.ReLU(inplace=True),
    "dropout-train": lambda: nn.Dropout(0.5),
    "block-train": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.Dropout(0.5)),
}
#: These run the module again, on an input without history, to which no module in place may write.
RUNS_AGAIN = ["WSquare", "Flat", "BasicHook"]
in_place_again = pytest.mark.xfail(
    strict=True, reason="BUG in-place-again: a module in place is run again on a leaf", raises=RuntimeError
)
each_rule_in_place = pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=in_place_again) if rule in RUNS_AGAIN else rule for rule in RULES]
)
PAIRS = [
    (rule, module) for rule in RULES for module in MODULES if not (rule in RUNS_AGAIN and module == "relu-in-place")
]
each_pair = pytest.mark.parametrize(("rule", "module"), PAIRS)


def some_input() -> Tensor:
    return torch.randn(2, 3, 4, requires_grad=True)


class Snapshot:
    """All that may be seen of a module from outside: tensors and their bits, attributes, handles, random state."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = dict(module.named_modules())
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.bits = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.versions = {name: tensor._version for name, tensor in self.tensors.items()}
        self.attributes = {name: list(vars(part)) for name, part in self.parts.items()}
        self.handles = handles(module)
        self.training = {name: part.training for name, part in self.parts.items()}
        self.random = torch.get_rng_state()

    def assert_same(self, module: nn.Module) -> None:
        now = Snapshot(module)
        assert {name: id(part) for name, part in now.parts.items()} == {
            name: id(part) for name, part in self.parts.items()
        }
        assert {name: id(t) for name, t in now.tensors.items()} == {name: id(t) for name, t in self.tensors.items()}
        assert now.versions == self.versions
        assert all(torch.equal(now.bits[name], bits) for name, bits in self.bits.items())
        assert now.attributes == self.attributes
        assert now.handles == self.handles
        assert now.training == self.training
        assert torch.equal(now.random, self.random)
        assert all(tensor.grad is None for tensor in now.tensors.values())


# -------------------------------------------------------------------------------------------- nothing is written to


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


# ----------------------------------------------------------------------------------------------- exceptions, memory


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


@pytest.mark.parametrize("computed", [False, True], ids=["forward-alone", "with-backward"])
@each_pair
def test_everything_goes_when_the_graph_goes(rule: str, module: str, computed: bool) -> None:
    layer, hook = MODULES[module](), RULES[rule]()
    inner: list[weakref.ref[Tensor]] = []
    own = layer.forward
    x = some_input()

    def forward(given: Tensor) -> Tensor:
        inner.append(weakref.ref(given))
        output = own(given)
        inner.append(weakref.ref(output))
        return output

    if (
        module != "block-train"
    ):  # traced, as any module with a forward of its own; so the block stands for known layers, too
        layer.forward = forward
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


@each_rule
def test_a_graph_outlives_its_registration(rule: str) -> None:
    layer, x, R = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    registration = RULES[rule]().register(layer)
    early, late = layer(x), layer(x)
    (expected,) = torch.autograd.grad(early, x, R)
    registration.remove()
    (got,) = torch.autograd.grad(late, x, R)
    assert torch.equal(got, expected)


def assert_as_it_was_or_refused(output: Tensor, x: Tensor, R: Tensor, expected: Tensor) -> None:
    """As of any graph: the relevance of the call as it was, or an error, but never that of a mixture of two states."""
    refused = None
    try:
        (got,) = torch.autograd.grad(output, x, R)
        assert torch.equal(got, expected)
    except RuntimeError as error:
        refused = str(error)
    assert refused is None or "modified by an inplace operation" in refused


@each_rule
def test_parameters_changed_between_forward_and_backward_are_noticed(rule: str) -> None:
    layer, x, R = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    expected = relevance(RULES[rule](), layer, x, R)
    with RULES[rule]().register(layer):
        output = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert_as_it_was_or_refused(output, x, R, expected)


@pytest.mark.parametrize("rule", ["Epsilon", "ZPlus", "Gamma", "Flat"])
def test_statistics_changed_between_forward_and_backward_are_noticed(rule: str) -> None:
    layer, x, R = nn.BatchNorm1d(3).eval(), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    expected = relevance(RULES[rule](), layer, x, R)
    with RULES[rule]().register(layer):
        output = layer(x)
    assert layer.running_var is not None
    layer.running_var.mul_(4)
    assert_as_it_was_or_refused(output, x, R, expected)


# ---------------------------------------------------------------------------------------------------- several calls


@each_formula
def test_one_module_called_twice_in_one_forward(rule: str) -> None:
    case = Case(lambda: nn.Linear(4, 4), (4,))
    layer, hook = case.module(), FORMULAS[rule][0]()
    x, y, R = case.input(), case.input(seed=5), integers((3, 4), 2)
    with hook.register(layer):
        first, second = layer(x.requires_grad_()), layer(y.requires_grad_())
    got = torch.autograd.grad(first + second, (x, y), R)
    assert torch.equal(got[0], relevance(hook, layer, x, R))
    assert torch.equal(got[1], relevance(hook, layer, y, R))
    # a chain, and the second call first
    with hook.register(layer):
        hidden = layer(x)
        output = layer(hidden)
    below = relevance(hook, layer, hidden.detach(), R)
    assert torch.equal(torch.autograd.grad(output, hidden, R, retain_graph=True)[0], below)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], relevance(hook, layer, x, below))


@each_rule
def test_two_forwards_before_two_backwards(rule: str) -> None:
    for layer in (nn.Linear(4, 4), TracedLinear(4, 4), nn.Tanh()):
        hook, R = RULES[rule](), torch.randn(2, 4)
        inputs = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
        expected = [relevance(hook, layer, x, R) for x in inputs]
        with hook.register(layer):
            outputs = [layer(x) for x in inputs]
        for k in (1, 0, 2):
            assert torch.equal(torch.autograd.grad(outputs[k], inputs[k], R)[0], expected[k])


@each_rule
def test_two_threads(rule: str) -> None:
    layer, hook = nn.Conv1d(3, 3, 3, padding=1), RULES[rule]()
    inputs = [torch.randn(2, 3, 4) for _ in range(8)]
    R = torch.randn(2, 3, 4)
    expected = [relevance(hook, layer, x, R) for x in inputs]
    wrong: list[Any] = []

    def work(part: list[int]) -> None:
        for k in part * 4:
            x = inputs[k].clone().requires_grad_()
            (got,) = torch.autograd.grad(layer(x), x, R)
            if not torch.equal(got, expected[k]):
                wrong.append(k)

    with hook.register(layer):
        threads = [threading.Thread(target=work, args=(part,)) for part in ([0, 1, 2, 3], [4, 5, 6, 7])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# ------------------------------------------------------------------------------------------------------- train mode


@each_rule
def test_statistics_of_a_batch_norm_move_once(rule: str) -> None:
    for make in (lambda: nn.BatchNorm1d(3), lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Identity())):
        layer, x = make(), torch.randn(5, 3)
        plain = copy.deepcopy(layer)
        plain(x)
        relevance(RULES[rule](), layer, x, torch.randn(5, 3))
        for mine, alone in zip(layer.buffers(), plain.buffers(), strict=True):
            assert torch.equal(mine, alone)


@pytest.mark.parametrize("rule", [Norm, Epsilon], ids=lambda cls: cls.__name__)
def test_shares_follow_the_mask_of_the_forward_pass(rule: type[Epsilon]) -> None:
    layer, x = nn.Dropout(0.5), torch.ones(1, 64, requires_grad=True)
    with rule(power_of_two).register(layer):
        output = layer(x)
    torch.randn(7)  # the state has moved on
    (r,) = torch.autograd.grad(output, x, torch.ones(1, 64))
    # where kept, z = 2 and S = 4: r = 1 * 2 * 1 / 4
    assert torch.equal(r, torch.where(output.detach() != 0, 0.5, 0.0))
    assert 0 < int((output != 0).sum()) < 64


@pytest.mark.parametrize("rule", ["ZPlus", "AlphaBeta", "ZBox", "WSquare", "Flat", "BasicHook"])
def test_all_rules_follow_the_mask_of_the_forward_pass(rule: str) -> None:
    class Dropped(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return F.dropout(super().forward(input), 0.5, self.training)

    layer, x = Dropped(4, 64), torch.rand(1, 4) + 1
    with torch.no_grad():
        layer.weight.copy_(torch.rand(64, 4) + 1)
    x.requires_grad_()
    hook = RULES[rule]()
    with hook.register(layer):
        output = layer(x)
    torch.randn(7)
    # relevance at an output that was dropped reaches no input; half of them are, so another mask is seen
    (r,) = torch.autograd.grad(output, x, (output == 0).double())
    assert not r.any()


@pytest.mark.xfail(
    strict=True, reason="BUG rerun-shared: modes are given to the wrong parts where one is shared", raises=AssertionError
)
def test_modes_of_a_container_that_holds_one_module_twice() -> None:
    shared = nn.Tanh()
    block = nn.Sequential(shared, nn.Dropout(0.5), shared, nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    block[4].train()
    x, R = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    answers = []
    for rule in (Norm(), BasicHook()):  # the same formula, by the graph of the call and by another call
        torch.manual_seed(1)
        with rule.register(block):
            output = block(x)
        answers.append(torch.autograd.grad(output, x, R)[0])
    assert torch.equal(*answers)


@pytest.mark.xfail(
    strict=True, reason="BUG rerun-random: randomness in eval mode is drawn again, and moves the state", raises=AssertionError
)
@pytest.mark.parametrize("rule", ["WSquare", "Flat", "BasicHook"])
def test_a_module_that_is_random_in_eval_mode(rule: str) -> None:
    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    layer, x = Always().eval(), torch.ones(1, 64, requires_grad=True)
    with RULES[rule]().register(layer):
        output = layer(x)
    before = torch.get_rng_state()
    (r,) = torch.autograd.grad(output, x, torch.ones_like(output))
    assert torch.equal(r != 0, output != 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.xfail(
    strict=True, reason="BUG rerun-below: parameters below the module are read in the backward pass", raises=AssertionError
)
@pytest.mark.parametrize("rule", ["WSquare", "Flat", "BasicHook"])
def test_parameters_below_a_container_changed_between_forward_and_backward_are_noticed(rule: str) -> None:
    block, x, R = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    expected = relevance(RULES[rule](), block, x, R)
    with RULES[rule]().register(block):
        output = block(x)
    with torch.no_grad():
        block[0].weight.mul_(2)
    assert_as_it_was_or_refused(output, x, R, expected)


@pytest.mark.parametrize("rule", ["ZPlus", "Flat", "BasicHook"])
def test_random_state_where_only_a_part_is_in_train_mode(rule: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.drop = nn.Parameter(torch.randn(3, 3)), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            dropped = self.drop(F.linear(x, self.weight))
            assert isinstance(dropped, Tensor)
            return dropped

    layer, x = Block().eval(), torch.randn(2, 3, requires_grad=True)
    layer.drop.train()
    with RULES[rule]().register(layer):
        output = layer(x)
    before = torch.get_rng_state()
    torch.autograd.grad(output, x, torch.ones_like(output))
    assert torch.equal(torch.get_rng_state(), before)


@each_rule
def test_mode_switched_between_forward_and_backward(rule: str) -> None:
    layer, x, R = nn.BatchNorm1d(3).eval(), torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    expected = relevance(RULES[rule](), layer, x, R)
    with RULES[rule]().register(layer):
        output = layer(x)
    layer.train()
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, expected)


# ------------------------------------------------------------------------------------------ norms and parametrizations


def _old(wrap: Callable[..., nn.Module], **kwargs: Any) -> Callable[[nn.Module], nn.Module]:
    def apply(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that they are old
            return wrap(module, **kwargs)

    return apply


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": _old(nn.utils.weight_norm),
    "spectral_norm": _old(nn.utils.spectral_norm),
    "weight_norm-parametrized": parametrizations.weight_norm,
    "spectral_norm-parametrized": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("cls", [nn.Linear, TracedLinear], ids=["known", "traced"])
@pytest.mark.parametrize("norm", NORMS)
@each_rule
def test_normed_layers_use_the_effective_weights(rule: str, norm: str, cls: type[nn.Linear], training: bool) -> None:
    layer = NORMS[norm](cls(4, 4)).train(training)
    plain, x, R = cls(4, 4), torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    with RULES[rule]().register(layer):
        output = layer(x)
    state = copy.deepcopy(layer.state_dict())
    before = Snapshot(layer)
    (got,) = torch.autograd.grad(output, x, R)
    before.assert_same(layer)
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())
    layer.eval()
    with torch.no_grad():
        layer(x)  # leaves the weight of the older ones as it was used
        assert isinstance(layer.weight, Tensor)
        assert isinstance(layer.bias, Tensor)
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    assert torch.equal(got, relevance(RULES[rule](), plain, x, R))


@pytest.mark.xfail(
    strict=True,
    reason="BUG random-parametrization: evaluated in eval mode, not as the forward pass used it",
    raises=AssertionError,
)
def test_a_random_parametrization() -> None:
    layer = nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(integers((16, 16), 1))
    parametrize.register_parametrization(layer, "weight", nn.Dropout(0.5))
    x, R = integers((2, 16), 2).requires_grad_(), integers((2, 16), 3)
    torch.manual_seed(3)
    with Epsilon(power_of_two).register(layer):
        output = layer(x)
    (got,) = torch.autograd.grad(output, x, R)
    torch.manual_seed(3)
    weight = layer.weight.detach()
    assert torch.equal(output, x @ weight.T)
    assert torch.equal(got, x * ((R / power_of_two(x @ weight.T)) @ weight))


@pytest.mark.parametrize("rule", ["Epsilon", "Norm", "Gamma(0)"])
def test_a_module_with_a_forward_of_its_own(rule: str) -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    assert isinstance(layer, nn.Linear)
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    own = layer.forward
    layer.forward = lambda input: own(input)  # type: ignore[method-assign]  # noqa: A006, PLW0108
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, x, R), expected)


@pytest.mark.xfail(
    strict=True,
    reason="BUG patched-forward: a bound forward runs the original module, unchanged",
    raises=AssertionError,
)
@pytest.mark.parametrize("rule", ["ZPlus", "AlphaBeta(2,1)", "Gamma(0.25)", "ZBox(-1,2)", "WSquare", "Flat"])
def test_parameters_change_under_a_patched_forward(rule: str) -> None:
    # as libraries do that move modules between devices: module.forward = a wrapper, bound to the module
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    layer.forward = types.MethodType(lambda self, v: F.linear(v, self.weight, self.bias), layer)
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, x, R), expected)


# ---------------------------------------------------------------------------------------------------------- in place


BEHIND: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu_": (F.relu_, F.relu),
    "mul_": (lambda y: y.mul_(2), lambda y: y * 2),
    "zero_": (lambda y: y.zero_(), lambda y: y * 0),
    "add_-clamp_": (lambda y: y.add_(1).clamp_(min=0), lambda y: (y + 1).clamp(min=0)),
}


@pytest.mark.parametrize("behind", BEHIND)
@each_pair
def test_in_place_operations_behind(rule: str, module: str, behind: str) -> None:
    layer, x, R = MODULES[module](), some_input(), torch.randn(2, 3, 4)
    if module != "dropout-train":  # in eval mode it returns its input itself, see below
        layer.eval()
    answers = []
    for operation in BEHIND[behind]:
        torch.manual_seed(1)
        with RULES[rule]().register(layer):
            output = operation(layer(x * 1))
        answers.append((output.detach(), torch.autograd.grad(output, x, R)[0]))
    (in_place, r_in_place), (elsewhere, r_elsewhere) = answers
    assert torch.equal(in_place, elsewhere)
    assert torch.equal(r_in_place, r_elsewhere)


@pytest.mark.xfail(
    strict=True,
    reason="BUG alias-behind: Pass keeps an input that it has no use for, and the output shares its memory",
    raises=RuntimeError,
)
@pytest.mark.parametrize(
    "module", [nn.Identity(), nn.Flatten(), nn.Dropout().eval(), nn.Dropout2d().eval()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("rule", [Pass])
def test_in_place_operations_behind_a_module_that_returns_its_input(rule: type[Pass], module: nn.Module) -> None:
    x, R = torch.randn(2, 3, 1, 1, requires_grad=True), torch.randn(2, 3, 1, 1)
    if isinstance(module, nn.Flatten):
        x, R = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    with rule().register(module):
        output = F.relu_(module(x * 1))
    (r,) = torch.autograd.grad(output, x, R)
    assert torch.equal(r, R * (x > 0))


@each_rule
def test_in_place_operations_before(rule: str) -> None:
    layer, relu = nn.Linear(4, 4), nn.ReLU(inplace=True)
    x, R = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    with RULES[rule]().register(layer):
        output = layer(relu(x * 1))
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, relevance(RULES[rule](), layer, F.relu(x.detach()), R) * (x > 0))


@pytest.mark.parametrize("module", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.SiLU], ids=lambda cls: cls.__name__)
@each_rule_in_place
def test_rules_on_modules_that_work_in_place(rule: str, module: type[nn.ReLU]) -> None:
    x, R = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    given = x * 1
    with RULES[rule]().register(layer := module(inplace=True)):
        output = layer(given)
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(output, module()(x))
    assert torch.equal(got, relevance(RULES[rule](), module(), x, R))


@each_rule_in_place
def test_a_whole_network_in_place(rule: str) -> None:
    def network(inplace: bool) -> nn.Sequential:
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Linear(4, 4), nn.ReLU(inplace), nn.Dropout(0.5, inplace), nn.Linear(4, 4), nn.LeakyReLU(inplace=inplace)
        ).eval()

    x, R = torch.randn(3, 4), torch.randn(3, 4)
    answers = []
    for inplace in (False, True):
        model, leaf = network(inplace), x.clone().requires_grad_()
        registered = [RULES[rule]().register(module) for module in model]
        answers.append(torch.autograd.grad(model(leaf), leaf, R)[0])
        for registration in registered:
            registration.remove()
        assert handles(model) == []
    assert torch.equal(*answers)


def test_an_input_that_is_read_after_it_was_overwritten() -> None:
    relu, x = nn.ReLU(inplace=True), torch.randn(3, 4, requires_grad=True)

    def preactivation_block() -> Tensor:
        hidden = x * 1
        branch = relu(hidden)
        assert isinstance(branch, Tensor)
        return branch + hidden  # of what the activation has left in there

    plain = preactivation_block()
    with Pass().register(relu):
        assert torch.equal(preactivation_block(), plain)


class Doubles(nn.Module):
    """Writes to its input, and does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


@pytest.mark.xfail(
    strict=True,
    reason="BUG hidden-in-place: the node hangs on what the module wrote to its input",
    raises=(AssertionError, RuntimeError),
)
@pytest.mark.parametrize("rule", ["Pass", "Norm", "Epsilon", "ReLUBetaSmooth", "ZPlus"])
def test_rules_on_a_module_that_writes_to_its_input_unannounced(rule: str) -> None:
    class DoublesElsewhere(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    x, R = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    with RULES[rule]().register(layer := Doubles()):
        output = layer(x * 1)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], relevance(RULES[rule](), DoublesElsewhere(), x, R))


@pytest.mark.xfail(strict=True, reason="BUG hidden-in-place: a container that begins in place", raises=AssertionError)
def test_rules_on_a_container_that_begins_in_place() -> None:
    x, R, linear = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), nn.Linear(4, 4)
    block = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), linear)
    with Norm(power_of_two).register(block):
        output = block(x * 1)
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, relevance(Norm(power_of_two), nn.Sequential(nn.LeakyReLU(0.5), linear), x, R))


def test_one_tensor_given_twice_to_a_module_that_works_in_place() -> None:
    class AddInPlace(Add):
        inplace = True

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left.add_(right.clone())

    x, R = integers((2, 3), 1).requires_grad_(), integers((2, 3), 2)
    hidden = x * 1
    with Norm(power_of_two).register(layer := AddInPlace()):
        output = layer(hidden, hidden)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], 2 * x * (R / power_of_two(2 * x.detach())))


# --------------------------------------------------------------------------------------------------- shapes and strides

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 1],
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "with-an-offset": lambda x: torch.cat([x, x])[3:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name",
    [
        "conv2d-asymmetric",
        "conv2d-circular",
        "conv2d-depthwise",
        "transposed2d-groups-dilation",
        "batchnorm2d",
        "avgpool2d",
    ],
)
@each_formula
def test_layouts(rule: str, name: str, layout: str) -> None:
    layer, x = CASES[name].module(), CASES[name].input()
    R = integers(output_of(layer, x).shape, 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    given, R_given = LAYOUTS[layout](x), LAYOUTS[layout](R)
    assert torch.equal(given, x)
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, given.requires_grad_(), R_given), expected)
    assert torch.equal(given, x)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, given, R_given), expected)


@each_formula
def test_expanded_inputs_and_relevance(rule: str) -> None:
    layer = CASES["conv2d-circular"].module()
    one = CASES["conv2d-circular"].input(1)
    R = integers(output_of(layer, one).shape, 2)
    r = relevance(FORMULAS[rule][0](), layer, one, R)
    expanded = one.expand(3, -1, -1, -1).requires_grad_()
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, expanded, R.expand(3, -1, -1, -1)), r.expand_as(expanded))


@pytest.mark.parametrize("name", CASES)
@each_formula
def test_samples_are_independent_and_batches_may_be_empty(rule: str, name: str) -> None:
    layer, x = CASES[name].module(), CASES[name].input(3)
    R = integers(output_of(layer, x).shape, 2)
    r = relevance(FORMULAS[rule][0](), layer, x, R)
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, x[1:2], R[1:2]), r[1:2])
    assert relevance(FORMULAS[rule][0](), layer, x[:0], R[:0]).shape == x[:0].shape


@pytest.mark.parametrize("samples", [0, 1])
@each_rule
def test_small_batches(rule: str, samples: int) -> None:
    for layer in (nn.Linear(4, 4), TracedLinear(4, 4), nn.Tanh(), nn.BatchNorm1d(4).eval()):
        x = torch.randn(samples, 4, requires_grad=True) * 1
        assert relevance(RULES[rule](), layer, x, torch.randn(samples, 4)).shape == x.shape


@pytest.mark.parametrize(
    "name",
    ["linear", "conv1d", "conv2d-circular", "conv3d", "transposed1d", "avgpool2d", "traced-linear", "traced-conv2d"],
)
@each_formula
def test_unbatched_inputs(rule: str, name: str) -> None:
    layer, x = CASES[name].module(), CASES[name].input(1)
    R = integers(output_of(layer, x).shape, 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)[0]
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, x[0], R[0]), expected)


# --------------------------------------------------------------------------------------------------- types and autocast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_rule
def test_relevance_has_the_type_of_the_input(rule: str, dtype: torch.dtype) -> None:
    for layer in (nn.Linear(4, 4), TracedLinear(4, 4), nn.ReLU()):
        x, R = integers((3, 4), 1).to(dtype), integers((3, 4), 2).to(dtype)
        r = relevance(RULES[rule](), layer.to(dtype), x, R)
        assert r.dtype == dtype
        assert bool(r.isfinite().all())


half_containers = pytest.mark.xfail(
    strict=True, reason="BUG half-containers: run again in float32, but for what lies below them", raises=RuntimeError
)
BASIC = [rule for rule, make in RULES.items() if isinstance(make(), BasicHook)]


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        pytest.param(rule, dtype, marks=half_containers if dtype == torch.float16 and rule in BASIC else ())
        for rule in RULES
        for dtype in (torch.bfloat16, torch.float16)
    ],
    ids=str,
)
def test_containers_in_half_precision(rule: str, dtype: torch.dtype) -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).to(dtype)
    r = relevance(RULES[rule](), layer, integers((3, 4), 1).to(dtype), integers((3, 4), 2).to(dtype))
    assert r.dtype == dtype


AUTOCAST_RULES = {
    "Epsilon": Epsilon,
    "ZPlus": ZPlus,
    "AlphaBeta": AlphaBeta,
    "Gamma": Gamma,
    "Gamma(2)": lambda: Gamma(2),
    "ZBox": lambda: ZBox(-3, 3),
    "WSquare": WSquare,
    "Flat": Flat,
}


@pytest.mark.parametrize("inside", [False, True], ids=["backward-outside", "backward-inside"])
@pytest.mark.parametrize("rule", AUTOCAST_RULES)
def test_autocast_loses_no_digits_of_a_known_layer(rule: str, inside: bool) -> None:
    layer = CASES["conv2d-circular"].module().float()
    x = (CASES["conv2d-circular"].input() + 2.0**-12).float().requires_grad_()  # more digits than bfloat16 has
    R = integers(output_of(layer, x).shape, 2).float()
    expected = relevance(AUTOCAST_RULES[rule](), layer, x, R)
    with AUTOCAST_RULES[rule]().register(layer), torch.autocast("cpu"):
        output = layer(x)
        assert output.dtype == torch.bfloat16
        if inside:
            (got,) = torch.autograd.grad(output, x, R.bfloat16())
    if not inside:
        (got,) = torch.autograd.grad(output, x, R.bfloat16())
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@each_rule
def test_autocast_keeps_forward_and_types(rule: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).float()
    x = torch.randn(3, 4).float().requires_grad_()
    with torch.autocast("cpu"):
        plain = network(x)
        registered = [RULES[rule]().register(module) for module in network]
        output = network(x)
    (r,) = torch.autograd.grad(output, x, torch.ones_like(output))
    for registration in registered:
        registration.remove()
    assert torch.equal(plain, output)
    assert r.dtype == torch.float32


@pytest.mark.xfail(
    strict=True,
    reason="BUG autocast-traced: a layer that is run again gets half-precision inputs and single-precision weights",
    raises=RuntimeError,
)
@pytest.mark.parametrize("cls", [TracedLinear, TracedConv2d], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("rule", ["ZPlus", "Gamma", "WSquare", "BasicHook"])
def test_autocast_of_traced_layers_behind_others(rule: str, cls: type[nn.Module]) -> None:
    layer = TracedLinear(4, 4).float() if cls is TracedLinear else TracedConv2d(1, 1, 1).float()
    x = torch.randn(3, 1, 4, 4).float().requires_grad_()
    with torch.autocast("cpu"), RULES[rule]().register(layer):
        output = layer(x.bfloat16())
    (r,) = torch.autograd.grad(output, x, torch.ones_like(output))
    assert r.dtype == torch.float32


# ---------------------------------------------------------------------------------- saved tensors of others


@each_formula
def test_saved_tensors_packed_by_others(rule: str) -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    x.requires_grad_()
    if FORMULAS[rule][0]().__class__ in {Epsilon, Norm, Gamma}:
        return  # the case below
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
        FORMULAS[rule][0]().register(layer),
    ):
        output = layer(x)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], expected)


@pytest.mark.xfail(
    strict=True,
    reason="BUG saved-tensor-hooks: of checkpoint() and save_on_cpu() clash with those on the saved output",
    raises=RuntimeError,
)
@pytest.mark.parametrize("rule", ["Epsilon", "Norm", "Gamma(0.25)"])
@pytest.mark.parametrize("how", ["save_on_cpu", "checkpoint"])
def test_saved_outputs_packed_by_others(how: str, rule: str) -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    x.requires_grad_()
    with FORMULAS[rule][0]().register(layer):
        if how == "checkpoint":
            (got,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False), x, R)
        else:
            with torch.autograd.graph.save_on_cpu():
                output = layer(x)
            (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, expected)


@each_formula
def test_reentrant_checkpoint(rule: str) -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    x.requires_grad_()
    with FORMULAS[rule][0]().register(layer):
        checkpoint(layer, x, use_reentrant=True).backward(R)
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


# ----------------------------------------------------------------------------------------------------- copies, pickles


@pytest.mark.parametrize(
    "way",
    [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v)), lambda v: v.copy()],
    ids=["copy", "deepcopy", "pickle", "method"],
)
@each_rule
def test_copies_of_rules(rule: str, way: Callable[[Hook], Hook]) -> None:
    hook = RULES[rule]()
    other = way(hook)
    assert type(other) is type(hook)
    for layer in (nn.Linear(4, 4), nn.Tanh()):
        x, R = torch.randn(3, 4), torch.randn(3, 4)
        assert torch.equal(relevance(other, layer, x, R), relevance(hook, layer, x, R))


#: Arguments that are all others than the defaults, so that a copy that forgets one is seen.
UNUSUAL: dict[str, Hook] = {
    "Epsilon": Epsilon(0.5, "bias"),
    "Norm": Norm(0.5),
    "ZPlus": ZPlus(0.5, ["bias"]),
    "AlphaBeta": AlphaBeta(4, 3, 0.5, "bias"),
    "Gamma": Gamma(0.75, 0.5, "bias"),
    "ZBox": ZBox(torch.tensor([[-1.0, -2, -3, -4]]), 5, 0.5, "weight"),
    "WSquare": WSquare(Stabilizer(0.5, clip=True), "bias"),
    "Flat": Flat(Stabilizer(0.5, norm_scale=True)),
    "ReLUBetaSmooth": ReLUBetaSmooth(0.5),
    "BasicHook": BasicHook(stabilizer=0.5),
}


@pytest.mark.parametrize(
    "way",
    [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v)), lambda v: v.copy()],
    ids=["copy", "deepcopy", "pickle", "method"],
)
@pytest.mark.parametrize("rule", UNUSUAL)
def test_copies_forget_nothing(rule: str, way: Callable[[Hook], Hook]) -> None:
    layer, x, R = nn.Linear(4, 4), torch.randn(3, 4), torch.randn(3, 4)
    expected = relevance(UNUSUAL[rule], layer, x, R)
    assert torch.equal(relevance(way(UNUSUAL[rule]), layer, x, R), expected)
    assert not torch.equal(relevance(RULES[rule](), layer, x, R), expected)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@each_rule
def test_copies_of_modules_with_rules(rule: str, way: str) -> None:
    def twin(module: nn.Module) -> nn.Module:
        if way == "deepcopy":
            return copy.deepcopy(module)
        if way == "pickle":
            return pickle.loads(pickle.dumps(module))  # type: ignore[no-any-return]  # noqa: S301
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        return torch.load(file, weights_only=False)  # type: ignore[no-any-return]

    for layer in (nn.Linear(4, 4), nn.ReLU()):
        x, R = torch.randn(3, 4), torch.randn(3, 4)
        expected = relevance(RULES[rule](), layer, x, R)
        (gradient,) = torch.autograd.grad(layer((leaf := x.clone().requires_grad_()) * 1), leaf, R)
        registration = RULES[rule]().register(layer)
        other = twin(layer)
        registration.remove()
        assert handles(layer) == []
        assert torch.equal(torch.autograd.grad(layer(leaf * 1), leaf, R)[0], gradient)
        # the copy has a rule of its own
        assert torch.equal(torch.autograd.grad(other(leaf * 1), leaf, R)[0], expected)
        next(iter(other._forward_hooks.values())).__self__.remove()
        assert handles(other) == []
        assert torch.equal(torch.autograd.grad(other(leaf * 1), leaf, R)[0], gradient)


@each_rule
def test_deepcopy_of_a_module_after_a_graph(rule: str) -> None:
    # torch refuses to copy tensors that hang on a graph; a rule must not leave such a tensor anywhere
    layer, x = nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    with RULES[rule]().register(layer):
        output = layer(x)
        copy.deepcopy(layer)
        torch.autograd.grad(output, x, torch.ones_like(output), create_graph=True)
        copy.deepcopy(layer)
    copy.deepcopy(layer)

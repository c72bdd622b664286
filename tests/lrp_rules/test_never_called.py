"""Rules that never act: what is said at the end of an attachment, and when nothing is to be said."""

from __future__ import annotations

import copy
import gc
import io
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from lrp_rules import Epsilon, Norm, Pass, Registration, UnruledWarning, ZPlus, attach
from lrp_rules.hooks.calls import _innermost, running
from tests.lrp_rules import fake_device
from tests.lrp_rules.cases import handles, integers, power_of_two

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

RULES = {nn.Linear: Epsilon(power_of_two), nn.ReLU: Pass()}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))


def some_input() -> Tensor:
    return integers((2, 3), 1).requires_grad_()


class ByForward(nn.Module):
    """Uses its layers without calling them."""

    def __init__(self, kind: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind() for _ in range(3))
        self.last = nn.Linear(3, 3)
        self.end = kind()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.forward(x)
        return self.end.forward(nn.functional.linear(x, self.last.weight, self.last.bias))  # type: ignore[no-any-return]


def test_modules_that_are_not_called_are_named_in_groups_with_a_cause() -> None:
    model = ByForward()
    before = handles(model)
    with (
        pytest.raises(RuntimeError, match=r"Epsilon on 3 ReLU in layers; Epsilon on 1 ReLU in end.*F\.linear"),
        attach(model, {nn.Linear: Epsilon(), nn.ReLU: Epsilon()}),
    ):
        model(some_input())
    assert handles(model) == before  # the rules are off all the same


def test_a_layer_whose_weight_is_used_without_a_call_has_its_rule() -> None:
    model, x, R = ByForward(lambda: nn.Linear(3, 3)), some_input(), integers((2, 3), 5)
    with attach(model, {nn.Linear: ZPlus()}) as rules:
        r = torch.autograd.grad(model(x), x, R)[0]
    assert [registration.calls for registration in rules._made] == [1] * 5
    called = nn.Sequential(*[module for module in model.modules() if isinstance(module, nn.Linear)][:3])
    called.extend([model.last, model.end])
    with attach(called, {nn.Linear: ZPlus()}):
        expected = torch.autograd.grad(called(x), x, R)[0]
    assert torch.equal(r, expected)


def test_remove_says_so_too_and_once() -> None:
    model = ByForward()
    attached = attach(model, {nn.Linear: Epsilon(), nn.ReLU: Pass()})
    model(some_input())
    with pytest.raises(RuntimeError, match="ByForward was called, and these rules were not"):
        attached.remove()
    attached.remove()


def test_a_model_that_was_never_called_is_no_error_of_remove() -> None:
    attach(network(), RULES).remove()


def test_a_forward_pass_outside_the_block_is_warned_of() -> None:
    model = network()
    attached = attach(model, RULES)
    with (
        pytest.warns(RuntimeWarning, match=r"was not called between attach and the end of the block") as warned,
        attached,
    ):
        pass
    assert warned[0].filename == __file__
    assert handles(model) == []


def test_a_module_that_was_replaced() -> None:
    model = network()
    attached = attach(model, RULES)
    model[0] = nn.Linear(3, 3)
    with pytest.warns(UnruledWarning, match=r"F\.linear in Linear|F\.linear in Sequential"):
        model(some_input())
    with pytest.raises(RuntimeError, match=r"Linear \(no part of the model any more\).*replaced after"):
        attached.remove()


class WithHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.aux(h) if self.training else h  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["nothing", "ignore", "unused", "unused-pattern", "unused-type"])
def test_a_branch_that_is_not_taken(how: str) -> None:
    model, x = WithHead().eval(), some_input()
    kwargs: dict[str, dict[str, object]] = {
        "nothing": {},
        "ignore": {"ignore": "aux"},
        "unused": {"unused": "aux"},
        "unused-pattern": {"unused": ["aux.*"]},
        "unused-type": {"unused": nn.Sequential},
    }
    attached = attach(model, RULES, **kwargs[how])  # type: ignore[arg-type]
    z = model(x)
    if how == "nothing":
        with pytest.raises(RuntimeError, match=r"Epsilon on 1 Linear in aux; Pass on 1 ReLU in aux.*unused=\.\.\."):
            attached.remove()
        return
    attached.remove()
    (r,) = torch.autograd.grad(z, x, torch.ones_like(z))
    weight = model.body.weight.detach()
    assert torch.equal(r, x.detach() * ((1 / power_of_two(z.detach())) @ weight))


def test_what_may_be_unused_has_its_rule_where_it_is_used() -> None:
    model, x = WithHead(), some_input()
    with attach(model, RULES, unused="aux"):
        z = model(x)
    with attach(model, RULES):
        expected = model(x)
    R = torch.ones_like(z)
    assert torch.equal(torch.autograd.grad(z, x, R)[0], torch.autograd.grad(expected, x, R)[0])


def test_what_may_be_unused_has_to_be_there() -> None:
    with pytest.raises(ValueError, match="'head' matches no module"):
        attach(network(), RULES, unused="head")


@pytest.mark.parametrize("what", ["attachment", "registration"])
def test_what_was_removed_cannot_be_entered(what: str) -> None:
    model = network()
    entered = attach(model, RULES) if what == "attachment" else Epsilon().register(model[0])
    with entered:
        model(some_input())
    with pytest.raises(RuntimeError, match="removed, and would do nothing"), entered:
        raise AssertionError


def test_an_exception_is_not_hidden_by_what_was_not_called() -> None:
    model = ByForward()
    with pytest.raises(KeyError, match="mine"), attach(model, {nn.Linear: Epsilon()}):  # noqa: PT012  the call belongs there
        model(some_input())
        raise KeyError("mine")  # noqa: EM101
    assert handles(model) == []


def test_an_attachment_that_is_forgotten_warns() -> None:
    model = ByForward()
    attach(model, {nn.Linear: Epsilon(), nn.ReLU: Pass()})
    model(some_input())
    with pytest.warns(RuntimeWarning, match="ByForward was called, and these rules were not"):  # noqa: PT031  it goes there
        del model
        gc.collect()


def test_rules_of_an_attachment_that_is_forgotten_stay() -> None:
    model, x = network(), some_input()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    attach(model, RULES)
    gc.collect()
    assert not torch.equal(torch.autograd.grad(model(x).sum(), x)[0], gradient)


def test_an_attachment_that_is_forgotten_and_acted_does_not() -> None:
    model = network()
    attach(model, RULES)
    model(some_input())
    del model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_reentrant_checkpoint_that_has_not_come_back_is_refused() -> None:
    model = network()
    with pytest.raises(RuntimeError, match=r"use_reentrant=True.*Do the backward pass before"), attach(model, RULES):
        checkpoint(model, some_input(), use_reentrant=True)
    assert handles(model) == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_within_the_block(reentrant: bool) -> None:
    model, x, R = network(), some_input(), integers((2, 3), 2)
    with attach(model, RULES):
        z = model(x)
    (expected,) = torch.autograd.grad(z, x, R)
    for _ in range(2):
        leaf = x.detach().requires_grad_()
        with attach(model, RULES):
            checkpoint(model, leaf, use_reentrant=reentrant).backward(R)
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, expected)


def test_another_checkpoint_after_the_block_is_told_what_to_do() -> None:
    model = network()
    with attach(model, RULES):
        z = checkpoint(model, some_input(), use_reentrant=False)
    with pytest.raises(CheckpointError) as error:
        z.sum().backward()
    assert any("Do the backward pass before the rules are removed" in note for note in error.value.__notes__)


def test_calls_without_gradients_are_calls() -> None:
    model, x = network(), some_input()
    with attach(model, RULES), torch.no_grad():
        model(x)


# --- copies -----------------------------------------------------------------------------------------------------------


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("twin", [copy.deepcopy, _saved, torch.optim.swa_utils.AveragedModel])
def test_a_copy_of_a_model_carries_no_rule(twin: Callable[[nn.Module], nn.Module]) -> None:
    model, x, R = network(), some_input(), integers((2, 3), 2)
    (gradient,) = torch.autograd.grad(model(x), x, R)
    with attach(model, RULES):
        other = twin(model)
        z = model(x)
        assert torch.equal(torch.autograd.grad(other(x), x, R)[0], gradient)
    assert not torch.equal(torch.autograd.grad(z, x, R)[0], gradient)
    assert handles(other) == []
    with attach(other, {"*": Norm()} if isinstance(other, nn.Sequential) else {"module": Norm()}):
        other(x)


# --- modules on which nothing can act ---------------------------------------------------------------------------------


def test_scripted_and_traced_modules_are_refused() -> None:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted, traced = torch.jit.script(model), torch.jit.trace(model, some_input())
    for module in (scripted, traced, next(traced.children())):
        with pytest.raises(TypeError, match="TorchScript runs a traced or scripted module without the hooks"):
            Norm().register(module)
    with pytest.raises(TypeError, match="TorchScript"):
        attach(scripted, {"0": Epsilon()})


def test_what_is_recorded_by_a_trace_is_refused_and_the_model_is_as_before() -> None:
    model, x = network(), some_input()
    with attach(model, RULES), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for recorded in (torch.enable_grad, torch.no_grad):
            with (
                recorded(),
                pytest.raises(RuntimeError, match=r"was called by torch\.jit\.trace or torch\.onnx\.export"),
            ):
                torch.jit.trace(model, x)
        model(x)


def test_the_projection_of_an_attention_is_refused() -> None:
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(RuntimeError, match=r"never calls its out_proj"):
        ZPlus().register(attention.out_proj)


# --- gradients inside the forward pass --------------------------------------------------------------------------------


class Forces(nn.Module):
    """Returns a gradient: with rules on its layers, its output would be another."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = network()

    def forward(self, x: Tensor) -> Tensor:
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def test_a_model_that_differentiates_inside_its_forward_pass_is_refused() -> None:
    model, x = Forces(), some_input()
    with attach(model, RULES), pytest.raises(RuntimeError, match="computes a gradient inside its own forward pass"):
        model(x)
    model(x)  # nothing is left of that call


def test_it_is_refused_on_a_device_whose_backward_pass_has_a_thread_of_its_own() -> None:
    if fake_device.unavailable():
        pytest.skip(fake_device.unavailable())
    fake_device.to_device(model := Forces())
    x = fake_device.on_device(integers((2, 3), 1)).requires_grad_()
    with attach(model, RULES), pytest.raises(RuntimeError, match="computes a gradient inside its own forward pass"):
        model(x)
    model(x)


def test_it_is_refused_after_a_call_that_was_interrupted() -> None:
    model, x = Forces(), some_input()
    with attach(model, RULES):
        handle = model.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(x)
        handle.remove()
        with pytest.raises(RuntimeError, match="computes a gradient inside its own forward pass"):
            model(x)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_call_that_was_interrupted_is_nothing_that_later_ones_are_in() -> None:
    model, other, x = network(), nn.Linear(3, 3), some_input()
    with attach(model, RULES, unused=""):
        handle = model.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(x)
        handle.remove()
        assert len(running) == 1
        with Epsilon().register(other):
            torch.autograd.grad(other(x).sum(), x)
        assert not running


def test_it_is_refused_behind_a_part_that_has_rules_of_its_own_attachment() -> None:
    class Both(Forces):
        def forward(self, x: Tensor) -> Tensor:
            return torch.autograd.grad(self.last(self.energy(x)).sum(), x)[0]

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 3)

    model, x = Both(), some_input()
    with (
        attach(model, RULES, ignore="energy"),
        attach(model.energy, RULES),
        pytest.raises(RuntimeError, match=r"on Linear.*computes a gradient inside its own forward pass"),
    ):
        model(x)


def test_rules_on_the_part_that_is_explained_inside_a_forward_pass_are_meant() -> None:
    model, x = Forces(), some_input()
    z = model.energy(x)
    with Epsilon(power_of_two).register(model.energy[0]), Epsilon(power_of_two).register(model.energy[2]):
        (relevance,) = torch.autograd.grad(model.energy(x), x, torch.ones_like(z))
    with attach(model.energy, {nn.Linear: Epsilon(power_of_two)}):
        assert torch.equal(model(x), relevance)


def test_a_backward_pass_on_another_thread_is_outside() -> None:
    model, x = network(), some_input()
    other, found = nn.Linear(3, 3), list[Tensor]()

    def explain() -> None:
        found.extend(torch.autograd.grad(z.sum(), x0))
        found.extend(torch.autograd.grad(other(x0).sum(), x0))

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=explain)
            thread.start()
            thread.join()
            z_inner: Tensor = self.inner(x)
            return z_inner

    x0 = x
    with attach(model, RULES), attach(waiting := Waits(), RULES), Epsilon().register(other):
        z = model(x0)
        waiting(x)
    assert len(found) == 2


def test_rules_that_are_removed_during_the_call_leave_nothing() -> None:
    class Removes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            attached.remove()
            return y

    model, other, x = Removes(), network(), some_input()
    attached = attach(model, {nn.Linear: Epsilon()})
    model(x)
    assert not running
    with attach(other, RULES):
        torch.autograd.grad(other(x).sum(), x)


# --- one registration as a context ------------------------------------------------------------------------------------


def _in_a_reentrant_checkpoint(module: nn.Module) -> Tensor:
    z: Tensor = checkpoint(module, some_input(), use_reentrant=True)
    return z


def test_a_context_that_ends_before_the_backward_pass_of_a_checkpoint_is_an_error() -> None:
    module = nn.LayerNorm(3)
    with (
        pytest.raises(RuntimeError, match=r"was called 1 times inside torch\.utils\.checkpoint"),
        Norm().register(module),
    ):
        _in_a_reentrant_checkpoint(module)
    assert handles(module) == []


def test_an_exception_of_the_block_is_what_there_is_to_say() -> None:
    module = nn.LayerNorm(3)
    with pytest.raises(ZeroDivisionError), Norm().register(module):  # noqa: PT012
        _in_a_reentrant_checkpoint(module)
        raise ZeroDivisionError
    assert handles(module) == []


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: nn.LayerNorm(3)], ids=["known", "traced"])
def test_a_call_that_fails_is_no_call(make: Callable[[], nn.Module]) -> None:
    with Norm().register(module := make()) as registration:
        with pytest.raises(RuntimeError):
            module(torch.ones(2, 4))
        assert registration.calls == 0
        module(torch.ones(2, 3))
        assert registration.calls == 1


class Silent(nn.Module):
    """Returns nothing."""

    def forward(self, x: Tensor) -> None:
        assert x.requires_grad


def test_a_module_that_returns_nothing_returns_nothing() -> None:
    with Norm().register(module := Silent()):
        assert module(some_input()) is None


def test_a_copy_of_a_module_that_is_prepared_before_each_call_has_no_rule() -> None:
    module, x = nn.LayerNorm(3), some_input()
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x)
    with Norm().register(module):
        other = copy.deepcopy(module)
        assert torch.equal(torch.autograd.grad(other(x).square().sum(), x)[0], gradient)
        with torch.no_grad():
            other(x)


def test_a_rule_that_is_registered_during_a_call_is_in_force_at_its_end() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not made:
                made.append(Norm(power_of_two).register(self))
            return 3 * x

    made: list[Registration] = []
    module, x, R = Late(), some_input(), integers((2, 3), 2)
    module.register_forward_hook(lambda *_: None)  # torch looks for hooks as a call begins, if there are any
    first = torch.autograd.grad(module(x), x, R)[0]
    assert torch.equal(first, torch.autograd.grad(module(x), x, R)[0])
    made[0].remove()


def test_a_call_that_was_interrupted_is_over() -> None:
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            if not calls:
                calls.append(1)
                raise KeyboardInterrupt
            y: Tensor = self.inner(x)
            return y

    calls: list[int] = []
    model, x = Stops(), some_input()
    attached = attach(model, {nn.Linear: Epsilon()})
    with pytest.raises(KeyboardInterrupt):
        model(x)
    torch.autograd.grad(model(x).sum(), x)
    attached.remove()


@pytest.mark.parametrize("collects", [True, False])
def test_where_another_thread_is_is_asked_without_collecting_garbage(
    collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in Python 3.11, a collection in the midst of it waits for ever
    seen = []

    def current() -> dict[int, FrameType]:
        seen.append(gc.isenabled())
        return {}

    monkeypatch.setattr(sys, "_current_frames", current)
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        assert _innermost(threading.get_ident() + 1) is None
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False]
    assert _innermost(threading.get_ident()) is not None

"""Check ``conduct``: lrp_rules passes, and for every kind of case a rule that misbehaves in just that way fails."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import lrp_rules
from verify.checks.conduct import everywhere
from verify.checks.conduct import layers as conduct_layers
from verify.checks.conduct import probing as conduct_probing
from verify.checks.conduct import topics as conduct
from verify.checks.conduct import weights as conduct_weights
from verify.checks.conduct import zoo as conduct_zoo
from verify.checks.conduct.calls import UNUSUAL, shifted
from verify.checks.conduct.probing import GRADIENT, WEIGHED, R, X, layer, linear, power, tensor
from verify.checks.probing import same
from verify.model import RULES, Case, NotOfferedError, Subject, Verdict
from verify.selftests.mutants.registry import found
from verify.subjects.asking import relevance_of
from verify.subjects.loading import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CASES = {case.id: case for case in conduct.cases()}
OURS = load("lrp_rules")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES.values()])
def test_lrp_rules_conducts_itself(case: Case) -> None:
    finding = case.run(OURS)
    assert finding.verdict is Verdict.PASS, finding.reason


def test_ids_are_unique_and_topics_have_cases() -> None:
    ids = [case.id for case in conduct.cases()]
    assert len(ids) == len(set(ids))
    topics = {topic.what for topic in conduct.TOPICS} | set(everywhere._TOPICS)
    assert {id_.split("/")[2] for id_ in ids} == topics


# Wrong subjects: the rules of lrp_rules with a Plant before them, or Naive, which is no rule at all. Cases compare a
# subject with itself, so that a wrong formula is nothing to them.


class Plant:
    """Goes before a rule; its subclasses misbehave. What they keep is in ``kept``, which copies share."""

    uses_inputs = True  # also for plants of rules that need no input

    kept: Any

    def register(self, module: nn.Module) -> Any:
        vars(self).setdefault("kept", defaultdict(int))
        return super().register(module)  # type: ignore[misc]

    def _record(self, call: Any, inputs: Any, outputs: Any) -> Any:
        self.forward_effect(call, inputs, outputs)
        return super()._record(call, inputs, outputs)  # type: ignore[misc]

    def _propagate(self, call: Any, inputs: Any, saved: Any, relevance: Any) -> Any:
        self.backward_effect(call, inputs, relevance)
        (r,) = super()._propagate(call, inputs, saved, relevance)  # type: ignore[misc]
        return (self.result(call, inputs, relevance, r),)

    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None: ...

    def backward_effect(self, call: Any, inputs: Any, relevance: Any) -> None: ...

    def result(self, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
        return r


class Handles:
    def __init__(self, *handles: Any) -> None:
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _subject(plant: type, rules: tuple[str, ...] = RULES) -> Subject:
    if issubclass(plant, Naive):
        return Subject("naive", SimpleNamespace(**dict.fromkeys(RULES, plant)), "0")
    classes = {rule: type(rule, (plant, getattr(lrp_rules, rule)), {}) for rule in rules}
    return Subject("planted", SimpleNamespace(**classes), "0")


def in_forward(effect: Callable[[Any, Any, Any, Any], None]) -> type:
    """``effect(self, call, inputs, outputs)``."""
    return type("InForward", (Plant,), {"forward_effect": effect})


def in_backward(effect: Callable[[Any, Any, Any, Any], Any]) -> type:
    """``effect(self, call, inputs, relevance)``."""
    return type("InBackward", (Plant,), {"backward_effect": effect})


def on_result(change: Callable[[Any, Any, Any, Any, Any], Any]) -> type:
    """``change(self, call, inputs, relevance, r)``."""
    return type("OnResult", (Plant,), {"result": change})


def on_output(change: Callable[[nn.Module, Any, Tensor], Tensor | None]) -> type:
    """``change(module, args, output)``, a forward hook behind that of the rule."""

    class OnOutput(Plant):
        def register(self, module: nn.Module) -> Any:
            return Handles(super().register(module), module.register_forward_hook(change))

    return OnOutput


def on_input(change: Callable[[nn.Module, Any], Any]) -> type:
    """``change(module, args)``, a pre-hook."""

    class OnInput(Plant):
        def register(self, module: nn.Module) -> Any:
            return Handles(super().register(module), module.register_forward_pre_hook(change))

    return OnInput


def around(before: Callable[[Any], Any], after: Callable[[Any], Any]) -> type:
    """``before(module)`` and ``after(module)`` around the backward pass; not after an exception."""

    class Around(Plant):
        def _propagate(self, call: Any, inputs: Any, saved: Any, relevance: Any) -> Any:
            before(call.module)
            answer = super()._propagate(call, inputs, saved, relevance)
            after(call.module)
            return answer

    return Around


class Naive:
    """No rule: x as it is in the backward pass, times a factor that comes from the module, and the sum of R."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    @staticmethod
    def factor(module: Any) -> Any:
        return 1

    def register(self, module: nn.Module) -> Any:
        def hook(module: nn.Module, args: Any, y: Tensor) -> Any:
            return _NaiveNode.apply(args[0], y.detach(), module, self)  # type: ignore[no-untyped-call]

        return module.register_forward_hook(hook)


class _NaiveNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, module: nn.Module, rule: Naive) -> Tensor:
        ctx.x, ctx.module, ctx.rule = x.detach(), module, rule
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        return ctx.x * ctx.rule.factor(ctx.module) * relevance[0].sum(), None, None, None


class Odd(Tensor):
    """A tensor of another type."""


def naive(factor: Callable[[Any], Any]) -> type:
    return type("NaiveReading", (Naive,), {"factor": staticmethod(factor)})


def _replace(module: nn.Module) -> None:
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))


def _swap(module: Any) -> None:
    module.kept = dict(module._parameters)
    _replace(module)


def _swap_back(module: Any) -> None:
    for name, parameter in module.kept.items():
        setattr(module, name, parameter)
    del module.kept


def _swap_there_and_back(module: nn.Module) -> None:
    _swap(module)
    _swap_back(module)


def _shift(by: float) -> Callable[[nn.Module], None]:
    def shift(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.data.add_(by)

    return shift


#: Ways there and back that give another number for some.
INEXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda w: w.float().to(w.dtype),
    "plus-minus-one": lambda w: w + 1 - 1,
    "minus-plus-delta": lambda w: (w - 1e-3) + 1e-3,
    "scaled": lambda w: w * 1.1 / 1.1,
    "clamped": lambda w: w.clamp(min=0),
    "halved": lambda w: w / 2 * 2,
    "negative-and-positive": lambda w: (w + 0.25 * w.clamp(min=0)) / 1.25,
}


def _there_and_back(module: nn.Module, way: Callable[[Tensor], Tensor]) -> None:
    for parameter in module.parameters():
        parameter.data.copy_(way(parameter.data))


def _restoring(way: Callable[[Tensor], Tensor]) -> Callable[[Any, Any, Any, Any], None]:
    return lambda _self, call, _inputs, _R: _there_and_back(call.module, way)


def _write_and_write_back(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1).sub_(1)


def _leave(module: Any) -> None:
    module.last_rule = 1


def _clean(module: Any) -> None:
    del module.last_rule


def _mark(self: Any, call: Any, inputs: Any, outputs: Any) -> None:
    _leave(call.module)


def _unmark(module: nn.Module) -> None:
    vars(module).pop("last_rule", None)


class Marks(Plant):
    """Marks the module in the forward pass, and takes the mark away in the backward pass, if there is one."""

    forward_effect = _mark

    def backward_effect(self, call: Any, inputs: Any, relevance: Any) -> None:
        _unmark(call.module)


class Pending(Plant):
    """Expects every forward pass to be followed by its backward pass."""

    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None:
        self.kept["pending"] += 1

    def result(self, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
        r = r * self.kept["pending"]
        self.kept["pending"] = 0
        return r


class LastInput(Plant):
    """Uses the input of the last forward pass, of whatever call; ``vars(self)['kept']`` is one for all copies."""

    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None:
        self.kept["x"] = inputs[0].detach().clone()

    def result(self, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
        return r + (self.kept["x"] - inputs[0].detach())


class Running(Plant):
    """Depends on how many calls there were before."""

    def result(self, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
        self.kept["calls"] += 1
        return r * self.kept["calls"]


class LastModule(Plant):
    def register(self, module: nn.Module) -> Any:
        handle = super().register(module)
        self.kept["module"] = module
        return handle

    def result(self, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
        return r if self.kept["module"] is call.module else r + 1


class LastModuleOfAll(Plant):
    """The same between threads: another is at work while the stabilizer is asked."""

    current: Any = None

    def backward_effect(self, call: Any, inputs: Any, relevance: Any) -> None:
        LastModuleOfAll.current = call.module

    def result(self, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
        return r if LastModuleOfAll.current is call.module else r + 1


class LastInputOfAll(Plant):
    current: Any = None

    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None:
        LastInputOfAll.current = inputs[0].detach().clone()

    def result(self, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
        return r + (LastInputOfAll.current.sum() - inputs[0].detach().sum())


class Accepts(Plant):
    """Takes a second registration, ``second(module)``, where lrp_rules refuses."""

    def register(self, module: nn.Module) -> Any:
        if not hasattr(module, "registered"):
            handle = super().register(module)
            vars(module)["registered"] = True
            return Handles(handle, SimpleNamespace(remove=lambda: vars(module).pop("registered")))
        return self.second(module)

    def second(self, module: nn.Module) -> Any:
        raise NotImplementedError


class Doubles(Accepts):
    def second(self, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: Any, y: Tensor) -> None:
            if y.requires_grad:
                y.register_hook(lambda g: 2 * g)

        return module.register_forward_hook(hook)


class StaysTwice(Accepts):
    def second(self, module: nn.Module) -> Any:
        module.register_forward_hook(lambda *_: None)
        return Handles()


class RefusesSilently(Accepts):
    def second(self, module: nn.Module) -> Any:
        raise RuntimeError


class ThroughRulesInside(Plant):
    """Adds what comes back through the graph of the call, in which rules inside have a say."""

    def _propagate(self, call: Any, inputs: Any, saved: Any, relevance: Any) -> Any:
        (r,) = super()._propagate(call, inputs, saved, relevance)
        if any(call.module.children()):
            r = r + torch.autograd.grad(saved[0], inputs, relevance, retain_graph=True)[0]
        return (r,)


class TakesAllHooks(Plant):
    def register(self, module: nn.Module) -> Any:
        handle = super().register(module)
        return Handles(handle, SimpleNamespace(remove=module._forward_hooks.clear))


def on_remove(effect: Callable[[Any], Any]) -> type:
    class OnRemove(Plant):
        def register(self, module: nn.Module) -> Any:
            handle = super().register(module)
            return Handles(handle, SimpleNamespace(remove=lambda: effect(module)))

    return OnRemove


def _patch_class(module: nn.Module) -> None:
    setattr(type(module), "planted", object())  # noqa: B010  a type has no such attribute to a type checker


def _patch_forward(module: Any) -> None:
    module.forward = type(module).forward.__get__(module)


def _global_hook(_module: nn.Module) -> None:
    nn.modules.module._global_forward_hooks[-1] = lambda *_: None


def _own_type(module: nn.Module) -> None:
    module.__class__ = type("Wrapped", (type(module),), {})


@pytest.fixture(autouse=True)
def _unpatched() -> Iterator[None]:
    yield
    nn.modules.module._global_forward_hooks.pop(-1, None)
    for cls in (*nn.Module.__subclasses__(), *nn.Linear.__subclasses__(), *nn.ReLU.__subclasses__()):
        if "planted" in vars(cls):
            delattr(cls, "planted")


def _run_again(self: Any, call: Any, inputs: Any, _other: Any) -> None:
    call.module.forward(inputs[0].detach())


def _call_again(self: Any, call: Any, inputs: Any, _other: Any) -> None:
    with torch.no_grad():
        call.module(inputs[0].detach())


def _alias_of_output(self: Any, call: Any, inputs: Any, outputs: Any) -> None:
    call.then, call.now = outputs[0].detach().clone(), outputs[0].detach()


class UsesOutputLate(Plant):
    forward_effect = _alias_of_output

    def result(self, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
        return r + (call.now - call.then)


class WritesOutput(Plant):
    def register(self, module: nn.Module) -> Any:
        def keep(_module: nn.Module, _args: Any, y: Tensor) -> None:
            self.kept["y"] = y

        return Handles(super().register(module), module.register_forward_hook(keep))

    def backward_effect(self, call: Any, inputs: Any, relevance: Any) -> None:
        self.kept["y"].data.add_(1)


class Keeps(Plant):
    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None:
        self.kept["x"] = inputs[0]


class KeepsAlias(Plant):
    def backward_effect(self, call: Any, inputs: Any, relevance: Any) -> None:
        self.kept["R"] = relevance[0].detach()


class KeepsClone(Plant):
    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None:
        self.kept["y"] = outputs[0].detach().clone()


class KeepsCycle(Plant):
    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None:
        cycle: list[Any] = [inputs[0].detach()]
        cycle.append(cycle)


class Collects(Plant):
    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None:
        self.kept["count"] += 1
        self.kept[self.kept["count"]] = inputs[0].detach().clone()


class CollectsUnseen(Plant):
    """Keeps memory alive, but no tensor that Python knows."""

    def forward_effect(self, call: Any, inputs: Any, outputs: Any) -> None:
        self.kept["count"] += 1
        self.kept[self.kept["count"]] = inputs[0].detach().untyped_storage()


def _mean_over_batch(self: Any, call: Any, inputs: Any, relevance: Any, r: Any) -> Any:
    return r / len(r)


def _draw(*_: Any) -> None:
    torch.rand(1)


def _set_flags(self: Any, call: Any, inputs: Any, relevance: Any) -> None:
    for parameter in call.module.parameters():
        parameter.requires_grad_(not parameter.requires_grad)


def _add_gradients(self: Any, call: Any, inputs: Any, relevance: Any) -> None:
    for parameter in call.module.parameters():
        parameter.grad.add_(1)


def _new_gradients(self: Any, call: Any, inputs: Any, relevance: Any) -> None:
    for parameter in call.module.parameters():
        parameter.grad = parameter.grad.clone()


def _move_buffers(self: Any, call: Any, inputs: Any, relevance: Any) -> None:
    for buffer in call.module.buffers():
        buffer.add_(1)


def _in_place_and_back(self: Any, call: Any, inputs: Any, relevance: Any) -> None:
    with torch.no_grad():
        inputs[0].add_(1).sub_(1)


def _if_autocast(change: Callable[[Tensor], Tensor]) -> type:
    return on_result(lambda _self, _call, _inputs, R, r: change(r) if R[0].dtype == torch.bfloat16 else r)


#: For each topic: wrong subjects by name, and the rules for which they are wrong, if not all of the topic.
PLANTS: dict[str, dict[str, type | tuple[type, tuple[str, ...]]]] = {
    "parameters": {
        "written-through-data": in_backward(lambda _self, call, _inputs, _R: _shift(1)(call.module)),
        "replaced": in_backward(lambda _self, call, _inputs, _R: _replace(call.module)),
        "replaced-in-forward": in_forward(lambda _self, call, _inputs, _y: _replace(call.module)),
        "written-and-written-back": (
            in_backward(lambda _self, call, _inputs, _R: _write_and_write_back(call.module)),
            WEIGHED,
        ),
        **{
            f"restored-but-for-rounding-{name}": (
                in_backward(_restoring(way)),
                (*WEIGHED, "Pass"),
            )
            for name, way in INEXACT.items()
        },
        "flags-set": in_backward(_set_flags),
        "gradients-added-to": in_backward(_add_gradients),
        "gradients-replaced": in_backward(_new_gradients),
        "buffers-moved": (in_backward(_move_buffers), (*WEIGHED, "Pass")),
        "replaced-on-remove": on_remove(_replace),
    },
    "parameters-during": {
        "swapped": around(_swap, _swap_back),
        "swapped-between-probes": in_backward(lambda _self, call, _x, _R: _swap_there_and_back(call.module)),
        "written-through-data": around(_shift(1), _shift(-1)),
    },
    "optimizer-and-tied-weights": {"replaced": in_backward(lambda _self, call, _inputs, _R: _replace(call.module))},
    "tensors": {
        "input": in_backward(lambda _self, _call, inputs, _R: inputs[0].data.add_(1)),
        "input-in-forward": in_forward(lambda _self, _call, inputs, _y: inputs[0].data.add_(1)),
        "input-and-back": in_backward(_in_place_and_back),
        "relevance": in_backward(lambda _self, _call, _inputs, R: R[0].data.mul_(2)),
        "output": WritesOutput,
    },
    "forward": {
        "noise": on_output(lambda _module, _args, y: y * (1 + 2**-52)),
        "float32": on_output(lambda _module, _args, y: y.float().double()),
        "other-strides": on_output(lambda _module, _args, y: y.contiguous()),
        "detached": (on_output(lambda _m, args, y: y if args[0].requires_grad else y.detach() * 1), WEIGHED),
        "type": on_output(lambda _module, _args, y: y.as_subclass(Odd)),
    },
    "remove": {
        "attribute": on_remove(_leave),
        "attribute-from-backward": in_backward(lambda _self, call, _inputs, _R: _leave(call.module)),
        "attribute-from-forward": in_forward(_mark),
        "hook": on_remove(lambda module: module.register_forward_hook(lambda *_: None)),
        "pre-hook": on_remove(lambda module: module.register_forward_pre_hook(lambda *_: None)),
        "backward-hook": on_remove(lambda module: module.register_full_backward_hook(lambda *_: None)),
        "forward": on_remove(_patch_forward),
        "class": on_remove(_own_type),
        "class-attribute": on_remove(_patch_class),
        "global-hook": on_remove(_global_hook),
        "hooks-of-others": TakesAllHooks,
        "parameters": (on_remove(_replace), WEIGHED),
    },
    "exception": {"mark": Marks, "pending": Pending},
    "exception-in-stabilizer": {"mark": around(_leave, _clean), "parameters": around(_shift(1), _shift(-1))},
    "same-answer": {"running": Running},
    "two-forwards": {"last-input": LastInput},
    "called-twice": {"last-input": LastInput},
    "two-modules": {"last-module": LastModule, "last-input": LastInput},
    "registered-twice": {"doubled": Doubles, "stays": StaysTwice, "silent": RefusesSilently},
    "rules-inside": {"through": ThroughRulesInside},
    "threads": {"last-input": LastInputOfAll, "last-module": (LastModuleOfAll, WEIGHED)},
    "retain-graph": {"running": Running},
    "create-graph": {
        "detached": on_result(lambda _self, _call, _inputs, _R, r: r.detach()),
        "of-x-alone": on_result(lambda _self, _call, inputs, _R, r: r.detach() + 0 * inputs[0]),
        "not-linear": on_result(lambda _s, _c, x, R, r: r.detach() + (R[0].sum() - R[0].detach().sum())),
        "other-value": on_result(lambda _s, _c, _x, _R, r: r + 1 if torch.is_grad_enabled() else r),
    },
    "copy": {},
    "deepcopy": {},
    "pickle": {},
    "without-grad": {
        "output": on_output(lambda _module, _args, y: y if torch.is_grad_enabled() else y + 1),
        "mark": on_output(lambda module, _args, _y: None if torch.is_grad_enabled() else _leave(module)),
    },
    "autocast": {
        "nan": _if_autocast(lambda r: r * torch.nan),
        "one-and-a-half": _if_autocast(lambda r: r * 1.5),
        "output": on_output(lambda _module, _args, y: y.float()),
    },
    "frozen": {
        "weight": on_result(lambda _s, call, _x, _R, r: r * (1 + call.module.weight.requires_grad)),
        "bias": on_result(lambda _s, call, _x, _R, r: r * (1 + call.module.bias.requires_grad)),
    },
    "layouts": {
        "input": on_result(lambda _s, _c, x, _R, r: r + (not x[0].is_contiguous())),
        "relevance": on_result(lambda _s, _c, _x, R, r: r + (not R[0].is_contiguous())),
        "expanded": on_result(lambda _s, _c, x, _R, r: r + (x[0].stride(0) == 0)),
    },
    "batches": {"mean": on_result(_mean_over_batch)},
    "random-state": {
        "backward": in_backward(_draw),
        "forward": in_forward(_draw),
        "before": on_input(lambda _module, _args: _draw()),
    },
    "dropout-mask": {"dropped-get-some": on_result(lambda _s, _c, _x, _R, r: r + 1)},
    "batch-norm-in-training": {"forward": in_forward(_run_again), "backward": in_backward(_run_again)},
    "in-place-neighbours": {"late-output": UsesOutputLate},
    "overwritten-input": {"alias": Naive},
    "overwritten-parameters": {
        "weight": naive(lambda module: module.weight.sum()),
        "bias": naive(lambda module: module.bias[0]),
    },
    "overwritten-buffers": {
        "mean": naive(lambda module: module.running_mean.sum()),
        "variance": naive(lambda module: module.running_var.sum()),
    },
    "mode-switched": {"mode": naive(lambda module: 1 + module.training)},
    "on-in-place-relu": {"alias": Naive, "output": on_output(lambda _module, _args, y: y + 1)},
    "shortcut-around-in-place-relu": {"clone": on_input(lambda _module, args: (args[0].clone(),))},
    "weight-norm": {
        "older": on_result(lambda _s, call, _x, _R, r: r * (1 + hasattr(call.module, "weight_v"))),
        "parametrized": on_result(lambda _s, call, _x, _R, r: r * (1 + hasattr(call.module, "parametrizations"))),
        "mark": in_forward(_mark),
    },
    "spectral-norm": {
        "older": on_result(lambda _s, call, _x, _R, r: r * (1 + hasattr(call.module, "weight_u"))),
        "parametrized": on_result(lambda _s, call, _x, _R, r: r * (1 + hasattr(call.module, "parametrizations"))),
        "run-again-in-forward": in_forward(_call_again),
        "run-again-in-backward": in_backward(_call_again),
    },
    "tensors-die": {"input": Keeps, "alias": KeepsAlias, "clone": KeepsClone, "cycle": KeepsCycle},
    "no-growth": {"tensors": Collects, "memory": CollectsUnseen},
}


#: Topics about circumstances in which a rule is none, or another: mutants are their wrong subjects.
MUTANTS: dict[str, tuple[str, ...]] = {
    "output-beside-relevance": ("epsilon-derivative-is-relevance", "wsquare-derivative-is-relevance"),
    "output-before-relevance": ("epsilon-derivative-is-relevance", "wsquare-derivative-is-relevance"),
    "output-after-relevance": ("epsilon-derivative-by-order",),
    "relevance-from-a-thread": ("epsilon-derivative-by-order",),
    "batched-relevance": ("pass-batched-twice",),
    "batched-relevance-works": ("pass-batched-twice",),
    "function-vjp": ("pass-vjp-gradient",),
    "vmapped-forward": ("pass-vmap-gradient",),
    "recorded-by-a-trace": ("zplus-gone-from-traces",),
    "forward-mode": ("pass-forward-mode-gradient",),
    "low-rank-adapter": ("epsilon-adapter-ignored",),
    "standardised-weight": ("epsilon-own-forward-ignored",),
    "scaled-weight": ("epsilon-own-forward-ignored",),
    "scaled-convolution": ("gamma-own-convolution-ignored",),
    "three-derivatives": ("zplus-third-derivative-zero",),
    "another-value": ("gamma-value-remembered",),
    "output-is-nan": ("gamma-nan-in-output-hidden",),
    "backward-elsewhere": ("zplus-other-thread-gradient",),
    "half-precision": ("epsilon-half-raised",),
    "names-match-whole": ("epsilon-names-by-part", "zplus-zeroes-every-constant"),
    "each-input-its-share": ("norm-second-input-gradient",),
    "each-output-counts": ("norm-first-output-alone",),
    "weight-is-a-buffer": ("flat-buffer-gradient",),
    "weight-is-an-attribute": ("zbox-attribute-gradient",),
    "weight-by-a-pre-hook": ("zplus-weight-of-registration",),
    "weight-is-a-property": ("gamma-property-gradient",),
    "weight-loaded-for-the-call": ("wsquare-offloaded-gradient",),
    "weight-depends-on-mode": ("alphabeta-weight-in-eval-mode",),
    "random-weight": ("epsilon-weight-drawn-again",),
    "functional-call": ("flat-runs-with-own-parameters",),
    "replica": ("flat-runs-with-own-parameters",),
    "once-differentiable": ("epsilon-double-backward",),
    "detached-backward": ("epsilon-double-backward",),
    "parameters-in-parts": ("zplus-container-jacobian",),
    "weights-replaced": ("epsilon-weights-of-backward",),
    "buffers-moved-inside": ("zbox-buffers-of-backward",),
    "hooks-inside": ("epsilon-hooks-inside-forgotten",),
    "hook-appended": ("pass-appended-hook-taken",),
    "hook-prepended": ("pass-prepended-hook-taken",),
    "global-hook": ("pass-global-hook-taken",),
    "pre-hooks": ("pass-pre-hooks-forgotten",),
    "hooks-that-look-on": ("pass-hooks-of-others-refused",),
    "inplace-inside": ("zplus-inplace-attribute-writes",),
    "inplace-inside-relevance": ("norm-inplace-gradient",),
    "copied-module": ("pass-copies-have-it",),
    "pickled-module": ("pass-pickles-have-it",),
    "averaged-model": ("pass-copies-have-it",),
    "checkpoint": ("pass-recomputed-gradient",),
    "checkpoint-after-remove": ("pass-checkpoint-forgotten",),
    "handle-entered-again": ("pass-handle-entered-in-vain",),
    "complex-numbers": ("wsquare-complex-gradient",),
    "quantized-layer": ("zbox-quantized-nothing",),
    "nested-tensors": ("pass-nested-gradient",),
    "meta-device": ("flat-meta-gradient",),
    "tensor-as-attribute": ("norm-tensors-beside-forgotten",),
    "tensor-in-an-object": ("norm-tensors-beside-forgotten",),
    "constant-argument": ("gamma-constant-argument-gradient",),
    "constant-argument-works": ("epsilon-constant-argument-refused",),
    "modules-of-torch": ("norm-attention-without-weights",),
    "blocks-of-others": ("norm-dictionary-flattened",),
    "relevance-expanded": ("epsilon-expanded-is-ones",),
    "input-entry-is-nan": ("zplus-nan-in-input-hidden",),
    "bounds-are-kept": ("zbox-bounds-unsqueezed",),
    "bounds-lead": ("zbox-bounds-trail",),
    "a-batch-counts-once": ("norm-batch-counts-twice",),
    "half-without-part": ("gamma-halves-masked",),
    "nothing-stabilizes-zero": ("epsilon-zero-by-zero",),
}


@pytest.mark.parametrize(
    ("what", "name"), [pytest.param(what, name, id=f"{what}-{name}") for what in MUTANTS for name in MUTANTS[what]]
)
def test_mutants_are_caught_by_the_topic_that_is_about_them(what: str, name: str) -> None:
    mutant = found[name]
    finding = CASES[f"conduct/{mutant.rule}/{what}"].run(mutant.subject())
    assert finding.verdict is Verdict.FAIL
    assert finding.reason


class NoRule:
    """Takes any module, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def register(self, module: nn.Module) -> Any:
        return _Handle()


class _Handle(contextlib.nullcontext[None]):
    def remove(self) -> None: ...


@pytest.mark.parametrize("what", MUTANTS)
def test_no_topic_takes_an_error_of_its_own_for_a_refusal(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals: list[Exception] = []
    monkeypatch.setattr(conduct_probing, "unclear", refusals.append)
    subject = Subject("no rule", SimpleNamespace(**dict.fromkeys(RULES, NoRule)), "0")
    for topic in conduct.TOPICS:
        if topic.what == what:
            for rule in topic.rules:
                list(topic.ask(rule, subject))
    assert not refusals


def test_every_module_of_torch_is_visited() -> None:
    own = {name for name, value in vars(nn).items() if isinstance(value, type) and issubclass(value, nn.Module)}
    # bases, containers without a forward pass, what needs a process group, and a loss that older torch has not
    others = {"Module", "Container", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList"}
    others |= {"RNNBase", "RNNCellBase", "NLLLoss2d", "SyncBatchNorm", "LinearCrossEntropyLoss"}
    assert own - others <= set(conduct_zoo.MODULES)


def test_what_is_visited_runs() -> None:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for build in (conduct_zoo.MODULES | conduct_zoo.BLOCKS).values():
            module, args = conduct_zoo.built(build)
            module(*args)


@pytest.mark.parametrize("build", conduct_weights.BUILDS.values(), ids=conduct_weights.BUILDS)
def test_weights_are_what_the_cases_say(build: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    module, weight = build()
    bias = any("bias" in name for name in dir(module))
    expected = X @ weight.T + (linear().bias if bias else 0)
    assert torch.equal(module(X), expected)


def _defaults(rule: str) -> Any:
    return getattr(lrp_rules, rule)(**({"low": -4.0, "high": 3.0} if rule == "ZBox" else {}))


def _duplicating(rule: str, way: str, spoil: Callable[[Any], Any]) -> type:
    """Return the rule with a duplicate that ``spoil`` has changed, or replaced."""

    class Spoilt(Plant):
        if way == "copy":

            def copy(self) -> Any:
                return spoil(copy.copy(self))

        elif way == "deepcopy":

            def __deepcopy__(self, memo: Any) -> Any:
                return spoil(copy.copy(self))

        else:

            def __copy__(self) -> Any:  # else it would go by __reduce__
                duplicate = object.__new__(type(self))
                vars(duplicate).update(vars(self))
                return duplicate

            def __reduce__(self) -> Any:
                spoilt = spoil(copy.copy(self))
                cls = next(cls for cls in type(spoilt).__mro__ if cls.__module__ == "lrp_rules.rules")
                return object.__new__, (cls,), vars(spoilt)

    return Spoilt


_ARGUMENTS = {
    rule: sorted({"stabilizer" if name == "epsilon" else name for unusual in UNUSUAL[rule] for name in unusual})
    for rule in RULES
}


@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize(
    ("rule", "name"), [pytest.param(rule, name, id=f"{rule}-{name}") for rule in WEIGHED for name in _ARGUMENTS[rule]]
)
def test_duplicates_that_forget_an_argument_are_caught(way: str, rule: str, name: str) -> None:
    def forget(duplicate: Any) -> Any:
        vars(duplicate)[name] = vars(_defaults(rule))[name]
        return duplicate

    _assert_caught(CASES[f"conduct/{rule}/{way}"], _subject(_duplicating(rule, way, forget)))


@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("rule", GRADIENT)
def test_duplicates_that_are_another_rule_are_caught(way: str, rule: str) -> None:
    other = lrp_rules.ReLUDeconvNet() if rule != "ReLUDeconvNet" else lrp_rules.Pass()
    _assert_caught(CASES[f"conduct/{rule}/{way}"], _subject(_duplicating(rule, way, lambda _: other)))


def test_a_duplicate_that_forgets_beta_smooth_is_caught() -> None:
    for way in ("copy", "deepcopy", "pickle"):
        plant = _duplicating("ReLUBetaSmooth", way, lambda _: lrp_rules.ReLUBetaSmooth())
        _assert_caught(CASES[f"conduct/ReLUBetaSmooth/{way}"], _subject(plant))


def test_every_topic_has_a_wrong_subject() -> None:
    assert not set(PLANTS) & set(MUTANTS)
    assert set(PLANTS) | set(MUTANTS) == {topic.what for topic in conduct.TOPICS}
    assert {what for what, plants in PLANTS.items() if not plants} == {"copy", "deepcopy", "pickle"}


def _assert_caught(case: Case, subject: Subject) -> None:
    finding = case.run(subject)
    assert finding.verdict is Verdict.FAIL, case.id
    assert finding.reason


@pytest.mark.parametrize(
    ("what", "name"), [pytest.param(what, name, id=f"{what}-{name}") for what in PLANTS for name in PLANTS[what]]
)
def test_wrong_subjects_are_caught(what: str, name: str) -> None:
    plant = PLANTS[what][name]
    plant, rules = plant if isinstance(plant, tuple) else (plant, RULES)
    subject = _subject(plant)
    cases = [CASES[id_] for rule in rules if (id_ := f"conduct/{rule}/{what}") in CASES]
    assert cases
    for case in cases:
        _assert_caught(case, subject)


def test_a_rule_that_raises_on_an_empty_batch_is_not_passed() -> None:
    plant = on_result(lambda _s, _c, _x, _R, r: r if len(r) else r.reshape(1, 1, 1))
    with pytest.raises((RuntimeError, TypeError)):
        CASES["conduct/Epsilon/batches"].run(_subject(plant))


@pytest.mark.parametrize("rule", RULES)
def test_a_plant_that_does_nothing_is_not_caught(rule: str) -> None:
    subject = _subject(Plant)
    for what in PLANTS:
        case = CASES.get(f"conduct/{rule}/{what}")
        # a class made here cannot be pickled
        if case is not None and what != "pickle":
            finding = case.run(subject)
            assert finding.verdict is Verdict.PASS, (case.id, finding.reason)


def test_what_is_not_offered_is_said_so() -> None:
    for case in CASES.values():
        with pytest.raises(NotOfferedError):
            case.run(Subject("nothing", SimpleNamespace(), "0"))


def test_power_is_the_next_power_of_two() -> None:
    d = tensor([0.0, -0.0, 1.0, 0.75, -0.75, -3.0, 5.0, 1e-310, 2.0**-1074, -(2.0**1000)])
    expected = tensor([1.0, 1.0, 2.0, 1.0, -1.0, -4.0, 8.0, 2.0**-1029, 2.0**-1073, -(2.0**1001)])
    assert torch.equal(power(d), expected)


@pytest.mark.parametrize("rule", [rule for rule in RULES if UNUSUAL[rule] != ({},)])
def test_unusual_arguments_matter(rule: str) -> None:
    module = layer(rule)
    usual = relevance_of(_defaults(rule), module, X, R)
    for unusual in UNUSUAL[rule]:
        given = {"low": -4.0, "high": 3.0} | unusual if rule == "ZBox" else unusual
        assert not same(relevance_of(getattr(lrp_rules, rule)(**given), module, X, R), usual), unusual


def test_shifted_is_no_number() -> None:
    d = tensor([1.0, -1.0])
    assert torch.equal(shifted(d), tensor([-7.25, 7.25]))


@pytest.mark.parametrize(
    "build",
    [
        conduct_layers._weight_norm_old,
        conduct_layers._weight_norm,
        conduct_layers._spectral_norm_old,
        conduct_layers._spectral_norm,
    ],
)
def test_computed_weights_are_what_the_cases_say(build: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    module, weight = build()
    inputs = torch.eye(weight.shape[1], dtype=torch.float64)
    bias = module.get_parameter("bias").detach()
    assert torch.equal(module(inputs).detach() - bias, weight.T)
    # a further step of the power iteration would give another weight
    again = module(inputs).detach() - bias
    assert torch.equal(again, weight.T) == ("weight_norm" in build.__name__)

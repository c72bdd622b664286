"""One call and the relevance that came to it, as a question: what a rule gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence  # noqa: TC003  see _SPECIAL
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

import lrp_rules as lrp
from lrp_rules.networks.layers import as_layer
from lrp_rules.networks.operations import in_place, operation_of, routes
from verify.auditing import formulas
from verify.auditing.comparing import merged, places, size, total, within
from verify.auditing.formulas import Answer, NoFormulaError
from verify.auditing.layers import BatchNorm, layer_of
from verify.auditing.layers import folded as fold
from verify.auditing.rounding import gamma

if TYPE_CHECKING:
    from verify.auditing.calls import Call
    from verify.auditing.layers import Layer


class Question:
    """One call and the relevance that came to it."""

    def __init__(self, call: Call, rule: Any, Rs: list[Tensor], u: float, *, times_input: bool = False) -> None:
        self.call, self.rule, self.Rs, self.u = call, rule, Rs, u
        #: Whether the pipeline hands on R / z, so that an operation without a rule gives x * J^T (R / z).
        self.times_input = times_input
        self.own = call if call.folded is None else call.folded
        self.operation = operation_of(self.own.function) if self.own.function is not None else None
        if self.own.module is not None and self.own.inner:
            operations = {operation_of(one) for one in self.own.inner}
            self.operation = operations.pop() if len(operations) == 1 else None
        self.module = self.own.module if self.own.function is None else module_of(self.own)
        self.norm = None if call.folded is None else call.module if call.function is None else module_of(call)
        #: Whether a canonizer has merged the batch norm into the layer already, and left one that does nothing.
        self.is_merged = False

    def answer(self, rule: Any = ..., *, folded: bool = True, u: float | None = None) -> Answer:
        """Return what a rule gives; the one that is meant, if none is named."""
        rule, u = self.rule if rule is ... else rule, u or self.u
        xs = [self.own.inputs[place] for place in places(self.own)]
        if rule is None and self.times_input and not self.routes():
            rule = lrp.Epsilon(0.0)
        if hasattr(rule, "answer"):  # no rule, but what others compute in place of one
            found: Answer = rule.answer(self, xs, u)
            return found
        if rule is not None and not type(rule).__module__.startswith("lrp_rules."):
            msg = f"{type(rule).__name__} is a rule of your own, for which there is no formula here"
            raise NoFormulaError(msg)
        for kind in type(rule).__mro__:
            if kind in _SPECIAL:
                return _SPECIAL[kind](self, rule, xs, u)
        layer = self.layer(folded=folded) if hasattr(rule, "zero_params") and len(xs) == 1 else None
        if layer is None:
            return formulas.by_function(rule, self.again(), self.operation, xs, self.Rs, u)
        return formulas.by_parts(rule, layer, xs[0], self.Rs[0], u)

    def layer(self, *, folded: bool = True) -> Layer | None:
        """Return the linear layer that it is, with the batch norm behind it in it; None, if it is none."""
        layer = None if self.module is None else layer_of(self.module)
        if layer is not None and folded and not self.is_merged and isinstance(self.norm, BatchNorm):
            assert self.module is not None
            return fold(layer, self.module, self.norm)
        return layer

    def explains(self, got: Sequence[Tensor], rule: Any = ..., *, folded: bool = True, u: float | None = None) -> bool:
        """Whether a rule gives what was got."""
        try:
            expected, bounds = merged(self.answer(rule, folded=folded, u=u), self.own)
        except (
            NoFormulaError,
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
        ):  # not a rule for this operation
            return False
        if [e.shape for e in expected] != [g.shape for g in got]:
            return False
        off = [g - e for g, e in zip(got, expected, strict=True)]
        sizes = total([e.abs() for e in expected])
        return within(off, bounds, gamma(4 * (size(expected) + 8), u or self.u) * sizes)

    def look_for_a_canonizer(self, got: Sequence[Tensor]) -> None:
        """Find out whether a batch norm that does nothing, but for its eps, is one that a canonizer left behind."""
        if isinstance(self.norm, BatchNorm) and _does_nothing(self.norm) and not self.explains(got):
            self.is_merged = self.explains(got, folded=False)

    def _normalised(self, rule: Any, xs: list[Tensor], u: float) -> Answer:
        if self.module is None:
            msg = "no formula for LayerNormRule on this function here"
            raise NoFormulaError(msg)
        return formulas.normalisation(rule, self.module, xs[0], self.Rs[0], u)

    def _softmax(self, rule: Any, xs: list[Tensor], u: float) -> Answer:
        dim = rule.dim if rule.dim is not None else getattr(self.module, "dim", None)
        if dim is None:
            msg = "the dimension of the softmax is not known"
            raise NoFormulaError(msg)
        return formulas.softmax(dim, xs[0], self.Rs[0], u)

    def routes(self) -> bool:
        """Whether its gradient is a rule: what its inputs do not get is that of constants, as of a class token."""
        call = self.own
        return (
            self.rule is None and call.function is not None and routes(call.function, *tree_unflatten(*call.arguments))
        )

    def _signal(self, rule: Any) -> int | None:
        """Return which of the inputs is the signal; -1, where that is a constant."""
        own, chosen = self.own, places(self.own)
        if rule.signal is None:
            signals = [place for place in chosen if not own.gates[place]]
            return chosen.index(signals[0]) if len(signals) == 1 and len(own.inputs) > 1 else None
        if own.function is None:
            return int(rule.signal)
        if len(chosen) == 1:
            return 0  # a product by constants is linear, whatever the rule calls the signal
        tensors = [leaf for leaf in own.arguments[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        signal = tensors[rule.signal] if rule.signal < len(tensors) else None
        return next((at for at, place in enumerate(chosen) if own.inputs[place] is signal), -1)

    def again(self) -> Callable[..., Any]:
        """Return the call as a function of its inputs, in float64 and not in place."""
        call = self.own
        if call.function is None:
            return _module_again(call)
        leaves, structure = call.arguments
        wanted = [call.inputs[place] for place in places(call)]
        at = [next((i for i, leaf in enumerate(leaves) if leaf is x), -1) for x in wanted]
        if -1 in at:
            msg = "it got another tensor than the one that was seen: nothing to call it with again"
            raise NoFormulaError(msg)
        others = [leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in leaves]
        function = call.function
        args, kwargs = tree_unflatten(leaves, structure)
        if in_place(function, args, kwargs):
            function = out_of_place(function)

        def again(*xs: Tensor) -> Any:
            given = list(others)
            for place, x in zip(at, xs, strict=True):
                given[place] = x
            args, kwargs = tree_unflatten(given, structure)
            return function(*args, **{k: v for k, v in kwargs.items() if k not in {"inplace", "dtype"}})

        return again


#: Rules that look at shapes, or at the operation as it is known by its name.
_SPECIAL: dict[type, Callable[[Question, Any, list[Tensor], float], Answer]] = {
    lrp.Stop: lambda _q, _rule, xs, _u: formulas.stopped(xs),
    lrp.Pass: lambda q, _rule, xs, u: formulas.passed(xs, q.Rs, u),
    lrp.ReLUDeconvNet: lambda q, _rule, _xs, _u: Answer([q.Rs[0].double().clamp(min=0)], None),
    lrp.ReLUBetaSmooth: lambda q, rule, xs, _u: Answer(
        [torch.sigmoid(rule.beta_smooth * xs[0].double()) * q.Rs[0].double()], None
    ),
    lrp.Uniform: lambda q, rule, xs, u: formulas.product(rule, xs, q.Rs[0], u, None),
    lrp.SignalTakesAll: lambda q, rule, xs, u: formulas.product(rule, xs, q.Rs[0], u, q._signal(rule)),
    lrp.LayerNormRule: lambda q, rule, xs, u: q._normalised(rule, xs, u),
    lrp.Softmax: lambda q, rule, xs, u: q._softmax(rule, xs, u),
}


def _does_nothing(norm: BatchNorm) -> bool:
    """Whether a batch norm is one that canonizers leave behind; its eps may be forgotten."""
    pairs = ((norm.running_mean, 0), (norm.running_var, 1), (norm.weight, 1), (norm.bias, 0))
    return all(value is None or bool((value == number).all()) for value, number in pairs)


def out_of_place(function: Any) -> Any:
    """Return what does the same as a function that writes to its argument, and writes to nothing."""
    name = getattr(function, "__name__", "")
    if name in {"__iadd__", "iadd"}:
        return torch.add
    if name in {"__isub__", "isub"}:
        return torch.sub
    if name in {"__imul__", "imul"}:
        return torch.mul
    if name in {"__itruediv__", "__idiv__", "itruediv"}:
        return torch.div
    if name.endswith("_") and not name.startswith("__"):
        for space in (torch, torch.Tensor, nn.functional):
            if hasattr(space, name[:-1]):
                return getattr(space, name[:-1])
    return function


def _module_again(call: Call) -> Callable[..., Any]:
    """A module of torch without anybody's hooks, and in float64."""
    assert call.module is not None
    module = call.module
    args, kwargs = call.arguments
    if kwargs or len(call.inputs) != 1 or len(tree_leaves(args)) != 1 or next(module.children(), None) is not None:
        msg = "no formula for a module with several arguments, or with modules below it"
        raise NoFormulaError(msg)
    state = {
        name: value.detach().double() if value.is_floating_point() else value
        for name, value in (*module.named_parameters(), *module.named_buffers())
    }
    twin = object.__new__(type(module))
    nn.Module.__init__(twin)
    own = {k: v for k, v in vars(module).items() if not (k.startswith("_") and k.endswith("hooks"))}
    vars(twin).update({k: v for k, v in own.items() if k not in {"_parameters", "_buffers"}})
    for name in module._parameters:
        twin._parameters[name] = state.get(name)  # type: ignore[assignment]
    twin._buffers = {name: state.get(name) for name in module._buffers}
    if getattr(module, "inplace", False):
        vars(twin)["inplace"] = False
    forward: Callable[..., Any] = twin.forward
    return forward


def module_of(call: Call) -> nn.Module | None:
    """Return the layer that a call of a function is, if it is one."""
    args, kwargs = tree_unflatten(*call.arguments)
    reached = [x for x, known in zip(call.inputs, call.reached, strict=True) if known]
    found = as_layer(call.function, args, kwargs, lambda t: any(t is x for x in reached))
    return None if found is None else found[0]

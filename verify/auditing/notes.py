"""What a row says in words: what went wrong, why, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import lrp_rules as lrp
from verify.auditing.calls import key_of
from verify.auditing.comparing import merged, total, within
from verify.auditing.departures import departures
from verify.auditing.formulas import NoFormulaError
from verify.auditing.layers import BatchNorm
from verify.auditing.rounding import gamma

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from verify.auditing.calls import Call
    from verify.auditing.question import Question

_NORMALISATIONS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_U32 = 2.0**-24

ELSEWHERE = "its inputs get what they should, but more goes to tensors that are none of them"


QUERY = "a constant for attention: its weights get no relevance, which is what Stop on a softmax means"


def cut(call: Call) -> str:
    """Say that relevance cannot come here."""
    return (
        "detached: what is computed from this gives no relevance back to the input. Take the detach() out, or the rule "
        f"for {call.operation} that returns a detached output"
    )


def changed(came: float, gave: float) -> str:
    """Say that relevance is another than what was given."""
    times = f"x{came / gave:.6g}" if gave else f"{came:.3g} in place of 0"
    return f"what comes to its output is not what was given to it, but {times}: a hook on that tensor changes it"


def not_to_be_judged(call: Call) -> str:
    """Say why a call cannot be held to anything; nothing, if it can."""
    if call.path == "?":
        return "no function of torch that can be seen: a part written in another language, or with autograd.Function"
    own = call if call.folded is None else call.folded
    if own.was_overwritten():
        return "its input was written over by a later operation"
    if not own.inputs:
        return "no tensor among its arguments requires a gradient"
    if isinstance(own.module, (nn.RNNBase, nn.RNNCellBase)):
        return "a recurrent layer: attach writes it out, and an audit sees it in one piece"
    training = own.module is not None and own.module.training
    if ("Dropout" in own.operation and training) or (training and isinstance(own.module, BatchNorm)):
        return "it is in train mode: call model.eval()"
    return ""


#: Why an operation without a rule does not conserve, and what to do.
_LEAKS = {
    "mul": "the gradient of a product counts it once for each factor: put SignalTakesAll or Uniform on torch.mul",
    "div": "the gradient of a quotient does not conserve: put SignalTakesAll(signal=0) on torch.div",
    "matmul": "both factors get a share by the gradient: put Bilinear on torch.matmul",
    "softmax": "a softmax under its gradient: put Stop (CP-LRP) or Softmax (AttnLRP) on F.softmax",
    "batch_norm": "a batch norm under its gradient: put FoldBatchNorm(Epsilon()) on it",
    "sum": "a sum under its gradient: put Norm on torch.sum",
    "mean": "a mean under its gradient: put Norm on torch.mean",
    "avg_pool": "a pooling under its gradient: put Norm on it",
    "interpolate": "an interpolation under its gradient: put Norm on F.interpolate",
    "relu": "an activation under its gradient: put Pass on F.relu",
    "activation": "an activation under its gradient: put Pass on it",
    "scaled_dot_product_attention": "fused attention: attach writes it out, so that its parts have rules",
    "multi_head_attention": "fused attention: attach writes it out, so that its parts have rules",
    "recurrent": "nothing here has a rule for it; write its gates out",
}


def leak(question: Question, came: float, went: float) -> str:
    """Say why relevance appears or vanishes in a call that follows its rule, or has none."""
    why = _why(question, question.rule) or "its gradient does not conserve: give it a rule"
    return f"{_times(came, went)}: {why}"


def _times(came: float, went: float) -> str:
    return f"x{went / came:.3g}" if came else "from nothing"


def _same(came: float, went: float) -> bool:
    """Whether two sums are the same to the digits that are shown."""
    return f"{came:.3g}" == f"{went:.3g}"


def _why(question: Question, rule: Any) -> str:
    operation, module = str(question.operation), question.module
    given = "the gradient" if rule is None else type(rule).__name__
    if _is_normalisation(question):
        name = type(module).__name__ if module is not None else operation
        return f"{name} under {given} keeps nothing: use Pass or LayerNormRule"
    if rule is not None:
        return f"{given} does not conserve on an operation that is not proportional to its input"
    if operation == "add":
        if sum(question.own.reached) < 2:
            return "the input gets all of it, and the constant beside it nothing: put Norm on torch.add"
        return "relevance is copied to both summands: put Norm on torch.add"
    return _LEAKS.get(operation, "")


def held(question: Question, probable_ratio: float) -> str:
    """Say what is to be known of a call that follows its rule."""
    if probable_ratio > 1:
        return f"within the worst case of rounding, but {probable_ratio:.3g} times the probable bound: audit in double"
    norm = question.call.module
    if question.is_merged and isinstance(norm, BatchNorm) and norm.eps:
        moved = 1 - (1 + norm.eps) ** -0.5
        return f"merged by a canonizer, which forgot the eps of {norm.eps:g}: the output is off by {moved:.1g}"
    if isinstance(question.rule, lrp.Pass) and isinstance(question.module, BatchNorm):
        moved = _moved(question.module, question.own.inputs[0])
        if moved > 1e-4:
            return f"Pass on a batch norm that moves its input by {moved:.0%}: fold it"
    return ""


def deviation(question: Question, got: Sequence[Tensor], own: Call) -> str:
    """Say which known mistake explains what was got."""
    for name, rule, folded in _candidates(question):
        if question.explains(got, rule, folded=folded):
            why = _why(question, None) if rule is None else ""
            came, went = total(question.Rs), total(list(question.call.r.values()))
            times = "" if _same(came, went) else f"{_times(came, went)}: "
            return f"{name}; {times}{why}" if why else name
    if _has_constants(question, got, own):
        return (
            f"{_name(question.rule)}, with an input taken for a constant: nothing goes to what made it, as under Stop "
            "or after detach()"
        )
    factor = _factor(question, got, own)
    if factor is not None:
        return f"x{factor:.6g} of what {_name(question.rule)} gives, everywhere"
    single = all(g.dtype == torch.float64 and bool((g == g.float().double()).all()) for g in got)
    if single and question.u < _U32 and any(bool((g != 0).any()) for g in got) and question.explains(got, u=_U32):
        return f"{_name(question.rule)} up to the rounding of single precision: something is cast to float32"
    if not any(bool((g != 0).any()) for g in got):
        return "nothing arrives at its inputs"
    return f"not what {_name(question.rule)} gives, nor another rule that is known here"


def _candidates(question: Question) -> Iterator[tuple[str, Any, bool]]:
    """Give each known mistake with the rule that it is, and whether a batch norm behind is a part of the layer."""
    rule, passed = question.rule, ""
    never = f"its plain gradient: {_name(rule)} never ran here"
    if question.times_input:
        yield from ((name, other, True) for name, other in departures(question))
    if isinstance(question.norm, BatchNorm) and not question.is_merged:
        moved = _moved_folded(question)
        passed = f"Pass on a batch norm{'' if moved is None else f' that moves its input by {moved:.0%}'}: fold it"
        yield passed, rule, False
    elif rule is not None:
        yield never, None, True
    if not isinstance(rule, lrp.Pass):
        yield f"passed on as it is, not by {_name(rule)}", lrp.Pass(), True
    for name, other in _others(rule):
        told = f"this is what {name} gives, not {_described(rule)}"
        yield told, other, True
        if passed:
            yield f"{told}, and {passed}", other, False
    for name, other in departures(question):
        yield f"{name}, and {passed}" if passed else name, other, not passed


def _others(rule: Any) -> list[tuple[str, Any]]:
    """Return rules that may have been in force in place of one."""
    products = [("Uniform", lrp.Uniform()), ("SignalTakesAll", lrp.SignalTakesAll(0))]
    found: list[tuple[str, Any]] = []
    match rule:
        case lrp.Bilinear() | lrp.LayerNormRule():
            found = [("Norm", lrp.Norm(rule.stabilizer)), *products, *_stabilized(rule)]
        case lrp.Norm():
            found = [*products, *_stabilized(rule)]
        case lrp.Uniform() | lrp.SignalTakesAll():
            found = [*products, ("Bilinear", lrp.Bilinear())]
        case lrp.Stop() | lrp.Softmax():
            found = [("Softmax", lrp.Softmax()), ("Stop", lrp.Stop())]
        case lrp.Pass():
            found = [("Norm", lrp.Norm()), ("LayerNormRule", lrp.LayerNormRule())]
        case _ if hasattr(rule, "zero_params"):
            found = [*_without_bias(rule), *_layers(rule), *_stabilized(rule)]
    return found


def _without_bias(rule: Any) -> list[tuple[str, Any]]:
    zero = rule.zero_params
    return [] if "bias" in zero else [(f"{_name(rule)} without the bias", _changed(rule, zero_params=(*zero, "bias")))]


def _layers(rule: Any) -> list[tuple[str, Any]]:
    """Return all rules for linear layers, with the stabilizer of one."""
    given, zero = rule.stabilizer, rule.zero_params
    plain = [(kind.__name__, kind(given, zero)) for kind in (lrp.Epsilon, lrp.ZPlus, lrp.WSquare, lrp.Flat)]
    gammas = [(f"Gamma({g:g})", lrp.Gamma(g, given, zero)) for g in (0.25, 0.1, 0.5, 1.0, 0.05, 10.0)]
    exact = ("Epsilon without a stabilizer", lrp.Epsilon(0.0, zero))
    return [*plain, *gammas, ("AlphaBeta(2, 1)", lrp.AlphaBeta(2, 1, given, zero)), exact]


def _stabilized(rule: Any) -> list[tuple[str, Any]]:
    return [
        (f"{_name(rule)} with a stabilizer of {eps:g}", _changed(rule, stabilizer=lrp.Stabilizer(eps)))
        for eps in (1e-6, 1e-9, 1e-3, 1e-11, 0.0)
    ]


def _has_constants(question: Question, got: Sequence[Tensor], own: Call) -> bool:
    """Whether what was got is right if inputs that were given nothing at all are constants."""
    went = {key_of(end) for end in question.call.r}
    known = list(own.reached)
    keys = dict.fromkeys(key_of(end) for end, reached in zip(own.ends, known, strict=True) if reached)
    rest = [g for key, g in zip(keys, got, strict=True) if key in went]
    if not rest or len(rest) == len(got):
        return False
    own.reached = [reached and key_of(end) in went for end, reached in zip(own.ends, known, strict=True)]
    try:
        return question.explains(rest)
    finally:
        own.reached = known


def _factor(question: Question, got: Sequence[Tensor], own: Call) -> float | None:
    """Return c where what was got is c times what the rule gives."""
    try:
        expected, bounds = merged(question.answer(), own)
    except NoFormulaError:
        return None
    square = sum(float((e * e).sum()) for e in expected)
    c = sum(float((g * e).sum()) for g, e in zip(got, expected, strict=True)) / square if square else 0.0
    if c == 0:
        return None
    off = [g - c * e for g, e in zip(got, expected, strict=True)]
    size = sum(float(e.abs().sum()) for e in expected)
    room = (
        None
        if bounds is None
        else [(abs(c) + 1) * b + 4 * question.u * e.abs() for b, e in zip(bounds, expected, strict=True)]
    )
    return c if within(off, room, gamma(8 * (sum(e.numel() for e in expected) + 8), question.u) * size) else None


def _is_normalisation(question: Question) -> bool:
    return isinstance(question.module, _NORMALISATIONS) or question.operation == "layer_norm"


def _moved(norm: Any, x: Tensor) -> float:
    """How far a batch norm moves its input, relative to what it gives."""
    with torch.no_grad():
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        y = (x - norm.running_mean.view(shape)) * scale.view(shape) + (
            0 if norm.bias is None else norm.bias.view(shape)
        )
        return float((y - x).norm() / y.norm())


def _moved_folded(question: Question) -> float | None:
    inputs = question.call.inputs
    return _moved(question.norm, inputs[0]) if inputs and not question.call.was_overwritten() else None


def _changed(rule: Any, **values: Any) -> Any:
    other = object.__new__(type(rule))
    vars(other).update({**{k: v for k, v in vars(rule).items() if not k.startswith("_")}, "_made": None, **values})
    return other


def _name(rule: Any) -> str:
    return "the gradient" if rule is None else type(rule).__name__


def _described(rule: Any) -> str:
    if isinstance(rule, lrp.Gamma):
        return f"Gamma({rule.gamma:g})"
    if isinstance(rule, lrp.AlphaBeta):
        return f"AlphaBeta({rule.alpha:g}, {rule.beta:g})"
    return _name(rule)

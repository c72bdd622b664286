"""Conduct: under every mode of torch, layout and size of data, a rule does what it does without."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from verify.checks.conduct.looking import Look
from verify.checks.conduct.probing import (
    GRADIENT,
    OTHER,
    OTHER_R,
    WEIGHED,
    R,
    Topic,
    X,
    attached,
    complain,
    differs,
    fill,
    fresh,
    grad,
    layer,
    leaf,
    linear,
    make,
    noisy,
    same_bits,
    tensor,
)
from verify.model import Level
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.model import Subject


def _without_grad(rule: str, subject: Subject) -> Iterator[str]:
    """Under no_grad and inference_mode, the module runs as if alone, and leaves nothing for later calls."""
    for name, mode in (("no_grad", torch.no_grad), ("inference_mode", torch.inference_mode)):
        module = layer(rule)
        expected = fresh(subject, rule, module)
        with mode():
            plain = module(X.clone())
        with attached(make(subject, rule), module):
            look = Look(module)
            with mode():
                y = module(X.clone())
            if not same_bits(y, plain) or y.requires_grad or y.is_inference() != plain.is_inference():
                yield f"{name}: the output is {y}, expected {plain}"
            yield from complain(look.changes(), f"after a forward pass under {name}")
            x = leaf(X)
            with mode():
                module(x)
            yield from differs(grad(module(x), x, R), expected, f"after a forward pass under {name}, the relevance")


# Roundings on the way to r, if everything is rounded to bfloat16: for s, changed weight 2, product 1, sum over four
# inputs 3, changed bias 2 and its sum 1, sums of up to four maps 3, factor 1, stabilizer 1, quotient 1; for r, changed
# weight 2, product 1, sum over three outputs 2, x - l and its product 2, factor 1, sums of up to four maps 3. With
# weights, inputs, biases and R all positive nothing cancels, so that each of them is at most u of the result.
_ROUNDINGS = 15 + 11


def _autocast(rule: str, subject: Subject) -> Iterator[str]:
    """Under autocast to bfloat16, the relevance has the input's dtype, and the value that it has without."""
    module = nn.Linear(4, 3)
    # all have a few binary digits, so that bfloat16 holds them exactly
    fill(
        module,
        weight=[[0.5, 1.0, 2.0, 0.25], [1.5, 0.75, 0.5, 1.0], [1.25, 0.5, 3.0, 0.5]],
        bias=[0.75, 1.25, 0.5],
    )
    x = torch.tensor([[1.0, 2.0, 0.5, 1.5], [0.25, 3.0, 1.5, 0.75]])
    relevance = torch.tensor([[1.5, 0.5, 2.0], [0.0, 2.0, 3.0]])
    box = {"low": -1.0, "high": 4.0} if rule == "ZBox" else {}
    expected = relevance_of(subject.get(rule)(**box), module, x, relevance)
    u = 2.0**-8
    room = expected.abs() * _ROUNDINGS * u / (1 - _ROUNDINGS * u)
    for backward_inside in (False, True):
        own = leaf(x)
        with attached(subject.get(rule)(**box), module):
            with torch.autocast("cpu", torch.bfloat16):
                y = module(own)
            if y.dtype != torch.bfloat16:
                yield f"the output has dtype {y.dtype}, expected bfloat16, as without the rule"
            with torch.autocast("cpu", torch.bfloat16, enabled=backward_inside):
                r = grad(y, own, relevance.to(y.dtype))
        if r.dtype != x.dtype:
            yield f"the relevance has dtype {r.dtype}, expected {x.dtype}"
        if not bool(((r - expected).abs() <= room).all()):
            yield f"the relevance is {r.tolist()}, without autocast {expected.tolist()}"


def _frozen(rule: str, subject: Subject) -> Iterator[str]:
    """Which parameters need gradients makes no difference."""
    module = linear()
    expected = fresh(subject, rule, module)
    for weight, bias in ((False, False), (True, False), (False, True)):
        module.weight.requires_grad_(weight)
        module.bias.requires_grad_(bias)
        with attached(make(subject, rule), module):
            x = leaf(X)
            found = grad(module(x), x, R)
        yield from differs(found, expected, f"with requires_grad={weight} of weight and {bias} of bias, the relevance")


def _conv(rule: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a layer for images, an image of each of two samples, and a relevance."""
    x = tensor([(7 * k % 13 - 6) / 4 for k in range(2 * 2 * 3 * 4)]).reshape(2, 2, 3, 4)
    if rule in GRADIENT:
        return nn.ReLU(), x, tensor([(5 * k % 11 - 5) / 2 for k in range(48)]).reshape(2, 2, 3, 4)
    module = nn.Conv2d(2, 2, 2, dtype=torch.float64)
    fill(module, weight=tensor([(3 * k % 7 - 3) / 4 for k in range(16)]).reshape(2, 2, 2, 2), bias=[0.5, -0.75])
    return module, x, tensor([(5 * k % 11 - 5) / 2 for k in range(24)]).reshape(2, 2, 2, 3)


def _layouts(rule: str, subject: Subject) -> Iterator[str]:
    """How input and relevance lie in memory makes no difference: the sums are exact, so not even their order does."""
    module, x, relevance = _conv(rule)
    for name, lay in _LAYOUTS.items():
        laid = lay(x), lay(relevance)
        expected = fresh(subject, rule, module, *(t.contiguous().clone() for t in laid))
        with attached(make(subject, rule), module):
            own = laid[0].requires_grad_()
            (found,) = torch.autograd.grad(module(own), own, laid[1])
        # the sigmoid of one number may come from a vector register or not. Either way: the exponential within one
        # unit in the last place, two roundings in 1 / (1 + e), one in the product with R, each half a unit
        room = 0.0 if rule != "ReLUBetaSmooth" else 2 * 3 * torch.finfo(x.dtype).eps * expected.abs()
        if found.shape != expected.shape or not bool(((found - expected).abs() <= room).all()):
            yield f"{name}: the relevance is {found.tolist()}, of contiguous copies {expected.tolist()}"


def _channels_last(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.channels_last)


def _every_other(t: Tensor) -> Tensor:
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), 7.0)
    wide[..., ::2] = t
    return wide[..., ::2]


def _expanded(t: Tensor) -> Tensor:
    return t[:1].clone().expand(3, *t.shape[1:])


def _transposed(t: Tensor) -> Tensor:
    return t.mT.contiguous().mT


_LAYOUTS = {
    "channels last": _channels_last,
    "every other element": _every_other,
    "expanded": _expanded,
    "transposed": _transposed,
}


def _batches(rule: str, subject: Subject) -> Iterator[str]:
    """Each sample of a batch gets what it gets alone, and an empty batch an empty relevance."""
    for module, x, relevance in ((layer(rule), OTHER, OTHER_R), _conv(rule)):
        together = fresh(subject, rule, module, x, relevance)
        for k in range(len(x)):
            alone = fresh(subject, rule, module, x[k : k + 1], relevance[k : k + 1])
            room = 0.0 if rule != "ReLUBetaSmooth" else 2 * 3 * torch.finfo(x.dtype).eps * alone.abs()
            if not bool(((together[k : k + 1] - alone).abs() <= room).all()):
                yield f"sample {k} gets {together[k].tolist()} in a batch of {len(x)}, alone {alone[0].tolist()}"
        none = fresh(subject, rule, module, x[:0], relevance[:0])
        if none.shape != x[:0].shape:
            yield f"an empty batch gets relevance of shape {tuple(none.shape)}, expected {tuple(x[:0].shape)}"


def _random_layer(rule: str) -> nn.Module:
    if rule == "Pass":
        return nn.Dropout(0.5)
    return nn.RReLU() if rule in GRADIENT else noisy()


_LONG = tensor([(7 * k % 13 - 6.5) / 4 for k in range(48)]).reshape(16, 3)
_LONG_R = tensor([(5 * k % 11 - 5.5) / 2 for k in range(48)]).reshape(16, 3)


def _random_state(rule: str, subject: Subject) -> Iterator[str]:
    """In train mode, torch's random numbers are drawn as by the module alone."""
    module, x = _random_layer(rule), leaf(_LONG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain, state = module(_LONG), torch.get_rng_state()
        with attached(make(subject, rule), module):
            torch.manual_seed(0)
            y = module(x)
            if not same_bits(y, plain):
                yield "the output is drawn from other random numbers than without the rule"
            if not torch.equal(torch.get_rng_state(), state):
                yield "the forward pass draws more random numbers than without the rule"
            grad(y, x, _LONG_R)
        if not torch.equal(torch.get_rng_state(), state):
            yield "the backward pass draws random numbers"


def _dropout_mask(rule: str, subject: Subject) -> Iterator[str]:
    """What dropout takes out of the output gets no relevance: the mask is that of the forward pass."""
    modules = (nn.Dropout(0.5), noisy()) if rule == "Norm" else (noisy(),)
    for module in modules:
        x = leaf(_LONG)
        with torch.random.fork_rng(devices=[]), attached(make(subject, rule), module):
            torch.manual_seed(0)
            dropped = nn.functional.dropout(torch.ones_like(x), 0.5) == 0
            torch.manual_seed(0)
            y = module(x)
            torch.rand(5)  # others go on drawing
            r = grad(y, x, _LONG_R)
        if bool((r[dropped] != 0).any()):
            share = (r[dropped] != 0).double().mean().item()
            yield f"{share:.0%} of the inputs that {type(module).__name__} dropped get relevance, expected none"


def _batch_norm(rule: str, subject: Subject) -> Iterator[str]:
    """In train mode, running statistics move once in a forward pass, as without the rule, and not in backward."""
    module = nn.BatchNorm1d(3, dtype=torch.float64)
    plain = deepcopy(module)
    plain(OTHER)
    x = leaf(OTHER)
    with attached(make(subject, rule), module):
        y = module(x)
        for when in ("forward", "backward"):
            if when == "backward":
                grad(y, x, OTHER_R)
            for name, expected in plain.named_buffers():
                if not same_bits(module.get_buffer(name), expected):
                    found = module.get_buffer(name).tolist()
                    yield f"after {when}, {name} is {found}, expected {expected.tolist()}: once moved by one batch"


TOPICS = (
    Topic("without-grad", _without_grad),
    Topic("autocast", _autocast, WEIGHED, Level.SHOULD),
    Topic("frozen", _frozen, WEIGHED),
    Topic("layouts", _layouts),
    Topic("batches", _batches),
    Topic("random-state", _random_state),
    Topic("dropout-mask", _dropout_mask, WEIGHED),
    Topic("batch-norm-in-training", _batch_norm, (*WEIGHED, "Pass")),
)

"""Check ``conduct`` for the rules for products, attention and normalisations, on operations of two tensors, too."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.conduct.looking import Look
from verify.checks.conduct.probing import Topic, attached, complain, differs, fill, leaf, power, same_bits, tensor
from verify.checks.conduct.topics import TOPICS
from verify.formats.operands import MatMul, Multiply
from verify.model import NETWORK_RULES, Case, Level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.model import Subject

#: Topics of all rules that ask about a module of one input, whatever it computes.
_OF_ALL = (
    "two-modules", "registered-twice", "copy", "deepcopy", "pickle", "tensors", "without-grad", "batched-relevance",
    "hook-appended", "copied-module",
)  # fmt: skip


def _norm() -> nn.Module:
    norm = nn.LayerNorm(3, dtype=torch.float64)
    fill(norm, weight=[0.5, -1.0, 2.0], bias=[0.75, -1.25, 0.5])
    return norm


_LEFT = tensor([[1.0, -2.0, -0.5], [0.0, 3.0, -1.5]])
_RIGHT = tensor([[-1.0, 0.5, 2.0], [2.5, -0.75, 1.0]])
_SQUARE = tensor([[0.5, -1.0, 2.0], [-0.25, 1.5, 0.75], [1.0, -0.5, -1.25]])
_R = tensor([[1.5, -0.5, 2.0], [0.0, 2.0, -3.0]])
#: A module that suits a rule, the arguments of the rule, and two sets of inputs, for which _R is a relevance.
_SUITING: dict[str, tuple[Any, dict[str, Any], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]] = {
    "Uniform": (Multiply, {}, ((_LEFT, _RIGHT), (_RIGHT, _LEFT[:1]))),
    "SignalTakesAll": (Multiply, {"signal": 1}, ((_LEFT, _RIGHT), (_RIGHT[:1], _LEFT))),
    "Bilinear": (MatMul, {"stabilizer": power}, ((_LEFT, _SQUARE), (_RIGHT, -_SQUARE))),
    "Softmax": (lambda: nn.Softmax(dim=-1), {}, ((_LEFT,), (_RIGHT,))),
    "Stop": (lambda: nn.Softmax(dim=-1), {}, ((_LEFT,), (_RIGHT,))),
    "LayerNormRule": (_norm, {"stabilizer": power}, ((_LEFT,), (_RIGHT,))),
}


def cases() -> Iterator[Case]:
    """Yield the cases of this check."""
    of_all = [topic for topic in TOPICS if topic.what in _OF_ALL]
    for rule, topic in product(NETWORK_RULES, (*of_all, *_TOPICS)):
        yield topic.case(rule)


def _made(rule: str, subject: Subject) -> tuple[Any, nn.Module]:
    build, arguments, _ = _SUITING[rule]
    return subject.get(rule)(**arguments), build()


def _shares(output: Tensor, inputs: list[Tensor], relevance: Tensor = _R, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, relevance.clone(), **options)


def _alone(rule: str, subject: Subject, inputs: tuple[Tensor, ...], relevance: Tensor = _R) -> tuple[Tensor, ...]:
    """Return what a rule made for this one call gives."""
    (instance, module), given = _made(rule, subject), list(map(leaf, inputs))
    with attached(instance, module):
        return _shares(module(*given), given, relevance)


def _forward(rule: str, subject: Subject) -> Iterator[str]:
    """The output is what it is without the rule, bit for bit, and nothing is left on the module."""
    instance, module = _made(rule, subject)
    for inputs in _SUITING[rule][2]:
        expected, look = module(*inputs), Look(module)
        with attached(instance, module):
            given = list(map(leaf, inputs))
            found = module(*given)
            _shares(found, given)
        if not same_bits(found, expected):
            yield f"the output is {found.tolist()}, expected {expected.tolist()}, as without the rule"
        yield from complain(look.changes(), "after remove()")


def _several_calls(rule: str, subject: Subject) -> Iterator[str]:
    """Two calls of one module in one graph get each its own relevance."""
    instance, module = _made(rule, subject)
    first, second = (list(map(leaf, inputs)) for inputs in _SUITING[rule][2])
    with attached(instance, module):
        output = module(*first) + 2 * module(*second)
    found = _shares(output, [*first, *second])
    one, other = _SUITING[rule][2]
    expected = (*_alone(rule, subject, one), *_alone(rule, subject, other, 2 * _R))
    for r, wanted in zip(found, expected, strict=True):
        yield from differs(r, wanted, "the relevance of two calls in one graph")


def _retained(rule: str, subject: Subject) -> Iterator[str]:
    """A graph may be gone through again, after the rule was removed, with the same relevance or another."""
    (instance, module), (inputs, _) = _made(rule, subject), _SUITING[rule][2]
    given = list(map(leaf, inputs))
    with attached(instance, module):
        output = module(*given)
    for relevance in (_R, -2 * _R, _R):
        found = _shares(output, given, relevance, retain_graph=True)
        for r, wanted in zip(found, _alone(rule, subject, inputs, relevance), strict=True):
            yield from differs(r, wanted, "the relevance of a further backward pass through one graph")


def _batched(rule: str, subject: Subject) -> Iterator[str]:
    """Several relevances at once give what one after the other does."""
    (instance, module), (inputs, _) = _made(rule, subject), _SUITING[rule][2]
    given, several = list(map(leaf, inputs)), torch.stack([_R, -2 * _R, _R.flip(0)])
    with attached(instance, module):
        found = _shares(module(*given), given, several, is_grads_batched=True)
    expected = zip(*(_alone(rule, subject, inputs, relevance) for relevance in several), strict=True)
    for batch, looped in zip(found, expected, strict=True):
        wanted = torch.stack(looped)
        # sums over few entries, which vmap may take in another order
        room = 64 * torch.finfo(wanted.dtype).eps * wanted.abs().amax()
        if not bool(((batch - wanted).abs() <= room).all()):
            yield f"batched relevances give {batch.tolist()}, expected {wanted.tolist()}, as in a loop"


_TOPICS = (
    Topic("output-of-operation", _forward, NETWORK_RULES),
    Topic("operation-called-twice", _several_calls, NETWORK_RULES),
    Topic("graph-of-operation", _retained, NETWORK_RULES),
    Topic("batched-relevance-of-operation", _batched, NETWORK_RULES, Level.SHOULD),
)

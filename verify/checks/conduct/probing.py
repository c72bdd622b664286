"""What the cases of check ``conduct`` share: exact data, small layers, and what is seen of a module from outside."""

from __future__ import annotations

import contextlib
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.probing import fail, passed, same
from verify.model import RULES, Case, Finding, Level, NotOfferedError
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject

    #: Asks a subject about one of its rules, and yields a sentence for everything that is wrong.
    Ask = Callable[[str, Subject], Iterator[str]]

GRADIENT = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")
WEIGHED = tuple(rule for rule in RULES if rule not in GRADIENT)
_WITHOUT_STABILIZER = ("Uniform", "SignalTakesAll", "Softmax", "Stop")


@dataclass(frozen=True)
class Topic:
    """One kind of case: what it is about, how it is asked, of which rules, and how binding it is."""

    what: str
    ask: Ask
    rules: tuple[str, ...] = RULES
    level: Level = Level.MUST

    def case(self, rule: str) -> Case:
        """Return the case of one rule."""
        run = partial(_judge, self.ask, rule)
        return Case(f"conduct/{rule}/{self.what}", rule, "-", "conduct", "-", self.level, run)


def _judge(ask: Ask, rule: str, subject: Subject) -> Finding:
    for complaint in ask(rule, subject):
        return fail(complaint)
    return passed()


# Exact data. All numbers below are small multiples of 1/16, and `power` makes every denominator a power of two, so that
# products and sums are exact in float64 whatever their order. Two ways to the same relevance then agree in every bit,
# and no room for rounding is needed.


def power(d: Tensor) -> Tensor:
    """Stabilize a denominator as the power of two next above it, with its sign; 1 for 0."""
    d = d.detach()
    # the mantissa is in [1/2, 1), and d divided by it exactly that power
    return torch.where(d == 0, torch.ones_like(d), d / torch.frexp(d).mantissa.abs())


def arguments(rule: str, stabilizer: Any = power) -> dict[str, Any]:
    """Return arguments under which a rule computes exactly; but for ReLUBetaSmooth, whose sigmoid cannot."""
    if rule in GRADIENT or rule in _WITHOUT_STABILIZER:
        return {}
    box = {"low": -4.0, "high": 3.0} if rule == "ZBox" else {}
    return box | {"epsilon" if rule == "Epsilon" else "stabilizer": stabilizer}


def make(subject: Subject, rule: str, **further: Any) -> Any:
    """Return a rule of the subject that computes exactly."""
    return subject.get(rule)(**arguments(rule) | further)


def tensor(values: Any) -> Tensor:
    """Return a tensor of float64."""
    return torch.tensor(values, dtype=torch.float64)


X = tensor([[1.0, -2.0, -0.5], [0.0, 3.0, -1.5]])
#: An input of another batch size.
OTHER = tensor([[-1.0, 0.5, 2.0], [2.5, -0.75, 1.0], [-3.0, 1.0, 0.25]])
R = tensor([[1.5, -0.5, 2.0], [0.0, 2.0, -3.0]])
OTHER_R = tensor([[0.5, 1.0, -2.0], [-1.5, 0.0, 4.0], [1.0, 3.0, -0.25]])


def fill(module: nn.Module, **values: Any) -> None:
    """Give parameters their values."""
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name).copy_(torch.as_tensor(value))


class Watched(nn.Linear):
    """A linear layer with a forward of its own, which first calls ``probe``."""

    probe: Callable[[], None] = staticmethod(lambda: None)

    def forward(self, input: Tensor) -> Tensor:
        self.probe()
        return super().forward(input)


class WatchedReLU(nn.ReLU):
    """The same of a ReLU."""

    probe: Callable[[], None] = staticmethod(lambda: None)

    def forward(self, input: Tensor) -> Tensor:
        self.probe()
        return super().forward(input)


def linear(kind: Callable[..., nn.Linear] = nn.Linear, scale: float = 1.0) -> nn.Linear:
    """Return a linear layer of three inputs and outputs, with weights of both signs."""
    module = kind(3, 3, dtype=torch.float64)
    weight = tensor([[0.5, -1.0, 2.0], [-0.25, 1.5, 0.75], [1.0, -0.5, -1.25]])
    fill(module, weight=scale * weight, bias=[0.75, -1.25, 0.5])
    return module


class Noisy(nn.Linear):
    """A linear layer with a dropout of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(input, 0.5, self.training))


def noisy() -> nn.Linear:
    """Return such a layer, in train mode."""
    return linear(Noisy)


def batch_norm() -> nn.BatchNorm1d:
    """Return a batch normalisation of three channels, in eval mode."""
    module = nn.BatchNorm1d(3, dtype=torch.float64).eval()
    fill(module, weight=[0.5, -1.0, 2.0], bias=[0.75, -1.25, 0.5])
    assert module.running_mean is not None
    module.running_mean.copy_(tensor([0.5, -1.0, 0.25]))
    return module


class Scaled(nn.Module):
    """A product of its input and constants."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("factors", scale * tensor([0.5, -1.0, 2.0]))

    factors: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return input * self.factors


def layer(rule: str, scale: float = 1.0) -> nn.Module:
    """Return a small layer that suits a rule, for X and R."""
    if rule in {"Uniform", "SignalTakesAll", "Bilinear"}:
        return Scaled(scale)
    if rule in {"Softmax", "Stop"}:
        return nn.Softmax(dim=-1)
    if rule == "LayerNormRule":
        norm = nn.LayerNorm(3, dtype=torch.float64)
        fill(norm, weight=scale * tensor([0.5, -1.0, 2.0]), bias=[0.75, -1.25, 0.5])
        return norm
    return nn.ReLU() if rule in GRADIENT else linear(scale=scale)


def watched(rule: str, scale: float = 1.0) -> Watched | WatchedReLU:
    """Return the same with a probe."""
    if rule in GRADIENT:
        return WatchedReLU()
    module = linear(Watched, scale)
    assert isinstance(module, Watched)
    return module


@contextlib.contextmanager
def attached(rule: Any, module: nn.Module) -> Iterator[Any]:
    """Register a rule, and remove it at the end, whatever happens."""
    handle = rule.register(module)
    try:
        yield handle
    finally:
        handle.remove()


def leaf(x: Tensor) -> Tensor:
    """Return an input of its own, whose gradient is wanted."""
    return x.detach().clone().requires_grad_()


def grad(y: Tensor, x: Tensor, relevance: Tensor, **options: Any) -> Tensor:
    """Return the gradient, or what a rule makes of a relevance: of a copy, as a subject may write to what it gets."""
    return torch.autograd.grad(y, x, relevance.clone(), **options)[0]


def fresh(subject: Subject, rule: str, module: nn.Module, x: Tensor = X, relevance: Tensor = R) -> Tensor:
    """Return the relevance by a rule made for this one call, on a copy of the module."""
    return relevance_of(make(subject, rule), deepcopy(module), x.clone(), relevance.clone())


def differs(found: Tensor, expected: Tensor, what: str) -> Iterator[str]:
    """Say so if two tensors differ in a bit, the sign of zero aside."""
    if not same(found, expected):
        yield f"{what} is {_spell(found)}, expected {_spell(expected)}"


def _spell(t: Tensor) -> str:
    return f"{t.tolist()} of {str(t.dtype).removeprefix('torch.')}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in every bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    first, second = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return bool(torch.equal(first, second))


def version(t: Tensor) -> int:
    """Return how often torch has seen a tensor be written in place."""
    return t._version  # noqa: SLF001  there is no public name for it


class Values:
    """The parameters and buffers of a module: which objects they are, their bits, flags and gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept = {name: _Kept(value) for name, value in _named(module).items()}

    def changes(self) -> list[str]:
        """Return what is no longer as it was."""
        now = _named(self.module)
        changes = [f"{name} is gone or new" for name in sorted(self.kept.keys() ^ now.keys())]
        for name in sorted(self.kept.keys() & now.keys()):
            kept = self.kept[name]
            if now[name] is not kept.value:  # what else is another follows from that
                changes.append(f"the {type(kept.value).__name__} object of {name} was replaced")
            changes += [f"{name} {change}" for change in kept.changes(now[name])]
        return changes


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


class _Kept:
    def __init__(self, value: Tensor) -> None:
        self.value, self.bits = value, value.detach().clone()
        self.version, self.requires_grad, self.grad = version(value), value.requires_grad, value.grad
        self.place = value.untyped_storage().data_ptr()
        self.grad_bits = None if value.grad is None else value.grad.clone()

    def changes(self, now: Tensor) -> Iterator[str]:
        if not same_bits(now, self.bits):
            yield f"was {_spell(self.bits)} and is {_spell(now)}"
        if now is self.value and version(now) != self.version:
            yield "was written in place"
        elif now.untyped_storage().data_ptr() != self.place:
            yield "lies elsewhere in memory: views of it, as fused optimizers keep them, no longer follow"
        if now.requires_grad != self.requires_grad:
            yield f"has requires_grad={now.requires_grad}"
        if now is not self.value:
            return  # what else is another follows from that
        if now.grad is not self.grad:
            yield "has another gradient"
        elif self.grad is not None and self.grad_bits is not None and not same_bits(self.grad, self.grad_bits):
            yield "has a gradient that was written"


def complain(changes: list[str], when: str) -> Iterator[str]:
    """Say what changed, if anything did."""
    if changes:
        yield f"{when}: {'; '.join(changes[:3])}{f' and {len(changes) - 3} more' if len(changes) > 3 else ''}"


def unclear(error: Exception) -> Iterator[str]:
    """Say so if a refusal does not say anything."""
    if not str(error).strip():
        yield f"is refused by {type(error).__name__} without a message"


def unless_refused(complaints: Iterator[str]) -> Iterator[str]:
    """Take an error with a message for an answer, wherever it is raised: what is wrong is a number without a word."""
    try:
        yield from complaints
    except NotOfferedError:
        raise
    except Exception as error:
        yield from unclear(error)


def gives(subject: Subject, rule: str, module: nn.Module, expected: Tensor, what: str) -> Iterator[str]:
    """Say so if the relevance that a rule on the module itself makes of R is another one."""
    yield from differs(relevance_of(make(subject, rule), module, X.clone(), R.clone()), expected, what)

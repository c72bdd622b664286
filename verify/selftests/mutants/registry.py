"""What a mutant is, and how the files beside this one make them."""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

import lrp_rules
from lrp_rules import BasicHook, Registration, Stabilizer
from lrp_rules.layers.known import TracedLayer
from lrp_rules.layers.layer import Map, Matrix
from verify.model import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from lrp_rules.layers.layer import Layer

    Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True)
class Mutant:
    """A wrong subject: ``lrp_rules`` with one attribute, ``rule``, replaced by something with one mistake.

    ``name`` says the mistake, ``why`` says it in a sentence, with the library in which it was seen. ``variant`` is the
    name of the known convention that the mistake follows, if it follows one.
    """

    name: str
    rule: str
    why: str
    replacement: Callable[..., Any]
    variant: str | None = None

    def namespace(self) -> SimpleNamespace:
        """Return what a subject offers, with the mistake in it."""
        offered = {name: getattr(lrp_rules, name) for name in lrp_rules.__all__}
        return SimpleNamespace(**offered | {self.rule: self.replacement})

    @property
    def spec(self) -> str:
        """How a command line names this subject."""
        return f"verify.selftests.mutants:{self.name.replace('-', '_')}"

    def subject(self) -> Subject:
        """Return the subject, as ``verify.subjects.loading.load(self.spec)`` does."""
        return Subject(self.spec, self.namespace(), lrp_rules.__version__)


# What mutants are written with: the formulas' plain parts, so that a mutant does not change with the way in which
# `lrp_rules` computes them.


def positive(v: Tensor) -> Tensor:
    """v+."""
    return v.clamp(min=0)


def negative(v: Tensor) -> Tensor:
    """v-."""
    return v.clamp(max=0)


def split(x: Tensor, of_positive: Matrix, of_negative: Matrix) -> list[tuple[Matrix, Tensor]]:
    """Return the terms (A, x+) and (A', x-)."""
    return [(of_positive, positive(x)), (of_negative, negative(x))]


def propagate(
    terms: Sequence[tuple[Matrix, Tensor]],
    bias: Tensor | float,
    R: Tensor,
    stabilizer: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return r = sum v * A^T s over the terms (A, v), with s = R / S(d) and d = sum A v + bias."""
    d = sum((A @ v for A, v in terms), start=torch.as_tensor(bias))
    s = R / stabilizer(d.expand_as(R))
    return torch.stack([v * (A.T @ s) for A, v in terms]).sum(0)


found: dict[str, Mutant] = {}


def mutant(variant: str | None = None, *, name: str | None = None) -> Callable[[Made], Made]:
    """Make a mutant of a class or function: its docstring is the reason.

    The nearest base that the API knows is the rule, and the class's name begins with it: ``ZBoxBoundsSwapped`` is the
    mutant ``zbox-bounds-swapped``. So the messages of a rule still name it, and a class of a module can be pickled.
    A function has its rule's name before two underscores: ``zero_bias__in_place``.
    """

    def register(made: Made) -> Made:
        if isinstance(made, type):
            rule = next(base.__name__ for base in made.__mro__ if getattr(lrp_rules, base.__name__, None) is base)
            mistake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", made.__name__.removeprefix(rule)).lower()
        else:
            rule, _, mistake = made.__name__.partition("__")
        full = name or f"{rule}-{mistake}".replace("_", "-").lower()
        if full in found:
            msg = f"two mutants are called {full}; a name must say one mistake"
            raise ValueError(msg)
        found[full] = Mutant(full, rule, inspect.getdoc(made) or "", made, variant)
        return made

    return register


class Stabilized(BasicHook):
    """A rule whose own ``stabilize(d, epsilon)`` stands for S(d) wherever a number was asked for."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        """Return a wrong S(d)."""
        raise NotImplementedError

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the rule makes of it."""
        rule, given = copy.copy(self), self.stabilizer
        if isinstance(given, Stabilizer):
            rule.stabilizer = lambda d: self.stabilize(d, given.epsilon)
        return super(Stabilized, rule).relevances(layer, R)


def without_bias(layer: Layer) -> Layer:
    """Return the layer without its bias; its real output stays what it was."""
    return replace(layer, given={name: None if name == "bias" else value for name, value in layer.given.items()})


def with_bias(layer: Layer, change: Callable[[Tensor], Tensor]) -> Layer:
    """Return the layer with a changed bias, and no output remembered."""
    bias = layer.given.get("bias")
    return layer if bias is None else replace(layer, given={**layer.given, "bias": change(bias)}, outputs=None)


def entrywise(layer: Layer, change: Callable[[Tensor], Tensor]) -> Matrix:
    """Return the matrix of the layer with each entry changed, where a rule changes parameters."""
    x = layer.x
    shape = torch.Size((1, *layer.shape[1:])) if layer.batched else layer.shape
    A = replace(layer, inputs=(x[:1] if layer.batched else x,), outputs=None, shape=shape).matrix()
    whole = x[0].shape if layer.batched else x.shape
    units = torch.eye(whole.numel(), dtype=x.dtype).view(-1, *whole)
    columns = change(torch.stack([(A @ (unit[None] if layer.batched else unit)).flatten() for unit in units]))
    samples = -1 if layer.batched else 1
    return Map(
        lambda v: (v.reshape(samples, len(columns)) @ columns).view(layer.shape),
        lambda s: (s.reshape(samples, columns.shape[1]) @ columns.T).view(x.shape),
    )


def traced(layer: Layer, function: Callable[[Tensor], Tensor]) -> Layer:
    """Return the layer with another function in the place of its module, if it is one that is traced."""
    if not isinstance(layer, TracedLayer) or len(layer.inputs) > 1 or len(layer.outputs or ()) > 1:
        return layer
    with torch.enable_grad():
        x = layer.x.detach().requires_grad_()
        return replace(layer, inputs=(x,), outputs=(function(x),))


def signed(d: Tensor, epsilon: float | Tensor) -> Tensor:
    """Return the right S(d), for mutants whose mistake is elsewhere."""
    return (d < 0).to(d.dtype).mul(-2).add(1).mul(epsilon).add(d)


class Handles(Registration):
    """A registration with more handles."""

    def __init__(self, hook: Any, module: nn.Module, *more: Any) -> None:
        super().__init__(hook, module)
        self._handles += more

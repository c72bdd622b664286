"""Conduct: what a rule keeps alive. The specification forbids leftovers on the module alone: all this is advice."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from verify.checks.conduct.probing import R, Topic, X, attached, layer, leaf, make, watched
from verify.model import Level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.model import Subject


class _Traces:
    """Weak references to the tensors of one call, and to their memory, which an alias would keep."""

    def __init__(self, **tensors: Tensor) -> None:
        self.objects = {name: weakref.ref(t) for name, t in tensors.items()}
        self.memory = {name: StorageWeakRef(t.untyped_storage()) for name, t in tensors.items()}

    def alive(self) -> list[str]:
        return [name for name in self.objects if self.objects[name]() is not None or not self.memory[name].expired()]


def _call(module: nn.Module, *, backward: bool = True) -> _Traces:
    x = leaf(X)
    h = x * 1
    y = module(h)
    relevance = R.clone()
    if not backward:
        return _Traces(input=h, output=y)
    (r,) = torch.autograd.grad(y * 1, x, relevance)
    return _Traces(input=h, output=y, relevance=relevance, result=r)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _die(rule: str, subject: Subject) -> Iterator[str]:
    """With its graph, everything of a call goes at once, without the garbage collector; the rule stays registered."""
    for module in (layer(rule), watched(rule)):
        with attached(make(subject, rule), module):
            _call(module)  # what a first call prepares for all further ones may stay
            for when, backward, enabled in (
                ("forward and backward", True, True),
                ("a forward pass alone", False, True),
                ("a forward pass under no_grad", False, False),
            ):
                with _no_collection(), _young_objects(), torch.set_grad_enabled(enabled):
                    alive = _call(module, backward=backward).alive()
                    # copies count as well
                    count = _tensors()
                if alive or count:
                    kept = " and ".join(alive) or "none"
                    yield f"after {when}, {count} new tensors stay alive; of those given and returned: {kept}"


def _grow(rule: str, subject: Subject) -> Iterator[str]:
    """Further calls leave no further tensors behind, even if one call leaves some."""
    for module in (layer(rule), watched(rule)):
        with attached(make(subject, rule), module), _young_objects():
            traces: list[_Traces] = []
            counts = []
            for _ in range(2):
                traces += [_call(module) for _ in range(4)]
                gc.collect()
                counts.append((_tensors(), sum(len(trace.alive()) for trace in traces)))
        (first, first_alive), (second, second_alive) = counts
        if second > first or second_alive > first_alive:
            yield (
                f"{first} tensors are left by 4 calls and {second} by 8; of their inputs, outputs and relevances "
                f"{first_alive} and {second_alive}"
            )


@contextlib.contextmanager
def _young_objects() -> Iterator[None]:
    """Hide all that is there from the garbage collector, so that it looks through what is made within and no more."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


TOPICS = (
    Topic("tensors-die", _die, level=Level.SHOULD),
    Topic("no-growth", _grow, level=Level.SHOULD),
)

"""Conduct: where a rule begins and ends: copies of its module, graphs that are made later, handles that are over."""

from __future__ import annotations

import pickle
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from verify.checks.conduct.probing import (
    R,
    Topic,
    X,
    attached,
    differs,
    fresh,
    grad,
    layer,
    leaf,
    make,
    unless_refused,
    watched,
)
from verify.model import Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from verify.model import Subject


def _pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))  # noqa: S301  our own


def _averaged(module: nn.Module) -> Any:
    return AveragedModel(module)


def _copied(duplicate: Callable[[nn.Module], Any], rule: str, subject: Subject) -> Iterator[str]:
    """A copy of a module that has a rule has none, and gives its gradient; the module itself keeps its rule."""

    def ask(module: nn.Module) -> Iterator[str]:
        expected, x = fresh(subject, rule, module), leaf(X)
        gradient = grad(module(x), x, R)
        with attached(make(subject, rule), module):
            twin = duplicate(module)
            yield from differs(grad(twin(x), x, R), gradient, "what a copy gives, no relevance,")
            yield from differs(grad(module(x), x, R), expected, "the relevance of a module that was copied")
        yield from differs(grad(twin(x), x, R), gradient, "what a copy gives in the end, no relevance,")
        yield from differs(grad(module(x), x, R), gradient, "what a module gives after remove()")

    # the ways to copy are alike; one of them is asked about both kinds of modules
    for kind in (layer, watched) if duplicate is deepcopy else (layer,):
        yield from unless_refused(ask(kind(rule)))


def _recomputed(y: Tensor, x: Tensor) -> Tensor:
    # of the two kinds of checkpoints, one knows backward() alone
    x.grad = None
    y.backward(R.clone())
    assert x.grad is not None
    return x.grad


_CHECKPOINTS = ((layer, False), (layer, True), (watched, False))


def _checkpointed(rule: str, subject: Subject) -> Iterator[str]:
    """Under a checkpoint, the module runs again in the backward pass, and has its rule there, too."""
    for kind, reentrant in _CHECKPOINTS:
        module, x = kind(rule), leaf(X)
        expected = fresh(subject, rule, module)
        with attached(make(subject, rule), module):
            found = _recomputed(checkpoint(module, x, use_reentrant=reentrant), x)
        what = f"{type(module).__name__} under a checkpoint with use_reentrant={reentrant}: the relevance"
        yield from differs(found, expected, what)


def _checkpointed_late(rule: str, subject: Subject) -> Iterator[str]:
    """A graph that was made with the rule keeps its relevance after remove(), or an error says that it cannot."""

    def ask(module: nn.Module, *, reentrant: bool) -> Iterator[str]:
        expected, x = fresh(subject, rule, module), leaf(X)
        with attached(make(subject, rule), module):
            y = checkpoint(module, x, use_reentrant=reentrant)
        what = f"under a checkpoint with use_reentrant={reentrant}, the relevance of a backward pass after remove()"
        yield from differs(_recomputed(y, x), expected, what)

    for kind, reentrant in _CHECKPOINTS:
        yield from unless_refused(ask(kind(rule), reentrant=reentrant))


def _entered_again(rule: str, subject: Subject) -> Iterator[str]:
    """A handle that is entered after it was removed works anew, or refuses: there must be no gradient in its block."""

    def ask(module: nn.Module) -> Iterator[str]:
        expected, handle = fresh(subject, rule, module), make(subject, rule).register(module)
        handle.remove()
        if not hasattr(handle, "__enter__"):
            return
        x = leaf(X)
        with handle:
            y = module(x)
        yield from differs(grad(y, x, R), expected, "in the block of a handle that had been removed, the relevance")

    yield from unless_refused(ask(layer(rule)))


TOPICS = (
    Topic("copied-module", partial(_copied, deepcopy)),
    Topic("pickled-module", partial(_copied, _pickled)),
    Topic("averaged-model", partial(_copied, _averaged)),
    Topic("checkpoint", _checkpointed),
    Topic("checkpoint-after-remove", _checkpointed_late),
    # The specification does not speak of handles as blocks
    Topic("handle-entered-again", _entered_again, level=Level.SHOULD),
)

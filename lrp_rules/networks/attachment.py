"""Rules that are on a model: when they go, and what is said of those that never acted."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, Self

from lrp_rules.errors import see
from lrp_rules.hooks.calls import Calls, is_compiled, never_called
from lrp_rules.networks.between import here
from lrp_rules.networks.keeping import Keeper
from lrp_rules.networks.report import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from torch import nn

    from lrp_rules.hooks.registration import Registration
    from lrp_rules.networks.between import Between
    from lrp_rules.networks.watch import Watch


class Attachment:
    """Rules on a model, until ``remove()`` or the end of the ``with`` block.

    Where the model was called and a rule was not, its module had the plain gradient: at the end, that is an error.
    """

    def __init__(
        self, model: nn.Module, between: Between, unused: Iterable[nn.Module] = (), ignored: Iterable[nn.Module] = ()
    ) -> None:
        self.registrations: list[Registration] = []
        #: What is known of the functions between the modules.
        self.between = between
        self._ignored, self._parts = set(ignored), set(model.modules())
        self._model, self._unused = model, set(unused)
        #: For the modules named in ``keep``, where the relevance of their last output can be had: a GradientEdge, that
        #: torch.autograd.grad takes beside or in place of an input; for an output of several tensors, one for each.
        #: For a weight or bias, a tensor of its shape, whose gradient is the relevance of the parameter.
        self.kept: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._watches: list[Watch] = []
        self._made: list[Registration] = []
        self._canonized: list[Any] = []
        self._calls = Calls(model, self)

    def __repr__(self) -> str:
        between = self.between
        return table(self._model, self._made, between.calls, between.ruled, between.unruled)

    def keep(self, name: str, module: nn.Module) -> None:
        """Note where the relevance of a module's output can be had, at each of its calls."""
        keeper = Keeper(self.kept, name)
        keeper.handles = [module.register_forward_hook(keeper.note)]
        self._handles.append(keeper)

    def remove(self) -> None:
        """Take all rules off the model.

        Raises
        ------
        RuntimeError
            If the model was called, and a rule was not; or if a rule was called inside a reentrant checkpoint, and its
            backward pass has not come yet. The rules are off all the same.

        """
        complaint = self._remove()
        if complaint:
            raise RuntimeError(complaint)

    def _remove(self) -> str:
        complaint = self._complaint()
        taken, self.registrations[:] = self.registrations[:], []
        self.between.in_force, self.between.around = False, None
        self._calls.remove()
        for handle in (*self._handles, *self._watches):
            handle.remove()
        here.settle()
        self._handles.clear()
        self._watches.clear()
        for instance in reversed(self._canonized):
            instance.remove()
        self._canonized.clear()
        waiting = self._waiting()
        for registration in taken:
            try:
                registration.remove()
            except RuntimeError as error:
                waiting = waiting or str(error)
        return waiting or complaint

    def _waiting(self) -> str | None:
        """Return what is to be said of functions that a reentrant checkpoint is still to repeat."""
        waiting, self.between.unrepeated = self.between.unrepeated, 0
        if not waiting:
            return None
        return (
            f"functions with rules were called {waiting} times inside torch.utils.checkpoint with use_reentrant=True, "
            "and not again by a backward pass, or not as a part of a module there: they have the plain gradient. Do "
            "the backward pass before the rules are removed, give checkpoint a module, or use use_reentrant=False"
            f"{see('checkpoints')}"
        )

    def _complaint(self) -> str:
        """Return what is to be said of rules that were not called; nothing, if all is well."""
        idle = [one for one in self.registrations if not one.calls and one.module not in self._unused]
        if idle and (self._calls.number or (len(idle) == len(self.registrations) and is_compiled(self._model))):
            return never_called(self._model, [(one.hook, one.module) for one in idle])
        new = list(self._new(self._model, "")) if self._calls.number else []
        if new:
            return (
                f"{type(self._model).__name__} has modules with parameters that it had not when the rules were "
                f"attached, and that have the plain gradient: {', '.join(new)}. Attach the rules after the change, or "
                f"after a first call that makes them{see('a-rule-that-never-acts')}"
            )
        return ""

    def _new(self, module: nn.Module, name: str) -> Iterator[str]:
        """Find modules that came later, and that no rule and nobody else answers for."""
        if module in self._ignored or any(one.module is module for one in self.registrations):
            return
        if module not in self._parts and next(module.parameters(recurse=False), None) is not None:
            yield f"{name} ({type(module).__name__})"
        for part, child in module.named_children():
            yield from self._new(child, f"{name}.{part}" if name else part)

    def __enter__(self) -> Self:
        if not self._calls.counts:
            msg = (
                "these rules were removed, and would do nothing; expected an attachment that is in force. Call attach "
                f"again{see('a-rule-that-never-acts')}"
            )
            raise RuntimeError(msg)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:  # that exception is what there is to say
            self._remove()
            return
        if self.registrations and not self._calls.number and not any(one.calls for one in self.registrations):
            forward_outside = (
                f"{type(self._model).__name__} was not called between attach and the end of the block, so that no rule "
                "was in force in any call; expected the forward pass inside the block"
                f"{see('a-rule-that-never-acts')}"
            )
            self.remove()
            warnings.warn(forward_outside, RuntimeWarning, stacklevel=2)
        self.remove()

    def __del__(self) -> None:
        # with the model: it was never removed
        if self.registrations and not sys.is_finalizing():
            complaint = self._complaint()
            if complaint:
                warnings.warn(complaint, RuntimeWarning, stacklevel=1)

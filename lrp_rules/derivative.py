"""Whether a pass of autograd propagates relevance, or differentiates: there, no rule is in force."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


class Derivative(torch.autograd.Function):
    """Stands behind a relevance that may be differentiated, and notices when it is.

    One pass of autograd is either a propagation of relevance or a derivative of one; a derivative comes by here before
    it reaches any layer, and from here on layers are differentiated as they are.
    """

    passes: ClassVar[set[int]] = set()
    within: ClassVar[threading.local] = threading.local()

    @staticmethod
    def forward(_ctx: Any, r: Tensor) -> Tensor:
        return r.view_as(r)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        number = torch._C._current_graph_task_id()
        if number not in Derivative.passes:
            torch.autograd.Variable._execution_engine.queue_callback(_Pass(number))
        return gradient

    @staticmethod
    def behind(r: Tensor) -> Tensor:
        """Return a relevance, or a derivative of one, that is noticed when it is differentiated."""
        noticed: Tensor = Derivative.apply(r)  # type: ignore[no-untyped-call]
        return noticed

    @staticmethod
    @contextmanager
    def inside(*, by_parameters: bool = True) -> Iterator[None]:
        """Take every pass that begins here, on this thread, for a derivative, or a part of the one it is in.

        ``by_parameters`` says whether it is one by parameters, too, or by inputs alone.
        """
        if hasattr(Derivative.within, "by_parameters"):
            yield
            return
        Derivative.within.by_parameters = by_parameters
        try:
            yield
        finally:
            del Derivative.within.by_parameters

    @staticmethod
    def under_way() -> bool:
        """Whether this pass is a derivative: of a relevance, or of a module that a rule looks at as a whole."""
        if hasattr(Derivative.within, "by_parameters"):
            return True
        return bool(Derivative.passes) and torch._C._current_graph_task_id() in Derivative.passes

    @staticmethod
    def by_parameters() -> bool:
        """Whether the derivative that this is ``inside`` of is one by parameters, too."""
        return bool(Derivative.within.by_parameters)


class _Pass:
    """Has its number among the passes that are derivatives, as long as autograd keeps it: until the pass ends.

    Autograd calls it at the end of a pass that succeeds, and lets go of it after one that does not, too.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        Derivative.passes.add(number)

    def __call__(self) -> None:
        Derivative.passes.discard(self._number)

    def __del__(self) -> None:
        Derivative.passes.discard(self._number)

"""What is known of a model with rules between its modules: rules of functions, what was called, where a thread is."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lrp_rules.hooks.registration import is_in_checkpoint
from lrp_rules.networks.report import Place, UnruledWarning, unruled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import CodeType, FrameType

    from torch import Tensor, nn

    from lrp_rules.hooks.hook import Hook
    from lrp_rules.hooks.registration import Registration


class Inside(NamedTuple):
    """A call under way of a module that has a rule, or that an attachment ignores."""

    frame: FrameType
    #: What was known of its arguments.
    value: int
    module: object
    #: The attachment that ignores it; None where it has a rule.
    of: Between | None


class _Here(threading.local):
    """What a thread is inside of: calls of modules with rules, and flows of models with rules."""

    def __init__(self) -> None:
        self.flows: list[Any] = []
        #: Calls of modules whose functions are not to be looked at.
        self.inside: list[Inside] = []

    def blocks(self, between: Between) -> bool:
        """Whether the functions of an attachment are not to be looked at now."""
        return any(call.of is None or call.of is between for call in self.inside)

    def settle(self) -> None:
        """Forget calls that are over: torch tells nobody of one that was interrupted from the keyboard."""
        frames = set(stack())
        self.inside = [call for call in self.inside if call.frame in frames]
        for flow in [flow for flow in self.flows if flow.frame not in frames]:
            flow.end()
        frames.clear()  # this frame is one of them: a circle


here = _Here()


def stack() -> Iterator[FrameType]:
    """Find the frames of this thread, from the innermost."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


class Between:
    """The rules for functions of one attachment, and what became of them."""

    def __init__(
        self, rules: Mapping[str, Hook], early: Mapping[str, Hook], keeps: Iterable[str], *, strict: bool, quiet: bool
    ) -> None:
        self.rules, self.early, self.keeps = dict(rules), dict(early), set(keeps)
        self.strict, self.quiet = strict, quiet
        #: By the ids of weights: the rule of the module, which functions that use the weight have, too.
        self.by_weight: dict[int, tuple[Hook, Registration | None]] = {}
        #: By the ids of parameters: the tensors at which their relevance is asked for.
        self.asked: dict[int, Tensor] = {}
        self.calls: dict[Place, int] = {}
        self.ruled: dict[Place, Hook] = {}
        #: Operations through which relevance went without a rule, and how often.
        self.unruled: dict[Place, int] = {}
        self.unrepeated = 0
        #: Calls what may repeat a part of the model.
        self.around: Callable[[Callable[[], Any]], Any] | None = None
        #: Whether the rules are on the model.
        self.in_force = True
        #: Modules that the input has reached first.
        self.first: set[nn.Module] = set()
        self._said: set[Place] = set()

    def note(self, place: Place, hook: Hook, registration: Registration | None) -> None:
        """Note the call of a function with a rule, which may be that of a module."""
        self.calls[place] = self.calls.get(place, 0) + 1
        self.ruled[place] = hook
        if registration is not None:
            registration.calls += 1
        if self.unrepeated:
            self.unrepeated -= is_in_checkpoint("backward")

    def say(self) -> None:
        """Warn of what had no rule, once."""
        new = {place: count for place, count in self.unruled.items() if place not in self._said}
        if not new:
            return
        self._said.update(new)
        frame, level = sys._getframe(1), 2
        while frame.f_back is not None and is_inner(frame.f_code):
            frame, level = frame.f_back, level + 1
        warnings.warn(unruled(new), UnruledWarning, stacklevel=level)


_inner: dict[CodeType, bool] = {}
_OURS, _TORCH = __file__.rpartition("networks")[0], torch.__file__.rpartition("__init__")[0]
#: Folders of code that calls functions on behalf of a model; a tool that watches calls adds its own.
INNER = [_OURS, _TORCH]


def is_inner(code: CodeType) -> bool:
    """Whether code is that of torch or of this package, and not of a model."""
    if code not in _inner:
        _inner[code] = code.co_filename.startswith(tuple(INNER))
    return _inner[code]

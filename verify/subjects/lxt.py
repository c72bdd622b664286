"""The rules of LXT, LRP for transformers, that the API knows: ``EpsilonRule`` and ``IdentityRule``.

LXT, of PyPI's package ``lxt``, puts a module into a wrapper, whose forward pass is an autograd function and whose
backward pass is the rule. Here the wrapper's forward pass takes the place of the module's own, which it wraps: a
relevance comes to the output, and back from the input, as LXT itself takes and gives it.

``epsilon`` has to be a number, and no parameter can be set to zero. LXT's further rules are for parts of transformers.
``copy`` is this adapter's.

``lxt.efficient`` cannot be asked rule by rule. It computes gradients, and relevance is gradient times input: that of an
output is the output times its gradient, so that a relevance R of one's own, at an output of 0 above all, cannot be put
in. Nor has it rules of layers: it patches whole attentions, gated MLPs and normalisations. It is asked on a network by
``lrp-verify audit --pipeline lxt:MODULE``.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from verify.model import NotOfferedError
from verify.subjects.adapting import Handle, number

try:
    from lxt.explicit.rules import EpsilonRule, IdentityRule
except ImportError as error:
    msg = (
        f"LXT is needed to try its rules ({error}); `pip install --no-deps lxt` installs it: "
        "what its rules need is torch alone"
    )
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

__all__ = ["Epsilon", "Pass"]
__version__ = importlib.metadata.version("lxt")


class _Rule:
    """A wrapper of LXT, with ``make`` around a forward pass."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments

    def _make(self, forward: Callable[..., Any]) -> Any:
        raise NotImplementedError

    def copy(self) -> _Rule:
        """Return a rule with the same arguments."""
        return type(self)(**self._arguments)

    def register(self, module: nn.Module) -> Handle:
        """Put the module's forward pass into LXT's wrapper."""
        return Handle(module, self._make(module.forward).forward)


class Epsilon(_Rule):
    """``EpsilonRule(module, epsilon)``."""

    def __init__(self, epsilon: Any = 1e-6, zero_params: str | Sequence[str] | None = None) -> None:
        if zero_params:
            msg = f"LXT's EpsilonRule sets no parameter to zero, as zero_params={zero_params!r} would"
            raise NotOfferedError(msg)
        super().__init__(epsilon=number("epsilon", epsilon, "LXT"))

    def _make(self, forward: Callable[..., Any]) -> Any:
        return EpsilonRule(forward, self._arguments["epsilon"])


class Pass(_Rule):
    """``IdentityRule(module)``."""

    def __init__(self) -> None:
        super().__init__()

    def _make(self, forward: Callable[..., Any]) -> Any:
        return IdentityRule(forward)

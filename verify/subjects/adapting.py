"""Libraries of another shape, as subjects: ``--subject verify.subjects.captum``, ``.lxt``, ``.autolrp``.

An adapter is a module with rule classes of the API, as far as its library has them. It poses the library's own rule the
question of a case, and alters nothing of the answer. What the library does not have is not offered: a rule is missing,
and a parameter without a counterpart raises NotOfferedError as soon as it is given another value than the default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch

from verify.model import NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn


def number(name: str, value: Any, library: str) -> Any:
    """Return a parameter that the library wants as a number, unless it is a callable, which the API allows."""
    if callable(value):
        msg = f"{library} takes a number as {name}, not a callable"
        raise NotOfferedError(msg)
    return value


def bias_is_zeroed(zero_params: str | Sequence[str] | None, library: str) -> bool:
    """Whether the bias, and nothing else, is to be zero, for a library that can do just that."""
    names = {zero_params} if isinstance(zero_params, str) else set(zero_params or ())
    if names - {"bias"}:
        msg = f"{library} can take out the bias alone, not zero_params={zero_params!r}"
        raise NotOfferedError(msg)
    return bool(names)


class Handle:
    """Puts another forward pass in place of a module's own, until ``remove()``."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        attributes = vars(module)
        if _MARK in attributes:
            msg = f"this {type(module).__name__} has a rule of an adapter; remove it before another is registered"
            raise RuntimeError(msg)
        # in the instance's own dictionary: a module would take what is one itself for a part of it
        self._before = {name: attributes[name] for name in ("forward",) if name in attributes}
        self._attributes = attributes
        attributes |= {"forward": forward, _MARK: self}

    def remove(self) -> None:
        """Give the module its own forward pass back."""
        if self._attributes.get(_MARK) is self:
            del self._attributes["forward"], self._attributes[_MARK]
            self._attributes |= self._before


#: The attribute of a module that says that its forward pass is an adapter's.
_MARK = "_rule_of_adapter"


class Rule(ABC):
    """A rule of a library that explains a whole call: `explain` says what it makes of a relevance."""

    #: What messages call the library.
    library = ""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments

    def copy(self) -> Self:
        """Return a rule with the same arguments."""
        return type(self)(**self._arguments)

    @abstractmethod
    def explain(
        self, module: nn.Module, own: Callable[..., Any], inputs: tuple[Tensor, ...], R: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the relevance of the inputs, given that of the output; ``own`` is the module's own forward pass."""

    def takes(self, module: nn.Module) -> bool:  # noqa: ARG002  for subclasses
        """Whether a call of the module is to be explained."""
        return True

    def register(self, module: nn.Module) -> Handle:
        """Let the library explain every call of the module from now on."""
        return Handle(module, partial(self._forward, module, module.forward))

    def _forward(self, module: nn.Module, own: Callable[..., Any], *inputs: Any, **keywords: Any) -> Any:
        given = [x for x in (*inputs, *keywords.values()) if isinstance(x, torch.Tensor)]
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in given)
        if not wanted or not self.takes(module):
            return own(*inputs, **keywords)
        tensors = f"{self.library} takes tensors by position, and one tensor as output"
        if keywords or not all(isinstance(x, torch.Tensor) for x in inputs):
            raise NotOfferedError(tensors)
        before = [x.clone() for x in inputs]  # the module may write to its input
        output = own(*inputs)
        if not isinstance(output, torch.Tensor):
            raise NotOfferedError(tensors)
        explain = partial(self._explain, module, own)
        return _Explained.apply(explain, output.detach(), *before)  # type: ignore[no-untyped-call]

    def _explain(
        self, module: nn.Module, own: Callable[..., Any], inputs: tuple[Tensor, ...], R: Tensor
    ) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            msg = f"{self.library} keeps no graph of a relevance; it cannot be differentiated again"
            raise NotOfferedError(msg)
        return self.explain(module, own, inputs, R)


class _Explained(torch.autograd.Function):
    """The module's output; its gradient by the inputs is the relevance that the library gives them."""

    @staticmethod
    def forward(ctx: Any, explain: Callable[..., Any], output: Tensor, *inputs: Tensor) -> Tensor:
        ctx.explain = explain
        ctx.save_for_backward(*inputs)
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *R: Tensor) -> Any:
        needed = ctx.needs_input_grad[2:]
        inputs = tuple(x.detach().requires_grad_(of_x) for x, of_x in zip(ctx.saved_tensors, needed, strict=True))
        return None, None, *(r.detach() for r in ctx.explain(inputs, R[0]))


class Score(torch.autograd.Function):
    """The number 1, whose gradient by z is R: for a library that explains one number of the output."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, R: Tensor) -> Tensor:
        """Return 1."""
        ctx.save_for_backward(R)
        return z.new_ones(1)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        """Return R."""
        (R,) = ctx.saved_tensors
        return gradient[0] * R, None

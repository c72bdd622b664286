"""Libraries of another shape, as subjects: ``--subject verify.subjects.captum``, ``--subject verify.subjects.lxt``.

An adapter is a module with rule classes of the API, as far as its library has them. It poses the library's own rule the
question of a case, and alters nothing of the answer. What the library does not have is not offered: a rule is missing,
and a parameter without a counterpart raises NotOfferedError as soon as it is given another value than the default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from verify.model import NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn


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

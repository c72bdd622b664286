"""What `lrp_rules.testing` offers: functions and exceptions of the verifier that work in a process of the user."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from lrp_entry.extras import require
from lrp_entry.names import pinned

if TYPE_CHECKING:
    from collections.abc import Callable


def load(name: str) -> Callable[..., Any]:
    """Return a function of `verify`, to be called whatever else goes by the names of our packages, or an exception."""
    require("verify", f"lrp_rules.testing.{name}")
    with pinned():
        function: Callable[..., Any] = getattr(importlib.import_module("verify"), name)

    if isinstance(function, type):  # an exception is raised, and caught, as it is
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True  # in pytest, as in the function itself
        with pinned():
            return function(*args, **kwargs)

    return call

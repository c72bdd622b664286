"""Holds any implementation of LRP rules to the reference: run ``lrp-verify``, or call ``assert_rule`` in a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verify.asserting import assert_rule

__all__ = ["assert_rule"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: it takes seconds."""
    if name == "assert_rule":
        from verify.asserting import assert_rule  # noqa: PLC0415  see above

        return assert_rule
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)

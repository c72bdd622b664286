"""Holds any implementation of LRP rules to the reference: run ``lrp-verify``, or call ``assert_rule`` in a test.

``audit`` holds every operation of a network to the rule that was meant for it; ``assert_conserves`` does so in a test.
``compare_pipelines`` finds where two ways to explain a network part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verify.asserting import assert_rule
    from verify.auditing import Audit, assert_conserves, audit, compare_pipelines
    from verify.model import NotOfferedError

__all__ = ["Audit", "NotOfferedError", "assert_conserves", "assert_rule", "audit", "compare_pipelines"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: it takes seconds."""
    if name == "assert_rule":
        from verify.asserting import assert_rule  # noqa: PLC0415  see above

        return assert_rule
    if name in {"Audit", "assert_conserves", "audit", "compare_pipelines"}:
        from verify import auditing  # noqa: PLC0415  see above

        return getattr(auditing, name)
    if name == "NotOfferedError":
        from verify.model import NotOfferedError  # noqa: PLC0415  see above

        return NotOfferedError
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)

"""Assertions for tests of your own: install ``lrp-rules[verify]``.

``assert_rule`` holds one rule to its formula, ``assert_conserves`` a whole network to the rules that were meant for it;
``audit`` says where its relevance goes, and ``compare_pipelines`` where two explanations of it part. An adapter for
``lrp-verify`` raises ``NotOfferedError`` for what its library does not have. They are those of ``verify``, and work in
a repository that has a package ``verify`` of its own. They are loaded when they are used.

Raises
------
ModuleNotFoundError
    If what they need is not installed; the message says how to install it.

"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verify.asserting import assert_rule
    from verify.auditing.audit import assert_conserves, audit
    from verify.auditing.parting import compare_pipelines
    from verify.model import NotOfferedError

__all__ = ["NotOfferedError", "assert_conserves", "assert_rule", "audit", "compare_pipelines"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # by name: the rules know nothing of what tests them
    return importlib.import_module("lrp_entry.testing").load(name)

"""`audit`: where relevance goes in a network, whatever explains it, and whether each operation follows its rule.

It looks at pipelines from outside; nothing of `lrp_rules` is used but what its keys mean.
"""

from verify.auditing.audit import Audit, assert_conserves, audit

__all__ = ["Audit", "assert_conserves", "audit"]

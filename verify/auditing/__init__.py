"""`audit`: where relevance goes in a network, whatever explains it, and whether each operation follows its rule.

It looks at pipelines from outside; nothing of `lrp_rules` is used but what its keys mean.
"""

from verify.auditing.audit import Audit, assert_conserves, audit
from verify.auditing.parting import Comparison, compare_pipelines
from verify.auditing.pipelines import Pipeline

__all__ = ["Audit", "Comparison", "Pipeline", "assert_conserves", "audit", "compare_pipelines"]

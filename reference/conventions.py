"""Known variants of the rules: the conventions in which libraries differ, and the classic mistakes.

A wrong result is explained by the convention that gives it. Each is a few lines on top of `rules`: the parts of the
rule with another constant, other terms, another gate or stabilizer, and so it brings its own bound of rounding. The
tables are kept by topic, in the modules named conventions_*.

>>> [one.name for one in of_rule("WSquare") if one.name.startswith("bias")]
['bias-dropped', 'bias-dropped', 'bias-unsquared']
"""

from reference.conventions_arguments import ARGUMENTS
from reference.conventions_base import Answer, Batch, Convention, Question, RefusedError
from reference.conventions_bias import BIAS
from reference.conventions_gates import GATES
from reference.conventions_layers import LAYERS
from reference.conventions_networks import NETWORKS
from reference.conventions_relevance import RELEVANCE
from reference.conventions_split import SPLIT
from reference.conventions_stabilizer import STABILIZER

__all__ = ["CONVENTIONS", "Answer", "Batch", "Convention", "Question", "RefusedError", "of_rule"]

#: An entry for each way in which a variant is written; entries of the same name are the same variant.
CONVENTIONS: tuple[Convention, ...] = (*BIAS, *SPLIT, *GATES, *STABILIZER, *RELEVANCE, *ARGUMENTS, *LAYERS, *NETWORKS)


def of_rule(rule: str) -> tuple[Convention, ...]:
    """Return the known variants of a rule."""
    return tuple(convention for convention in CONVENTIONS if rule in convention.rules)

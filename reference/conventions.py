"""Known variants of the rules: the conventions in which libraries differ, and the classic mistakes.

A wrong result is explained by the convention that gives it. Each is a few lines on top of `rules`: the parts of the
rule with another constant, other terms, another gate or stabilizer, and so it brings its own bound of rounding. The
tables are kept by topic, in the modules named conventions_*.

>>> [one.name for one in of_rule("WSquare") if one.name.startswith("bias")]
['bias-dropped', 'bias-dropped', 'bias-unsquared']
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reference.conventions_arguments import ARGUMENTS
from reference.conventions_base import Answer, Batch, Changed, Convention, Form, Question, RefusedError, each
from reference.conventions_bias import BIAS
from reference.conventions_gates import GATES
from reference.conventions_layers import LAYERS
from reference.conventions_networks import NETWORKS
from reference.conventions_relevance import PRECISION, RELEVANCE
from reference.conventions_split import SPLIT
from reference.conventions_stabilizer import EPSILON, STABILIZER

__all__ = [
    "CONVENTIONS", "DETAILS", "TOPICS", "Answer", "Batch", "Changed", "Convention", "Question", "RefusedError",
    "Together", "each", "of_rule", "topic_of",
]  # fmt: skip

#: What the conventions are about, in the order in which several are applied; a rule may follow one of each.
TOPICS: dict[str, tuple[Convention, ...]] = {
    "layers": LAYERS, "arguments": ARGUMENTS, "split": SPLIT, "gates": GATES, "bias": BIAS, "relevance": RELEVANCE,
    "epsilon": EPSILON, "stabilizer": STABILIZER, "precision": PRECISION,
}  # fmt: skip
#: The topics that leave most numbers as they are but for a few digits.
DETAILS = ("epsilon", "stabilizer", "precision")

#: An entry for each way in which a variant is written; entries of the same name are the same variant.
CONVENTIONS: tuple[Convention, ...] = (*(one for topic in TOPICS.values() for one in topic), *NETWORKS)


def of_rule(rule: str) -> tuple[Convention, ...]:
    """Return the known variants of a rule."""
    return tuple(convention for convention in CONVENTIONS if rule in convention.rules)


_TOPICS = {id(one): topic for topic, known in TOPICS.items() for one in known}


def topic_of(convention: Convention) -> str:
    """Return what a convention is about; those of the rules for networks are about "networks"."""
    return _TOPICS.get(id(convention), "networks")


@dataclass(frozen=True)
class Together:
    """Several conventions at once, each on what the one before it leaves: two mistakes in one rule.

    Raises ValueError where two of them answer in the place of the rule, and not another question.
    """

    conventions: tuple[Convention, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be put together."""
        if sum(not isinstance(one.form, Changed) for one in self.conventions) > 1:
            message = f"given {self.name}, expected at most one that changes no question"
            raise ValueError(message)

    @property
    def name(self) -> str:
        """Their names."""
        return " + ".join(one.name for one in self.conventions)

    @property
    def sentence(self) -> str:
        """What they do."""
        return "; and ".join(one.sentence for one in self.conventions)

    @property
    def seen(self) -> str:
        """Where it was seen; of several together that is not known."""
        first, *more = self.conventions or (None,)
        return "" if first is None or more else first.seen

    @property
    def published(self) -> bool:
        """Whether somebody chose each of them."""
        return all(one.published for one in self.conventions)

    @property
    def changes(self) -> tuple[Changed, ...]:
        """Those that answer another question, in their order."""
        return tuple(one.form for one in self.conventions if isinstance(one.form, Changed))

    @property
    def last(self) -> Form | None:
        """What answers the questions so changed, where that is not the rule itself."""
        return next((one.form for one in self.conventions if not isinstance(one.form, Changed)), None)

    def form(self, batch: Batch) -> Sequence[Answer]:
        """Answer a batch; `Convention.form` says how."""
        for one in self.changes:
            batch = [one.change(question) for question in batch]
        return [question.answer() for question in batch] if self.last is None else self.last(batch)

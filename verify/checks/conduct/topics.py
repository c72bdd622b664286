"""Check ``conduct``: "What a rule never does" in the specification, and what follows for those who use rules.

A case asks one rule about one topic. It compares a subject with itself, under other circumstances, or with the module
alone; what the right numbers are is asked elsewhere. What the specification does not demand is advice (Level.SHOULD).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verify.checks.conduct import calls as conduct_calls
from verify.checks.conduct import containers as conduct_containers
from verify.checks.conduct import everywhere
from verify.checks.conduct import given as conduct_given
from verify.checks.conduct import hooks as conduct_hooks
from verify.checks.conduct import inplace as conduct_inplace
from verify.checks.conduct import kinds as conduct_kinds
from verify.checks.conduct import layers as conduct_layers
from verify.checks.conduct import lifetime as conduct_lifetime
from verify.checks.conduct import memory as conduct_memory
from verify.checks.conduct import modes as conduct_modes
from verify.checks.conduct import passes as conduct_passes
from verify.checks.conduct import state as conduct_state
from verify.checks.conduct import transforms as conduct_transforms
from verify.checks.conduct import weights as conduct_weights
from verify.checks.conduct import zoo as conduct_zoo
from verify.model import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.model import Case

TOPICS = (
    *conduct_state.TOPICS,
    *conduct_calls.TOPICS,
    *conduct_modes.TOPICS,
    *conduct_layers.TOPICS,
    *conduct_memory.TOPICS,
    *conduct_passes.TOPICS,
    *conduct_transforms.TOPICS,
    *conduct_weights.TOPICS,
    *conduct_containers.TOPICS,
    *conduct_hooks.TOPICS,
    *conduct_inplace.TOPICS,
    *conduct_lifetime.TOPICS,
    *conduct_kinds.TOPICS,
    *conduct_given.TOPICS,
    *conduct_zoo.TOPICS,
)


def cases() -> Iterator[Case]:
    """Yield the cases of this check."""
    for rule in RULES:
        for topic in TOPICS:
            if rule in topic.rules:
                yield topic.case(rule)
    yield from everywhere.cases()

"""Check ``conduct``: all of "What a rule never does" in RULES.md, and what follows from it for those who use rules.

A case asks one rule about one topic. It compares a subject with itself, under other circumstances, or with the module
alone; what the right numbers are is asked elsewhere. What RULES.md does not demand is advice (Level.SHOULD).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verify.checks import (
    conduct_calls,
    conduct_containers,
    conduct_hooks,
    conduct_inplace,
    conduct_kinds,
    conduct_layers,
    conduct_lifetime,
    conduct_memory,
    conduct_modes,
    conduct_passes,
    conduct_state,
    conduct_transforms,
    conduct_weights,
    conduct_zoo,
)
from verify.subjects import RULES

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
    *conduct_zoo.TOPICS,
)


def cases() -> Iterator[Case]:
    """Yield the cases of this check."""
    for rule in RULES:
        for topic in TOPICS:
            if rule in topic.rules:
                yield topic.case(rule)

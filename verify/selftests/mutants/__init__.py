"""Wrong subjects on purpose, one mistake each, as people make them: what the verifier is verified with.

``verify.selftests.mutants:zbox_bounds_swapped`` is a subject like any other. ``lrp-verify self-test`` asks which check
finds which mistake (:mod:`verify.selftests.matrix`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verify.selftests.mutants import (  # noqa: F401  importing them fills the registry, in the order of the report
    attention,
    bias,
    boxes,
    calls,
    circumstances,
    combinations,
    conduct,
    copying,
    derivatives,
    gating,
    geometry,
    given,
    handling,
    ignoring_relevance,
    leftovers,
    modifiers,
    parameters,
    passing,
    products,
    refusals,
    splitting,
    stabilizer,
    standing,
    weights,
)
from verify.selftests.mutants.registry import Mutant, found

if TYPE_CHECKING:
    from types import SimpleNamespace

__all__ = ["MUTANTS", "Mutant", "subject"]

MUTANTS: tuple[Mutant, ...] = tuple(found.values())


def subject(name: str) -> SimpleNamespace:
    """Return the namespace of a mutant, given its name with dashes or underscores.

    Raises
    ------
    KeyError
        If there is no mutant of that name.

    """
    return found[name.replace("_", "-")].namespace()


def __getattr__(name: str) -> SimpleNamespace:
    try:
        return subject(name)
    except KeyError:
        msg = f"there is no mutant {name!r}; verify.selftests.mutants.MUTANTS has them all"
        raise AttributeError(msg) from None

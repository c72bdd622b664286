"""Mutants that follow a known variant are diagnosed by its name, and no mutant by another one."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from verify.checks.cases import all_cases
from verify.explaining import diagnosis, evidence
from verify.explaining.diagnosis import asking, diagnose
from verify.explaining.search import spread
from verify.model import Case, Finding, Outcome, Verdict
from verify.runs.outcomes import outcome_of
from verify.selftests.mutants import MUTANTS, Mutant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.explaining.diagnoses import Diagnosis


pytestmark = pytest.mark.selftest


@pytest.fixture(scope="module", autouse=True)
def remembered() -> Iterator[None]:
    """What the reference is asked in a case is the same for every mutant."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "questions", functools.cache(evidence.questions))
        yield


@functools.cache
def cases_of_all() -> dict[str, list[Case]]:
    """All cases of each rule that tell variants apart, the most different ones first."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in all_cases():
        if diagnosis._told_apart(case):
            groups[case.rule].append(case)
    return {rule: spread(group) for rule, group in groups.items()}


#: Mutants that say no variant, and follow one that is known all the same.
UNDECLARED = {
    "alphabeta-bias-only-in-first": "bias-only-in-first-half",
    "alphabeta-positive-bias-in-second": "bias-unclamped-in-second-half",
    "alphabeta-only-alpha-scales": "only-alpha-scales",
    "alphabeta-only-beta-scales": "only-beta-scales",
    "alphabeta-second-half-default": "second-half-default-stabilizer",
    "alphabeta-second-half-unstabilized": "second-half-unstabilized",
    "alphabeta-zero-params-ignored": "zero-params-ignored",
    "epsilon-default": "stabilizer-default",
    "epsilon-handle-does-nothing": "gradient",  # what its numbers are, wherever a rule is left on the module
    "epsilon-stabilized-twice": "stabilized-twice",
    "gamma-fixed": "gamma-ignored",
    "gamma-zero-params-letters": "zero-params-letters",
    "norm-default-overridden": "stabilizer-default",
    "norm-stabilizer-hard-coded": "stabilizer-ignored",
    "norm-zeroes-bias": "bias-dropped",
    "zbox-bounds-added": "bounds-added",
    "zbox-bounds-not-in-relevance": "bounds-not-in-relevance",
    "zbox-bounds-of-input": "bounds-of-input",
    "zplus-one-numerator": "one-numerator",
    "zplus-signs-crossed": "signs-crossed",
    "zplus-zero-params-substring": "zero-params-by-substring",
}
#: Variants that the mutants know and agreement cannot see: they show in a derivative alone.
OF_DERIVATIVES = {"denominator-detached", "input-detached", "parameters-detached", "relevance-detached"}
#: Why some mutants that follow a variant are not diagnosed, or not by one name alone.
UNNAMED = {
    "epsilon-running-mean-left-out": "it does so where the bias is zeroed alone: elsewhere, the forward pass has it",
    "zbox-input-clipped": "on a pooling it gives zeros, which is a second mistake",
    "flat-only-zero-replaced": "no denominator of Flat is between 0 and epsilon: epsilon-clip gives the same",
    "relubetasmooth-in-float32": "the bound of a sigmoid in float32 is too wide to tell it from noise",
}

RULES = frozenset(case.rule for case in all_cases() if diagnosis._told_apart(case))
ASKED = [mutant for mutant in MUTANTS if mutant.rule in RULES]


def expected(mutant: Mutant) -> str | None:
    """The name that a diagnosis may give."""
    return mutant.variant or UNDECLARED.get(mutant.name)


def outcomes_of(mutant: Mutant) -> Iterator[Outcome]:
    subject = mutant.subject()
    for case in cases_of_all()[mutant.rule]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of a layer that it pads for itself
                finding = case.run(subject)
        except Exception as error:  # noqa: BLE001  as the runner does
            finding = Finding(Verdict.ERROR, reason=str(error))
        yield outcome_of(case, finding, 0.0)


@functools.cache
def diagnosed(mutant: Mutant) -> tuple[Diagnosis, ...] | None:
    """What is found of a mutant; None where it passes.

    It is asked 48 cases, and more until they tell variants apart, and until it is named where it follows one: a run
    asks all.
    """
    coming, outcomes, found = outcomes_of(mutant), list[Outcome](), None
    cases = {case.id: case for case in cases_of_all()[mutant.rule]}
    named = expected(mutant) not in {None, *OF_DERIVATIVES}
    while more := list(islice(coming, max(48, len(outcomes)))):
        outcomes += more
        if any(one.verdict in {Verdict.FAIL, Verdict.ERROR} for one in outcomes):
            found = tuple(diagnose(outcomes, cases, asking(mutant.subject()), seconds=60.0).diagnoses)
        if all(len(one.names) == 1 for one in found or ()) and (found or not named):
            break
    return found


def names(found: tuple[Diagnosis, ...]) -> set[tuple[str, ...]]:
    return {one.names for one in found}


@pytest.mark.parametrize("mutant", ASKED, ids=[mutant.name for mutant in ASKED])
def test_a_mutant_has_the_name_of_its_variant_or_none(mutant: Mutant) -> None:
    variant, found = expected(mutant), diagnosed(mutant)
    if found is None:
        return  # other checks find it
    if mutant.name in UNNAMED:
        assert all(variant in one.names for one in found)
        return
    assert names(found) == ({(variant,)} if variant else set())


def test_nearly_all_mutants_that_follow_a_variant_are_named() -> None:
    followers = [m for m in ASKED if m.variant not in {None, *OF_DERIVATIVES} and diagnosed(m) is not None]
    named = [m for m in followers if names(diagnosed(m) or ()) == {(m.variant,)}]
    assert len(named) >= 0.9 * len(followers) > 0

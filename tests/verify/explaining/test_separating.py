"""What tells failing cases from others is a few traits, each of which decides; where none do, nothing is said."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import pytest

from verify.checks.cases import all_cases
from verify.explaining.separating import sentence, traits, where

if TYPE_CHECKING:
    from collections.abc import Callable

    from verify.model import Case
    from verify.questions.layers import LayerCase


@cache
def cases() -> tuple[Case, ...]:
    agreeing = (case for case in all_cases() if case.rule == "ZPlus" and case.check == "agreement")
    return tuple(case for case in agreeing if traits(case) is not None)


def layer_of(case: Case) -> LayerCase:
    assert isinstance(case.run, partial)
    layer: LayerCase = case.run.args[1]
    return layer


def told(fails: Callable[[Case], bool]) -> str:
    failing = [case for case in cases() if fails(case)]
    return sentence(failing, [case for case in cases() if not fails(case)])


def part(case: Case, index: int) -> str:
    return case.id.split("/")[index]


SEPARATED: dict[str, tuple[Callable[[Case], bool], str]] = {
    "a bias": (lambda case: getattr(layer_of(case).build(), "bias", None) is None, "without a bias"),
    "a padding mode": (lambda case: "circular" in part(case, 2), "with padding mode circular"),
    "a dtype": (lambda case: case.dtype == "float32", "in float32"),
    "a kind of data": (lambda case: part(case, 4) == "zeros", "with data kind zeros"),
    "a batch": (lambda case: not layer_of(case).batched, "without a batch"),
    "the sign of inputs": (lambda case: part(case, 4) in {"nonnegative", "positive"}, "without an input below zero"),
    "an argument": (lambda case: part(case, 3).startswith("zero_params"), "with zero_params given"),
    "a layer": (lambda case: case.layer == "Conv3d", "on Conv3d"),
}


@pytest.mark.parametrize("trait", SEPARATED)
def test_one_trait_is_named_with_how_many_cases_have_it(trait: str) -> None:
    fails, words = SEPARATED[trait]
    count, others = sum(map(fails, cases())), sum(not fails(case) for case in cases())
    assert min(count, others) > 0
    assert told(fails) == f"fails on all {count} cases {words}; holds on all {others} others"


def test_what_holds_is_told_where_that_takes_fewer_words() -> None:
    held = sum(part(case, 4) == "signed" for case in cases())
    expected = f"holds on all {held} cases with data kind signed; fails on all {len(cases()) - held} others"
    assert told(lambda case: part(case, 4) != "signed") == expected


def test_two_traits() -> None:
    fails = lambda case: "circular" in part(case, 2) or part(case, 4) == "single"  # noqa: E731
    assert " cases with padding mode circular and all " in told(fails) or " with data kind single and all " in told(
        fails
    )


def test_where_only_some_of_a_kind_fail_their_share_is_told() -> None:
    some = {case.id for case in [case for case in cases() if part(case, 4) == "zeros"][::2]}
    kind = sum(part(case, 4) == "zeros" for case in cases())
    expected = (
        f"fails on {len(some)} of the {kind} cases with data kind zeros; holds on all {len(cases()) - kind} others"
    )
    assert told(lambda case: case.id in some) == expected


def test_nothing_is_said_where_nothing_tells() -> None:
    few = {case.id for case in cases()[::17]}
    assert told(lambda case: case.id in few) == ""
    assert told(lambda _: True) == ""
    assert told(lambda case: case.id == cases()[0].id) == ""


def test_where_errors_are() -> None:
    raising = [case for case in cases() if "bias" in part(case, 3) or part(case, 3).startswith("stabilizer")]
    others = [case for case in cases() if case not in raising]
    assert where(raising, []) == ""
    assert (
        where([case for case in cases() if part(case, 3).startswith("stabilizer")], others) == "with stabilizer given"
    )

"""Two runs: what has become slower is found, and runs that cannot be compared are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from bench.comparing import compared
from bench.table import Run, TableError, read
from tests.bench.rounding import EPS, of_log_ratios

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


@pytest.fixture
def old(example_run: Path) -> Run:
    run = read(example_run)
    return replace(run, facts=run.facts | {"subject": "lrp_rules"})


def slower(run: Run, rule: str, factor: float) -> Run:
    samples: pd.DataFrame = run.samples.copy()
    planted = (samples.rule == rule) & (samples.subject == "lrp_rules") & (samples.side == "A")
    samples.loc[planted, "seconds"] *= factor
    return replace(run, samples=samples)


def test_a_run_is_the_same_as_itself(old: Run) -> None:
    changes = compared(old, old)
    assert {one.estimate.ratio for one in changes if one.estimate} == {1.0}
    assert not any(one.regression for one in changes)


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, "slower"), (0.6, "faster")])
def test_a_planted_change_is_found_in_its_cell_alone(old: Run, factor: float, verdict: str) -> None:
    changed = [one for one in compared(old, slower(old, "Epsilon()", factor)) if str(one.verdict) == verdict]
    assert [one.name for one in changed] == ["cpu float32 2 linear-16-16 Epsilon() x>=0 4"]
    assert changed[0].regression == (verdict == "slower")
    assert changed[0].estimate is not None
    # a change is the ratio of two ratios, and the factor is rounded into the seconds
    bound = 2 * of_log_ratios(*old.samples.seconds, *(factor * old.samples.seconds)) + 2 * EPS
    assert not abs(changed[0].estimate.ratio / factor - 1) > bound


def test_a_peer_that_became_slower_is_no_regression(old: Run) -> None:
    samples = old.samples.copy()
    samples.loc[(samples.subject == "zennit") & (samples.side == "A"), "seconds"] *= 3
    assert not any(one.regression for one in compared(old, replace(old, samples=samples)))


def moved(run: Run, subject: str, column: str, factor: float) -> Run:
    """A run in which something that is not under test takes longer, in every cell."""
    table = run.table.copy()
    rows = (table.subject == subject) & (table.baseline == "gradient")
    table.loc[rows, column] *= factor
    return replace(run, table=table)


CONTROLS = pytest.mark.parametrize(
    ("subject", "column"), [("lrp_rules", "baseline_seconds"), ("zennit", "ratio")], ids=["gradient", "peer"]
)


@CONTROLS
@pytest.mark.parametrize("other", [1.6, 1 / 1.6], ids=["slower", "faster"])
@pytest.mark.parametrize("factor", [1.5, 0.7])
def test_a_change_that_is_no_larger_than_that_of_what_is_the_same_is_ambiguous(
    old: Run, subject: str, column: str, other: float, factor: float
) -> None:
    changes = compared(old, moved(slower(old, "Epsilon()", factor), subject, column, other))
    (one,) = [one for one in changes if one.note]
    assert str(one.verdict) == "ambiguous"
    assert one.note == "ambiguous: the gradient or another library changed by 60 %"
    assert not any(one.regression for one in changes)


@CONTROLS
def test_a_larger_change_is_still_one(old: Run, subject: str, column: str) -> None:
    changes = compared(old, moved(slower(old, "Epsilon()", 1.5), subject, column, 1.2))
    assert [str(one.verdict) for one in changes if one.regression] == ["slower"]


@pytest.mark.parametrize("what", ["torch", "machine", "peer"])
def test_what_is_not_the_same_says_nothing_of_the_machine(old: Run, what: str) -> None:
    peer = what == "peer"
    new = moved(slower(old, "Epsilon()", 1.5), *(("zennit", "ratio") if peer else ("lrp_rules", "baseline_seconds")), 2)
    if what == "torch":
        new = replace(new, facts=new.facts | {"versions": new.facts["versions"] | {"torch": "another"}})
    elif what == "machine":
        new = replace(new, facts=new.facts | {"machine": "another"})
    else:
        new = replace(new, table=new.table.assign(subject_version="another"))
    changes = compared(old, new, other_machine=True)
    assert [str(one.verdict) for one in changes if one.regression] == ["slower"]


def test_a_cell_that_is_wrong_now_is_a_regression(old: Run) -> None:
    table = old.table.copy()
    row = (table.rule == "Epsilon()") & (table.baseline == "gradient") & (table.subject == "lrp_rules")
    table.loc[row, ["status", "reason"]] = ["disagrees", "off"]
    (one,) = [one for one in compared(old, replace(old, table=table)) if one.regression]
    assert one.note == "was ok, is disagrees off"
    (back,) = [one for one in compared(replace(old, table=table), old) if one.note]
    assert not back.regression


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"machine": "another"}, r"of the machine 'Example CPU, 2 cores' .* or --other-machine"),
        ({"subject": "zennit"}, "of the subject 'lrp_rules' .* expected the same$"),
    ],
    ids=["machine", "subject"],
)
def test_what_cannot_be_compared_is_refused(old: Run, facts: dict[str, Any], message: str) -> None:
    new = replace(old, facts=old.facts | facts)
    with pytest.raises(TableError, match=message):
        compared(old, new)
    if "machine" in facts:
        assert compared(old, new, other_machine=True)


def test_no_cell_in_common_is_refused(old: Run) -> None:
    with pytest.raises(TableError, match="no measurement in common"):
        compared(old, replace(old, table=old.table.assign(threads=7)))

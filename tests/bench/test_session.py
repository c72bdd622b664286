"""A run: what it plans, keeps, leaves out, resumes and tabulates. Workers are stand-ins, but for one real process."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench import table
from bench.measuring import DISAGREES, FAILED, OK, UNSUPPORTED, Answer, Standing, Task, measure
from bench.pairing import Effort
from bench.session import Plan, Result, Session, Workers
from bench.session import measure as measured
from bench.tabulating import tabulated
from bench.workloads import NONNEGATIVE, Cell, all_cells, quick_cells

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EFFORT = Effort(processes=2, pairs_fast=4, pairs_slow=4, seconds=1.0, warm_up=0.0)
TINY = Cell("linear-16-16", "Epsilon()", threads=1)
CELLS = (TINY, replace(TINY, rule="ZPlus()"), Cell("relu-16", "Pass()", threads=1))
PLAN = Plan(CELLS, against=("zennit",), effort=EFFORT)


class Fake:
    """Two workers that answer at once: A takes 2 ms, B 1 ms, in the second process a tenth more."""

    def __init__(self, **standings: Standing) -> None:
        self.asked: list[tuple[int, Task]] = []
        self.standings = standings

    def __len__(self) -> int:
        return 2

    def ask(self, index: int, task: Task) -> Answer:
        self.asked.append((index, task))
        names = {name for pair in task.comparisons for name in pair}
        standings = {name: self.standings.get(name, Standing(version="1.0")) for name in names}
        scale = 2.0**-10 * (1 + 0.5 * index)  # exact, so that what is made of it is
        quads = {
            pair: (scale * np.tile([2.0, 1.0, 1.0, 2.0], (3, 1))).tolist()
            for pair in task.comparisons
            if all(standings[name].status == OK for name in pair)
        }
        return Answer(standings, quads)


class Here:
    """One worker that is this process."""

    def __len__(self) -> int:
        return 1

    def ask(self, _index: int, task: Task) -> Answer:
        return measure(task)


def run(session: Session, workers: Any, budget: float | None = None) -> list[str]:
    return [cell.id for _, _, cell in session.run(budget, workers)]


def table_of(session: Session) -> Any:
    return tabulated(session.ordered(), session.plan, session.facts)


def test_each_regime_has_a_noise_floor_first() -> None:
    cells = Plan((*CELLS, Cell("relu-64@56", "Pass()", batch=16))).with_floor()
    assert [(cell.workload, cell.rule) for cell in cells] == [
        ("linear-16-16", "gradient"), ("linear-16-16", "Epsilon()"), ("linear-16-16", "ZPlus()"), ("relu-16", "Pass()"),
        ("relu-64@56", "gradient"), ("relu-64@56", "Pass()"),
    ]  # fmt: skip


def test_comparisons_are_with_the_gradient_and_with_each_peer() -> None:
    plan = replace(PLAN, against=("zennit", "captum"))
    assert plan.comparisons(TINY) == (
        ("lrp_rules", "gradient"),
        ("zennit", "gradient"), ("lrp_rules", "zennit"),
        ("captum", "gradient"), ("lrp_rules", "captum"),
    )  # fmt: skip


def test_all_classes_of_a_classifier_stand_beside_one_after_another() -> None:
    cell = Cell("mlp", "EpsilonPlus", "signed", kind="classifier")
    assert PLAN.comparisons(cell) == (
        ("lrp_rules", "gradient"), ("lrp_rules", "lrp_rules-class-by-class"),
        ("zennit", "gradient"), ("lrp_rules", "zennit"),
    )  # fmt: skip
    floor = Plan((cell,)).with_floor()[0]
    assert (floor.rule, floor.kind) == ("gradient", "model")
    result = measured(Plan((cell,), effort=EFFORT), cell, Here())
    assert {name: one.status for name, one in result.standings.items()} == dict.fromkeys(
        ("lrp_rules", "gradient", "lrp_rules-class-by-class"), OK
    )
    assert len(result.quads) == 2


def test_one_process_is_gated_and_all_are_timed() -> None:
    fake = Fake()
    result = measured(PLAN, TINY, fake)
    assert [(index, task.gated) for index, task in fake.asked] == [(0, True), (1, False)]
    assert {pair: len(processes) for pair, processes in result.quads.items()} == dict.fromkeys(
        PLAN.comparisons(TINY), 2
    )


def test_a_wrong_rule_is_not_timed_in_the_other_processes_and_has_no_time() -> None:
    fake = Fake(zennit=Standing(DISAGREES, "off", agreement_ratio=7.0))
    result = measured(PLAN, TINY, fake)
    assert fake.asked[1][1].comparisons == (("lrp_rules", "gradient"),)
    assert set(result.quads) == {("lrp_rules", "gradient")}


def test_who_fails_in_a_later_process_has_no_time_either() -> None:
    class Later(Fake):
        def ask(self, index: int, task: Task) -> Answer:
            self.standings = {"zennit": Standing(FAILED, "late")} if index else {}
            return super().ask(index, task)

    result = measured(PLAN, TINY, Later())
    assert result.standings["zennit"].reason == "late"
    assert set(result.quads) == {("lrp_rules", "gradient")}


def test_the_table_of_a_run(tmp_path: Path) -> None:
    session = Session(tmp_path, replace(PLAN, against=("zennit", "captum")), "lrp-bench run")
    captum = Standing(UNSUPPORTED, "has it not")
    assert len(run(session, Fake(captum=captum))) == 4
    found, samples, floors = table_of(session)
    assert len(found) == 1 + 3 * 5
    assert floors == {"overhead": 1.0}  # this gradient takes twice as long as itself
    own = found[(found.subject == "lrp_rules") & (found.baseline == "gradient")]
    assert own.ratio.tolist() == [2.0] * 3
    assert own.seconds.tolist() == [2 * 1.25 * 2.0**-10] * 3
    assert own.pairs.tolist() == [12] * 3
    assert own.goal.tolist()[:2] == [2.5, 2.5]
    assert own.goal_met.tolist()[:2] == [True, True]
    assert (own.verdict == "same").all()  # within the floor
    missing = found[(found.subject == "captum") | (found.baseline == "captum")]
    assert set(missing.status) == {UNSUPPORTED}
    assert missing.ratio.isna().all()
    assert set(missing.reason) == {"has it not"}
    assert len(samples) == (1 + 3 * 3) * 2 * 3 * 4
    assert not found.duplicated(table.ROW).any()


def test_the_growth_of_a_scaling_is_fitted_over_its_cells(tmp_path: Path) -> None:
    class Growing(Fake):
        def ask(self, index: int, task: Task) -> Answer:
            answer = super().ask(index, task)
            scale = 3 + task.cell.batch**0.5
            answer.quads = {
                pair: [[scale * seconds for seconds in quad] for quad in quads] for pair, quads in answer.quads.items()
            }
            return answer

    cells = tuple(replace(TINY, batch=batch, kind="scaling", axis="batch") for batch in (1, 4, 16))
    session = Session(tmp_path, Plan((TINY, *cells), effort=EFFORT), "lrp-bench run")
    run(session, Growing())
    found, _, _ = table_of(session)
    scaled = found[found.kind == "scaling"]
    assert set(scaled.exponent) == {0.5}
    assert (scaled.overhead_seconds / scaled.seconds[scaled["size"] == 1].iloc[0]).round(9).tolist() == [0.75] * 3
    assert scaled["size"].tolist() == [1.0, 4.0, 16.0]
    assert found[found.kind == "layer"].exponent.isna().all()


@pytest.mark.parametrize("text", ['{"cell": {', "{}", "[]"], ids=["cut off", "empty", "another kind"])
def test_a_cell_that_was_damaged_is_named_and_not_measured_over(text: str, tmp_path: Path) -> None:
    session = Session(tmp_path, PLAN, "lrp-bench run")
    run(session, Fake())
    damaged = next((tmp_path / "cells").glob("*.json"))
    damaged.write_text(text)
    with pytest.raises(table.TableError, match=rf"{damaged.name} cannot be read"):
        Session(tmp_path, PLAN, "", resume=True)
    assert damaged.read_text() == text


def test_every_finished_cell_is_kept_and_resumed_runs_are_the_same(tmp_path: Path) -> None:
    whole = Session(tmp_path / "whole", PLAN, "lrp-bench run")
    ids = run(whole, Fake())

    first = Session(tmp_path / "part", PLAN, "lrp-bench run")
    stopped: Iterator[Any] = first.run(None, Fake())
    for _ in range(3):  # interrupted within the third cell
        next(stopped)
    again = Session(tmp_path / "part", PLAN, "lrp-bench run", resume=True)
    assert run(again, Fake()) == ids[2:]
    ignored = ["run_id", "started"]
    a, b = (table_of(session)[0].drop(columns=ignored) for session in (whole, again))
    assert a.equals(b)
    assert not again.left_out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": replace(PLAN, seed=1)}, "a run of another plan; resume it as it was begun"),
        ({"resume": False}, "holds a run already; give --resume"),
    ],
    ids=["another plan", "no resume"],
)
def test_another_run_is_not_mixed_in(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    Session(tmp_path, PLAN, "lrp-bench run")
    with pytest.raises(table.TableError, match=message):
        Session(tmp_path, change.get("plan", PLAN), "", resume=change.get("resume", True))


def test_another_machine_is_not_mixed_in(tmp_path: Path) -> None:
    Session(tmp_path, PLAN, "lrp-bench run --out x")
    facts = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(facts | {"machine": "another"}))
    with pytest.raises(table.TableError, match=r"another machine; .* \(lrp-bench run --out x\)"):
        Session(tmp_path, PLAN, "", resume=True)


def test_the_budget_leaves_out_the_least_important_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))  # each look at the clock is ten seconds later
    monkeypatch.setattr("bench.session.time.monotonic", lambda: next(clock))
    session = Session(tmp_path, PLAN, "lrp-bench run")
    done = run(session, Fake(), budget=75.0)
    assert 0 < len(done) < 4
    assert done + session.left_out == [cell.id for cell in PLAN.with_floor()]


def test_a_result_is_the_same_after_a_file() -> None:
    result = measured(PLAN, TINY, Fake(zennit=Standing(DISAGREES, "off", agreement_ratio=float("nan"))))
    back = Result.from_json(json.loads(json.dumps(result.as_json())))
    assert back.as_json()["quads"] == result.as_json()["quads"]
    assert back.cell == result.cell


def test_ids_name_one_cell_each_and_are_fit_for_files() -> None:
    cells = all_cells()
    assert len({cell.id for cell in cells}) == len(cells)
    assert all("/" not in cell.id and " " not in cell.id for cell in cells)
    assert {replace(cell, kind="layer") for cell in quick_cells()}


def test_goals_come_first() -> None:
    goals = [cell for cell in all_cells()[:72] if cell.regime == "compute" and cell.dtype == "float32"]
    assert len(goals) == 72


def test_a_cell_measured_in_this_process() -> None:
    plan = Plan((TINY,), against=("zennit", "captum", "nowhere.rules"), effort=EFFORT)
    result = measured(plan, replace(TINY, rule="AlphaBeta(2, 1)", signs=NONNEGATIVE), Here())
    stand = {name: standing.status for name, standing in result.standings.items()}
    assert stand == {
        "lrp_rules": OK, "gradient": OK, "zennit": OK, "captum": UNSUPPORTED, "nowhere.rules": UNSUPPORTED
    }  # fmt: skip
    ours = result.standings["lrp_rules"]
    assert ours.agreement_ratio is not None
    assert ours.agreement_ratio <= 1
    assert ours.peak_bytes is not None
    assert ours.peak_bytes > 0
    for processes in result.quads.values():
        assert all(seconds > 0 for quads in processes for quad in quads for seconds in quad)


def test_a_planted_wrong_rule_is_refused_publication() -> None:
    plan = Plan((TINY,), subject="verify.selftests.mutants.not_there", effort=EFFORT)
    assert measured(plan, TINY, Here()).standings[plan.subject].status == UNSUPPORTED
    captum = measured(Plan((TINY,), "captum", effort=EFFORT), replace(TINY, rule="ZPlus()"), Here())
    assert captum.standings["captum"].status == DISAGREES
    assert "times the bound" in captum.standings["captum"].reason
    assert not captum.quads


def test_a_process_that_dies_is_a_result_of_its_subject_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os\nclass Epsilon:\n    def register(self, module):\n        os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = Plan((TINY,), against=("deadly",), effort=replace(EFFORT, processes=1))
    with Workers(1) as workers:
        result = measured(plan, TINY, workers)
    assert result.standings["deadly"] == Standing(
        "out-of-memory", "the process was killed, as the system does where memory runs out"
    )
    assert set(result.quads) == {("lrp_rules", "gradient")}

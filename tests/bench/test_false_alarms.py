"""Runs of the same code, compared: what counts as an alarm, and runs that are kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from bench import false_alarms
from bench.cli import app
from bench.comparing import compared
from bench.table import Run, TableError, read
from tests.bench.test_comparing import slower

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def same(example_run: Path) -> Run:
    run = read(example_run)
    return replace(run, facts=run.facts | {"subject": "lrp_rules"})


@pytest.mark.parametrize(("factor", "alarms"), [(1.0, 0), (1.5, 1), (0.6, 1)])
def test_what_is_called_slower_or_faster_is_an_alarm(same: Run, factor: float, alarms: int) -> None:
    found = false_alarms.Alarms()
    found.add(compared(same, same))
    clean = found.verdicts.total()
    found.add(compared(same, slower(same, "Epsilon()", factor)))
    assert len(found.alarms) == alarms
    assert found.rate == alarms / (2 * clean)


def test_nothing_compared_is_no_alarm() -> None:
    assert false_alarms.Alarms().rate == 0


@pytest.fixture
def made(example_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are copies of the example; return what was asked for."""
    asked: list[str] = []

    class Ended:
        returncode, stdout, stderr = 0, "", ""

    def run(command: list[str], **_: Any) -> Ended:
        folder = command[command.index("--out") + 1]
        asked.append(folder[-3:])
        assert {"--resume", "--against=zennit"} <= {*command}
        shutil.copytree(example_run, folder, dirs_exist_ok=True)
        return Ended()

    monkeypatch.setattr("subprocess.run", run)
    return asked


def test_each_run_is_compared_with_the_one_before_and_goes_on_with_what_is_there(
    made: list[str], tmp_path: Path
) -> None:
    words = ["false-alarms", "--runs", "3", "--against", "zennit", "--out", str(tmp_path / "runs")]
    found = CliRunner().invoke(app, words)
    assert made == ["000", "001", "002", "003"]
    assert found.exit_code == 0, found.output
    assert (
        "3 runs, each compared with the one before: 0 false alarms in 27 comparisons of 9 measurements (0 %)"
        in found.output
    )
    # what an interrupted run left has a table, too, of fewer cells: that it is there does not tell that it is whole
    assert CliRunner().invoke(app, words).output.splitlines()[-1] == found.output.splitlines()[-1]
    assert made == ["000", "001", "002", "003"] * 2


def test_a_run_that_fails_ends_the_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Ended:
        returncode, stdout, stderr = 2, "", "no such rule"

    monkeypatch.setattr("subprocess.run", lambda *_, **__: Ended())
    with pytest.raises(TableError, match="ended with 2: no such rule"):
        list(false_alarms.asked(tmp_path, 1, []))
    found = CliRunner().invoke(app, ["false-alarms", "--out", str(tmp_path)])
    assert found.exit_code == 2

"""The command, from its words to its exit status. Cells are tiny; what measures in earnest is marked ``bench``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

import pytest
from typer.testing import CliRunner

from bench import cli, table
from bench.measuring import Answer, Standing, Task, measure
from bench.selecting import UnusableError, select
from verify.formats.environment import version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typer.testing import Result

PROGRAM = "from bench.cli import main; main()"


class Here:
    """In place of worker processes: this one."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __len__(self) -> int:
        return self.count

    def ask(self, _index: int, task: Task) -> Answer:
        return measure(task)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("bench.session.Workers", Here)
    return tmp_path / "run"


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def run(folder: Path, *words: str) -> Result:
    return invoke("run", "--quick", "--threads", "1", "--layer", "linear-16-16", "--out", folder, *words)


def test_a_run_writes_its_table_shows_it_and_exits_with_0(here: Path) -> None:
    found = run(here, "--rule", "Epsilon", "--rule", "AlphaBeta(2, 1)", "--against", "zennit,captum")
    assert found.exit_code == 0, found.output
    assert "geometric mean of 3 measurements" in found.output  # two of Epsilon, one of AlphaBeta, beside zennit
    assert "unsupported" in found.output
    read = table.read(here)
    assert set(read.table.subject) == {"gradient", "lrp_rules", "zennit", "captum"}
    assert read.facts["floor"]["overhead"] > 0
    assert read.facts["left_out"] == []
    assert read.facts["versions"]["zennit"]


def test_json_on_standard_output_is_json_alone(here: Path) -> None:
    found = run(here, "--rule", "Epsilon()", "--json", "-")
    rows = json.loads(found.stdout)
    assert [row["rule"] for row in rows] == ["gradient", "Epsilon()"]


def test_interrupted_and_resumed_is_the_same_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--rule", "Epsilon", "--rule", "ZPlus")

    class Interrupted(Here):
        def ask(self, index: int, task: Task) -> Answer:
            if task.cell.rule == "ZPlus()":
                raise KeyboardInterrupt
            return super().ask(index, task)

    monkeypatch.setattr("bench.session.Workers", Interrupted)
    first = run(here, *words)
    assert first.exit_code == 130
    assert "with --resume continues" in first.output
    kept = table.read(here)
    assert list(kept.table.rule) == ["gradient", "Epsilon()"]
    monkeypatch.setattr("bench.session.Workers", Here)
    again = run(here, *words, "--resume")
    assert again.exit_code == 0
    whole = table.read(here)
    assert list(whole.table.rule) == ["gradient", "Epsilon()", "ZPlus()", "Epsilon(zero_params='bias')"]
    assert whole.table.seconds[0] == kept.table.seconds[0]  # not measured again
    assert whole.facts["left_out"] == []
    assert run(here, *words).exit_code == 2  # without --resume, nothing is overwritten


def test_version() -> None:
    assert invoke("--version").output == f"lrp-bench {version()}\n"


def test_our_own_wrong_rule_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_task: Task, *_: Any) -> Standing:
        return Standing("disagrees", "planted")

    monkeypatch.setattr("bench.measuring._gated", refused)
    found = run(here, "--rule", "Epsilon()")
    assert found.exit_code == 1
    assert table.read(here).table.seconds.isna().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["run", "--rule", "Epsilo"],
            "--rule 'Epsilo' is unknown (did you mean Epsilon?); expected one of Epsilon(), ",
        ),
        (["run", "--layer", "Conv9d"], "--layer 'Conv9d' is unknown"),
        (
            ["run", "--cell", "nothing"],
            "no measurement has the id nothing; expected one that `lrp-bench run --list` prints",
        ),
        (["run", "--device", "cuda"], "torch sees no CUDA device for --device cuda; use --device cpu"),
        (["run", "--device", "gpu"], "--device is 'gpu'; expected cpu or cuda; CUDA_VISIBLE_DEVICES picks the card"),
        (["run", "--device", "cuda:1"], "--device is 'cuda:1'; expected cpu or cuda"),
        (["run", "--device", "meta"], "--device is 'meta'; expected cpu or cuda"),
        (["run", "--device", ""], "--device is ''; expected cpu or cuda"),
        (["run", "--device", "gpu", "--list"], "--device is 'gpu'; expected cpu or cuda"),
        (["run", "--device", "gpu", "--cell", "nothing"], "--device is 'gpu'; expected cpu or cuda"),
        (["run", "--time-budget", "soon"], "--time-budget is 'soon'; expected a time such as 90, 10m or 2h"),
        (["run", "--against", "nowhere.rules"], "'nowhere.rules' cannot be imported"),
        (["run", "--against", "zenit"], "No module named 'zenit' (did you mean zennit?)"),
        (["run", "--subject", "json"], "has none of the classes"),
        (["compare", "here", "there"], "here has no table.parquet"),
    ],
    ids=[
        "rule",
        "layer",
        "cell",
        "no cuda",
        "device",
        "one of several cards",
        "device of no numbers",
        "empty device",
        "device of a list",
        "device of a cell",
        "budget",
        "against",
        "misspelt",
        "subject",
        "no run",
    ],
)
def test_what_is_unusable_is_said_and_exits_with_2(
    words: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = invoke(*words)
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())
    assert not (tmp_path / "bench-results").exists()


def test_a_device_that_breaks_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        message = "CUDA error: out of memory\nCompile with more, to know more"
        raise RuntimeError(message)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.zeros", broken)
    found = invoke("run", "--device", "cuda")
    assert found.exit_code == 2
    assert "--device cuda cannot be used: CUDA error: out of memory; use --device cpu" in found.output
    assert not (tmp_path / "bench-results").exists()


def test_the_list_names_cells_that_can_be_asked_for_one_by_one() -> None:
    ids = invoke("run", "--list", "--threads", "3").output.split()
    plan = select(subject="lrp_rules", ids=ids[5:7], threads=[3])
    assert [cell.id for cell in plan.cells] == ids[5:7]


def test_patterns_choose_cells() -> None:
    plan = select(subject="lrp_rules", layers=["ConvTranspose*"], rules=["ZPlus"], dtypes=["float32"], threads=[1, 2])
    assert {cell.family for cell in plan.cells} == {"ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"}
    assert {cell.threads for cell in plan.cells} == {1, 2}
    assert {cell.rule for cell in plan.cells} == {"ZPlus()"}
    with pytest.raises(UnusableError):
        select(subject="lrp_rules", dtypes=["float8"])


def test_comparing_a_run_with_itself_exits_with_0(here: Path) -> None:
    run(here, "--rule", "Epsilon()")
    found = invoke("compare", here, here)
    assert found.exit_code == 0
    assert "1 " in found.output


def test_the_workers_are_processes(tmp_path: Path) -> None:
    options = ["--layer", "linear-16-16", "--rule", "Epsilon()", "--threads", "1", "--quick", "--out", str(tmp_path)]
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, "run", *options], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert not found.stderr
    assert table.read(tmp_path).table.processes.tolist() == [3, 3]


def test_one_sided_timing_by_pytest_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "one-sided.json"
    words = ["-q", "--pyargs", "bench.test_layers", "-k", "linear-16-16-Norm", "-p", "no:cacheprovider"]
    words += [f"--benchmark-json={out}", "--benchmark-max-time=0.01", "--benchmark-min-rounds=2"]
    # pytest-benchmark measures nothing under pytest-xdist, under which this test itself may run
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", *words]
    found = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    data = json.loads(out.read_text())
    (one,) = data["benchmarks"]
    assert one["group"] == "linear-16-16"
    assert one["extra_info"]["rule"] == "Norm()"
    assert {"dtype", "device", "batch"} <= set(one["extra_info"])
    assert "node" not in data["machine_info"]
    assert data["machine_info"]["cores"] >= 1


@pytest.mark.bench
def test_a_rule_that_runs_the_forward_twice_is_called_slower_and_the_same_code_is_not(tmp_path: Path) -> None:
    same = "from lrp_rules import *\nfrom lrp_rules import __version__\n"
    twice = same + (
        "import torch, lrp_rules\n"
        "class Epsilon(lrp_rules.Epsilon):\n"
        "    def register(self, module):\n"
        "        def again(module, given):\n"
        "            with torch.no_grad():\n"
        "                module.forward(*given)\n"
        "        module.register_forward_pre_hook(again)\n"
        "        return super().register(module)\n"
    )
    options = ["--layer", "linear-512-512", "--rule", "Epsilon()", "--quick", "--threads", "1"]
    options += ["--subject", "rules_under_test"]
    for name, source in (("old", same), ("new", same), ("planted", twice)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rules_under_test.py").write_text(source)
        command = [sys.executable, "-c", PROGRAM, "run", *options, "--out", "run"]
        subprocess.run(command, cwd=tmp_path / name, check=True)
    old, new, planted = (tmp_path / name / "run" for name in ("old", "new", "planted"))
    floor = max(table.read(folder).table.floor.max() for folder in (old, new, planted))
    if floor > 0.1:  # the planted third is to be far beyond it
        pytest.skip(f"the noise floor is {100 * floor:.0f} %: this machine is doing something else")
    assert invoke("compare", old, new).exit_code == 0
    found = invoke("compare", old, planted)
    assert found.exit_code == 1
    assert "slower" in found.output

"""A run on a cluster says what a run on one machine says, whatever happens to the cluster."""

import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from distributed import Client
from typer.testing import CliRunner, Result

from lrp_entry import extras
from verify.faces import cli
from verify.model import Verdict
from verify.runs import selection
from verify.runs.cluster import alike, client, station
from verify.runs.cluster.clustered import ClusterRunner
from verify.runs.worker import LostError, Source
from verify.selftests import matrix
from verify.selftests.clustered import ClusterJudges
from verify.selftests.mutants import MUTANTS

FAKES = Path(__file__).parents[1] / "fakes"


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setattr(selection, "CASES", "behaving:all_cases")
    monkeypatch.setenv("COLUMNS", "100")


def _call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)


# --- what needs no cluster --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["local", "local:0", "local:two", "host:8786", "8786"])
def test_an_address_that_is_none(address: str) -> None:
    result = _call("--subject", "behaving", "--cluster", address)
    assert result.exit_code == 2
    assert f"--cluster is {address!r}; expected the address of a Dask scheduler, such as tcp://" in result.stderr


def test_workers_are_of_this_machine() -> None:
    result = _call("--cluster", "local:2", "--workers", "2")
    assert result.exit_code == 2
    assert "--workers is for this machine" in result.stderr


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_required", lambda extra: iter([f"part-of-{extra}"]))
    for words in (["--cluster", "local:1"], ["self-test", "--cluster", "local:1"]):
        result = _call(*words)
        assert result.exit_code == 2
        assert result.stderr == (
            "lrp-verify: --cluster needs part-of-cluster, which is not installed: "
            "run pip install 'lrp-rules[cluster]'\n"
        )


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWERS_WITHIN", 0.2)
    result = _call("--subject", "behaving", "--cluster", "tcp://127.0.0.1:1")
    assert result.exit_code == 2
    assert result.stderr.startswith("lrp-verify: --cluster tcp://127.0.0.1:1: no scheduler answers there; expected")


def test_what_is_compared() -> None:
    found = alike.environment_for("behaving")
    assert {"Python", "torch", "numpy", "distributed", "pebble", "mpmath"} <= found.keys()
    assert {"source of lrp_rules", "source of reference", "source of verify", "source of behaving"} <= found.keys()
    assert alike.MISSING not in found.values()
    assert found == alike.environment_for("behaving:Epsilon")
    assert alike.environment_for("no_such_package")["source of no_such_package"] == alike.MISSING


def test_a_changed_file_of_the_subject_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "subject" / "inner").mkdir(parents=True)
    (tmp_path / "subject" / "__init__.py").write_text("raise SystemExit\n")  # it is not imported
    inner = tmp_path / "subject" / "inner" / "rules.py"
    inner.write_text("a = 1\n")
    before = alike.environment_for("subject.inner.rules")
    inner.write_text("a = 2\n")
    (difference,) = alike.differences(before, alike.environment_for("subject.inner.rules"))
    assert re.fullmatch(r"source of subject: [0-9a-f]{12}, here [0-9a-f]{12}", difference)


def test_a_program_is_compared_by_the_files_that_its_command_names(tmp_path: Path) -> None:
    (tmp_path / "main.js").write_text("")
    found = alike.environment_for(f"command:node {tmp_path / 'main.js'} --quick")
    assert [name for name in found if name.startswith("file ")] == [f"file {tmp_path / 'main.js'}"]


def test_a_job_that_ended_answers_nothing_more() -> None:
    job = station.Job("gone", "lrp_rules", {}, lambda _: pytest.fail("started"))
    station.end("gone")
    assert station.work(job, lambda *_: pytest.fail("asked"), [1]) == []


def test_a_worker_that_joins_late_is_compared_too() -> None:
    job = station.Job("late", "lrp_rules", {"Python": "2.7"}, lambda _: pytest.fail("started"))
    with pytest.raises(station.DiffersError, match=r"Python: 3\.\d+\.\d+, here 2\.7"):
        station.work(job, lambda *_: pytest.fail("asked"), [1])


class Engine:
    """What notes how it is used."""

    def __init__(self, _beside: int = 1) -> None:
        self.said: list[str] = []

    def __enter__(self) -> Self:
        self.said.append("started")
        return self

    def __exit__(self, *_: object) -> None:
        self.said.append("ended")

    def abandon(self) -> None:
        self.said.append("abandoned")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> station.Job:
    monkeypatch.setattr(station, "_beside", lambda: 1)
    monkeypatch.setattr(station, "_stations", {})
    return station.Job("job", "lrp_rules", alike.environment_for("lrp_rules"), Engine)


def _echoes(engine: Engine, items: Sequence[int]) -> list[tuple[Engine, int]]:
    return [(engine, item) for item in items]


def test_processes_live_from_one_chunk_to_the_next(job: station.Job) -> None:
    ((first, one),) = station.work(job, _echoes, [1])
    ((second, two),) = station.work(job, _echoes, [2])
    assert (first is second, one, two) == (True, 1, 2)
    assert first.said == ["started"]
    station._stations["job"].end()
    assert first.said == ["started", "ended"]


def test_processes_that_nobody_asks_are_ended(job: station.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(station, "IDLE", 0.01)
    ((first, _),) = station.work(job, _echoes, [1])
    _eventually(lambda: first.said == ["started", "ended"])
    ((second, _),) = station.work(job, _echoes, [2])
    assert second is not first


def test_the_end_of_a_job_ends_a_chunk(job: station.Job) -> None:
    def asked(engine: Engine, items: Sequence[int]) -> Iterator[tuple[Engine, int]]:
        for item in items:
            yield engine, item
            station._stations["job"].end()

    ((engine, item),) = station.work(job, asked, [1, 2, 3])
    assert (item, engine.said) == (1, ["started", "abandoned", "ended"])


def test_an_error_in_a_chunk_ends_nothing_else(job: station.Job) -> None:
    with pytest.raises(ZeroDivisionError):
        station.work(job, lambda _engine, _items: [1 // 0], [1])
    ((engine, _),) = station.work(job, _echoes, [1])
    assert engine.said == ["started"]
    station._stations["job"].end()


def test_a_run_without_workers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = client.Cluster("tcp://host:1", "lrp_rules", Engine)
    monkeypatch.setattr(connection, "_client", SimpleNamespace(nthreads=dict), raising=False)
    connection._worked = time.monotonic()
    connection._look()
    connection._looked = connection._worked = -math.inf
    with pytest.raises(LostError, match=r"the last worker of tcp://host:1 was lost"):
        connection._look()


# --- a cluster on this machine ----------------------------------------------------------------------------------------


def test_a_local_cluster() -> None:
    source = Source(("float64",), seed=3, function="behaving:all_cases")
    cases = [case for case in source.cases().values() if case.check in {"passes", "crashes", "raises"}]
    with ClusterRunner("local:1", source, time_limit=60, subject="behaving") as runner:
        assert runner.workers == 1
        assert runner.where == "local:1: 1 worker on 1 host, 1 process"
        found = {outcome.check: outcome for outcome in runner.run("behaving", cases)}
    assert {check: outcome.verdict for check, outcome in found.items()} == {
        "passes": Verdict.PASS, "crashes": Verdict.CRASH, "raises": Verdict.ERROR,
    }  # fmt: skip
    assert found["crashes"].reason == "the process ended with exit status 3"


# --- with a scheduler and workers as somebody would start them --------------------------------------------------------


class Processes:
    """A scheduler and two workers, each with a nanny."""

    def __init__(self, folder: Path, *, workers: bool = True, **environment: str) -> None:
        self.told = folder / "told"
        self.environment = os.environ | {"PYTHONPATH": _path(FAKES), "REACHING_TELLS": str(self.told), "COLUMNS": "100"}
        theirs = {
            "DASK_DISTRIBUTED__WORKER__DAEMON": "False",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        }
        self._environment = self.environment | theirs | environment
        self._file = folder / "scheduler.json"
        common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(self._file)]
        self.scheduler = self._started("scheduler", *common, "--port", "0")
        self.address = self._address()
        self._all = [self.scheduler]
        if workers:
            self._all.append(self._started("worker", *common[:3], self.address, "--nworkers", "2", "--nthreads", "1"))

    def _started(self, what: str, *words: str) -> "subprocess.Popen[bytes]":
        program = [sys.executable, "-m", f"distributed.cli.dask_{what}", *words]
        return subprocess.Popen(
            program, env=self._environment, cwd=self._file.parent, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def _address(self) -> str:
        text = _eventually(lambda: self._file.exists() and self._file.read_text())
        found: str = json.loads(text)["address"]
        return found

    def end(self) -> None:
        for process in self._all:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _path(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def _eventually(so: Callable[[], Any]) -> Any:
    """Wait; how long a test may take is not its own business."""
    while not (found := so()):
        time.sleep(0.05)
    return found


def _command(cluster: Processes, *words: str | Path) -> "subprocess.Popen[str]":
    """Start the command on the cluster, in a group of its own, as a shell does."""
    script = (
        "from verify.faces import cli; from verify.runs import selection; "
        "selection.CASES = 'reaching:all_cases'; cli.main()"
    )
    call = [sys.executable, "-c", script, "--subject", "reaching", "--cluster", cluster.address, *map(str, words)]
    return subprocess.Popen(
        call, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _told(cluster: Processes, run: "subprocess.Popen[str]") -> tuple[int, int]:
    """Wait until the subject waits; return its process and the worker of Dask above it."""
    _eventually(lambda: run.poll() is not None or (cluster.told.exists() and cluster.told.read_text()))
    assert run.poll() is None, run.communicate()
    own, above = map(int, cluster.told.read_text().split())
    return own, above


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _judges(cluster: Processes) -> list[int]:
    """Return the processes that workers have started for a run."""
    with Client(cluster.address, set_as_default=False) as connected:
        return [pid for found in connected.run(_started_by_this).values() for pid in found]


def _started_by_this() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("cluster"))
    yield processes
    processes.end()


def _report(path: Path, *words: str) -> tuple[int, str, str]:
    """Return the exit status, what is printed and what is written, but for times."""
    result = _call("--json", path, *words)
    assert path.exists(), result.stderr
    written = re.sub(r'"(seconds|date)": [^,}\n]+', r'"\1": 0', path.read_text())
    return result.exit_code, re.sub(r" in [\d.]+ s\b", "", result.stdout), written


@pytest.mark.cluster
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a worker in /proc")
class TestWorkersElsewhere:
    def test_the_report_is_that_of_one_machine(self, cluster: Processes, tmp_path: Path) -> None:
        words = ["--subject", "behaving", "--check", "passes,crashes,raises,gives_arrays,is_far_off,draws,missing"]
        here = _report(tmp_path / "here.json", *words, "--workers", "2")
        assert here[0] == 1
        assert _report(tmp_path / "there.json", *words, "--cluster", cluster.address) == here

    @pytest.mark.parametrize("subject", ["dying", "no_such_package", "behaving:DTYPES"])
    def test_a_subject_that_cannot_be_used(self, cluster: Processes, subject: str) -> None:
        here, there = (
            _call("--subject", subject, "--check", "passes", *words)
            for words in (["--workers", "1"], ["--cluster", cluster.address])
        )
        assert here.exit_code == 2
        assert (there.exit_code, there.stderr) == (2, here.stderr)

    def test_a_worker_is_killed_while_it_works(
        self, cluster: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checks = ["--check", "passes,is_far_off,waits_once,raises,draws"]
        cluster.told.unlink(missing_ok=True)
        with _command(cluster, *checks, "--json", tmp_path / "there.json") as run:
            own, above = _told(cluster, run)
            os.kill(above, signal.SIGKILL)
            printed = run.communicate()[0]
        assert run.returncode == 1
        _eventually(lambda: not _is_there(own))
        # asked again, it does not wait
        monkeypatch.setattr(selection, "CASES", "reaching:all_cases")
        monkeypatch.setenv("REACHING_TELLS", str(cluster.told))
        here = _report(tmp_path / "here.json", "--subject", "reaching", *checks, "--workers", "2")
        assert re.sub(r" in [\d.]+ s\b", "", printed) == here[1]
        assert re.sub(r'"(seconds|date)": [^,}\n]+', r'"\1": 0', (tmp_path / "there.json").read_text()) == here[2]

    def test_a_subject_that_kills_workers_gets_its_verdict(self, cluster: Processes, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        with _command(cluster, "--check", "passes,reaches_up,is_far_off,draws", "--json", path) as run:
            run.communicate()
        assert run.returncode == 1
        found = {case["id"]: (case["verdict"], case["reason"]) for case in json.loads(path.read_text())["cases"]}
        assert found == {
            "passes": ("pass", ""),
            "is_far_off": ("fail", "far off"),
            "reaches_up": ("crash", "every worker of the cluster that was asked this ended"),
            "draws": ("pass", ""),
        }

    def test_an_interrupt_stops_the_work_on_the_cluster_too(self, cluster: Processes, tmp_path: Path) -> None:
        cluster.told.unlink(missing_ok=True)
        path = tmp_path / "run.json"
        with _command(cluster, "--check", "passes,waits_once,draws", "--time-limit", "900", "--json", path) as run:
            own, _ = _told(cluster, run)
            os.killpg(run.pid, signal.SIGINT)
            printed, said = run.communicate()
        assert run.returncode == 130
        assert "INTERRUPTED: 2 of 3 cases" in printed
        assert said.count("\n") == 1  # how large the cluster is
        assert json.loads(path.read_text())["summary"]["interrupted"]
        _eventually(lambda: not _is_there(own))
        _eventually(lambda: not _judges(cluster))

    def test_a_search_finds_the_same(self, cluster: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(selection, "CASES", "verify.checks.cases:all_cases")
        words = ["--check", "search", "--rule", "WSquare,Flat", "--examples", "120"]
        here = _report(tmp_path / "here.json", *words)
        there = _report(tmp_path / "there.json", *words, "--cluster", cluster.address)
        assert here[0] == 0
        # Hypothesis also draws constants of the modules that a process has imported from a checkout
        assert [re.sub(r"(ratio\": |✓ )[\d.e-]+", "", str(said)) for said in there] == [
            re.sub(r"(ratio\": |✓ )[\d.e-]+", "", str(said)) for said in here
        ]

    def test_the_self_test_says_the_same(self, cluster: Processes) -> None:
        mutants = [mutant for mutant in MUTANTS if mutant.rule == "Flat"][:5]
        here, there = (
            matrix.kill_matrix(mutants, workers=2, first=matrix.recorded(), judges=judges)
            for judges in (matrix.Judges, partial(ClusterJudges, cluster.address))
        )
        assert here.held
        assert (there.rows, there.unusable) == (here.rows, here.unusable)


@pytest.mark.cluster
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a worker in /proc")
class TestTroubleWithTheCluster:
    def test_the_scheduler_is_lost(self, tmp_path: Path) -> None:
        cluster = Processes(tmp_path)
        path = tmp_path / "run.json"
        try:
            with _command(cluster, "--check", "passes,waits_once,draws", "--json", path) as run:
                _told(cluster, run)
                cluster.scheduler.kill()
                printed = run.communicate()[0]
        finally:
            cluster.end()
        assert run.returncode == 130
        assert "INTERRUPTED: 2 of 3 cases" in printed
        assert f"The run ended early: the connection to the scheduler of {cluster.address} was lost" in printed
        assert len(json.loads(path.read_text())["cases"]) == 2

    def test_no_worker_joins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "WORKER_WITHIN", 0.5)
        cluster = Processes(tmp_path, workers=False)
        try:
            result = _call("--subject", "behaving", "--cluster", cluster.address)
        finally:
            cluster.end()
        assert result.exit_code == 2
        assert result.stderr == (
            f"lrp-verify: --cluster {cluster.address}: no worker joined within 0.5 seconds; nothing was run\n"
        )

    def test_workers_that_differ_are_refused(self, tmp_path: Path) -> None:
        for path in FAKES.glob("*.py"):
            (tmp_path / path.name).write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
        differing: dict[str, Any] = {"PYTHONPATH": _path(tmp_path), "DASK_DISTRIBUTED__WORKER__DAEMON": "True"}
        cluster = Processes(tmp_path, **differing)
        try:
            result = _call("--subject", "behaving", "--cluster", cluster.address)
        finally:
            cluster.end()
        assert result.exit_code == 2
        lines = result.stderr.splitlines()
        assert lines[0].startswith(f"lrp-verify: --cluster {cluster.address}: workers differ from this machine")
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+(, tcp://127\.0\.0\.1:\d+)?:", lines[1])
        assert lines[2] == (
            "  may start processes: no (set DASK_DISTRIBUTED__WORKER__DAEMON=False where the worker is started), "
            "here yes"
        )
        assert re.fullmatch(r"  source of behaving: [0-9a-f]{12}, here [0-9a-f]{12}", lines[3])
        assert len(lines) == 4

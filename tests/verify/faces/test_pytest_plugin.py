"""The plugin: cases of the command as items of pytest, with the same verdicts, and nothing where it is not asked."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from typer.testing import CliRunner

from lrp_entry import pytest_plugin
from verify.checks import comparator
from verify.explaining import diagnosis
from verify.faces import cli, serving
from verify.reports import report
from verify.runs import selection
from verify.subjects import loading as subjects

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[3]
#: Where the project is installed, pytest finds the plugin by itself.
INSTALLED = any(point.value == "lrp_entry.pytest_plugin" for point in entry_points(group="pytest11"))
PLUGIN = [] if INSTALLED else ["-p", "lrp_entry.pytest_plugin"]

#: A subject, and cases about it: one of each verdict that a process survives, and whether it decides.
BEHAVING = """
from types import SimpleNamespace
from verify.model import Case, Finding, Level, Verdict

DTYPES = DEFAULT_DTYPES = ("float64", "float32")

class Epsilon:
    def register(self, module):
        return SimpleNamespace(remove=lambda: None)

def _raise(subject):
    raise ValueError("no good\\nat all")

def _of(verdict, **values):
    return lambda subject: Finding(verdict, reason="" if verdict is Verdict.PASS else "because", **values)

RUNS = {
    "passes": _of(Verdict.PASS, ratio=0.5),
    "is-wrong": _of(Verdict.FAIL, ratio=7.0),
    "raises": _raise,
    "is-open": _of(Verdict.INCONCLUSIVE, undecided=1.0),
    "is-left-open": lambda subject: _of(
        Verdict.INCONCLUSIVE if subject.spec == "behaving_here" else Verdict.PASS
    )(subject),
    "is-missing": lambda subject: subject.get("Flat"),
    "is-skipped": _of(Verdict.SKIPPED),
}

def all_cases(*, seed, dtypes, device):
    for check, run in RUNS.items():
        for level in Level:
            for dtype in dtypes:
                yield Case(f"{check}/{level}/{dtype}", "Epsilon", "Linear", check, dtype, level, run)
"""
Run = Callable[..., pytest.RunResult]
#: pytester forgets what was imported while it ran; what takes long, and what tests change, is imported before.
BEFORE = (cli, comparator, diagnosis, pytest_plugin, report, selection, serving, subjects)


class Here:
    """The process that is asked, without a process: seconds less for each test."""

    def __init__(self) -> None:
        self._server = serving.Server()
        self._path = list(sys.path)

    def ask(self, request: dict[str, Any], limit: float | None) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(json.dumps(self._server.answer(json.loads(json.dumps(request)))))
        return told

    def end(self) -> None:
        sys.path[:] = self._path


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest in this process, in a folder without tests, on the cases above."""
    pytester.makepyfile(behaving_here=BEHAVING)
    pytester.syspathinsert()
    monkeypatch.setattr(selection, "CASES", "behaving_here:all_cases")
    monkeypatch.setattr(pytest_plugin, "Process", Here)

    def call(*words: str, subject: str = "behaving_here") -> pytest.RunResult:
        return pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider", "--lrp-subject", subject, *words)

    return call


def _ids(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("lrp::")]


# --- verdicts ---------------------------------------------------------------------------------------------------------

#: What pytest calls what the command says, decided or not.
CALLED = {"pass": "passed", "not-offered": "skipped", "skipped": "skipped", "inconclusive": "skipped"}


@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_item_by_item_the_verdict_is_that_of_the_command(strict: bool, run: Run, pytester: pytest.Pytester) -> None:
    words = ["--strict"] if strict else []
    given = ["--subject", "behaving_here", "--workers", "0", "--json", "run.json", *words]
    assert CliRunner().invoke(cli.app, given, catch_exceptions=False).exit_code == 1
    cases = json.loads((pytester.path / "run.json").read_text())["cases"]
    expected = {
        f"lrp::{case['id']}": CALLED.get(case["verdict"]) or ("failed" if case["decides"] else "xfailed")
        for case in cases
    }
    assert set(expected.values()) == {"passed", "skipped", "failed"} | (set() if strict else {"xfailed"})

    result = run("-rA", "-v", *(["--lrp-strict"] if strict else []))
    found = {}
    for line in result.outlines:
        name, _, word = line.partition(" ")
        if name in expected and name not in found:
            found[name] = {"XFAIL": "xfailed"}.get(word.split()[0], word.split()[0].lower())
    assert found == expected
    assert result.ret == 1


def test_a_failure_is_its_reason_and_the_line_that_reproduces_it(run: Run) -> None:
    result = run("lrp::raises/must/float64", "lrp::is-wrong/must/float64", "--lrp-seed", "3")
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    assert "error: ValueError: no good at all (behaving_here.py:" in text
    assert "lrp-verify --subject behaving_here --seed 3 --case raises/must/float64\n" in text
    line = "Reproduce: lrp-verify --subject behaving_here --seed 3 --case is-wrong/must/float64\n"
    assert f"failed: because\nspecification 3.1\n{line}" in text
    for noise in ("Traceback", "pytest_plugin.py", "serving.py", "worker.py", "def "):
        assert noise not in text


def test_reasons_are_told(run: Run) -> None:
    text = run("-rxs").stdout.str()
    for line in (
        "XFAIL lrp::is-wrong/should/float64 - only recommended, failed: because",
        ": inconclusive: because",
        ": not offered: behaving_here has no Flat",
        ": skipped: because",
    ):
        assert line in text


# --- what the session comes to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checks", "status", "says"),
    [
        ("passes", 0, ""),
        ("passes,is-missing", 0, ""),
        ("is-wrong", 1, ""),
        ("passes,is-open", 0, ""),
        ("passes,is-left-open", 1, "100% of the values are inconclusive, expected 0%"),
        ("is-missing,is-skipped", 4, "nothing was tested: behaving_here offers none"),
    ],
)
def test_exit_status(checks: str, status: int, says: str, run: Run) -> None:
    result = run("--lrp-check", checks)
    assert result.ret == status
    assert says in result.stdout.str()
    if not says:
        assert "lrp-verify: 5" not in result.stdout.str()


@pytest.mark.parametrize(
    ("words", "subject", "says"),
    [
        ([], "no_such_module", "'no_such_module' cannot be imported: ModuleNotFoundError"),
        ([], "math", "'math' has none of the classes"),
        (["--lrp-rule", "Gama"], "behaving_here", "--lrp-rule 'Gama' is unknown; expected one of Epsilon"),
        (["--lrp-layer", "LSTM"], "behaving_here", "--lrp-layer 'LSTM' is unknown; expected one of Linear"),
        (["--lrp-check", "speed"], "behaving_here", "--lrp-check 'speed' is unknown; expected one of passes, "),
        (["--lrp-dtype", "int8"], "behaving_here", "--lrp-dtype 'int8' is unknown; expected one of float64"),
        (["--lrp-device", "toaster"], "behaving_here", "--lrp-device 'toaster' cannot be used"),
        (["--lrp-check", "search"], "behaving_here", "--lrp-check search: a search makes its cases as it goes"),
        (["lrp::no/such/case"], "behaving_here", "no case begins with lrp::no/such/case"),
    ],
)
def test_what_is_unusable_is_a_usage_error(words: list[str], subject: str, says: str, run: Run) -> None:
    result = run(*words, subject=subject)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {says}" in result.stderr.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_a_comparator_that_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparator, "_ratios", lambda got, *_: got * 0)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: the comparator finds ratio" in result.stderr.str()


# --- known deviations -------------------------------------------------------------------------------------------------

ENTRY = """[[deviation]]
pattern = "{pattern}"
verdict = "{verdict}"
says = "*"
reason = "they do it so"
"""


@pytest.fixture
def deviations(pytester: pytest.Pytester) -> Callable[..., Path]:
    """Write a file of known deviations, an entry for each pattern and verdict."""

    def write(**entries: str) -> Path:
        text = [ENTRY.format(pattern=pattern, verdict=verdict) for pattern, verdict in entries.items()]
        path = pytester.path / "known.toml"
        path.write_text("\n".join(['library = "behaving_here"\nversions = ["1", "2"]', *text]))
        return path

    return write


ALL = {"is-wrong/*/*": "fail", "raises/must/*": "error", "raises/should/*": "error"}


def test_known_deviations_are_xfailed_with_their_reason(run: Run, deviations: Callable[..., Path]) -> None:
    result = run("-rx", "--lrp-check", "passes,is-wrong,raises", "--lrp-deviations", str(deviations(**ALL)))
    result.assert_outcomes(passed=4, xfailed=8)
    assert result.ret == 0
    text = result.stdout.str()
    assert "known deviation, failed: because; they do it so" in text
    assert "the known deviations in known were recorded with behaving_here 1 to 2, and this is version unknown" in text


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"no-such-check/*": "fail"}, "known.toml, deviation 4: no-such-check/* matches no case"),
        ({"passes/must/*": "fail"}, "known.toml, deviation 4: passes/must/* matches 2 pass, expected fail"),
    ],
    ids=["no case", "mended"],
)
def test_an_entry_that_matches_nothing_fails_as_in_the_command(
    entry: dict[str, str], says: str, run: Run, deviations: Callable[..., Path]
) -> None:
    path = str(deviations(**ALL, **entry))
    words = ["--lrp-check", "passes,is-wrong,raises", "--lrp-deviations", path]
    result = run(*words)
    result.assert_outcomes(passed=4, xfailed=8)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"lrp-verify: stale known deviation: {says}" in result.stdout.str()
    done = CliRunner().invoke(
        cli.app, ["--subject", "behaving_here", "--workers", "0", *_in_words_of_the_command(words)]
    )
    assert done.exit_code == 1
    assert f"Stale known deviation: {says}" in done.stdout


def _in_words_of_the_command(words: Sequence[str]) -> list[str]:
    return [word.replace("--lrp-", "--") for word in words]


def test_what_is_not_asked_is_not_stale(run: Run, deviations: Callable[..., Path]) -> None:
    result = run("lrp::is-wrong", "--lrp-deviations", str(deviations(**ALL, **{"passes/must/*": "fail"})))
    result.assert_outcomes(xfailed=4)
    assert result.ret == 0


def test_a_file_of_deviations_that_cannot_be_read(run: Run) -> None:
    result = run("--lrp-deviations", "no_such")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --deviations 'no_such' cannot be read" in result.stderr.str()


# --- what is selected -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["--lrp-check", "passes", "--lrp-dtype", "float64"], ["passes/must/float64", "passes/should/float64"]),
        (["--lrp-check", "pass*,is-o*", "-k", "must and float32"], ["passes/must/float32", "is-open/must/float32"]),
        (["-m", "lrp_is_wrong", "-k", "float32"], ["is-wrong/must/float32", "is-wrong/should/float32"]),
        (["lrp::passes/must"], ["passes/must/float64", "passes/must/float32"]),
        (["lrp::passes/must/float64", "lrp::raises/must/float64"], ["passes/must/float64", "raises/must/float64"]),
        (["lrp::passes", "--deselect", "lrp::passes/must"], ["passes/should/float64", "passes/should/float32"]),
    ],
)
def test_selection(words: list[str], ids: list[str], run: Run) -> None:
    result = run("--collect-only", "-q", *words)
    assert result.ret == 0
    assert _ids(result) == [f"lrp::{id_}" for id_ in ids]


def test_the_ids_are_those_of_the_command(run: Run) -> None:
    listed = CliRunner().invoke(cli.app, ["--subject", "behaving_here", "--list"]).stdout.split()
    assert _ids(run("--collect-only", "-q")) == [f"lrp::{id_}" for id_ in listed]
    assert _ids(run("--collect-only", "-q", "lrp::")) == [f"lrp::{id_}" for id_ in listed]


def test_it_counts_what_it_collects(run: Run) -> None:
    text = run("--collect-only").stdout.str()
    assert "collected 28 items" in text
    assert f"lrp-verify: Tested: behaving_here unknown version; torch {torch.__version__}; device cpu; seed 0" in text
    assert "; 28 cases" in text


def test_it_stops_at_the_first_failure(run: Run) -> None:
    result = run("-x", "--lrp-check", "passes,is-wrong")
    result.assert_outcomes(passed=4, failed=1)


def test_marks_are_registered(run: Run) -> None:
    text = run("--markers").stdout.str()
    for check in ("passes", "is_wrong", "is_open"):
        assert f"@pytest.mark.lrp_{check}: " in text
    assert run("--strict-markers", "--lrp-check", "is-missing,passes").ret == 0


def test_it_runs_beside_tests_of_the_user(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_own="import torch\n"
        "def test_own():\n"
        "    assert not torch.is_grad_enabled() if False else torch.is_grad_enabled()\n"
    )
    run("--lrp-check", "passes").assert_outcomes(passed=5)
    run("lrp::passes").assert_outcomes(passed=4)
    run("lrp::passes", "test_own.py").assert_outcomes(passed=5)


def test_the_fixture_that_audits(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from torch import nn, ones\n"
        "from lrp_rules import Epsilon\n"
        "MODEL = nn.Sequential(nn.Linear(3, 2)).double()\n"
        "RULES = {nn.Linear: Epsilon()}\n"
        "def test_right(lrp_audit):\n"
        "    assert lrp_audit(MODEL, ones(1, 3).double(), RULES).held\n"
        "def test_wrong(lrp_audit):\n"
        "    lrp_audit(MODEL, ones(1, 3).double(), RULES, pipeline='gradient')\n"
    )
    found = pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider")
    found.assert_outcomes(passed=1, failed=1)
    found.stdout.fnmatch_lines(["*its plain gradient: Epsilon never ran here*"])


def test_junit(run: Run, pytester: pytest.Pytester) -> None:
    run("--lrp-check", "passes,is-wrong", "-k", "float64", "--junitxml", "run.xml")
    [suite] = ET.parse(pytester.path / "run.xml").getroot()  # noqa: S314  our own
    cases = {case.get("name"): case for case in suite}
    assert set(cases) == {
        f"{check}/{level}/float64" for check in ("passes", "is-wrong") for level in ("must", "should")
    }
    [properties] = cases["passes/must/float64"]
    assert {p.get("name"): p.get("value") for p in properties} == {
        "lrp_verdict": "pass",
        "lrp_ratio": "0.5",
        "lrp_undecided": "0.0",
    }
    assert "lrp-verify --subject" in str(cases["is-wrong/must/float64"].find("failure").text)  # type: ignore[union-attr]


# --- processes of their own -------------------------------------------------------------------------------------------


def _pytest(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGIN, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_real_rules_in_an_empty_folder(tmp_path: Path) -> None:
    done = _pytest(tmp_path, "--lrp-subject", "lrp_rules", "lrp::agreement/Flat/linear-5-4")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = CliRunner().invoke(cli.app, ["--list", "--check", "agreement", "--rule", "Flat"]).stdout.split()
    assert f" {sum('/linear-5-4/' in id_ for id_ in listed)} passed" in done.stdout


@pytest.mark.selftest
def test_workers_of_xdist_say_what_is_stale_and_what_explains_failures(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text(
        "from types import SimpleNamespace\n"
        "class Pass:\n"
        "    def register(self, module):\n"
        "        return SimpleNamespace(remove=lambda: None)\n"
    )
    known = 'library = "nothing"\nversions = ["1", "1"]\n'
    for pattern in ("agreement/Pass/relu/*/*/float64", "agreement/Pass/identity/*/*/*"):
        known += ENTRY.format(pattern=pattern, verdict="fail")
    (tmp_path / "known.toml").write_text(known)
    words = ["--lrp-subject", "nothing", "-n", "2", "--lrp-rule", "Pass", "--lrp-check", "agreement"]
    done = _pytest(tmp_path, *words, "--lrp-deviations", "known.toml")
    assert done.returncode == 1
    assert "4 xfailed" in done.stdout
    assert (
        done.stdout.count("stale known deviation: known.toml, deviation 2: agreement/Pass/identity/*/*/* matches") == 1
    )
    assert done.stdout.count("lrp-verify: Diagnosis: Pass matches `gradient`: the rule is not applied") == 1


def _serve(folder: Path, cases: str) -> None:
    """Let the process that is asked take its cases from a module in this folder."""
    (folder / "serve_here.py").write_text(
        "from verify.faces import serving\n"
        "from verify.runs import selection\n"
        f"selection.CASES = '{cases}:all_cases'\n"
        "serving.TIME_LIMIT = 3.0\n"
        "serving.main()\n"
    )
    (folder / "conftest.py").write_text(
        "import sys\n"
        "from lrp_entry import pytest_plugin\n"
        "pytest_plugin.SERVER = [sys.executable, '-P', 'serve_here.py']\n"
    )


#: Cases that cost their process, among others; and what prints where answers are written.
LOSING = """
import os, time
from types import SimpleNamespace
from verify.model import Case, Finding, Level, Verdict

DTYPES = DEFAULT_DTYPES = ("float64",)

class Epsilon:
    def register(self, module):
        return SimpleNamespace(remove=lambda: None)

def prints(subject):
    os.write(1, b"{}\\n")
    return Finding(Verdict.PASS)

RUNS = {
    "prints": prints,
    "exits": lambda subject: os._exit(0),
    "killed": lambda subject: os.kill(os.getpid(), 9),
    "hangs": lambda subject: time.sleep(600),
    "passes": lambda subject: Finding(Verdict.PASS),
}

def all_cases(*, seed, dtypes, device):
    for check, run in RUNS.items():
        for level in Level:
            yield Case(f"{check}/{level}", "Epsilon", "Linear", check, "float64", level, run)
"""


def test_a_case_that_costs_its_process_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "losing_here.py").write_text(LOSING)
    _serve(tmp_path, "losing_here")
    done = _pytest(tmp_path, "-rx", "--lrp-subject", "losing_here", "-k", "(must and not exits) or exits/should")
    assert "2 failed, 2 passed, 5 deselected, 1 xfailed" in done.stdout, done.stdout
    for line in (
        "crashed: the process was ended by SIGKILL",
        "timed out: no answer within 3 seconds",
        "Reproduce: lrp-verify --subject losing_here --case hangs/must",
    ):
        assert f"\n{line}\n" in done.stdout
    assert "only recommended, crashed: the process ended with exit status 0" in done.stdout


def test_a_subject_that_ends_its_process_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "ending.py").write_text("raise SystemExit(0)")
    done = _pytest(tmp_path, "--lrp-subject", "ending")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: " in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.selftest  # a quarter of a minute; tests/packaging/test_wheel.py has workers of xdist, too
def test_workers_of_xdist_add_up(tmp_path: Path) -> None:
    (tmp_path / "behaving_here.py").write_text(BEHAVING)
    _serve(tmp_path, "behaving_here")
    done = _pytest(tmp_path, "--lrp-subject", "behaving_here", "-n", "2", "--lrp-check", "passes,is-open,is-left-open")
    assert done.returncode == 1
    assert "2 failed, 4 passed, 4 skipped, 2 xfailed" in done.stdout
    done = _pytest(tmp_path, "--lrp-subject", "no_such_module", "-n", "2")
    assert done.returncode == 4
    assert "ERROR: 'no_such_module' cannot be imported" in done.stderr


def test_without_a_subject_nothing_is_imported(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "import sys\n"
        "def test_own():\n"
        "    found = {name for name in sys.modules if name.split('.')[0] in "
        "{'torch', 'numpy', 'lrp_rules', 'reference', 'verify'}}\n"
        "    assert found == set()\n"
    )
    # plugins of others may import what they like
    done = _pytest(tmp_path, "-p", "no:hypothesispytest", "-p", "no:benchmark")
    assert done.returncode == 0, done.stdout
    (tmp_path / "test_own.py").unlink()
    assert _pytest(tmp_path).returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_the_plugin_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"lrp-verify": "lrp_entry.pytest_plugin"}

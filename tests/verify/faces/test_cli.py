"""The command: what it selects, prints and writes, and how it exits."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from junitparser import JUnitXml
from typer.testing import CliRunner, Result

from verify.checks import comparator
from verify.faces import cli, running
from verify.formats.environment import version
from verify.reports import export
from verify.runs import selection
from verify.runs.worker import RunnerError

FAKES = Path(__file__).parents[1] / "fakes"
Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call the command in this process on the fake subject and its cases."""
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setattr(selection, "CASES", "behaving:all_cases")
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str | Path, subject: str = "behaving", workers: int = 0) -> Result:
        words = ["--subject", subject, "--workers", str(workers), *map(str, arguments)]
        return CliRunner().invoke(cli.app, words, catch_exceptions=False)

    return call


# --- exit status ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        pytest.param(0, ["--check", "passes"], id="pass"),
        pytest.param(0, ["--check", "passes,missing"], id="one not offered"),
        pytest.param(0, ["--check", "is_advised,passes"], id="advice"),
        pytest.param(1, ["--check", "is_advised,passes", "--strict"], id="advice, strict"),
        pytest.param(1, ["--check", "passes,returns_a_wrong_shape"], id="fail"),
        pytest.param(1, ["--check", "passes,raises"], id="error"),
        pytest.param(0, ["--case", "passes/float16"], id="case that passes"),
        pytest.param(1, ["--case", "raises/float64"], id="case that fails"),
        pytest.param(2, ["--check", "missing"], id="nothing offered"),
        pytest.param(2, ["--case", "missing/float64"], id="case that is not offered"),
        pytest.param(0, ["--check", "crashes", "--list"], id="list"),
    ],
)
def test_exit_status(status: int, words: list[str], command: Command) -> None:
    assert command(*words).exit_code == status


def test_advice_decides_for_our_own_rules(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.model.Subject.is_ours", property(lambda _: True))
    assert command("--check", "is_advised,passes").exit_code == 1


def test_a_deadly_subject_in_workers(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    result = command("--check", "passes,crashes,prints", "--dtype", "float64", "--json", path, workers=1)
    assert result.exit_code == 1
    assert "; 1 crashed, 2 passed" in result.stdout
    assert [case["id"] for case in json.loads(path.read_text())["cases"]] == [
        "passes/float64",
        "crashes/float64",
        "prints/float64",
    ]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rule", "Gama"], "--rule 'Gama' is unknown; expected one of Epsilon, Flat"),
        (["--rule", "Epsilon,Gama"], "--rule 'Gama' is unknown"),
        (["--layer", "LSTM*"], r"--layer 'LSTM\*' is unknown; expected one of Linear, Conv2d"),
        (["--check", "speed"], "--check 'speed' is unknown; expected one of passes, "),
        (["--dtype", "int8"], "--dtype 'int8' is unknown; expected one of float64, float32, float16"),
        (["--device", "toaster"], "--device 'toaster' cannot be used; expected cpu"),
        (["--device", "meta"], "--device 'meta' cannot be used; expected cpu"),
        (["--case", "passes/float46"], r"no case has the id 'passes/float46'; similar ids are:\n  passes/float64\n"),
        (["--case", "#"], "no case has the id '#'; --list prints all ids"),
        (["--case", "passes/float64", "--rule", "Epsilon"], "leave out --rule"),
        (["--rule", "Flat", "--check", "passes"], "no case fits --rule Flat --check passes together"),
        (["--time-limit", "0"], "--time-limit is 0; expected"),
        (["--time-limit", "nan"], "--time-limit is nan; expected"),
        (["--figure", "figure.pdf"], "expected a name that ends in .png"),
        (["--json", "no/such/folder"], "--json no/such/folder cannot be written: No such file or directory"),
        (["--junit", "."], "--junit . cannot be written: is a folder"),
        (["--markdown", "no/such/folder"], "--markdown no/such/folder cannot be written"),
        (["--figure", "no/such/folder.png"], "--figure no/such/folder.png cannot be written"),
        (["--json", "same", "--junit", "./same"], "another option writes to the same file"),
        (["--write-deviations", "a", "--deviations", "zennit"], "of a whole run; leave out --deviations"),
        (["--write-deviations", "a", "--shard", "1/2"], "of a whole run; leave out --shard"),
        (["--write-deviations", "a", "--check", "search"], "leave out --check search"),
    ],
)
def test_unusable_call(words: list[str], says: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "Runner", None)  # nothing is run
    result = command(*words)
    assert result.exit_code == 2
    assert re.match(f"lrp-verify: .*{says}", result.stderr)
    assert not result.stdout


@pytest.mark.parametrize("words", [["--workers", "-1"], ["--seed", "one"], ["--no-such-option"], ["argument"]])
def test_unknown_option(words: list[str], command: Command) -> None:
    assert command(*words).exit_code == 2


def test_help_groups_the_options_and_shows_no_types_of_python(command: Command) -> None:
    text = command("--help").stdout
    places = [text.index(panel) for panel in ("─ What to test ─", "─ How to run ─", "─ What to print and write ─")]
    assert places == sorted(places)
    assert places[1] < text.index("--strict") < places[2] < text.index("--json")
    lines = [line for line in text.splitlines() if "<" in line.partition("--help")[0]]
    assert [line for line in lines if "bool" in line or "range" in line] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["my_rules"], "no command is named 'my_rules'; to test a module, write --subject my_rules"),
        (["my_rules.py"], "to test a module, write --subject my_rules"),
        (["--subject", "my_rules.py"], "expected the name of a module, without .py: my_rules"),
        (["--subject", "captum.no_such"], "tested through an adapter, verify.subjects.captum"),
        (["--rule", "Flatt"], "--rule 'Flatt' is unknown (did you mean Flat?)"),
        (["--case", "passes/*"], "expected the id of one case; for several, use --rule, --layer"),
    ],
)
def test_a_likely_mistake_is_answered_by_what_to_do(words: list[str], says: str, command: Command) -> None:
    result = command(*words)
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(("workers", "subject"), [(0, "no_such_module"), (0, "math"), (1, "dying")])
def test_unusable_subject(workers: int, subject: str, command: Command, tmp_path: Path) -> None:
    result = command("--json", tmp_path / "run.json", subject=subject, workers=workers)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"lrp-verify: '{subject}'")
    assert not result.stdout
    assert not list(tmp_path.iterdir())


def test_a_comparator_that_is_wrong(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparator, "_ratios", lambda got, *_: got * 0)
    result = command("--check", "passes")
    assert result.exit_code == 2
    assert "the comparator finds ratio" in result.stderr


# --- what is selected -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["passes/float64", "passes/float32"], ["--check", "passes"]),
        (["passes/float64", "passes/float16"], ["--check", "passes", "--dtype", "float16,float64"]),
        (["passes/float16", "prints/float16"], ["--check", "pass*,pri*", "--dtype", "*16"]),
        (["passes/float64", "hangs/float64"], ["--check", "hangs", "--check", "PASSES", "--dtype", "float64"]),
        (["missing/float64"], ["--rule", "flat", "--dtype", "float64"]),
        (["missing/float64"], ["--layer", "conv*", "--dtype", "float64"]),
        (["of-one-dtype", "of-no-dtype"], ["--check", "particular"]),
        (["of-no-dtype"], ["--check", "particular", "--dtype", "float32"]),
        (["hangs/float16", "passes/float64"], ["--case", "hangs/float16", "--case", "passes/float64"]),
    ],
)
def test_selection(ids: list[str], words: list[str], command: Command) -> None:
    assert command(*words, "--list").stdout.split() == ids


# --- what is printed --------------------------------------------------------------------------------------------------


def test_one_case_is_told_in_full(command: Command) -> None:
    text = command("--case", "passes/float64").stdout
    for expected in ("passes/float64\npassed\n", "worst entry", "got", "1.5", "probable ratio"):
        assert expected in text


def test_a_case_is_shown_with_all_its_numbers_and_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["--workers", "0", "--case", "agreement/Gamma/linear-5-4/default/zeros/float64"]
    text = CliRunner().invoke(cli.app, words, catch_exceptions=False).stdout
    for expected in (
        "rule        Gamma: where z > 0: d = A(w + g w+) x+",
        "parameters  defaults",
        'layer       linear-5-4: type="Linear"',
        "\nx float64 [3, 5]\n",
        "\nweight float64 [4, 5]\n",
        "\nbias float64 [4]\n",
        "\nR float64 [3, 4]\n",
        "denominator d, used where z > 0, before the stabilizer, one row per sample [3, 4]",
    ):
        assert expected in text
    assert re.search(r"entry +x +got +expected relevance +bound +\|got - expected\| / bound", text)
    assert re.search(r"sample +sum\(got\) +inputs +bias +stabilizer +zero branch +sum", text)
    rows = [line.split() for line in text.partition(" sum(got)")[2].splitlines() if re.match(r" +[012] ", line)]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert all(len(row) == 7 and row[1] == row[2] for row in rows)  # sum(got) is what the inputs get
    assert "…" not in text


def test_a_large_case_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--workers", "0", "--case", "agreement/Epsilon/linear-60-20/default/signed/float64"]
    text = CliRunner().invoke(cli.app, words, catch_exceptions=False).stdout
    assert "... the first 64 of 1200 numbers" in text
    assert "... 64 of 120 entries, those with the largest ratios" in text


def test_a_case_that_raises_shows_its_traceback(command: Command) -> None:
    text = command("--case", "raises/float64").stdout
    assert "raise ValueError(message)" in text
    assert "\x1b" not in text


def test_the_line_of_a_failure_reproduces_it(command: Command) -> None:
    text = command("--check", "raises", "--seed", "3").stdout
    line = next(line for line in text.splitlines() if line.strip().startswith("Reproduce: lrp-verify"))
    words = line.split()[1:]
    assert words == ["lrp-verify", "--subject", "behaving", "--seed", "3", "--case", "raises/float64"]
    assert "raises/float64\nraised an error: ValueError" in command(*words[1:]).stdout


def test_quiet(command: Command) -> None:
    result = command("--check", "passes,raises", "--quiet")
    first, second = result.stdout.splitlines()
    assert first.startswith("Tested: behaving unknown version; ")
    assert re.fullmatch(r"FAILED: 4 cases in [\d.]+ s; 2 raised an error, 2 passed", second)
    assert not result.stderr


def test_a_run_says_first_what_is_tested(command: Command) -> None:
    result = command("--check", "passes", "--seed", "3")
    line = f"Tested: behaving unknown version; torch {torch.__version__}; device cpu; seed 3"
    assert result.stdout.splitlines()[0] == line


def test_it_is_said_before_any_case_is_asked(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        message = "nothing is asked here"
        raise RunnerError(message)

    monkeypatch.setattr("verify.runs.runner.Runner.run", refused)
    result = command("--check", "passes")
    assert result.exit_code == 2
    assert result.stdout.startswith("Tested: behaving ")


def test_without_a_subject_it_says_that_our_own_rules_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    words = ["--workers", "0", "--case", "agreement/Pass/relu/default/signed/float64"]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0
    own = f"Tested: lrp_rules {version()}, the rules of this project (--subject tests others); torch "
    assert result.stdout.startswith(own)


def test_what_a_subject_prints_when_it_is_loaded_and_tried_is_not_in_the_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loud.py").write_text(
        "import lrp_rules\n"
        "print('LOUD')\n"
        "class Epsilon(lrp_rules.Epsilon):\n"
        "    def relevance(self, layer, R):\n"
        "        print('LOUD')\n"
        "        return super().relevance(layer, R)\n"
    )
    case = "agreement/Epsilon/linear-5-4/default/signed/float64"
    result = CliRunner().invoke(cli.app, ["--subject", "loud", "--case", case, "--json", "-"])
    assert json.loads(result.stdout)["summary"]["selected"] == 1
    assert "LOUD" in result.stderr


def test_json_on_standard_output_is_alone_there(command: Command) -> None:
    result = command("--check", "prints,raises", "--json", "-")
    whole = json.loads(result.stdout)
    importlib.import_module("jsonschema").validate(whole, json.loads(export.SCHEMA_FILE.read_text()))
    assert whole["call"] == {
        "selected": 4,
        "dtypes": ["float64", "float32"],
        "seed": 0,
        "device": "cpu",
        "workers": 0,
        "time_limit": 20.0,
        "strict": False,
    }
    assert "FAILED: 4 cases" in result.stderr
    assert result.stderr.startswith("Tested: behaving ")
    assert whole["subject"] == {"spec": "behaving", "version": "unknown", "ours": False, "parameters": {}}
    assert whole["environment"]["torch"] == torch.__version__


def test_version(command: Command) -> None:
    assert command("--version").stdout == f"lrp-verify {version()}\n"


# --- what is written --------------------------------------------------------------------------------------------------


def test_files(command: Command, tmp_path: Path) -> None:
    names = ["json", "junit", "markdown"]
    words = [word for name in names for word in (f"--{name}", str(tmp_path / name))]
    assert command("--check", "passes,raises", *words).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "json").read_text())["summary"]["failures"] == 2
    assert JUnitXml.fromfile(str(tmp_path / "junit")).errors == 2
    assert "| Epsilon | ✗ 2/4 |" in (tmp_path / "markdown").read_text(encoding="utf-8")


def test_a_first_file_of_deviations_excuses_what_fails_and_nothing_else(command: Command, tmp_path: Path) -> None:
    path, words = tmp_path / "mine.toml", ["--check", "passes,raises,is_advised"]
    first = command(*words, "--write-deviations", path)
    assert first.exit_code == 1
    assert f"{path}: 2 known deviations for 4 failures; " in first.stdout
    assert f"--deviations {path}" in first.stdout
    text = path.read_text(encoding="utf-8")
    assert 'library = "behaving"\nversions = ["unknown", "unknown"]\n' in text
    # not asked in float16
    raised = (
        'pattern = "raises/{float32,float64}"\nverdict = "error"\nsays = "*ValueError*"\nreason = "SAY WHY: 2 cases'
    )
    assert f"{raised}; first " in text
    again = command(*words, "--deviations", path)
    assert again.exit_code == 0
    assert "; 2 passed, 4 known deviations\n" in again.stdout
    assert "stale" not in again.stdout
    # what was not asked is no deviation
    assert command("--check", "raises", "--dtype", "float16", "--deviations", path).exit_code == 1


def test_a_first_file_of_a_run_in_which_nothing_failed_has_no_entry(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    result = command("--check", "prints", "--write-deviations", path)
    assert result.exit_code == 0
    assert "known.toml: no known deviation, since nothing failed" in "".join(result.stdout.splitlines())
    assert "[[deviation]]" not in path.read_text(encoding="utf-8")


def test_a_file_of_deviations_with_content_is_kept(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("# mine\n", encoding="utf-8")
    refused = command("--check", "raises", "--write-deviations", path)
    assert refused.exit_code == 2
    assert "the file is not empty, and is never overwritten" in refused.stderr
    assert not refused.stdout
    assert path.read_text(encoding="utf-8") == "# mine\n"
    path.write_text("\n", encoding="utf-8")  # nothing to lose
    assert command("--check", "raises", "--write-deviations", path).exit_code == 1
    assert "[[deviation]]" in path.read_text(encoding="utf-8")


def test_an_interrupted_run_writes_no_deviations(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("verify.runs.runner.Runner.run", interrupted)
    result = command("--check", "raises", "--write-deviations", tmp_path / "mine.toml")
    assert result.exit_code == 130
    assert "was not written, since the run was interrupted" in result.stdout
    assert not list(tmp_path.iterdir())


def test_figure(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(subject: SimpleNamespace, path: Path, *, device: str) -> None:
        drawn.append((subject.spec, path, device))

    fake = ModuleType("verify.reports.network_figure")
    monkeypatch.setattr(fake, "draw", draw, raising=False)
    monkeypatch.setitem(sys.modules, "verify.reports.network_figure", fake)
    monkeypatch.setattr("verify.reports.network_figure", fake, raising=False)
    path = tmp_path / "figure.png"
    assert command("--check", "passes", "--figure", path).exit_code == 0
    assert drawn == [("behaving", path, "cpu")]


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="a terminal sends its interrupt to a group of processes")
@pytest.mark.parametrize("workers", [0, 1], ids=["here", "one worker"])
def test_an_interrupted_run_prints_what_it_has(workers: int, tmp_path: Path) -> None:
    started, path = tmp_path / "started", tmp_path / "run.json"
    script = (
        "from verify.faces import cli; from verify.runs import selection; "
        "selection.CASES = 'behaving:all_cases'; cli.main()"
    )
    words = ["--subject", "behaving", "--check", "passes,hangs", "--dtype", "float64", "--workers", str(workers)]
    # a group of its own, as the shell gives it, and the signal to all of it, as Ctrl-C does
    with subprocess.Popen(
        [sys.executable, "-c", script, *words, "--time-limit", "900", "--json", path],
        env=os.environ | {"PYTHONPATH": str(FAKES), "BEHAVING_STARTED": str(started)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            while process.poll() is None and not (started.exists() and started.read_text()):
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    # which of the two comes first is a matter of what says most
    said = re.search(r"INTERRUPTED: ([01]) of 2 cases in [\d.]+ s(?:; 1 passed)?\n", stdout)
    assert said
    assert not stderr
    summary = json.loads(path.read_text())["summary"]
    assert (summary["passed"], summary["interrupted"], summary["finished"]) == (False, True, int(said[1]))
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_an_interrupted_diagnosis_leaves_the_report(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("verify.explaining.diagnosis.diagnose", interrupted)
    result = command("--check", "passes,raises")
    assert result.exit_code == 1
    assert "Interrupted: no diagnosis was made" in result.stdout
    # what explains failures stands before their list
    assert result.stdout.index("Interrupted: no diagnosis") < result.stdout.index("\nFailures\n")
    assert "; 2 raised an error, 2 passed" in result.stdout


def test_an_interrupt_waits_for_the_import_of_torch() -> None:
    done = []

    def interrupted() -> None:
        with selection._uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("imported")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["imported"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

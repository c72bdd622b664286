"""`--check search` on the command line: its budget, what it finds, and how what it finds is asked again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from verify.faces import cli
from verify.model import Verdict
from verify.questions.examples import FOUND, Example
from verify.runs import searching, selection
from verify.runs.outcomes import carried
from verify.runs.worker import RunnerError, Source, Worker

FAKES = Path(__file__).parents[1] / "fakes"
Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Call the command in this process on the fake cases, and a subject whose Flat is twice what it should be."""
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(selection, "CASES", "behaving:all_cases")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "doubling.py").write_text(
        "from lrp_rules import *\n"
        "from lrp_rules import Flat as _Flat\n"
        "class Flat(_Flat):\n"
        "    def relevance(self, layer, R):\n"
        "        print('LOUD')\n"
        "        return 2 * super().relevance(layer, R)\n"
    )

    def call(*words: str | Path, subject: str = "doubling") -> Result:
        given = ["--subject", subject, "--workers", "0", *map(str, words)]
        return CliRunner().invoke(cli.app, given, catch_exceptions=False)

    return call


def test_a_find_is_told_with_the_line_that_reproduces_it(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    result = command("--check", "search", "--examples", "200", "--rule", "Flat,Epsilon", "--json", path)
    assert result.exit_code == 1
    assert "LOUD" not in result.stdout
    whole = json.loads(path.read_text())
    [find] = [case for case in whole["cases"] if case["verdict"] == "fail"]
    assert find["id"].startswith("search/Flat/")
    assert whole["summary"]["selected"] == whole["summary"]["finished"] == len(whole["cases"])
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert f"Reproduce: lrp-verify --subject doubling --case {find['id']}" in lines
    assert f"echo {find['id']} >> {FOUND}" in lines
    # as the line says
    again = command("--case", find["id"])
    assert again.exit_code == 1
    assert find["reason"] in again.stdout
    assert command("--case", find["id"], subject="lrp_rules").exit_code == 0


#: Mistakes that numbers of moderate size do not show.
UNUSUAL = {
    "clipped-at-a-large-value": ("ZPlus", "super().relevance(layer, R).clamp(-1e7, 1e7)"),
    "cast-to-float32-inside": ("WSquare", "super().relevance(layer, R.float().to(R.dtype))"),
}


@pytest.mark.selftest  # ten seconds each; tests/verify/runs/test_search.py asks the same within this process
@pytest.mark.parametrize(("rule", "relevance"), UNUSUAL.values(), ids=UNUSUAL)
def test_what_only_unusual_numbers_show_is_found_and_shrunk(
    rule: str, relevance: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "CASES", Source.function)
    name, path = f"unusual_{rule.lower()}", tmp_path / "run.json"
    (tmp_path / f"{name}.py").write_text(
        "import lrp_rules\n"
        f"class {rule}(lrp_rules.{rule}):\n"
        "    def relevance(self, layer, R):\n"
        f"        return {relevance}\n"
    )
    words = ["--check", "search", "--examples", "600", "--rule", rule, "--json", path]
    assert command(*words, subject=name).exit_code == 1
    failed = [case["id"] for case in json.loads(path.read_text())["cases"] if case["verdict"] == "fail"]
    # each run searches a little, and these cases fail as well
    [id_] = [id_ for id_ in failed if "/seed-" not in id_]
    example = Example.from_id(id_)
    assert max(map(len, (example.x, example.weight, example.bias, example.relevance))) <= 3
    assert command("--case", id_, subject=name).exit_code == 1
    assert command("--case", id_, subject="lrp_rules").exit_code == 0


def test_a_find_is_asked_in_a_worker_too(command: Command) -> None:
    id_ = Example(
        "Flat", {}, "Linear", {"in_features": 1, "out_features": 1}, (1, 1), (1.0,), (), (1.0,), (1.0,), "float64"
    ).id
    worker = Worker(Source(("float64",), function="behaving:all_cases"), ["lrp_rules"])
    assert worker.answer("lrp_rules", id_).verdict is Verdict.PASS
    with pytest.raises(RunnerError, match="does not know the case searching"):
        worker.answer("lrp_rules", "searching")
    with pytest.raises(ValueError, match="copy the whole of it"):
        carried(id_[:-9])


def test_without_a_find_all_is_well(command: Command) -> None:
    result = command("--check", "search", "--examples", "50", "--rule", "Epsilon", subject="lrp_rules")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("PASSED: 1 case in ")
    assert "append" not in result.stdout


def test_it_comes_after_the_other_checks(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    words = ["--check", "passes,search", "--seconds", "0.1", "--dtype", "float64", "--json", path]
    result = command(*words, subject="behaving")
    cases = [case["check"] for case in json.loads(path.read_text())["cases"]]
    assert cases == ["passes", "search"]
    assert result.exit_code == 1  # its Epsilon is the gradient


@pytest.mark.parametrize(
    ("words", "budget"),
    [
        ([], {"seconds": searching.BUDGET, "count": None}),
        (["--seconds", "2"], {"seconds": 2.0, "count": None}),
        (["--examples", "7"], {"seconds": None, "count": 7}),
    ],
    ids=["default", "seconds", "examples"],
)
def test_budget_rules_dtypes_and_seed_reach_the_search(
    words: list[str], budget: dict[str, float | None], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def search(_subject: object, **given: object) -> object:
        seen.update(given)
        return iter(())

    monkeypatch.setattr("verify.runs.search.search", search)
    chosen = ["--rule", "f*t,epsilon", "--dtype", "float32", "--seed", "3"]
    assert command("--check", "Search", *words, *chosen).exit_code == 2  # nothing was asked
    del seen["progress"], seen["asked"]
    assert seen == {"rules": ["Epsilon", "Flat"], "dtypes": ["float32"], "seed": 3, **budget}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seconds", "3"], "--seconds limits a search, and nothing is searched; add --check search"),
        (["--check", "passes", "--examples", "3"], "--examples limits a search"),
        (["--check", "search", "--seconds", "3", "--examples", "3"], "both limit the search"),
        (["--check", "search", "--seconds", "0"], "--seconds is 0"),
        (["--check", "search", "--seconds", "nan"], "--seconds is nan"),
        (["--check", "search", "--layer", "Linear"], "leave out --layer"),
        (["--check", "search", "--shard", "1/2"], "leave out --shard"),
        (["--check", "search", "--rule", "Flat", "--dtype", "float16"], "cannot search --dtype float16"),
        (["--case", "search/Flat/x"], "is no id of an example"),
    ],
)
def test_unusable_call(words: list[str], says: str, command: Command) -> None:
    result = command(*words, subject="lrp_rules")
    assert result.exit_code == 2
    assert says in result.stderr
    assert not result.stdout


def test_an_interrupted_search_tells_what_it_has(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "run", search)
    result = command("--check", "passes,search", "--seconds", "1", "--dtype", "float64", subject="behaving")
    assert result.exit_code == 130
    assert "INTERRUPTED: 1 case in " in result.stdout


def test_an_unusable_subject(command: Command) -> None:
    result = command("--check", "search", "--seconds", "1", subject="no_such_module")
    assert result.exit_code == 2
    assert result.stderr.startswith("lrp-verify: 'no_such_module'")

"""The command `lrp-vectors`: what it prints and how it exits."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from verify.formats.environment import version
from verify.reports import export
from verify.vectors import cli, released, writing
from verify.vectors.checking import Problem

CORPUS = Path(__file__).parents[3] / "vectors"
SCHEMAS = Path(writing.__file__).parent / "schema"
Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call the command in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: str | Path) -> Result:
        return CliRunner().invoke(cli.app, list(map(str, words)), catch_exceptions=False)

    return call


@pytest.fixture
def some(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Generate three files only."""
    names = ["pass-layers.json", "reludeconvnet-layers.json", "relubetasmooth-arguments.json"]
    made = {name: json.loads((CORPUS / name).read_text()) for name in names}
    monkeypatch.setattr(writing, "documents", lambda: made)
    return names


# --- generate and check -----------------------------------------------------------------------------------------------


def test_generate_compare_and_generate_again(some: list[str], command: Command, tmp_path: Path) -> None:
    assert command("generate", tmp_path).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} >= {*some, "MANIFEST.json", "released.json"}
    assert {path.name for path in tmp_path.glob("*.schema.json")} == {path.name for path in SCHEMAS.iterdir()}
    result = command("generate", "--compare", tmp_path)
    assert (result.exit_code, result.stdout.split("; ")[-1]) == (0, "0 differ\n")
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / some[0]).unlink()
    text = (tmp_path / some[1]).read_text()
    (tmp_path / some[1]).write_text(text.replace("float64", "float46", 1))
    result = command("generate", "--compare", tmp_path)
    assert result.exit_code == 1
    assert f"{some[0]}: missing" in result.stdout
    assert f"{some[1]}: differs, first in line" in result.stdout
    assert "old.json: is not generated" in result.stdout
    assert command("generate", tmp_path).exit_code == 0
    assert not (tmp_path / "old.json").exists()
    assert (tmp_path / some[1]).read_text() == text


def test_generate_keeps_what_was_released(some: list[str], command: Command, tmp_path: Path) -> None:
    command("generate", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    known = json.loads((tmp_path / "released.json").read_text())
    id_ = next(iter(known["cases"]))
    known["cases"][id_]["answer"] = "0" * 64
    (tmp_path / "released.json").write_text(json.dumps(known))
    before["released.json"] = (tmp_path / "released.json").read_bytes()
    result = command("generate", tmp_path)
    assert result.exit_code == 1
    assert f"1 cases would expect something else than what was released: {id_}" in result.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_generate_on_what_is_no_corpus(some: list[str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "released.json").write_text("{}")
    result = command("generate", tmp_path)
    assert result.exit_code == 2
    assert "has test vectors that cannot be read: KeyError" in result.stderr


def test_check_says_how_many(some: list[str], command: Command, tmp_path: Path) -> None:
    command("generate", tmp_path)
    result = command("check", tmp_path)
    assert result.exit_code == 1  # three files are fewer than the corpus may have
    assert f"MANIFEST.json: there are 23 cases, expected at least {released.FLOOR}" in result.stdout
    assert re.search(r"FAILED: 23 cases in [\d.]+ s; 1 problem\n", result.stdout)


def test_check_without_problems(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.vectors.checking.check", lambda _: ([], 7))
    result = command("check", CORPUS)
    assert (result.exit_code, result.stdout[:19]) == (0, "PASSED: 7 cases in ")
    monkeypatch.setattr("verify.vectors.checking.check", lambda _: ([Problem("a.json", "b", "is odd")], 7))
    assert "a.json, case b: is odd\nFAILED: 7 cases in " in command("check", CORPUS).stdout


def test_check_nothing(command: Command, tmp_path: Path) -> None:
    result = command("check", tmp_path / "none")
    assert result.exit_code == 2
    assert "is not a folder" in result.stderr


# --- verify and answer ------------------------------------------------------------------------------------------------

ONLY = ("--vectors", CORPUS, "--only", "reludeconvnet-*")


@pytest.fixture
def answered(command: Command, tmp_path: Path) -> Path:
    """What lrp_rules answers to one rule."""
    result = command("answer", *ONLY)
    assert result.exit_code == 0
    path = tmp_path / "answers.jsonl"
    path.write_text(result.stdout)
    return path


def test_answers_hold(answered: Path, command: Command) -> None:
    result = command("verify", answered, *ONLY)
    assert result.exit_code == 0
    assert "ReLUDeconvNet" in result.stdout
    assert "PASSED: 3 cases in " in result.stdout


def test_a_right_answer_to_a_part_holds_where_most_of_it_is_undecided(command: Command, tmp_path: Path) -> None:
    only = ("--vectors", CORPUS, "--only", "epsilon-default-linear-5-4-undecided-*")
    path = tmp_path / "answers.jsonl"
    path.write_text(command("answer", *only).stdout)
    result = command("verify", path, *only)
    assert result.exit_code == 0
    assert "; 2 passed; 60% of the values inconclusive\n" in result.stdout


def test_answers_are_in_the_form_of_the_schema(answered: Path) -> None:
    schema = json.loads((SCHEMAS / "results-1.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for line in answered.read_text().splitlines():
        jsonschema.validate(json.loads(line), schema)


def test_a_file_of_vectors_is_in_the_form_of_its_schema() -> None:
    schema = json.loads((CORPUS / "vectors-1.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in ("relubetasmooth-arguments.json", "zbox-arguments.json"):  # with its tensors, unlike `check`
        jsonschema.validate(json.loads((CORPUS / name).read_text()), schema)


def test_a_failure_names_case_and_next_step(answered: Path, command: Command) -> None:
    answered.write_text("\n".join(answered.read_text().splitlines()[:2]))
    result = command("verify", answered, *ONLY)
    assert result.exit_code == 1
    id_ = "reludeconvnet-default-relu-zeros-float64"
    assert f"    {id_}: raised an error: no answer" in result.stdout
    assert f"    Show the case: lrp-vectors show {id_}\n" in result.stdout


def test_json_and_markdown(answered: Path, command: Command, tmp_path: Path) -> None:
    result = command("verify", answered, *ONLY, "--json", "-", "--markdown", tmp_path / "table.md", "--quiet")
    whole: dict[str, Any] = json.loads(result.stdout)
    jsonschema.validate(whole, json.loads(export.SCHEMA_FILE.read_text()))
    assert whole["summary"]["verdicts"]["pass"] == 3
    assert "| ReLUDeconvNet |" in (tmp_path / "table.md").read_text()
    assert command("verify", answered, *ONLY, "--json", tmp_path / "run.json").exit_code == 0
    assert json.loads((tmp_path / "run.json").read_text())["summary"]["passed"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["verify", "missing.jsonl", "--vectors", str(CORPUS)], "missing.jsonl cannot be read: No such file"),
        (["verify", __file__, "--vectors", str(CORPUS)], "line 1 of the answers is not JSON"),
        (["verify", __file__, "--vectors", "nowhere"], "expected a folder of test vectors"),
        (["verify", __file__, "--vectors", str(CORPUS), "--only", "lrp-*"], "--only 'lrp-*' fits none of"),
        (
            ["show", "epsilon-default-linear-5-4-signed", "--vectors", str(CORPUS)],
            "similar ids are:\n  epsilon-default",
        ),
        (["answer", "--subject", "nothing.here", "--vectors", str(CORPUS)], "'nothing.here' cannot be imported"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else given[:12],
)
def test_unusable(words: list[str], says: str, command: Command) -> None:
    result = command(*words)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_corpus_with_a_file_missing_is_unusable(command: Command, tmp_path: Path) -> None:
    shutil.copy(CORPUS / "MANIFEST.json", tmp_path)
    result = command("show", "x", "--vectors", tmp_path)
    assert result.exit_code == 2
    assert "the manifest names it; `lrp-vectors check" in result.stderr


# --- show -------------------------------------------------------------------------------------------------------------


def test_show(command: Command) -> None:
    result = command("show", "epsilon-default-linear-5-4-zeros-float64", "--vectors", CORPUS)
    assert result.exit_code == 0
    for text in (
        "rule        Epsilon: d = A x + b; r = x * A^T s",
        "parameters  epsilon=1e-06, zero_params=[]",
        'layer       type="Linear"',
        "weight float64 [4, 5]",
        "expected relevance",
        "stabilizer",
        "ExactZeros: Small integers",
    ):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("id_", "says"),
    [
        ("alphabeta-invalid-equal", "result      invalid; an error is expected, of kind value"),
        ("gamma-advised-gamma-nan", 'gamma="NaN"'),
        ("gamma-advised-gamma-nan", "any answer is accepted; an error of kind value is recommended"),
        ("epsilon-default-linear-5-4-undecided-float64", "3 values are inconclusive"),
        ("zbox-channels-linear-5-4-signed-float64", "low=[[-3.0, -3.375,"),
    ],
)
def test_show_what_is_special(id_: str, says: str, command: Command) -> None:
    assert says in command("show", id_, "--vectors", CORPUS).stdout


def test_version(command: Command) -> None:
    assert command("--version").stdout == f"lrp-vectors {version()}\n"


# --- where they are ---------------------------------------------------------------------------------------------------


def test_those_of_the_installation_are_meant_where_none_are_here(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vectors").mkdir()  # of the user, and none of ours
    [found] = command("path").stdout.splitlines()
    manifest = (Path(found) / "MANIFEST.json").read_bytes()
    assert manifest == (CORPUS / "MANIFEST.json").read_bytes()
    assert command("show", "epsilon-default-linear-5-4-zeros-float64").exit_code == 0
    (tmp_path / "vectors" / "MANIFEST.json").write_bytes(manifest)
    assert command("path").stdout.splitlines() == [str(tmp_path / "vectors")]
    assert command("show", "epsilon-default-linear-5-4-zeros-float64").exit_code == 2  # without the files

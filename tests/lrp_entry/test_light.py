"""Nothing heavy is imported before it is needed, and what is not installed is named with what to do."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lrp_rules.testing
from lrp_entry import commands, extras
from verify.formats.environment import version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = {
    "captum", "coverwise", "dask", "distributed", "hypothesis", "jinja2", "jsonschema", "matplotlib", "mpmath",
    "pandas", "pyarrow", "safetensors", "scipy", "sklearn", "torch", "zennit",
}  # fmt: skip


def _imported(program: str) -> set[str]:
    program += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("command", ["lrp-verify", "lrp-vectors", "lrp-bench"])
def test_help_imports_nothing_heavy(command: str) -> None:
    program = f"""
import sys
from lrp_entry.commands import run
sys.argv = ["{command}", "--help"]
try:
    run("{command}")
except SystemExit as status:
    assert status.code == 0
"""
    found = _imported(program)
    assert "typer" in found  # it did run
    assert found & HEAVY == set()


def test_the_rules_import_torch_and_nothing_else() -> None:
    of_torch = _imported("import torch")
    found = _imported("import lrp_rules, lrp_rules.composites, lrp_rules.recurrent, lrp_rules.testing")
    assert found - of_torch - sys.stdlib_module_names == {"lrp_rules"}


def test_the_project_needs_torch_alone() -> None:
    assert [requirement.split(">")[0] for requirement in PROJECT["dependencies"]] == ["torch"]


# --- what is missing --------------------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some distributions be missing."""
    real = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name in {"typer", "pandas", "matplotlib"}:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    if version() == "unknown":
        pytest.skip("the project is not installed")
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("lrp-verify", "needs typer, which is not installed: run pip install 'lrp-rules[verify]'"),
        ("lrp-vectors", "needs typer, which is not installed: run pip install 'lrp-rules[verify]'"),
        ("lrp-bench", "needs matplotlib, pandas, typer, which are not installed: run pip install 'lrp-rules[bench]'"),
    ],
)
def test_a_command_says_what_to_install(command: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.run(command)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{command} {says}\n"


@pytest.mark.usefixtures("without")
def test_so_does_a_function() -> None:
    with pytest.raises(
        ModuleNotFoundError, match=r"lrp_rules\.testing\.assert_rule needs typer, .*lrp-rules\[verify\]"
    ):
        _ = lrp_rules.testing.assert_rule


def test_so_does_the_reference() -> None:
    program = "import sys; sys.modules['numpy'] = None; import reference"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: reference needs numpy, which is not installed: run pip install 'lrp-rules[verify]'"
    )


@pytest.mark.parametrize("extra", ["verify", "figure", "bench"])
def test_where_all_is_installed_nothing_is_said(extra: str) -> None:
    if version() == "unknown":
        pytest.skip("the project is not installed")
    assert list(extras._required(extra))
    extras.require(extra, "this test")


def test_every_command_is_one_of_those_that_are_installed() -> None:
    assert set(PROJECT["scripts"]) < set(commands.COMMANDS)
    for name, target in PROJECT["scripts"].items():
        assert target == f"lrp_entry.commands:{name.removeprefix('lrp-')}"


def test_what_testing_does_not_offer_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'assert_rules'"):
        _ = lrp_rules.testing.assert_rules

"""The GitHub Action: its steps, run as a runner runs them, and the badge."""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from verify.formats.environment import version
from verify.reports.badge import badge

BASH = which("bash") or ""
ROOT = Path(__file__).parents[3]
ACTION: dict[str, Any] = importlib.import_module("yaml").safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]

pytestmark = pytest.mark.skipif(not BASH, reason="a runner has bash")


@dataclass
class Ran:
    """What a workflow sees of the action."""

    status: int
    text: str
    outputs: dict[str, str]
    summary: str
    folder: Path

    @property
    def badge(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / self.outputs["badge"]).read_text())
        return found


def run(folder: Path, **given: str) -> Ran:
    """Run the steps in turn, until one fails. Installing is left out: the verifier is there already."""
    inputs = {name: value.get("default", "") for name, value in ACTION["inputs"].items()}
    inputs |= {"python": sys.executable} | {name.replace("_", "-"): value for name, value in given.items()}
    outputs: dict[str, dict[str, str]] = {}

    def filled(text: str) -> str:
        def value(match: re.Match[str]) -> str:
            kind, *path = match[1].split(".")
            return inputs[path[0]] if kind == "inputs" else outputs[path[0]].get(path[2], "")

        return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", value, text)

    summary = folder / "summary.md"
    status, text = 0, ""
    for step in STEPS:
        written = folder / f"output-{step['id']}"
        written.touch()
        # no expression inside a script: an input would become a part of it
        assert "${{" not in step["run"]
        script = folder / "step.sh"
        script.write_text(step["run"] if step["id"] != "install" else "true")
        environment = os.environ | {name: filled(value) for name, value in step.get("env", {}).items()}
        environment |= {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(written)}
        # also where the folder of the repository is on the path
        environment |= {"GITHUB_ACTION_PATH": str(ROOT), "PYTHONPATH": os.pathsep.join([".", str(ROOT), *sys.path])}
        done = subprocess.run(
            # as a runner does with `shell: bash`
            [BASH, "--noprofile", "--norc", "-eo", "pipefail", script],
            cwd=folder / filled(step.get("working-directory", ".")),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        outputs[step["id"]] = dict(line.split("=", 1) for line in written.read_text().splitlines())
        status, text = done.returncode, text + done.stdout + done.stderr
        if status:
            break
    named = {name: filled(value["value"]) for name, value in ACTION["outputs"].items()}
    return Ran(status, text, named, summary.read_text() if summary.exists() else "", folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a subject that is right, one that is wrong, and a folder of the same name as ours."""
    (tmp_path / "right.py").write_text("from lrp_rules import NoMod, zero_bias, Epsilon\n")
    (tmp_path / "wrong.py").write_text(
        "from lrp_rules import NoMod, Epsilon\ndef zero_bias(zero_params=None):\n    return ['bias']\n"
    )
    (tmp_path / "verify").mkdir()
    (tmp_path / "verify" / "__init__.py").write_text("raise RuntimeError('imported from the working folder')\n")
    return tmp_path


def test_a_subject_that_holds(folder: Path) -> None:
    ran = run(folder, subject="right", checks="api")
    assert (ran.status, ran.outputs) == (0, {"passed": "true", "failures": "0", "badge": "lrp-verify-badge.json"}), (
        ran.text
    )
    assert ran.badge["schemaVersion"] == 1
    assert re.fullmatch(r"passed \(\d+ cases\)", ran.badge["message"])
    assert ran.badge["color"] == "brightgreen"
    assert ran.summary.startswith("**right unknown**: PASSED: ")
    assert "\n| rule |" in ran.summary


def test_a_wrong_subject_is_a_failing_step(folder: Path) -> None:
    ran = run(folder, subject="wrong", checks="api", badge="badges/rules.json", working_directory=".")
    assert ran.status == 1, ran.text
    assert ran.outputs["passed"] == "false"
    assert int(ran.outputs["failures"]) > 0
    assert "**wrong unknown**: FAILED: " in ran.summary
    assert ran.badge == {
        "schemaVersion": 1,
        "label": "LRP rules",
        "message": f"{ran.outputs['failures']} failed",
        "color": "red",
    }


def test_an_unusable_subject_is_a_failing_step_too(folder: Path) -> None:
    ran = run(folder, subject="no_such_module")
    assert ran.status == 2
    assert "lrp-verify: 'no_such_module' cannot be imported" in ran.text
    assert (ran.outputs["passed"], ran.outputs["failures"], ran.summary) == ("false", "", "")
    assert ran.badge["message"] == "no result"


def test_a_network(folder: Path) -> None:
    (folder / "network.py").write_text(
        "from contextlib import nullcontext\nfrom torch import nn, ones\n"
        "def make():\n    return nn.Sequential(nn.Linear(3, 2)), ones(1, 3)\n"
        "def nothing(model):\n    return nullcontext()\n"
    )
    ran = run(folder, factory="network:make")
    assert (ran.status, ran.outputs["passed"], ran.outputs["failures"]) == (0, "true", "0"), ran.text
    assert ran.badge["message"] == "held (1 operations)"
    assert ran.summary.startswith("**Audit of Sequential by attach**")
    ran = run(folder, factory="network:make", pipeline="network:nothing", rules="EpsilonGammaBox(-1, 1)")
    assert (ran.status, ran.outputs["passed"], ran.outputs["failures"]) == (1, "false", "1"), ran.text
    assert ran.badge["message"] == "1 of 1 operations did not hold"
    assert "Epsilon never ran here" in ran.summary
    for given in ({}, {"subject": "right", "factory": "network:make"}):
        ran = run(folder, **given)
        assert (ran.status, ran.text) == (2, "give a subject or a factory, and not both\n")


def test_inputs_are_no_code(folder: Path) -> None:
    ran = run(folder, subject='"; touch stolen; echo $(touch stolen)"', checks="`touch stolen`")
    assert ran.status == 2
    assert not (folder / "stolen").exists()


def test_strict_is_true_or_false(folder: Path) -> None:
    ran = run(folder, subject="right", strict="perhaps")
    assert ran.status == 2
    assert "strict is 'perhaps'; expected true or false" in ran.text


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, []),
        ({"strict": "true"}, ["--strict"]),
        ({"checks": "api,errors"}, ["--check", "api,errors"]),
        ({"deviations": "known ones.toml"}, ["--deviations", "known ones.toml"]),
    ],
    ids=["none", "strict", "checks", "deviations"],
)
def test_inputs_become_options(inputs: dict[str, str], words: list[str], folder: Path) -> None:
    program = folder / "python"
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>" >&2; done\n')
    program.chmod(0o755)
    ran = run(folder, subject="their rules", python=str(program), **inputs)
    said = re.findall("<(.*)>", ran.text)
    said = said[: said.index("-P", 1)]  # the badge comes after it
    assert said[:6] == ["-P", "-m", "lrp_entry.commands", "lrp-verify", "--subject", "their rules"]
    assert said[10:] == words


def test_what_is_installed(folder: Path) -> None:
    """From the checkout of the action, or what is named."""
    program = folder / "python"
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    program.chmod(0o755)
    [step] = [step for step in STEPS if step["id"] == "install"]
    for wanted, expected in (("", "/their/action[verify]"), ("lrp-rules[verify]==0.2.0",) * 2):
        environment = os.environ | {"PYTHON": str(program), "VERSION": wanted, "GITHUB_ACTION_PATH": "/their/action"}
        done = subprocess.run(
            [BASH, "-eo", "pipefail", "-c", step["run"]], env=environment, capture_output=True, text=True, check=True
        )
        assert re.findall("<(.*)>", done.stdout) == ["-m", "pip", "install", expected]


def test_the_action_is_one() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert {"subject", "checks", "deviations", "strict", "version", "python", "badge"} <= ACTION["inputs"].keys()
    assert {"passed", "failures", "badge"} <= ACTION["outputs"].keys()
    for entry in (*ACTION["inputs"].values(), *ACTION["outputs"].values()):
        assert entry["description"]
    # each step of a composite action names its shell
    assert all(step["shell"] == "bash" for step in STEPS)
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == ACTION["inputs"].keys()


@pytest.mark.parametrize(
    ("summary", "message", "color"),
    [
        ({"passed": True, "failures": 0, "verdicts": {"pass": 12}}, "passed (12 cases)", "brightgreen"),
        ({"passed": False, "failures": 3, "verdicts": {"pass": 12}}, "3 failed", "red"),
        ({"passed": False, "failures": 0, "stale": 2, "verdicts": {}}, "2 known deviations are stale", "red"),
        ({"passed": False, "failures": 0, "stale": 0, "verdicts": {"pass": 12}}, "failed", "red"),
    ],
    ids=["passed", "failures", "stale", "nothing tested"],
)
def test_badge(summary: dict[str, Any], message: str, color: str) -> None:
    found = badge({"summary": summary})
    assert (found["message"], found["color"]) == (message, color)


def test_the_checkout_can_be_installed_from() -> None:
    """What the action's install step needs lies beside it, and its metadata can be read."""
    assert (ROOT / "pyproject.toml").exists()
    assert version()

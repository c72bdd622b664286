"""The port in JavaScript, its page, and what a mistake in it looks like."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from verify.faces import cli
from verify.model import NETWORK_RULES
from verify.subjects.protocol import messages
from verify.subjects.protocol.process import Process

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "docs" / "protocol.md"
PORTING = ROOT / "docs" / "tutorials" / "port.md"


def verified(command: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["--command", command, "--workers", "0", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("rule", ["Epsilon", "Gamma", "ZBox", "ReLUBetaSmooth"])
def test_a_rule_holds(rule: str, node: str) -> None:
    found = verified(node, "--rule", rule, "--check", "agreement,errors", "--shard", "1/8")
    assert found.exit_code == 0, found.output
    assert "PASSED" in found.output


def test_how_it_starts_and_ends(node: str) -> None:
    found = verified(node, "--check", "protocol")
    assert found.exit_code == 0
    assert "PASSED: 3 cases in " in found.output


def transcript() -> list[tuple[str, dict[str, Any]]]:
    (block,) = re.findall(r"```text\n(.*?)```", PROTOCOL.read_text(encoding="utf-8"), re.DOTALL)
    return [(line[0], json.loads(line[2:])) for line in block.splitlines()]


def test_the_transcript_is_what_the_schema_says() -> None:
    schema = json.loads(
        (ROOT / "verify" / "subjects" / "protocol" / "lrp-port-1.schema.json").read_text(encoding="utf-8")
    )
    for arrow, message in transcript():
        part = {"→": "request", "←": "answer"}[arrow]
        Draft202012Validator({**schema, "anyOf": [{"$ref": f"#/$defs/{part}"}]}).validate(message)


def test_the_transcript_is_what_the_port_says(node: str) -> None:
    port = Process(node.split())
    lines = transcript()
    try:
        for (_, request), (_, answer) in zip(lines[::2], lines[1::2], strict=True):
            got = json.loads(port.ask(json.dumps(request).encode(), 20))
            if "language" in got:  # of this machine's Node
                got["language"] = answer["language"]
            assert got == answer
    finally:
        port.kill()
    assert lines[0][1] == json.loads(messages.start(lines[0][1]["verifier"]))


# --- mistakes ---------------------------------------------------------------------------------------------------------

#: Name of the variant that the diagnosis names, rule, and what the mistake writes in the place of what.
MISTAKES = {
    "epsilon-unsigned": ("Epsilon", "f(v + eps * sign(v))", "f(v + eps)"),
    "bias-dropped": ("Epsilon", "d = d.map((sum, j) => f(sum + bias[j]));", ""),
}


@pytest.fixture(scope="module")
def mistaken(node: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Run the port with each of the mistakes."""
    found = {}
    for name, (rule, right, wrong) in MISTAKES.items():
        folder = tmp_path_factory.mktemp(name) / "javascript"
        shutil.copytree(ROOT / "ports" / "javascript", folder)
        rules = (folder / "rules.js").read_text(encoding="utf-8")
        assert rules.count(right) == 1
        (folder / "rules.js").write_text(rules.replace(right, wrong), encoding="utf-8")
        words = ["--rule", rule, "--layer", "Linear", "--check", "agreement", "--dtype", "float64"]
        found[name] = verified(f"node {folder}/main.js", *words)
    return found


@pytest.mark.parametrize("name", MISTAKES)
def test_a_classic_mistake_is_named(name: str, mistaken: dict[str, Result]) -> None:
    assert mistaken[name].exit_code == 1
    assert f"{MISTAKES[name][0]} matches `{name}`" in mistaken[name].output


def test_the_page_shows_what_a_mistake_looks_like(mistaken: dict[str, Result]) -> None:
    page = PORTING.read_text(encoding="utf-8")
    name = "epsilon-unsigned"
    assert all(text in page for text in MISTAKES[name][1:])
    starts = ("agreement/Epsilon/linear-5-4/default/signed/float64", "Diagnosis: Epsilon matches")
    said = [line.strip() for line in mistaken[name].output.splitlines() if line.strip().startswith(starts)]
    assert len(said) == len(starts)
    assert all(line in page for line in said)


def test_the_vectors_are_answered(node: str) -> None:
    script = node.split()[1].replace("main.js", "vectors.js")
    done = subprocess.run(["node", script, str(ROOT / "vectors")], capture_output=True, text=True, check=True)  # noqa: S607
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    without = {"no layer Elementwise gelu", *(f"no rule {rule}" for rule in NETWORK_RULES)}
    assert {answer.get("skipped") for answer in answers} == {None, *without}
    assert len(answers) > 1500

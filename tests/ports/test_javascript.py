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
from verify.vectors.cli import app as vectors_cli

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
    assert {answer.get("skipped") for answer in answers} == {None, "no layer Elementwise gelu"}
    assert len(answers) > 1500


#: What a mistake in a rule for networks writes in the place of what.
OF_NETWORKS = {
    "Uniform": ("f(R[j] / receiving.length)", "R[j]"),
    "SignalTakesAll": ("routed(layer, x, R, [signalOf(layer, signal)])", "routed(layer, x, R, layer.variables)"),
    "Bilinear": (
        "const matrix = layer.A();",
        "const matrix = layer.A(); matrix.values.forEach((v, i, all) => (all[i] = v / 2));",
    ),
    "Softmax": ("f(s[i] * total)", "0"),
    "Stop": ("Stop: (layer, x) => new Float64Array(x.length)", "Stop: (layer, x, R) => R"),
    "LayerNormRule": ('layer.frozen(x, given.parameter("weight"))', "layer.jacobian(x)"),
}


@pytest.mark.parametrize("rule", NETWORK_RULES)
def test_the_vectors_judge_a_rule_for_networks(rule: str, node: str, tmp_path: Path) -> None:
    folder, own = tmp_path / "javascript", tmp_path / "vectors"
    shutil.copytree(ROOT / "ports" / "javascript", folder)
    own.mkdir()
    for file in (ROOT / "vectors").glob(f"{rule.lower()}-*.json"):
        shutil.copy(file, own)
    assert _judged(folder, own, rule).exit_code == 0
    text = (folder / "network_rules.js").read_text(encoding="utf-8")
    right, wrong = OF_NETWORKS[rule]
    assert text.count(right) == 1
    (folder / "network_rules.js").write_text(text.replace(right, wrong), encoding="utf-8")
    assert _judged(folder, own, rule).exit_code == 1


def _judged(folder: Path, vectors: Path, rule: str) -> Result:
    answers = subprocess.run(["node", folder / "vectors.js", vectors], capture_output=True, text=True, check=True)  # noqa: S607
    results = vectors.parent / "results.jsonl"
    results.write_text(answers.stdout, encoding="utf-8")
    words = ["verify", str(results), "--vectors", str(ROOT / "vectors"), "--only", f"{rule.lower()}-*", "--quiet"]
    return CliRunner().invoke(vectors_cli, words, catch_exceptions=False)

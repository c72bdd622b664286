"""`vectors/README.md` for porters: what it says in a few lines of their language is right, and its commands exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from verify.formats.tensor_json import decode
from verify.vectors import reading
from verify.vectors.cli import app

CORPUS = Path(__file__).parents[3] / "vectors"
README = (CORPUS / "README.md").read_text()
CASE = "epsilon-default-conv2d-k3x2-s2x1-p1x0-signed-float32"


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def forms() -> list[dict[str, Any]]:
    """A float32 image, a float64 relevance, and what is neither finite nor positive."""
    case = reading.find(reading.load(CORPUS), CASE)[2]
    return [case["tensors"]["x"], case["relevance"]]


def test_python(forms: list[dict[str, Any]]) -> None:
    names: dict[str, Any] = {}
    exec(block("python"), names)  # noqa: S102  it is ours
    for form in forms:
        assert names["tensor"](form).tolist() == decode(form).tolist()


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_javascript(forms: list[dict[str, Any]]) -> None:
    program = f"{block('javascript')}\nconsole.log(JSON.stringify({json.dumps(forms)}.map(tensor)))"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)  # noqa: S607  from PATH
    for form, found in zip(forms, json.loads(done.stdout), strict=True):
        assert found == {"shape": form["shape"], "data": decode(form).ravel().tolist()}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_c(forms: list[dict[str, Any]], tmp_path: Path) -> None:
    form = forms[1]
    head = "#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
    count = decode(form).size
    main = f'int main(void) {{ for (int i = 0; i < {count}; i++) printf("%.17g\\n", entry("{form["hex"]}", i)); }}'
    (tmp_path / "a.c").write_text(f"{head}{block('c')}{main}")
    command = ["cc", "-Wall", "-Werror", "-o", str(tmp_path / "a"), str(tmp_path / "a.c")]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True)
    assert [float(line) for line in done.stdout.split()] == decode(form).ravel().tolist()


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK here")
def test_java(forms: list[dict[str, Any]], tmp_path: Path) -> None:
    names = ("java.nio.ByteBuffer", "java.nio.ByteOrder", "java.util.HexFormat")
    calls = [f'for (double v : entries("{form["dtype"]}", "{form["hex"]}")) System.out.println(v);' for form in forms]
    main = f"public static void main(String[] arguments) {{ {' '.join(calls)} }}"
    imports = "".join(f"import {name};\n" for name in names)
    (tmp_path / "A.java").write_text(f"{imports}class A {{\n{block('java')}{main}\n}}\n")
    command = ["java", "-XX:TieredStopAtLevel=1", str(tmp_path / "A.java")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = [value for form in forms for value in decode(form).ravel().tolist()]
    assert [float(line) for line in done.stdout.split()] == expected


def test_commands_and_ids_exist() -> None:
    documents = reading.load(CORPUS)
    known = {case["id"] for _, _, case in reading.each(documents)}
    named = re.findall(r'"id": "([^"]+)"', README) + re.findall(r"lrp-vectors show (\S+)", README)
    assert len(named) == 4
    assert set(named) <= known
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"lrp-vectors (\w+)", README)) <= commands


def test_changelog_names_the_version_and_the_number_of_cases() -> None:
    manifest = json.loads((CORPUS / "MANIFEST.json").read_text())
    first = (CORPUS / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert first.startswith(f"{manifest['corpus_version']}\n")
    assert f"{manifest['counts']['cases']:,} cases" in first

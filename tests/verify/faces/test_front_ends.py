"""The command and the plugin of pytest agree item by item: `lrp-verify --subject S`, `pytest --lrp-subject S -n 2`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[3]
INSTALLED = any(point.value == "lrp_entry.pytest_plugin" for point in entry_points(group="pytest11"))
PLUGIN = [] if INSTALLED else ["-p", "lrp_entry.pytest_plugin"]
#: What pytest calls what the command says, decided or not.
CALLED = {"pass": "passed", "not-offered": "skipped", "skipped": "skipped", "inconclusive": "skipped"}

Item = tuple[str, str, str]  # what pytest calls it, the verdict, the ratio


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def of_command(folder: Path, subject: str, *filters: str) -> dict[str, Item]:
    """What the command says of each case, from its JSON."""
    words = [f"--{name}" for name in filters[::2]]
    given = [word for pair in zip(words, filters[1::2], strict=True) for word in pair]
    done = _run(folder, "verify", "--subject", subject, "--quiet", "--workers", "2", "--json", "run.json", *given)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    cases: list[dict[str, Any]] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["cases"]
    return {
        case["id"]: (
            CALLED.get(case["verdict"]) or ("failed" if case["decides"] else "xfailed"),
            case["verdict"],
            str(case["ratio"]),
        )
        for case in cases
    }


def of_plugin(folder: Path, subject: str, *filters: str) -> dict[str, Item]:
    """What pytest says of each item, from its JUnit XML."""
    words = [f"--lrp-{name}" for name in filters[::2]]
    given = [word for pair in zip(words, filters[1::2], strict=True) for word in pair]
    files = ["--junitxml", "run.xml", "-o", "junit_logging=no"]
    done = _run(folder, "pytest", *PLUGIN, "--lrp-subject", subject, "-n", "2", "-q", "-r", "N", *files, *given)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return dict(map(_item, ET.parse(folder / "run.xml").iter("testcase")))  # noqa: S314  our own


def _item(case: ET.Element) -> tuple[str, Item]:
    told = {str(one.get("name")): str(one.get("value")) for one in case.iter("property")}
    kinds = {"failure": "failed", "error": "error", "skipped": "skipped"}
    called = next((kinds[child.tag] for child in case if child.tag in kinds), "passed")
    skipped = case.find("skipped")
    if skipped is not None and skipped.get("type") == "pytest.xfail":
        called = "xfailed"
    return str(case.get("name")), (called, told.get("lrp_verdict", ""), told.get("lrp_ratio", "None"))


def differences(command: dict[str, Item], plugin: dict[str, Item]) -> list[str]:
    """Name each item of which the two say something else."""
    ids: Iterable[str] = {**command, **plugin}
    return [f"{id_}: {command.get(id_)}, {plugin.get(id_)}" for id_ in ids if command.get(id_) != plugin.get(id_)]


def _compare(folder: Path, *filters: str) -> Counter[str]:
    if find_spec("zennit") is None:
        pytest.skip("zennit is not installed")
    command, plugin = (ask(folder, "zennit.rules", *filters) for ask in (of_command, of_plugin))
    assert command
    assert differences(command, plugin) == []
    return Counter(called for called, _, _ in command.values())


@pytest.mark.selftest
def test_they_agree_on_some_cases(tmp_path: Path) -> None:
    counts = _compare(tmp_path, "rule", "AlphaBeta,Pass", "check", "errors,laws", "dtype", "float64")
    assert {"passed", "failed", "xfailed"} <= set(counts)


@pytest.mark.selftest
def test_they_agree_on_all_cases(tmp_path: Path) -> None:
    counts = _compare(tmp_path)
    print(dict(counts))  # noqa: T201  what there was to compare
    assert {"passed", "failed", "xfailed", "skipped"} <= set(counts)


def test_a_difference_is_named() -> None:
    told = {"a/b": ("passed", "pass", "0.5"), "c/d": ("failed", "fail", "2.0")}
    assert differences(told, dict(told)) == []
    for other in ({"a/b": told["a/b"]}, told | {"c/d": ("passed", "fail", "2.0")}, told | {"e": told["a/b"]}):
        assert len(differences(told, other)) == 1

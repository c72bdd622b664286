"""What the files around the code promise each other: commands, versions, and what the wheel ships."""

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGES = ("bench", "lrp_entry", "lrp_rules", "reference", "verify")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
REQUIRED = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
    if not text.startswith("lrp-rules[")
]


def test_readme_and_ci_give_the_same_test_command() -> None:
    [command] = [line for line in (ROOT / "README.md").read_text().splitlines() if line.endswith(".venv/bin/tox")]
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == command


def test_readme_gives_the_main_job() -> None:
    command = ".venv/bin/pip install -c constraints.txt '.[verify]' && .venv/bin/lrp-verify"
    assert command in (ROOT / "README.md").read_text()


def test_ci_script_can_be_executed() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("pin", PINS)
def test_constraints_are_exact_and_public(pin: str) -> None:
    # a local version such as +cpu exists on one kind of machine only
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9a-z.]+", pin)


def test_constraints_name_everything_once() -> None:
    names = [canonicalize_name(pin.split("==")[0]) for pin in PINS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("requirement", REQUIRED, ids=str)
def test_tested_version_lies_in_the_declared_range(requirement: Requirement) -> None:
    versions = {canonicalize_name(name): Version(version) for name, version in (pin.split("==") for pin in PINS)}
    assert versions[canonicalize_name(requirement.name)] in requirement.specifier


def test_wheel_ships_the_packages_and_nothing_else(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".pyo"}
    }
    expected = {name for name in expected if not name.startswith("verify/selftests/mechanical/")}
    expected |= {f"verify/vectors/frozen/{path.name}" for path in (ROOT / "vectors").iterdir()}
    assert shipped == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= shipped
    assert {"verify/questions/digits/weights.safetensors", "verify/questions/digits/images.safetensors"} <= shipped

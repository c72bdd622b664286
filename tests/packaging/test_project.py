"""What the files around the code promise each other: commands, versions, and what the wheel ships."""

import importlib
import re
import runpy
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lrp_rules

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


yaml: Any = importlib.import_module("yaml")  # it has no types
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}


def test_the_versions_that_are_claimed_are_tested() -> None:
    matrix = WORKFLOWS["tests"]["jobs"]["versions"]["strategy"]["matrix"]
    claimed = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", text)]
    assert matrix["python"] == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"
    [torch] = [requirement for requirement in REQUIRED if requirement.name == "torch"]
    oldest = min(Version(one["torch"]) for one in matrix["include"] if one["torch"])
    assert f">={oldest.major}.{oldest.minor}" in str(torch.specifier).split(",")
    systems = {one.partition("-")[0] for one in [*matrix["os"], *(one["os"] for one in matrix["include"])]}
    names = {"Linux": "ubuntu", "MacOS": "macos"}
    claims = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if text.startswith("Operating System")}
    assert {names[claim] for claim in claims} == systems


def test_tools_of_pre_commit_have_the_tested_versions() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    versions = {repo["repo"].rpartition("/")[2].removesuffix("-pre-commit"): repo["rev"] for repo in repos}
    for tool in ("ruff", "import-linter"):
        assert f"{tool}=={versions[tool].removeprefix('v')}" in PINS


def test_the_conda_recipe_says_what_the_wheel_says() -> None:
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text())
    scripts = dict(line.split(" = ") for line in recipe["build"]["python"]["entry_points"])
    assert scripts == PROJECT["scripts"]
    needed = {name: Requirement(f"{name}{rest}") for name, _, rest in map(_split, recipe["requirements"]["run"])}
    assert str(needed.pop("python").specifier) == PROJECT["requires-python"]
    assert {str(one.specifier) for one in needed.values()} == {
        str(Requirement(text).specifier) for text in PROJECT["dependencies"]
    }


def _split(text: str) -> tuple[str, str, str]:
    return text.partition(" ")


def test_the_version_stands_in_one_place_and_the_changelog_has_it() -> None:
    released = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert lrp_rules.__version__ in released[:1]
    assert PROJECT["dynamic"] == ["version"]


def test_a_row_of_the_table_of_versions(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / ".ci/versions.py"))
    (tmp_path / "run.xml").write_text(
        '<testsuites><testsuite tests="7018" failures="1" errors="1" skipped="3"/></testsuites>'
    )
    row = script["row"](str(tmp_path / "run.xml"))
    assert row.endswith(" | 7,013 passed, 3 skipped, **2 failed** |")
    assert row.count("|") == script["HEAD"].partition("\n")[0].count("|")


@pytest.mark.parametrize(
    "path", ["CITATION.cff", ".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/verdict.yml"]
)
def test_what_github_reads_is_yaml(path: str) -> None:
    found = yaml.safe_load((ROOT / path).read_text())
    assert {"cff-version", "title", "authors", "message"} <= found.keys() or {
        "name",
        "description",
        "body",
    } <= found.keys()


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
    expected = {
        name
        for name in expected
        if not name.startswith(("verify/selftests/mechanical/", "verify/selftests/blind_sets/"))
    }
    expected |= {f"verify/vectors/frozen/{path.name}" for path in (ROOT / "vectors").iterdir()}
    assert shipped == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= shipped
    assert {"verify/questions/digits/weights.safetensors", "verify/questions/digits/images.safetensors"} <= shipped

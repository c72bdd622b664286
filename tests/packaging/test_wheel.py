"""The wheel as a stranger gets it: a fresh environment, nothing but what it declares, any working folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from lrp_entry.names import NAMES

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
BIN = "Scripts" if os.name == "nt" else "bin"

pytestmark = pytest.mark.wheel


def ran(*command: str | Path, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command as from a shell without any Python settings, but for a PYTHONPATH that is given."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": path} if path else {}
    return subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def run(*command: str | Path, cwd: Path, path: str = "") -> str:
    """Return the output of a command, or fail and show it."""
    done = ran(*command, cwd=cwd, path=path)
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    [built] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    return Path(built)


def fresh(folder: Path, *words: str | Path) -> Path:
    """Return the folder of programs of a fresh environment in which something was installed."""
    run(sys.executable, "-m", "venv", folder / "environment", cwd=folder)
    found = folder / "environment" / BIN
    run(found / "pip", "install", "--no-compile", "-c", ROOT / "constraints.txt", *words, cwd=folder)
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and nothing else, not even torch."""
    return fresh(tmp_path_factory.mktemp("bare"), "--no-deps", wheel)


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel with all that the commands need, and pytest."""
    folder = tmp_path_factory.mktemp("fresh")
    yield fresh(folder, f"{wheel}[bench]", "pytest", "pytest-xdist")
    shutil.rmtree(folder)  # a gigabyte, which pytest would keep for three runs


def occupied(folder: Path, kind: str, names: Sequence[str] = NAMES) -> Path:
    """Make a folder whose owner has packages or files of the same names."""
    for name in names:
        if kind == "packages":
            (folder / name).mkdir()
        place = folder / name / "__init__.py" if kind == "packages" else folder / f"{name}.py"
        place.write_text("MINE = True\n")
    return folder


# --- without what it needs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_without_its_extra_says_what_to_install(bare: Path, script: str, tmp_path: Path) -> None:
    done = ran(bare / script, "--help", cwd=occupied(tmp_path, "files"), path=".")
    extra = "bench" if script == "lrp-bench" else "verify"
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        rf"{script} needs [\w, ]+, which are not installed: run pip install 'lrp-rules\[{extra}\]'\n", done.stderr
    )


# --- with all of it ---------------------------------------------------------------------------------------------------


def test_what_is_installed_fits_together(programs: Path, tmp_path: Path) -> None:
    assert "No broken requirements found" in run(programs / "pip", "check", cwd=tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_explain_themselves(programs: Path, script: str, tmp_path: Path) -> None:
    assert script in run(programs / script, "--help", cwd=occupied(tmp_path, "packages", (*NAMES, "lrp_rules")))


def test_network_and_images_come_along(programs: Path, tmp_path: Path) -> None:
    program = "from verify.questions.digits import *; print(load_model()(load_images().pixels).shape)"
    assert run(programs / "python", "-c", program, cwd=tmp_path) == "torch.Size([360, 10])\n"


def test_vectors_come_along(programs: Path, tmp_path: Path) -> None:
    assert run(programs / "lrp-vectors", "path", cwd=tmp_path).endswith("frozen\n")
    id_ = "epsilon-default-linear-5-4-zeros-float64"
    assert run(programs / "lrp-vectors", "show", id_, cwd=tmp_path).startswith(id_)


# --- where others have the names --------------------------------------------------------------------------------------

#: A user's tests, which import what is the user's, and assert with what is ours.
TEST = """
import numpy as np
import bench, reference, verify
from lrp_rules import Epsilon
from lrp_rules.testing import assert_rule

def formula(A, x, b, R):
    z = A @ x + b
    return x * (A.T @ (R / (z + 1e-6 * np.where(z < 0, -1, 1))))

def test_own():
    assert verify.MINE and bench.MINE and reference.MINE
    assert_rule(Epsilon, formula, layers=["linear-5-4"], kinds=["signed"], laws=[], conduct=[])
    import verify as again
    assert again is verify
"""


@pytest.mark.parametrize(
    ("kind", "words", "path"),
    [
        ("packages", ("pytest",), "."),
        ("files", ("python", "-m", "pytest", "-n", "2"), ""),
    ],
    ids=["packages, PYTHONPATH", "files, python -m pytest, xdist"],
)
def test_pytest_runs_the_users_tests_and_the_cases(
    programs: Path, kind: str, words: Sequence[str], path: str, tmp_path: Path
) -> None:
    occupied(tmp_path, kind)
    (tmp_path / "my_rules.py").write_text("from lrp_rules import Flat\n")
    (tmp_path / "test_own.py").write_text(TEST)
    program, *options = words
    given = [*options, "-v", "--lrp-subject", "my_rules", "lrp::agreement/Flat/linear-5-4", "test_own.py"]
    text = run(programs / program, *given, cwd=tmp_path, path=path)
    found = re.findall(r"(?:^|\] PASSED )(test_own\S+|lrp::\S+)", text, re.MULTILINE)
    assert "test_own.py::test_own" in found
    assert len([id_ for id_ in found if id_.startswith("lrp::agreement/Flat/linear-5-4/")]) > 2


def test_the_command_and_its_workers_run(programs: Path, tmp_path: Path) -> None:
    occupied(tmp_path, "packages")
    (tmp_path / "my_rules.py").write_text("from lrp_rules import Flat\n")
    words = ("--subject", "my_rules", "--rule", "Flat", "--layer", "Linear", "--check", "agreement")
    text = run(programs / "lrp-verify", *words, "--workers", "1", cwd=tmp_path, path=".")
    assert re.search(r"^PASSED: \d+ cases", text, re.MULTILINE)

"""The wheel as a stranger gets it: a fresh environment, nothing but what it declares, any working folder."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

pytestmark = pytest.mark.wheel


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command as from a shell without any Python settings; its output, or a failure that shows it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of programs of a fresh environment that the wheel was installed in."""
    folder = tmp_path_factory.mktemp("fresh")
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(folder))
    run(sys.executable, "-m", "venv", folder / "environment", cwd=folder)
    found = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
    run(found / "pip", "install", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    yield found
    shutil.rmtree(folder)  # a gigabyte, which pytest would keep for three runs


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working folder whose owner has packages of the same names."""
    for name in ("bench", "lrp_rules", "reference", "verify"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported from the working folder')\n")
    return tmp_path


def test_what_is_installed_fits_together(programs: Path, tmp_path: Path) -> None:
    assert "No broken requirements found" in run(programs / "pip", "check", cwd=tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_explain_themselves(programs: Path, script: str, elsewhere: Path) -> None:
    assert script in run(programs / script, "--help", cwd=elsewhere)


def test_network_and_images_come_along(programs: Path, tmp_path: Path) -> None:
    program = "from verify.questions.digits import *; print(load_model()(load_images().pixels).shape)"
    assert run(programs / "python", "-c", program, cwd=tmp_path) == "torch.Size([360, 10])\n"

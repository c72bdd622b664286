"""`lrp_rules.testing` in a process whose user has packages or files named as ours."""

import subprocess
import sys
from pathlib import Path

import pytest

import lrp_entry.names
from lrp_entry.names import NAMES
from verify.model import SubjectError
from verify.subjects.loading import load

ROOT = Path(__file__).parents[2]

#: A test of a user, who imports what is theirs, before and after, and in between asks what is ours.
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
sys.path.insert(0, {theirs!r})
import importlib
import numpy as np
{before}
from lrp_rules import Epsilon
from lrp_rules.testing import assert_rule

def formula(A, x, b, R):
    z = A @ x + b
    return x * (A.T @ (R / (z + {epsilon} * np.where(z < 0, -1, 1))))

told = ""
for _ in range(2):
    try:
        assert_rule(Epsilon, formula, layers=["linear-5-4"], kinds=["signed"], laws=[], conduct=[])
    except AssertionError as error:
        told = str(error)
    for name in ("verify", "bench", "reference"):
        assert importlib.import_module(name).MINE == "theirs", name
assert not any(name.split(".")[0] in ("verify", "bench", "reference") and "." in name for name in sys.modules)
print(told or "held")
"""


def _theirs(folder: Path, kind: str) -> None:
    for name in NAMES:
        if kind == "packages":
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text("MINE = 'theirs'\n")
        else:
            (folder / f"{name}.py").write_text("MINE = 'theirs'\n")


@pytest.mark.parametrize(
    ("kind", "before", "epsilon", "says"),
    [
        ("packages", "import verify, bench, reference", "1e-6", "held"),
        ("files", "", "1e-2", "agreement/linear-5-4/signed/float64"),
    ],
    ids=["packages, imported before", "files, imported after"],
)
def test_a_rule_is_held_to_its_formula(kind: str, before: str, epsilon: str, says: str, tmp_path: Path) -> None:
    _theirs(tmp_path, kind)
    program = PROGRAM.format(root=str(ROOT), theirs=str(tmp_path), before=before, epsilon=epsilon)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_where_nobody_else_has_the_names_nothing_moves() -> None:
    import verify  # noqa: PLC0415  what is there before is there afterwards

    finders = list(sys.meta_path)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in NAMES}
    with lrp_entry.names.pinned():
        import reference  # noqa: PLC0415
    assert sys.modules["reference"] is reference
    assert sys.modules["verify"] is verify
    assert before.items() <= sys.modules.items()
    assert sys.meta_path == finders


def test_the_names_are_given_back_after_an_error() -> None:
    finders = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), lrp_entry.names.pinned():
        _ = 1 / 0
    assert sys.meta_path == finders


def test_a_subject_that_imports_its_own_package_by_such_a_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with_a_reference.py").write_text("from reference import tables\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        SubjectError, match=r"bench, reference, verify are packages of lrp-rules here; expected another"
    ):
        load("with_a_reference")

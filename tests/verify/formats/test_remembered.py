"""What the reference says is found again for the same question, and for no other."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from reference.layers import Linear
from verify.formats import remembered as module
from verify.formats.remembered import VARIABLE, remembered

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    module._opened.cache_clear()


class _Counted:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"a": np.array([1.0, -0.0, np.nan, np.inf]), "b": np.arange(6).reshape(2, 3).T, "c": np.array(True)}


def test_the_same_question_is_computed_once() -> None:
    compute = _Counted()
    first, second = (remembered(compute, "same", np.arange(3.0), {"k": (1, None)}) for _ in range(2))
    assert compute.calls == 1
    for name, value in compute().items():
        for found in (first[name], second[name]):
            assert found.dtype == value.dtype
            assert found.shape == value.shape
            assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(value).tobytes()


@dataclass(frozen=True)
class _Data:
    x: object


def _adds(k: float) -> Any:
    return lambda d: d + k


DIFFERENT = [
    ("order", ("a", "b"), ("b", "a")),
    ("sign of zero", np.array([0.0]), np.array([-0.0])),
    ("sign of zero of a number", 0.0, -0.0),
    ("one bit", np.array([1.0]), np.array([np.nextafter(1.0, 2.0)])),
    ("dtype", np.zeros(2, np.float32), np.zeros(1, np.float64)),
    ("shape", np.zeros((2, 3)), np.zeros((3, 2))),
    ("shape of a tensor", torch.zeros(2, 3), torch.zeros(3, 2)),
    ("numbers of a tensor", torch.tensor(1.0), torch.tensor(2.0)),
    ("dtype of a tensor", torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.float32)),
    ("strides", np.arange(4.0)[::2], np.arange(4.0)[:2]),
    ("type", 1, 1.0),
    ("truth", True, 1),
    ("text", "1", 1),
    ("nesting", (1, (2, 3)), (1, 2, 3)),
    ("argument's name", {"gamma": 1.0}, {"alpha": 1.0}),
    ("field", _Data(1), _Data(2)),
    ("what a function holds", _adds(1.0), _adds(2.0)),
    ("what a function does", lambda d: d + 1, lambda d: d - 1),
    ("number in a function", lambda d: d + 1, lambda d: d + 2),
    ("layer", Linear((2,), np.ones((1, 2)), None), Linear((2,), np.ones((1, 2)), np.zeros(1))),
]


@pytest.mark.parametrize(("one", "other"), [pytest.param(a, b, id=name) for name, a, b in DIFFERENT])
def test_another_question_is_computed(one: object, other: object) -> None:
    compute = _Counted()
    remembered(compute, one)
    remembered(compute, other)
    assert compute.calls == 2


def test_whether_two_things_are_one_object_makes_no_difference() -> None:
    compute, x = _Counted(), np.arange(3.0)
    remembered(compute, x, x)
    remembered(compute, x, x.copy())
    assert compute.calls == 1


def test_what_has_no_content_is_refused() -> None:
    with pytest.raises(TypeError):
        remembered(_Counted(), (n for n in range(3)))


def test_switched_off_everything_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    compute = _Counted()
    for _ in range(2):
        remembered(compute, "same")
    assert compute.calls == 2
    assert not list(tmp_path.iterdir())


def _file(folder: Path) -> Path:
    (path,) = folder.glob("reference-*.sqlite")
    return path


@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, at: int) -> None:
    compute = _Counted()
    remembered(compute, "same")
    database = sqlite3.connect(_file(tmp_path))
    ((value,),) = database.execute("SELECT value FROM known")
    damaged = bytearray(value)
    damaged[at] ^= 1
    database.execute("UPDATE known SET value = ?", (bytes(damaged),))
    database.commit()
    database.close()
    for _ in range(2):
        assert remembered(compute, "same")["a"][0] == 1.0
    assert compute.calls == 2


def test_a_file_that_is_no_database_costs_only_time(tmp_path: Path) -> None:
    compute = _Counted()
    remembered(compute, "same")
    path = _file(tmp_path)
    module._opened.cache_clear()
    for name in tmp_path.iterdir():
        name.unlink()
    path.write_bytes(b"no database" * 1000)
    for _ in range(2):
        assert remembered(compute, "same")["a"][0] == 1.0
    assert compute.calls == 3


def test_a_folder_that_cannot_be_made_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "folder"))
    assert remembered(_Counted(), "same")["a"][0] == 1.0


def test_other_sources_have_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = _Counted()
    for number, source in enumerate(("one", "two", "three", "three")):
        monkeypatch.setattr(module, "_sources", lambda source=source: source)
        module._opened.cache_clear()
        remembered(compute, "same")
        for path in tmp_path.iterdir():
            os.utime(path, (number, number)) if path.name == f"reference-{source}.sqlite" else None
    assert compute.calls == 3
    names = {path.name for path in tmp_path.glob("*.sqlite")}
    assert names == {"reference-two.sqlite", "reference-three.sqlite"}


def test_the_sources_are_told_by_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "verify" / "formats" / "remembered.py"
    fake.parent.mkdir(parents=True)
    fake.touch()
    rule = tmp_path / "reference" / "rules.py"
    rule.parent.mkdir()
    monkeypatch.setattr(module, "__file__", str(fake))
    found = []
    for text in ("r = 1", "r = 2", "r = 1"):
        rule.write_text(text)
        found.append(module._sources.__wrapped__())
    assert found[0] == found[2] != found[1]


_ASK = """
import numpy as np
from verify.formats.remembered import remembered
for number in range(200):
    found = remembered(lambda: {"a": np.array(float(number))}, "number", number % 40)
    assert float(found["a"]) % 40 == number % 40
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-P", "-c", _ASK]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    database = sqlite3.connect(_file(tmp_path))
    assert database.execute("SELECT count(*) FROM known").fetchone() == (40,)
    database.close()

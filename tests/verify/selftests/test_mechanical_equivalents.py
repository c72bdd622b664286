"""The list of mutants that change nothing: what holds, what is stale, and how it is refreshed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from verify.selftests.mechanical import equivalents
from verify.selftests.mechanical.running import Run
from verify.selftests.mechanical.trial import Fate

if TYPE_CHECKING:
    from pathlib import Path


def ran(reasons: dict[str, str], **fates: str) -> Run:
    return Run({id_: Fate(by, f"case of {id_}") for id_, by in fates.items()}, frozenset({*fates, "other"}), reasons)


def test_killed_or_listed_with_a_reason_holds() -> None:
    assert ran({"b": "It only takes longer."}, a="verify", b="", c="tests").held
    assert not ran({}, a="verify", b="").held
    assert ran({}, a="verify", b="").survivors == ("b",)
    assert not ran({}).held, "nothing was asked"


def test_a_survivor_without_a_reason_is_none_that_holds() -> None:
    assert ran({"b": equivalents.UNKNOWN}, b="").survivors == ("b",)


def test_an_entry_that_is_killed_or_gone_is_stale() -> None:
    assert ran({"a": "r", "gone": "r", "other": "r"}, a="verify").stale == {
        "gone": "no mutant is called so",
        "a": "killed by case of a",
    }
    assert not ran({"a": "r"}, a="verify").held


def test_refreshing_keeps_reasons_and_drops_what_is_stale(tmp_path: Path) -> None:
    file = tmp_path / "equivalents.toml"
    reasons = {"a.py:f: 'x' -> x": 'It\'s "so".', "b": "r", "c": "r"}
    equivalents.refresh(reasons, {"b"}, ["d", "c"], file)
    assert equivalents.load(file) == {"a.py:f: 'x' -> x": 'It\'s "so".', "c": "r", "d": equivalents.UNKNOWN}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[equivalent]]\nreason = 'r'", "expected a reason and a list"),
        ("[[equivalent]]\nreason = ''\nmutants = ['a']", "expected a reason and a list"),
        ("[[equivalent]]\nreason = 'r'\nmutants = ['a', 'a']", "stands there twice"),
        ("[[equivalent", "cannot be read"),
    ],
    ids=["no-ids", "no-reason", "twice", "no-toml"],
)
def test_a_list_that_is_no_list_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "equivalents.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(equivalents.EquivalentsError, match=message):
        equivalents.load(file)


def test_the_list_of_the_project_is_one() -> None:
    assert all(reason.strip() for reason in equivalents.load().values())

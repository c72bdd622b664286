"""A blind set is asked as `lrp-verify` asks: a wrong implementation is killed, a right one is not accused."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from verify.checks import helpers
from verify.checks.conduct import topics as conduct
from verify.model import Verdict
from verify.runs.outcomes import ask
from verify.runs.worker import Source
from verify.selftests import blind
from verify.subjects.loading import load

if TYPE_CHECKING:
    from pathlib import Path

    from verify.model import Case

_SET = """
import os
import types

import lrp_rules


class Doubled(lrp_rules.Epsilon):
    def relevances(self, layer, R):
        return tuple(2 * r for r in super().relevances(layer, R))


class Dies(lrp_rules.Epsilon):
    def register(self, module):
        os._exit(0)


RIGHT = {"whole": "all of lrp_rules", "few": "one rule"}
WRONG = {"doubled": "twice the relevance", "dies": "ends its process", "hidden": "nothing at all, so it survives"}
_OF = {"doubled": Doubled, "dies": Dies}


def __getattr__(name):
    if name not in RIGHT | WRONG:
        raise AttributeError(name)
    names = ("Epsilon",) if name == "few" else lrp_rules.__all__
    given = {rule: getattr(lrp_rules, rule) for rule in names}
    if name in _OF:
        given["Epsilon"] = _OF[name]
    return types.SimpleNamespace(**given)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "blind_t.py").write_text(_SET)
    return tmp_path


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    wanted = "agreement/Epsilon/linear-5-4/default/signed/"
    return [case for case in Source(("float64",)).cases().values() if case.id.startswith(wanted)]


def test_each_is_asked_in_a_process_of_its_own(folder: Path, cases: list[Case]) -> None:
    written = io.StringIO()
    console = Console(file=written, width=200)
    answers = {one.name: one for one in blind.ask_set(folder, [], cases, 2, console)}
    assert {name: one.good for name, one in answers.items()} == {
        "whole": True, "few": True, "doubled": True, "dies": True, "hidden": False,
    }  # fmt: skip
    assert answers["doubled"].case == cases[0].id
    assert answers["dies"].reason == "its process ended"
    blind.show(folder, list(answers.values()), console)
    text = written.getvalue()
    assert "SURVIVES hidden: nothing at all" in text
    assert "2 of 3 wrong killed, 0 of 2 right accused" in text


def test_the_answers_of_the_day_are_written(
    folder: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Source, "cases", lambda _: {case.id: case for case in cases})
    assert (
        blind.main([str(folder), "--only", "doubled", "--write", "--workers", "1", "--json", str(tmp_path / "all")])
        == 0
    )
    (found,) = json.loads((folder / blind.FIRST).read_text())
    assert (found["name"], found["wrong"], found["case"]) == ("doubled", True, cases[0].id)
    assert json.loads((tmp_path / "all").read_text()) == {folder.name: [found]}
    assert blind.main([str(folder), "--only", "hidden", "--workers", "1"]) == 1


#: What survived when the set of that day was first asked, and the case that was written for its kind.
FOUND_SINCE = {
    "ab_beta_zero": "conduct/AlphaBeta/half-without-part",
    "gamma_masked_product": "conduct/Gamma/half-without-part",
    "bound_leading": "conduct/ZBox/bounds-lead",
    "bound_unsqueezed": "conduct/ZBox/bounds-are-kept",
    "zero_by_zero": "conduct/Epsilon/nothing-stabilizes-zero",
    "where_nan": "conduct/ZPlus/input-entry-is-nan",
    "expanded_relevance": "conduct/Epsilon/relevance-expanded",
    "norm_batch_of_one": "api/Stabilizer/clip=False,norm_scale=True,dim=none",
    "norm_keepdim": "api/Stabilizer/clip=False,norm_scale=True,dim=1",
    "basic_shared_input": "api/BasicHook/shared-input",
    "runs_twice": "conduct/Norm/a-batch-counts-once",
}


@pytest.mark.parametrize(("name", "wanted"), FOUND_SINCE.items(), ids=list(FOUND_SINCE))
def test_what_survived_at_first_is_killed_now(name: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = blind.SETS / "2026-11-28-a"
    monkeypatch.syspath_prepend(str(folder))
    case = next(case for case in [*conduct.cases(), *helpers.cases()] if case.id == wanted)
    assert ask(case, load(f"blind_a:{name}"), 0, here=False).verdict is Verdict.FAIL
    assert ask(case, load(f"blind_a:{blind.PLAIN}"), 0, here=False).verdict is Verdict.PASS
    assert ask(case, load("lrp_rules"), 0, here=False).verdict is Verdict.PASS

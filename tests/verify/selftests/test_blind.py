"""A blind set is asked as `lrp-verify` asks: a wrong implementation is killed, a right one is not accused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verify.checks import helpers
from verify.checks.conduct import topics as conduct
from verify.model import Verdict
from verify.runs.outcomes import ask
from verify.selftests import blind
from verify.subjects.loading import load

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


def test_each_is_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "blind_t.py").write_text(_SET)
    words = [str(tmp_path), "--workers", "1", "--seconds", "1", "--write", "--json", str(tmp_path / "all.json")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "verify.selftests.blind", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "SURVIVES hidden: nothing at all, so it survives (advised by nothing)" in done.stdout
    assert "2 of 3 wrong killed, 0 of 2 right accused" in done.stdout
    written = json.loads((tmp_path / blind.FIRST).read_text())
    answers = {one["name"]: one for one in written}
    assert answers["dies"]["reason"] == "its process ended"
    assert answers["doubled"]["reason"].startswith("sample 0, entry ")
    assert answers["whole"]["asked"] > 10
    assert json.loads((tmp_path / "all.json").read_text()) == {tmp_path.name: written}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no blind set: nowhere"),
        (["{}", "--only", "whole", "--only", "hole"], ": hole"),
        (["{}/none"], "no blind set: none"),
    ],
    ids=["unknown-set", "unknown-name", "no-set"],
)
def test_what_there_is_none_of_is_no_pass(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blind_z.py").write_text(_SET)
    with pytest.raises(SystemExit) as ended:
        blind.main([word.format(tmp_path) for word in words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_what_the_implementation_below_fails_is_set_aside(tmp_path: Path) -> None:
    wanted = ("conduct/Epsilon/relevance-expanded", "conduct/Epsilon/nothing-stabilizes-zero")
    cases = [case for case in conduct.cases() if case.id in wanted]
    (tmp_path / "blind_x.py").write_text("class plain:\n    class Epsilon: ...\n")
    assert blind.put_aside(tmp_path, cases) == len(cases) == 2
    assert blind.set_aside(tmp_path) == set(wanted)
    assert blind.set_aside(tmp_path / "another") == frozenset()


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
    # the wheel has no blind sets
    folder = Path(__file__).parents[3] / "verify/selftests/blind_sets/2026-11-28-a"
    monkeypatch.syspath_prepend(str(folder))
    case = next(case for case in [*conduct.cases(), *helpers.cases()] if case.id == wanted)
    assert ask(case, load(f"blind_a:{name}"), 0, here=False).verdict is Verdict.FAIL
    assert ask(case, load(f"blind_a:{blind.PLAIN}"), 0, here=False).verdict is Verdict.PASS
    assert ask(case, load("lrp_rules"), 0, here=False).verdict is Verdict.PASS

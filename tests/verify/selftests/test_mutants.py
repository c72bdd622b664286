"""The mutants are what they say, and the self-test that judges the verifier by them can fail."""

from __future__ import annotations

import inspect
import re
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest

import lrp_rules
from verify.model import RULES, Case, Finding, Level, Verdict
from verify.questions.spreading import spread
from verify.selftests import matrix as selftest
from verify.selftests.mutants import MUTANTS, Mutant, registry, subject
from verify.subjects.loading import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from verify.model import Subject

#: Of each file of mutants, one in so many is killed here; the self-test kills all.
EVERY = 4
SAMPLE = tuple(
    mutant
    for _, group in groupby(MUTANTS, lambda mutant: mutant.replacement.__module__)
    for mutant in tuple(group)[::EVERY]
)


@cache
def judge() -> selftest.Judge:
    return selftest.Judge(selftest.SOURCE.cases().values())


@pytest.mark.parametrize("mutant", SAMPLE, ids=lambda mutant: mutant.name)
def test_is_killed_by_a_case_that_lrp_rules_passes(mutant: Mutant) -> None:
    row, _ = judge().row(mutant, once=True, first=selftest.recorded().get(mutant.name, ""))
    assert row.kills, f"nothing finds it: {mutant.why}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_replaces_one_attribute_and_says_why(mutant: Mutant) -> None:
    offered = vars(mutant.namespace())
    assert set(offered) == set(lrp_rules.__all__)
    assert [name for name, value in offered.items() if value is not getattr(lrp_rules, name)] == [mutant.rule]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", mutant.name)
    assert re.fullmatch(r".+[.]", mutant.why)
    assert "\n" not in mutant.why


def test_every_rule_and_helper_has_mutants() -> None:
    wrong = {mutant.rule for mutant in MUTANTS}
    # the last one changes how rules are computed, and not what they are
    others = {
        "Attachment",
        "Composite",
        "FoldBatchNorm",
        "UnruledWarning",
        "attach",
        "BasicHook",
        "Hook",
        "ParamMod",
        "Registration",
        "without_rewriting",
    }
    assert wrong >= set(lrp_rules.__all__) - others


def test_a_name_says_one_mistake() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 90


def test_is_a_subject_like_any_other() -> None:
    found = load("verify.selftests.mutants:zbox_bounds_swapped")
    assert found.get("ZBox") is subject("zbox-bounds-swapped").ZBox
    assert found.get("ZBox") is not lrp_rules.ZBox
    assert found.get("Epsilon") is lrp_rules.Epsilon
    assert not found.is_ours
    with pytest.raises(KeyError):
        subject("zbox-is-right")


def test_what_mutants_are_written_with_is_right() -> None:
    class Plain(lrp_rules.ZPlus):
        def relevance(self, layer: Any, R: Any) -> Any:
            terms = registry.split(layer.x, layer.matrix(registry.positive), layer.matrix(registry.negative))
            return registry.propagate(terms, registry.positive(layer.bias), R, self.stabilizer)

    plain = Mutant("zplus-plain", "ZPlus", "It has no mistake.", Plain).subject()
    cases = [case for id_, case in selftest.SOURCE.cases().items() if id_.startswith("agreement/ZPlus/linear-5-4/")]
    assert cases
    assert {case.run(plain).verdict for case in cases} == {Verdict.PASS}


def test_keeps_the_signature_where_that_is_not_the_mistake() -> None:
    class Same(lrp_rules.ZBox):
        pass

    changed = {m.name for m in MUTANTS if _signature(m.replacement) != _signature(getattr(lrp_rules, m.rule))}
    assert _signature(Same) == _signature(lrp_rules.ZBox)
    assert changed == {
        "alphabeta-default",
        "clampmod-options-lost",
        "epsilon-default",
        "gamma-default",
        "gammamod-default",
        "relubetasmooth-default",
        "wsquare-arguments-swapped",
        "zbox-bounds-by-default",
        "zero-bias-required",
        "zplus-stabilizer-is-epsilon",
    }


def _signature(made: object) -> list[tuple[str, object, object]]:
    assert callable(made)
    return [(p.name, p.default, p.kind) for p in inspect.signature(made).parameters.values()]


# The self-test itself


HARMLESS = Mutant("reludeconvnet-as-it-is", "ReLUDeconvNet", "It has no mistake.", lrp_rules.ReLUDeconvNet)
SMALL = tuple(mutant for mutant in MUTANTS if mutant.rule == "zero_bias")[:2]


def test_no_check_kills_what_is_not_wrong() -> None:
    matrix = selftest.kill_matrix([HARMLESS], workers=0)
    assert matrix.survivors == (HARMLESS.name,)
    assert not matrix.held
    asked = {case.check for case in selftest.SOURCE.cases().values() if case.rule == "ReLUDeconvNet"}
    assert set(matrix.rows[0].asked) >= asked > {"api", "errors"}


def test_a_survivor_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(workers=0, mutants=[HARMLESS, *SMALL]) == 1
    printed = capsys.readouterr().out
    assert "SURVIVES: reludeconvnet-as-it-is: It has no mistake." in printed
    assert "2 of 3 mutants are killed (66.7 %)" in printed


def test_all_killed_passes_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(workers=0, mutants=SMALL) == 0
    assert "2 of 2 mutants are killed (100.0 %)" in capsys.readouterr().out


def test_no_mutants_are_no_proof() -> None:
    assert not selftest.kill_matrix([], workers=0).held


def test_workers_find_the_same() -> None:
    here, there = (selftest.kill_matrix(SMALL, workers=workers) for workers in (0, 2))
    assert here.rows == there.rows
    assert here.held


def test_workers_do_not_take_mutants_that_they_cannot_find() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        selftest.kill_matrix([HARMLESS], workers=1)


def _case(name: str, answer: Verdict, *, theirs: Verdict) -> Case:
    def run(asked: Subject) -> Finding:
        return Finding(theirs if asked.spec == "lrp_rules" else answer, reason=name)

    return Case(f"fake/{name}", "ReLUDeconvNet", "-", "fake", "-", Level.SHOULD, run)


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.ERROR], ids=str)
def test_a_case_that_lrp_rules_fails_kills_nothing(verdict: Verdict) -> None:
    matrix = selftest.kill_matrix([HARMLESS], [_case("both", verdict, theirs=verdict)], workers=0)
    assert matrix.unusable == ("fake/both",)
    assert not matrix.held


@pytest.mark.parametrize(
    ("verdict", "killed"),
    [
        (Verdict.FAIL, True),
        (Verdict.ERROR, True),
        (Verdict.INCONCLUSIVE, False),
        (Verdict.SKIPPED, False),
        (Verdict.NOT_OFFERED, False),
        (Verdict.PASS, False),
    ],
    ids=str,
)
def test_only_a_failure_kills(verdict: Verdict, killed: bool) -> None:
    matrix = selftest.kill_matrix([HARMLESS], [_case("one", verdict, theirs=Verdict.PASS)], workers=0)
    assert matrix.held is killed
    assert matrix.unusable == ()


def test_for_each_mutant_a_case_is_written_down_that_there_is() -> None:
    known = selftest.recorded()
    assert set(known) == {mutant.name for mutant in MUTANTS}
    assert set(known.values()) <= selftest.SOURCE.cases().keys()


def test_the_case_that_is_written_down_is_asked_first_and_the_others_where_it_does_not_kill() -> None:
    cases = [_case(name, verdict, theirs=Verdict.PASS) for name, verdict in (
        ("kills", Verdict.FAIL), ("passes", Verdict.PASS), ("kills-too", Verdict.FAIL)
    )]  # fmt: skip
    for first, killed in (("fake/kills-too", "fake/kills-too"), ("fake/passes", None), ("fake/gone", None)):
        row, _ = selftest.Judge(cases).row(HARMLESS, once=True, first=first)
        (kill,) = row.kills.values()
        assert kill.case == killed or (killed is None and kill.case in {"fake/kills", "fake/kills-too"})


def test_a_mutant_that_survives_is_asked_everything() -> None:
    quiet = [_case(f"{k:03}", Verdict.PASS, theirs=Verdict.PASS) for k in range(3 * selftest.ENOUGH)]
    matrix = selftest.kill_matrix([HARMLESS], quiet, workers=0)
    assert matrix.rows[0].asked == {"fake": 3 * selftest.ENOUGH}


@pytest.mark.parametrize("rule", RULES)
def test_cases_are_spread_and_none_is_lost(rule: str) -> None:
    # those of covering arrays have a layer each
    grid = (case for id_, case in selftest.SOURCE.cases().items() if "," not in id_ and "-at-" not in id_)
    cases = [case for case in grid if case.rule == rule and case.check == "agreement"]
    order = spread(cases)
    assert sorted(case.id for case in order) == sorted(case.id for case in cases)
    assert order == spread(cases)
    assert _parts(order[: selftest.ENOUGH]) == _parts(cases), "each layer, argument and kind of data is tried early"


def _parts(cases: Sequence[Case]) -> set[str]:
    return {part for case in cases for part in case.id.split("/")}

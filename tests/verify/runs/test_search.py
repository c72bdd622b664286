"""The search finds what only unusual numbers show, shrinks it, and says how to ask again."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor

import lrp_rules
from lrp_rules.layers.layer import Layer
from verify.checks.examples import EACH_RUN, RULES, case_of, cases
from verify.model import Subject, Verdict
from verify.questions.examples import Example
from verify.questions.strategies import examples
from verify.runs.runner import Runner
from verify.runs.search import _simplest, search
from verify.runs.worker import Source


class Clips(lrp_rules.ZPlus):
    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R).clamp(-1e7, 1e7)


class CastsInside(lrp_rules.WSquare):
    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R.float().to(R.dtype))


def subject(**changed: Any) -> Subject:
    namespace = {name: getattr(lrp_rules, name) for name in lrp_rules.__all__}
    return Subject("planted", SimpleNamespace(**(namespace | changed)), "0")


@pytest.mark.parametrize(("rule", "wrong"), [("ZPlus", Clips), ("WSquare", CastsInside)], ids=["ZPlus", "WSquare"])
def test_a_mistake_that_only_unusual_numbers_show_is_found_and_shrunk(rule: str, wrong: type) -> None:
    planted = subject(**{rule: wrong})
    (found,) = (o for o in search(planted, count=600, rules=[rule]) if o.verdict is not Verdict.PASS)
    assert found.verdict is Verdict.FAIL
    example = Example.from_id(found.id)
    assert max(len(example.x), len(example.weight), len(example.relevance)) <= 3
    assert case_of(example).run(planted).verdict is Verdict.FAIL
    assert case_of(example).run(subject()).verdict is Verdict.PASS


def _drawn() -> list[str]:
    found: list[str] = []
    hypothesis.seed(0)(
        settings(max_examples=20, database=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))(
            hypothesis.given(examples("ZPlus", ("float64",)))(lambda example: found.append(example.id))
        )
    )()
    return found


def test_a_seed_asks_the_same_whatever_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a subject has loaded it, and the judge has not: both have to draw the same examples."""
    before = _drawn()
    (tmp_path / "some_subject.py").write_text(
        f"numbers = {[k / 7 for k in range(-500, 500)]}\nwhole = {list(range(99))}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("some_subject")
    assert _drawn() == before


def test_what_is_found_is_simplified_where_several_numbers_have_to_change_at_once() -> None:
    found = Example(
        rule="ZPlus",
        arguments={},
        kind="Linear",
        options={"in_features": 2, "out_features": 4, "bias": False},
        shape=(2, 2),
        weight=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        bias=(0.0,),
        x=(1.0,),
        relevance=(0.0, 0.0, 0.0, 1e12),
        dtype="float64",
    )
    planted = subject(ZPlus=Clips)
    simple, finding = _simplest(found, case_of(found).run(planted), planted)
    assert (simple.weight, simple.relevance) == ((1.0,), (1e12,))
    assert (simple.options["in_features"], simple.options["out_features"], simple.shape) == (1, 1, (1, 1))
    assert finding.verdict is case_of(simple).run(planted).verdict is Verdict.FAIL
    assert case_of(simple).run(subject()).verdict is Verdict.PASS


@pytest.mark.parametrize(("w", "verdict"), [(1e15, Verdict.INCONCLUSIVE), (1e12, Verdict.FAIL)], ids=str)
def test_numbers_that_leave_the_range_of_their_dtype_prove_nothing(w: float, verdict: Verdict) -> None:
    # x = 0, and 1e15 * (1e15 / 1e-9) is no float32: 0 * inf. A thousandth of that is, and then NaN is wrong
    class NotANumber(lrp_rules.Norm):
        def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (super().relevances(layer, R)[0] * float("nan"),)

    example = Example(
        rule="Norm",
        arguments={"stabilizer": 1e-9},
        kind="Linear",
        options={"in_features": 1, "out_features": 1, "bias": False},
        shape=(1, 1),
        weight=(w,),
        bias=(0.0,),
        x=(0.0,),
        relevance=(1e15,),
        dtype="float32",
    )
    assert case_of(example).run(subject(Norm=NotANumber)).verdict is verdict
    right = Verdict.PASS if verdict is Verdict.FAIL else verdict
    assert case_of(example).run(subject()).verdict is right


def test_correct_rules_are_left_alone() -> None:
    assert {o.verdict for o in search(subject(), count=160)} == {Verdict.PASS}


def test_the_same_seed_searches_the_same() -> None:
    one, two = ([(o.id, o.ratio) for o in search(subject(), count=100, rules=["Gamma"], seed=3)] for _ in range(2))
    assert one == two


def test_an_exception_of_the_subject_is_a_find() -> None:
    class Raises(lrp_rules.Flat):
        def relevance(self, layer: Layer, R: Tensor) -> Tensor:
            msg = "no"
            raise RuntimeError(msg)

    (found,) = search(subject(Flat=Raises), count=10, rules=["Flat"])
    assert (found.verdict, found.reason) == (Verdict.ERROR, "RuntimeError: no")


def test_a_rule_that_is_not_offered_is_told_as_that() -> None:
    bare = Subject("bare", SimpleNamespace(Epsilon=lrp_rules.Epsilon), "0")
    (found,) = search(bare, count=10, rules=["Gamma"])
    assert found.verdict is Verdict.NOT_OFFERED


@pytest.mark.parametrize("id_", ["search/ZPlus/linear/float64/rubbish", "search/ZPlus", "search/a/b/c/AAAA"])
def test_an_id_that_was_cut_is_refused(id_: str) -> None:
    with pytest.raises(ValueError, match="copy the whole of it"):
        Example.from_id(id_)


def test_no_budget_is_an_error() -> None:
    with pytest.raises(ValueError, match="no budget"):
        next(search(subject()))


def test_each_run_searches_a_little_and_says_how_to_ask_again() -> None:
    asked = {case.id: case for case in cases(seed=0, dtypes=["float64", "float32"])}
    assert len(asked) == 2 * len(RULES)
    case = asked[f"search/WSquare/seed-0/{EACH_RUN}-examples/float64"]
    finding = case.run(subject(WSquare=CastsInside))
    assert finding.verdict is Verdict.FAIL
    example = Example.from_id(finding.reason.rpartition("(--case ")[2].removesuffix(")"))
    assert case_of(example).run(subject(WSquare=CastsInside)).verdict is Verdict.FAIL
    assert case.run(subject()).verdict is Verdict.PASS


PARTIAL = """
import lrp_rules
from verify.subjects import NotOfferedError


class ZPlus(lrp_rules.ZPlus):
    def register(self, module):
        if "Pool" in type(module).__name__:
            raise NotOfferedError("no pools")
        return super().register(module)
"""


def test_a_rule_that_lacks_a_layer_is_judged_from_another_process_as_in_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "partial_rules.py").write_text(PARTIAL)
    monkeypatch.syspath_prepend(tmp_path)
    source = Source(("float64",))
    asked = [case for case in source.cases().values() if case.id.startswith(("search/ZPlus/seed", "search/Norm/seed"))]
    assert len(asked) == 2
    with Runner(source, workers=1, time_limit=20, subjects=["partial_rules"]) as runner:
        found = list(runner.run("partial_rules", asked))
    assert {outcome.verdict for outcome in found} == {Verdict.NOT_OFFERED}

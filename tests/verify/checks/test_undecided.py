"""A subject fails where it leaves more undecided than the reference must, and for nothing else that is undecided."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from junitparser import JUnitXml
from typer.testing import CliRunner, Result

import lrp_rules
import verify
from verify.checks import undecided
from verify.checks.cases import all_cases
from verify.checks.examples import case_of
from verify.faces import cli
from verify.model import Case, Finding, Level, Outcome, Subject, Verdict
from verify.questions.examples import Example
from verify.reports import export
from verify.reports.badge import badge
from verify.runs.outcomes import ask
from verify.subjects.loading import load

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = ("float64", "float32")
FAKES = Path(__file__).parents[1] / "fakes"
#: Where the reference decides everything, in conservation and in a law.
DECIDED = "conservation/Epsilon/linear-5-4/default/signed/float64"
LAW = "laws/Epsilon/additive-in-relevance/linear-5-4/float64"
#: Where the reference decides nothing, and where it decides a part.
NOTHING = "conservation/Gamma/avgpool1d/default/zeros/float64"
PART = "agreement/Gamma/avgpool1d/default/zeros/float64"
SELECTED = ("--check", "conservation", "--rule", "Epsilon", "--layer", "Linear", "--dtype", "float64")


@cache
def cases() -> dict[str, Case]:
    return {case.id: case for case in all_cases(dtypes=DTYPES)}


def asked(id_: str, subject: Subject) -> Outcome:
    return ask(cases()[id_], subject, 0, here=False)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FAKES)


# --- what the reference leaves ----------------------------------------------------------------------------------------


def test_the_share_is_that_of_the_bounds_whoever_is_asked() -> None:
    assert undecided.share(cases()[DECIDED]) == 0
    assert undecided.share(cases()[NOTHING]) == 1
    assert 0 < undecided.share(cases()[PART]) < 1
    ours = load("lrp_rules")
    for id_ in (PART, NOTHING):
        outcome = asked(id_, ours)
        assert outcome.verdict in {Verdict.PASS, Verdict.INCONCLUSIVE}
        assert (outcome.undecidable, outcome.undecided) == (undecided.share(cases()[id_]),) * 2


def test_what_decides_everything_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undecided, "share", None)
    assert asked(DECIDED, load("lrp_rules")).undecidable is None


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_the_grid_decides_nearly_everything() -> None:
    """That few values are inconclusive is a property of the grid, and asked of the grid: a subject cannot help it."""
    some = [c for c in cases().values() if c.check == "agreement" and "inplace" not in c.id][::29]
    shares = [undecided.share(case) for case in some]
    assert len(some) > 150
    assert 0 < np.mean(shares) < 0.05


@pytest.mark.parametrize("left", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE])
@pytest.mark.parametrize("told", [True, False], ids=["told", "asked"])
def test_more_than_the_reference_fails_and_as_much_does_not(verdict: Verdict, left: float, told: bool) -> None:
    own = Finding(Verdict.PASS, 0.0, undecided=0.5)
    case = Case("a", "Epsilon", "Linear", "agreement", "float64", Level.MUST, lambda _: own)
    given = Finding(verdict, None if verdict is Verdict.INCONCLUSIVE else 0.5, undecided=left, reason="because")
    found = undecided.held(case, Finding(**vars(given) | {"undecidable": 0.5 if told else None}))
    fails = verdict is Verdict.FAIL or left > 0.5
    assert found.verdict is (Verdict.FAIL if fails else verdict)
    if fails and verdict is not Verdict.FAIL:
        assert found.reason.startswith("75% of the values are inconclusive, expected 50%: ")
        assert found.ratio == np.inf


# --- what a subject leaves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", [DECIDED, LAW])
def test_a_subject_that_leaves_open_what_the_reference_decides_fails(id_: str) -> None:
    outcome = asked(id_, load("vague:Everywhere"))
    assert outcome.verdict is Verdict.FAIL
    assert "of the values are inconclusive, expected 0%: the implementation gives values that are not" in outcome.reason
    assert outcome.undecided > 0
    assert outcome.undecidable == 0
    assert asked(id_, load("lrp_rules")).verdict is Verdict.PASS


def test_a_layer_of_the_network_that_nothing_finite_reaches_fails() -> None:
    network = Subject(
        "planted", SimpleNamespace(**vars(lrp_rules) | {"Epsilon": load("vague:Everywhere").get("Epsilon")}), "0"
    )
    below = asked("network/5-conv2d/ZPlus/float64", network)
    assert below.verdict is Verdict.FAIL
    assert below.reason.startswith("100% of the values are inconclusive, expected 0%")


def test_an_example_without_a_finite_sum_holds() -> None:
    """Three of its four entries have no bound, and so its sum has none: that is no more than the reference leaves."""
    example = Example(
        rule="Epsilon", arguments={}, kind="Linear", options={"in_features": 4, "out_features": 2, "bias": False},
        shape=(1, 4), weight=(1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0), bias=(), x=(0.1, 0.2, -0.3, 1.0),
        relevance=(1.0,), dtype="float64",
    )  # fmt: skip
    outcome = ask(case_of(example), load("lrp_rules"), 0, here=False)
    assert (outcome.verdict, outcome.undecided, outcome.undecidable) == (Verdict.INCONCLUSIVE, 1, 1)


def test_a_rule_with_a_formula_of_its_own_fails_likewise() -> None:
    def epsilon(A: Any, x: Any, b: Any, R: Any) -> Any:
        z = A @ x + b
        return x * (A.T @ (R / (z + 1e-6 * np.where(z < 0, -1, 1))))

    law = "laws/additive/linear-5-4/float64"
    verify.assert_rule(lrp_rules.Epsilon, epsilon, only=law)
    with pytest.raises(AssertionError, match=r"% of the values are inconclusive, expected 0%"):
        verify.assert_rule(load("vague:Everywhere").get("Epsilon"), epsilon, only=law)


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *words: CliRunner().invoke(cli.app, ["--workers", "0", *map(str, words)], catch_exceptions=False)


def test_our_rules_hold_where_much_is_undecided(command: Callable[..., Result]) -> None:
    result = command("--rule", "Gamma", "--layer", "AvgPool")
    assert result.exit_code == 0
    *_, total = result.stdout.splitlines()
    assert total.startswith("PASSED: ")
    assert float(total.partition("% of the values")[0].split()[-1]) > 5
    assert "limit" not in total


def test_our_rules_hold_where_nothing_is_decided(command: Callable[..., Result]) -> None:
    result = command("--case", NOTHING)
    assert result.exit_code == 0
    assert "; 1 inconclusive; 100% of the values inconclusive\n" in result.stdout


def test_a_subject_that_leaves_a_little_open_fails_the_run(command: Callable[..., Result], tmp_path: Path) -> None:
    files = {name: tmp_path / f"run.{name}" for name in ("json", "junit", "markdown")}
    words = [word for name, path in files.items() for word in (f"--{name}", path)]
    result = command("--subject", "vague", *SELECTED, *words)
    assert result.exit_code == 1
    whole = json.loads(files["json"].read_text())
    jsonschema.validate(whole, json.loads(export.SCHEMA_FILE.read_text()))
    failed = [case for case in whole["cases"] if case["verdict"] == "fail"]
    assert {case["id"].split("/")[2] for case in failed} == {"linear-60-20"}
    assert {case["undecidable"] for case in failed} == {0}
    # in all that was asked they are few: no share of the whole would show them
    assert 0 < whole["summary"]["undecided"] < 0.5
    assert whole["summary"]["failures"] == len(failed)
    assert badge(whole)["message"] == f"{len(failed)} failed"
    xml = JUnitXml.fromfile(str(files["junit"]))
    assert (xml.failures, xml.errors) == (len(failed), 0)
    assert f"lrp-verify --subject vague --case {failed[0]['id']}" in result.stdout
    assert "--subject lrp_rules" not in result.stdout
    assert command("--subject", "vague", "--case", failed[0]["id"]).exit_code == 1
    assert command("--subject", "lrp_rules", *SELECTED).exit_code == 0


def test_merged_shards_fail_likewise(command: Callable[..., Result], tmp_path: Path) -> None:
    for subject, status in (("vague", 1), ("lrp_rules", 0)):
        paths = [tmp_path / f"{subject}-{k}.json" for k in (1, 2)]
        found = [
            command("--subject", subject, *SELECTED, "--shard", f"{k}/2", "--json", path).exit_code
            for k, path in enumerate(paths, 1)
        ]
        assert max(found) == status
        result = CliRunner().invoke(cli.app, ["merge", *map(str, paths)], catch_exceptions=False)
        assert result.exit_code == status


def test_our_shards_of_what_is_undecided_hold_merged(command: Callable[..., Result], tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.json" for k in (1, 2)]
    only = ("--check", "conservation", "--rule", "Gamma", "--layer", "AvgPool", "--dtype", "float64")
    for k, path in enumerate(paths, 1):
        assert command(*only, "--shard", f"{k}/2", "--json", path).exit_code == 0
    result = CliRunner().invoke(cli.app, ["merge", *map(str, paths)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "inconclusive" in result.stdout.splitlines()[-1]

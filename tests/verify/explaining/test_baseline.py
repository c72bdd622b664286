"""A first file of known deviations excuses all that failed, and nothing else."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verify.checks.cases import DTYPES, all_cases
from verify.explaining.deviations import Deviation, apply, expression, is_known, load
from verify.explaining.deviations.baseline import baseline, entries, patterns, said
from verify.model import BAD, Level, Outcome, Verdict

LAYERS, KINDS, SOME = ("linear", "conv", "pool"), ("signed", "zeros"), ("float64", "float32")
IDS = [f"agreement/ZPlus/{a}/default/{b}/{c}" for a in LAYERS for b in KINDS for c in SOME]


def _matched(found: list[str], ids: list[str]) -> set[str]:
    expressions = Deviation(tuple(found), Verdict.FAIL, "so it is").expressions.values()
    return {id_ for id_ in ids if any(expression.fullmatch(id_) for expression in expressions)}


def _outcome(id_: str, verdict: Verdict = Verdict.FAIL, reason: str = "off", **rest: Any) -> Outcome:
    check, rule, *_ = id_.split("/")
    return Outcome(id_, rule, "-", check, "-", Level.MUST, verdict, reason=reason, **rest)


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        (IDS, ["agreement/ZPlus/*"]),
        ([i for i in IDS if i.endswith("float64")], ["agreement/ZPlus/*/float64"]),
        ([i for i in IDS if "/conv/" in i], ["agreement/ZPlus/conv/*"]),
        ([i for i in IDS if "/conv/" in i or "/pool/" in i], ["agreement/ZPlus/{conv,pool}/*"]),
        ([i for i in IDS if "zeros/float32" in i], ["agreement/ZPlus/*/zeros/float32"]),
        (IDS[:1], [IDS[0].replace("default", "*")]),
    ],
    ids=["all", "dtype", "layer", "two layers", "kind and dtype", "one"],
)
def test_patterns_are_few(failing: list[str], expected: list[str]) -> None:
    assert patterns(failing, IDS) == expected


def test_an_id_with_more_parts_is_not_matched() -> None:
    ids = ["second-order/Gamma/linear/gamma=10", "second-order/Gamma/conv/gamma=10"]
    found = patterns(ids, [*ids, f"{ids[0]}/parameters"])
    assert _matched(found, [*ids, f"{ids[0]}/parameters"]) == set(ids)


@pytest.mark.selftest  # a quarter of a minute
def test_patterns_match_what_failed_and_no_other_case_of_the_grid() -> None:
    ids = [case.id for case in all_cases(dtypes=DTYPES)]
    assert not [id_ for id_ in ids if set(id_) & set("{}*") or id_.count("/") < 2]  # a pattern could not name them
    of_rule = [id_ for id_ in ids if id_.split("/")[:2] in (["conservation", "Flat"], ["second-order", "Flat"])]
    draw = random.Random(0)
    for share in (0.01, 0.5, 0.99, 1.0):
        failing = [id_ for id_ in of_rule if draw.random() < share]
        assert _matched(patterns(failing, ids), ids) == set(failing)


def test_file_excuses_each_failure_and_has_nothing_stale(tmp_path: Path) -> None:
    outcomes = (
        *(_outcome(id_, Verdict.PASS if "/pool/" in id_ else Verdict.FAIL) for id_ in IDS),
        _outcome("errors/ZPlus/alpha", Verdict.ERROR, 'raises KeyError: "\\no" \x07\n\N{COLLISION SYMBOL}'),
        _outcome("errors/ZPlus/beta", Verdict.TIMEOUT, ""),
        _outcome("errors/ZPlus/gamma", Verdict.NOT_OFFERED),
        _outcome("errors/Flat/beta", Verdict.CRASH, ""),
    )
    path = tmp_path / "mine.toml"
    path.write_bytes(baseline("my.rules", "1.2", outcomes, [outcome.id for outcome in outcomes]))
    found = load(path)
    assert (found.library, found.versions, len(found.entries)) == ("my.rules", ("1.2", "1.2"), 4)
    assert found.doubt("1.2") is None
    marked, stale = apply(outcomes, found)
    assert [o.id for o in marked if is_known(o)] == [o.id for o in outcomes if o.verdict in BAD]
    assert not stale
    first = found.entries[0]
    assert first.patterns == ("agreement/ZPlus/{conv,linear}/*",)
    assert first.reason == f"SAY WHY: 8 cases; first {IDS[0]}: off"
    assert "KeyError" in found.entries[1].reason
    assert len(entries(outcomes)) == len(found.entries)


@pytest.mark.parametrize(
    ("check", "verdict", "reason", "expected"),
    [
        ("agreement", Verdict.ERROR, "KeyError: 'a' (x.py:3 in f)", "*KeyError*"),
        ("errors", Verdict.FAIL, "ZBox(low=3) is accepted, expected ValueError", "*is accepted*"),
        ("errors", Verdict.FAIL, "ZBox(low=3) raises RuntimeError: no; expected ValueError", "*raises RuntimeError*"),
        ("errors", Verdict.FAIL, "ValueError says 'no', expected it to name 0.3", "*expected it to name*"),
        ("errors", Verdict.FAIL, "input 1 gets [[0.25]], expected its share [[1.0]]", "*input*"),
        ("errors", Verdict.FAIL, "", "*"),
        ("agreement", Verdict.FAIL, "sample 0, entry 1: got 1, expected 2", ""),
        ("conduct", Verdict.FAIL, "the relevance is another", ""),
    ],
)
def test_what_an_error_says_is_kept(check: str, verdict: Verdict, reason: str, expected: str) -> None:
    outcome = _outcome(f"{check}/ZBox/a", verdict, reason)
    assert said(outcome) == expected
    assert expression(expected or "*").fullmatch(reason)


def test_a_wrong_number_in_place_of_an_accepted_error_is_news(tmp_path: Path) -> None:
    loud = _outcome("errors/ZBox/a", Verdict.FAIL, "raises RuntimeError: no; expected TypeError")
    path = tmp_path / "mine.toml"
    path.write_bytes(baseline("my.rules", "1", [loud], [loud.id]))
    silent = replace(loud, reason="is accepted, expected TypeError")
    (marked,), stale = apply([silent], load(path))
    assert not is_known(marked)
    assert "now it says: is accepted, expected TypeError" in str(stale[0])


def test_file_without_a_failure_is_one_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(baseline("my.rules", "unknown", [_outcome(IDS[0], Verdict.PASS)], IDS))
    assert load(path).entries == ()
    assert load(path).doubt("unknown") is None


def test_what_was_not_asked_is_not_matched() -> None:
    asked = [id_ for id_ in IDS if id_.endswith("float64")]
    text = baseline("my.rules", "1", [_outcome(id_) for id_ in asked], IDS).decode()
    assert 'pattern = "agreement/ZPlus/*/float64"' in text

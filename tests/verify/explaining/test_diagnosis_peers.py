"""What is wrong with rules of other libraries, which have several mistakes at once, is named; nothing else is.

The libraries are `tests/verify/fakes/peers.py`: their rules written by hand, as they are described. Each is asked the
few cases that tell its mistakes from others.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from verify.checks.cases import all_cases
from verify.explaining.diagnosis import _told_apart, asking, diagnose
from verify.explaining.search import spread
from verify.model import Case, Finding, Level, Outcome, Subject, Verdict
from verify.runs.outcomes import outcome_of

if TYPE_CHECKING:
    from verify.explaining.diagnosis import Explained

FAKES = Path(__file__).parents[1] / "fakes"
#: Small layers of each kind that the libraries know, and some that they do not.
LAYERS = {
    "linear-5-4", "linear-7-3-nobias", "linear-3d-input", "conv1d-k3-s2-p1-d2", "convtranspose1d-s2-d3-op2",
    "avgpool1d",
}  # fmt: skip
OF_LIBRARY = {
    "torchlrp": {"linear-5-4", "linear-3d-input", "linear-60-20"},
    "padded": {"linear-5-4", "conv2d-g2", "conv2d-k3"},
    "unpooling": {"maxpool1d", "maxpool2d-s1-p1", "maxpool2d-d2"},
}
#: Cases for each rule that it answers.
ENOUGH = 32

_CLIPPED = "bias-dropped + epsilon-clip"
#: Library and rule -> the names that its diagnosis gives: several where these come to the same numbers.
NAMED: dict[str, set[str]] = {
    "autolrp Epsilon": {"pooling-by-gradient + bias-by-magnitude"},
    "autolrp Gamma": {"bias-by-magnitude"},
    "torchlrp Epsilon": {"epsilon-float32 + zero-negative"},
    "torchlrp Gamma": {"gamma-squared-weight + epsilon-float32 + zero-negative"},
    "torchlrp AlphaBeta": {_CLIPPED, "bias-dropped + epsilon-only-at-zero", "bias-dropped + zero-dropped"},
    "padded Epsilon": {"padding-one"},
    "moboehle Epsilon": {"bias-dropped + zero-dropped + float32"},
    "moboehle AlphaBeta": {"bias-dropped + float32"},
    "kaifishr Epsilon": {"epsilon-unsigned"},
    "kaifishr ZPlus": {"inputs-unsplit + bias-dropped + stabilizer-default + epsilon-unsigned"},
    "wjnam ZPlus": {"separate-denominators-with-bias + stabilizer-default"},
    "wjnam ZBox": {"bounds-of-input + stabilizer-default"},
    "lrp_toolbox Flat": {"unstabilized", "zero-dropped", "epsilon-only-at-zero", "epsilon-clip"},
    "lrp_toolbox WSquare": {"bias-dropped + unstabilized"},
    "lrp_pf_auc Gamma": {"gamma-on-positive-weights-only"},
    "julia Gamma": {"gamma-on-positive-weights-only + stabilizer-default"},
    "captum ZPlus": {"inputs-and-bias-unsplit + stabilizer-default + zero-unstabilized"},
    "captum Gamma": {"gamma-on-positive-weights-only + stabilizer-default + zero-unstabilized"},
    "innvestigate AlphaBeta": {"bias-in-both-halves + stabilizer-default"},
    "innvestigate WSquare": {"bias-dropped + stabilizer-default"},
    "unpooling Norm": {"pooling-overlaps-lost"},
    "unpadded Epsilon": {"output-padding-ignored"},
}


@cache
def grid() -> tuple[Case, ...]:
    return tuple(case for case in all_cases() if _told_apart(case) and case.level is Level.MUST)


@cache
def explained(id_: str) -> Explained:
    library, rule = id_.split()
    layers = OF_LIBRARY.get(library, LAYERS)
    subject = Subject(library, getattr(peers(), library), "0")
    cases = spread([case for case in grid() if case.rule == rule and case.id.split("/")[2] in layers])
    outcomes: list[Outcome] = []
    refused: set[str] = set()  # arguments that it does not take, and layers that it does not know
    for case in cases:
        _, _, layer, arguments, *_ = case.id.split("/")
        if len(outcomes) == ENOUGH + len(refused):
            break
        if arguments not in refused and layer not in refused:
            outcomes.append(outcome(case, subject))
            if outcomes[-1].verdict is Verdict.ERROR:
                refused.add(arguments if arguments != "default" else layer)
    return diagnose(outcomes, {case.id: case for case in cases}, asking(subject), seconds=3600.0)


def outcome(case: Case, subject: Subject) -> Outcome:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            finding = case.run(subject)
    except Exception as error:  # noqa: BLE001  as the runner does
        finding = Finding(Verdict.ERROR, reason=str(error))
    return outcome_of(case, finding, 0.0)


@cache
def peers() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAKES)
        found = importlib.import_module("peers")
        del sys.modules["peers"]
    return found


@pytest.mark.parametrize("id_", NAMED)
def test_mistakes_of_a_library_are_named(id_: str) -> None:
    (found,) = explained(id_).diagnoses
    assert set(found.names) == NAMED[id_]


def test_no_rule_of_these_libraries_is_left_out() -> None:
    spaces = {name: vars(space) for name, space in vars(peers()).items() if type(space).__name__ == "SimpleNamespace"}
    assert {f"{library} {rule}" for library, rules in spaces.items() for rule in rules} == set(NAMED)

"""Second derivatives through two layers: what one layer alone cannot tell, and what every mistake in it looks like."""

import pytest

from verify.checks import second_order_chain
from verify.checks.cases import all_cases
from verify.checks.second_order import VARIANTS
from verify.model import NETWORK_RULES, RULES, Case, Verdict
from verify.questions.drawing import draw
from verify.selftests.mutants import MUTANTS
from verify.subjects.loading import load

CHAINS = {case.id: case for case in second_order_chain.cases(draw)}
SINGLE = [case for case in all_cases() if case.check == "second-order" and case.id not in CHAINS]
#: Mistakes that show only below another layer, and chains that show them.
BELOW = {
    "epsilon-in-derivatives": "second-order/Epsilon/linear-4-3-tanh-linear-3-2/epsilon=0.3",
    "gamma-in-derivatives": "second-order/Gamma/conv1d-1-2-tanh-conv1d-2-1/gamma=10",
    "pass-in-derivatives": "second-order/Pass/linear-4-3-relu-linear-3-2/default",
    "alphabeta-relevance-detached": "second-order/AlphaBeta/linear-4-3-tanh-linear-3-2/stabilizer=0.3",
    "reludeconvnet-relevance-detached": "second-order/ReLUDeconvNet/linear-4-3-relu-linear-3-2/default",
    "zplus-without-derivatives-of-parameters": (
        "second-order/ZPlus/linear-4-3-tanh-linear-3-2/stabilizer=0.3/parameters"
    ),
}


def mistaken(name: str) -> str:
    return next(mutant.spec for mutant in MUTANTS if mutant.name == name)


@pytest.mark.parametrize("case", [pytest.param(case, id=id_) for id_, case in CHAINS.items()])
def test_the_right_rules_pass_and_leave_nothing_undecided(case: Case) -> None:
    finding = case.run(load("lrp_rules"))
    assert finding.verdict is Verdict.PASS
    assert finding.undecided == 0


@pytest.mark.parametrize("name", BELOW)
def test_a_mistake_that_shows_only_below_another_layer(name: str) -> None:
    subject, rule = load(mistaken(name)), BELOW[name].split("/")[1]
    assert CHAINS[BELOW[name]].run(subject).verdict is Verdict.FAIL
    linear = [case for case in SINGLE if case.rule == rule and case.layer in {"Linear", "Activation"}]
    assert linear
    assert {case.run(subject).verdict for case in linear} == {Verdict.PASS}


def test_every_rule_has_a_chain() -> None:
    assert {case.rule for case in CHAINS.values()} == set(RULES) == {case.rule for case in SINGLE} - {*NETWORK_RULES}


def test_the_ids_are_apart_from_those_of_single_layers() -> None:
    assert not CHAINS.keys() & {case.id for case in SINGLE}
    assert len(CHAINS) == 2 * (2 * len(VARIANTS) + 4)

"""The grid: large, readable, the same in every run, and as adversarial as it says."""

from collections import Counter

import pytest
import torch

from verify.checks.cases import all_cases
from verify.model import NETWORK_RULES
from verify.questions import networks
from verify.questions.drawing import KINDS, LAYOUTS, ONE_SIGN, draw
from verify.questions.layers import CORE, FAMILIES, LAYERS

CASES = all_cases(seed=0)
LAYER = {layer.name: layer for layer in LAYERS}


def test_the_default_grid_has_thousands_of_cases_with_ids_of_their_own() -> None:
    assert len(CASES) > 10_000
    assert not [id_ for id_, count in Counter(case.id for case in CASES).items() if count > 1]


def test_every_rule_meets_every_family_of_linear_layers() -> None:
    met = {(case.rule, case.layer) for case in CASES if case.check == "agreement"}
    linear = {layer.family for layer in LAYERS if layer.linear}
    for rule in ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat"):
        assert linear <= {family for name, family in met if name == rule}
    assert {*FAMILIES, *(layer.family for layer in networks.LAYERS)} == {family for _, family in met}


@pytest.mark.parametrize("rule", NETWORK_RULES)
def test_every_rule_for_networks_is_asked_in_every_check(rule: str) -> None:
    checks = {case.check for case in CASES if case.rule == rule}
    assert checks == {"agreement", "conservation", "laws", "second-order", "errors", "conduct"}


@pytest.mark.parametrize(
    "id_",
    [
        "agreement/Epsilon/linear-5-4/default/signed/float64",
        "agreement/Gamma/conv2d-circular/gamma=10/zeros/float32",
        "conservation/AlphaBeta/convtranspose2d-s2-p1-op1/alpha=1.5-beta=0.5/nonnegative/float64",
        "agreement/ZBox/linear-5-4/longer-batch/signed/float32",
        "agreement/Norm/softmax/default/signed/float64",
        "agreement/ReLUBetaSmooth/relu/beta_smooth=100/zeros/float32",
        "agreement/AlphaBeta/linear-5-4/alpha=1-beta=0-stabilizer=0/positive/float64",
        "agreement/WSquare/conv2d-circular/zero_params=weight+bias/signed/float64",
        "laws/ZPlus/equals-alphabeta-1-0/linear-5-4/float64",
        "laws/Epsilon/relevance-times-2-to-24/linear-5-4/float32",
        "second-order/Norm/linear-5-4/stabilizer=0.3/parameters",
        "second-order/Gamma/conv2d-circular/gamma=10",
        "errors/AlphaBeta/accepts-1.4-0.4",
        "api/signature/Gamma",
    ],
)
def test_ids_that_people_have_written_down_stay(id_: str) -> None:
    assert id_ in {case.id for case in CASES}


def test_the_same_case_draws_the_same_data() -> None:
    first, again = (draw(LAYER["conv2d-k3"], "signed", "float64") for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.relevance, again.relevance)
    assert torch.equal(first.module.weight, again.module.weight)  # type: ignore[arg-type]


def test_another_seed_and_another_kind_draw_other_data() -> None:
    layer = LAYER["linear-5-4"]
    x = draw(layer, "signed", "float64").x
    assert not torch.equal(x, draw(layer, "signed", "float64", seed=1).x)
    assert not torch.equal(x, draw(layer, "nonnegative", "float64").x)


def test_float32_data_are_those_of_float64_rounded() -> None:
    layer = LAYER["conv2d-k3"]
    assert torch.equal(draw(layer, "signed", "float64").x.float(), draw(layer, "signed", "float32").x)


@pytest.mark.parametrize("kind", [*KINDS, *ONE_SIGN, *LAYOUTS])
def test_relevance_has_both_signs_and_zeros_and_nothing_to_do_with_the_output(kind: str) -> None:
    problem = draw(LAYER["conv2d-k3"], kind, "float64")
    if kind == "batch-of-0":
        assert problem.relevance.numel() == 0
        return
    assert problem.relevance.min() < 0 < problem.relevance.max()
    assert (problem.relevance == 0).any()
    z = problem.module(problem.x)
    assert not torch.equal(problem.relevance, z)
    assert (problem.relevance * z < 0).any()


@pytest.mark.parametrize(("kind", "sign"), [("positive", 1), ("negative", -1)])
@pytest.mark.parametrize("name", sorted(CORE))
def test_every_contribution_has_one_sign(kind: str, sign: int, name: str) -> None:
    problem = draw(LAYER[name], kind, "float64")
    assert (sign * problem.x > 0).all()
    assert all((parameter != 0).all() for parameter in problem.module.parameters())
    assert (sign * problem.module(problem.x) > 0).all()
    assert all((sign * p > 0).all() for n, p in problem.module.named_parameters() if n == "bias")
    assert all((p > 0).all() for n, p in problem.module.named_parameters() if n == "weight")


def test_the_kinds_are_what_they_say() -> None:
    layer = LAYER["linear-60-20"]
    assert draw(layer, "signed", "float64").x.aminmax().min < 0 < draw(layer, "signed", "float64").x.aminmax().max
    assert (draw(layer, "nonnegative", "float64").x >= 0).all()
    assert (draw(layer, "nonnegative", "float64").x == 0).any()
    assert (draw(layer, "nonpositive", "float64").x < 0).all()
    assert ((draw(layer, "single", "float64").x != 0).sum(1) == 1).all()
    zeros = draw(layer, "zeros", "float64")
    z = zeros.module(zeros.x)
    assert (z[:, 0] == 0).all()  # the dead unit
    assert torch.equal(z, z.round())
    assert not draw(LAYER["conv2d-k3"], "noncontiguous", "float64").x.is_contiguous()
    assert draw(LAYER["conv2d-k3"], "channels-last", "float64").x.is_contiguous(memory_format=torch.channels_last)
    assert draw(LAYER["conv2d-k3"], "expanded", "float64").x.stride(0) == 0


def test_outputs_cancel_to_zero_without_being_dead() -> None:
    """sgn(0) is asked where contributions of both signs cancel, not only where there are none."""
    problem = draw(LAYER["linear-5-4"], "zeros", "float64")
    z, weight = problem.module(problem.x), problem.module.weight
    contributions = problem.x[:, None, :] * weight  # type: ignore[operator]
    assert ((z == 0) & (contributions != 0).any(-1)).any()

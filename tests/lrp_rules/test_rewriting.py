"""Each way to compute a rule faster gives what the rule declares, can be switched off alone, and is used."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference.ledger
import reference.rules
from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, Stabilizer, WSquare, ZBox, ZPlus, without_rewriting
from lrp_rules.bounds import Bound, Distance, Minus
from lrp_rules.evaluate import plan, rewriting
from lrp_rules.formula import FormulaRule
from lrp_rules.layers import layer as layer_module
from lrp_rules.layers.known import LinearLayer
from lrp_rules.parts import Increased, Part, negative, one, positive, same, squared
from reference.layers import Linear, affine
from tests.lrp_rules.cases import CASES, FORMULAS, integers, output_of, relevance
from tests.lrp_rules.test_parts import PowerOfTwo, small_parts  # noqa: F401  a fixture

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = list(rewriting.REWRITINGS)


@pytest.mark.parametrize("layer", CASES)
@pytest.mark.parametrize("rule", FORMULAS)
def test_the_plain_path_and_each_way_alone_give_the_same_numbers(
    rule: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = CASES[layer].module(), CASES[layer].input()
    R = integers(output_of(module, x).shape, seed=2)
    hook: Any = FORMULAS[rule][0]()
    hook.stabilizer = PowerOfTwo()
    with without_rewriting():
        expected = relevance(hook, module, x, R)
    assert torch.equal(relevance(hook, module, x, R), expected)
    monkeypatch.setattr(layer_module, "SMALL", -1)
    for name in NAMES:
        with without_rewriting(name):
            assert torch.equal(relevance(hook, module, x, R), expected), f"without {name}"


def planned(rule: FormulaRule, *without: str, small: bool = False) -> plan.Plan:
    facts = rewriting.Facts(additive=True, small=small, off=frozenset(without))
    made = rewriting.plan(rule.parts, rule.stabilizer, facts)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("rule", "name", "kind", "otherwise"),
    [
        (Epsilon(), "forward-output", plan.FromOutput, plan.Together),
        (Norm(), "forward-output", plan.FromOutput, plan.Together),
        (ZPlus(), "signs", plan.Signed, plan.Together),
        (AlphaBeta(), "signs", plan.Signed, plan.Together),
        (Gamma(), "two-maps", plan.InTwoMaps, plan.Signed),
        (ZBox(-1, 1), "forward-output", plan.Boxed, plan.Together),
        (ZBox(-1, 1), "shifted-box", plan.Boxed, plan.Together),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FormulaRule) else None,
)
def test_each_way_is_taken_and_can_be_switched_off(
    rule: FormulaRule, name: str, kind: type[plan.Plan], otherwise: type[plan.Plan]
) -> None:
    assert type(planned(rule)) is kind
    assert type(planned(rule, name)) is otherwise


def test_ways_that_are_properties_of_a_plan() -> None:
    assert len(planned(ZBox(-1, 1), small=True).columns) == 2  # type: ignore[attr-defined]
    assert len(planned(ZBox(-1, 1), "shifted-box").columns) == 3  # type: ignore[attr-defined]
    for rule in (WSquare(), Flat()):
        assert planned(rule).shared  # type: ignore[attr-defined]
        assert not planned(rule, "shared-denominators").shared  # type: ignore[attr-defined]
    assert planned(Flat()).rank_one  # type: ignore[attr-defined]
    assert not planned(Flat(), "rank-one").rank_one  # type: ignore[attr-defined]
    assert not planned(WSquare()).rank_one  # type: ignore[attr-defined]
    assert planned(ZPlus()).in_blocks
    assert not planned(ZPlus(), small=True).in_blocks
    assert not planned(ZPlus(), "blocks").in_blocks
    assert not planned(ZPlus(Stabilizer(norm_scale=True))).in_blocks


@pytest.mark.parametrize("rule", [Gamma(1.5), Gamma(0.25, lambda d: d + 1)], ids=["large-gamma", "callable"])
def test_gamma_is_in_four_maps_where_two_would_not_do(rule: Gamma) -> None:
    assert type(planned(rule)) is plan.Signed


def test_bounds_of_each_sample_are_not_shared() -> None:
    low = torch.tensor([[-1.0], [-2.0]])
    made = planned(ZBox(low, 1.0))
    assert type(made) is plan.Together
    assert not made.samples_apart
    assert planned(ZBox(-1.0, 1.0)).samples_apart


# --- the switch -------------------------------------------------------------------------------------------------------


def test_the_switch_is_back_after_the_block_and_adds_up() -> None:
    assert rewriting.off == frozenset()
    with without_rewriting("signs"), pytest.raises(ZeroDivisionError), without_rewriting("blocks"):  # noqa: PT012
        assert rewriting.off == {"signs", "blocks"}
        raise ZeroDivisionError
    assert rewriting.off == frozenset()


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no rewriting is called sings; expected 'all', or some of two-maps"):
        without_rewriting("sings").__enter__()


@pytest.mark.parametrize(("value", "off"), [("all", len(NAMES)), ("signs, blocks", 2), ("", 0)])
def test_a_variable_switches_for_a_whole_program(value: str, off: int) -> None:
    code = "from lrp_rules.evaluate import rewriting; print(len(rewriting.off))"
    environment = {**os.environ, "LRP_RULES_WITHOUT": value}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(ran.stdout) == off


def test_without_any_the_layer_is_seen_as_it_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(plan.Plan, "relevance", refuse)
    layer, x = nn.Linear(3, 2), torch.randn(2, 3)
    with without_rewriting():
        relevance(ZPlus(), layer, x, torch.ones(2, 2))
    with pytest.raises(AssertionError):
        relevance(ZPlus(), layer, x, torch.ones(2, 2))


def test_a_relevance_that_may_be_differentiated_is_computed_as_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.Plan, "relevance", lambda *_: pytest.fail("rewritten"))
    layer, x = nn.Linear(3, 2), torch.randn(2, 3, requires_grad=True)
    with ZPlus().register(layer):
        torch.autograd.grad(layer(x), x, torch.ones(2, 2), create_graph=True)


# --- what a rule declares ---------------------------------------------------------------------------------------------


def test_a_rule_of_ones_own_is_its_parts() -> None:
    class OnlyPositiveInputs(FormulaRule):
        def declare(self) -> tuple[Part, ...]:
            return (Part(((positive, positive),), bias=positive),)

    layer = nn.Linear(2, 1).double()
    layer.weight.data, layer.bias.data = torch.tensor([[2.0, -1.0]]).double(), torch.tensor([4.0]).double()
    r = relevance(OnlyPositiveInputs(0), layer, torch.tensor([[2.0, 3.0]]).double(), torch.ones(1, 1).double())
    assert r.tolist() == [[4 / 8, 0.0]]


def _mean_free(v: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a change that looks at the whole of a tensor, as one's own may; of integers, an integer."""
    return v - v.sum() if out is None else out.copy_(v - v.sum())


def _plus_one(v: Tensor) -> Tensor:
    return v + 1


CHANGES = (
    same,
    positive,
    negative,
    squared,
    one,
    Increased(2.0, positive),
    Increased(2.0, negative),
    _mean_free,
    _plus_one,
)
VECTORS = (same, positive, negative, one, _mean_free, _plus_one)


def _drawn(draws: random.Random) -> tuple[Part, ...]:
    """Parts of all kinds, among them those that look like a rule's but for one thing."""
    low, high = (Bound.of(value, "bound") for value in (-2.0, 2.0))
    known = [
        Epsilon().parts, ZPlus().parts, AlphaBeta().parts, Gamma(1.0).parts, WSquare().parts, Flat().parts,
        (Part(((same, same), (positive, Minus(low)), (negative, Minus(high)))),),
        (Part(((positive, Distance(low)), (negative, Distance(high)))),),
    ]  # fmt: skip
    if draws.random() < 0.3:
        parts = []
        for _ in range(draws.randint(1, 3)):
            own = tuple((draws.choice(CHANGES), draws.choice(VECTORS)) for _ in range(draws.randint(1, 3)))
            bias = draws.choice((None, *CHANGES))
            parts.append(Part(own, bias, draws.choice((1.0, 1.0, 2.0, -1.0)), draws.choice((0, 0, 1, -1))))
        return tuple(parts)
    parts = list(draws.choice(known))
    place = draws.randrange(len(parts))
    part = parts[place]
    terms = part.terms
    at = draws.randrange(len(terms))
    otherwise: dict[str, Any] = draws.choice([
        {"terms": (*terms[:at], *terms[at + 1 :]) or part.terms},
        {"terms": (*terms, terms[at])},
        {"terms": tuple(reversed(terms))},
        {"terms": (*terms[:at], (draws.choice(CHANGES), terms[at][1]), *terms[at + 1 :])},
        {"terms": (*terms[:at], (terms[at][0], draws.choice(VECTORS)), *terms[at + 1 :])},
        {"bias": draws.choice((None, *CHANGES))},
        {"coefficient": 2.0},
        {"gate": draws.choice((0, 1, -1))},
    ])  # fmt: skip
    parts[place] = part._replace(**otherwise)
    if draws.random() < 0.1:
        parts.append(draws.choice(draws.choice(known)))
    return tuple(parts)


@pytest.mark.parametrize("large", [False, True], ids=["small", "in-blocks"])
@pytest.mark.parametrize("layer", ["linear", "conv2d-asymmetric", "avgpool2d", "traced-linear"])
def test_parts_that_look_like_those_of_a_rule_are_what_they_are(
    layer: str, large: bool, request: pytest.FixtureRequest
) -> None:
    draws = random.Random(0)
    module, signed = CASES[layer].module(), CASES[layer].input()
    R = integers(output_of(module, signed).shape, seed=2)
    if large:
        request.getfixturevalue("small_parts")
    for number in range(300):
        parts = _drawn(draws)

        class Own(FormulaRule):
            def declare(self, parts: tuple[Part, ...] = parts) -> tuple[Part, ...]:
                return parts

        x = signed.abs() if number % 3 == 0 else signed
        with without_rewriting():
            expected = relevance(Own(PowerOfTwo()), module, x, R)
        assert torch.equal(relevance(Own(PowerOfTwo()), module, x, R), expected), parts


def test_a_rule_without_parts_is_refused() -> None:
    class Empty(FormulaRule):
        def declare(self) -> tuple[Part, ...]:
            return ()

    with pytest.raises(TypeError, match=r"Empty\.declare gave \(\); expected a tuple of Parts, each with a term"):
        relevance(Empty(), nn.Linear(2, 2), torch.ones(1, 2), torch.ones(1, 2))


def test_a_rule_that_declares_nothing_is_no_rule() -> None:
    class Silent(FormulaRule):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Silent()  # type: ignore[abstract]


def test_parts_follow_the_arguments() -> None:
    rule = Gamma(0.25)
    assert rule.parts[0].bias == Increased(0.25, positive)
    rule.gamma = 2.0
    assert rule.parts[0].bias == Increased(2.0, positive)
    assert rule.parts is rule.parts
    rule = copy.deepcopy(rule)
    assert rule.parts[1].bias == Increased(2.0, negative)


#: The rules, and what the reference says they are made of; nothing of it is shared.
LEDGERS: dict[str, tuple[Callable[[], FormulaRule], Callable[[Any], Any]]] = {
    "Epsilon": (lambda: Epsilon(0.5), reference.rules.epsilon),
    "ZPlus": (lambda: ZPlus(0.5), reference.rules.zplus),
    "AlphaBeta": (lambda: AlphaBeta(3, 2, 0.5), lambda layer: reference.rules.alpha_beta(layer, 3, 2)),
    "Gamma": (lambda: Gamma(0.25, 0.5), lambda layer: reference.rules.gamma(layer, 0.25)),
    "ZBox": (lambda: ZBox(-3, 3, 0.5), lambda layer: reference.rules.zbox(layer, np.full(4, -3.0), np.full(4, 3.0))),
    "WSquare": (lambda: WSquare(0.5), reference.rules.wsquare),
    "Flat": (lambda: Flat(0.5), reference.rules.flat),
}


@pytest.mark.parametrize("name", LEDGERS)
def test_the_ledger_of_a_layer_is_that_of_the_reference(name: str) -> None:
    make, parts_of = LEDGERS[name]
    weight, bias, x, R = (integers(shape, seed) for seed, shape in enumerate([(6, 4), (6,), (1, 4), (1, 6)]))
    weight[2], bias[2] = 0, 0  # a dead unit: Gamma's zero branch
    R[0, 2] = 3
    layer = LinearLayer(nn.Linear(4, 6), (x,), None, R.shape, {"weight": weight, "bias": bias}, run=lambda: ())
    got = make().ledger(layer, R)
    known = affine(Linear(x[0].shape, bias=bias.numpy(), weight=weight.numpy()), x[0].numpy())
    expected = reference.ledger.ledger(parts_of(known), R[0].numpy(), 0.5)
    for sink in ("inputs", "bias", "stabilizer", "zero_branch"):
        difference = np.abs(getattr(got, sink)[0].numpy() - getattr(expected, sink))
        assert (difference <= expected.balance).all(), sink
    assert bool(((sum(got) - R)[0].abs() <= torch.as_tensor(expected.balance)).all())


class _Detached(torch.autograd.Function):
    """y = 2 x, with a backward pass that torch cannot differentiate, and does not know."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient.detach()


def test_a_matrix_that_torch_gets_wrong_is_compared_until_it_is_right() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = _Detached.apply(x)  # type: ignore[no-untyped-call]
            return y

    # as declared, A is asked for A v and for the constant f(x) - A x
    module, x, R = Twice(), integers((2, 3), 1), integers((2, 3), 2)
    with without_rewriting():
        assert torch.equal(relevance(Epsilon(0), module, x.abs() + 1, R), R)

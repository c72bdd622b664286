"""The gate lets right rules through, on every layer of the suite, and refuses each planted wrong one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from bench.agreement import LARGEST_MATRIX, Agreement, Reference, joined, layer_parts, module_part
from bench.models import COMPOSITES, MODELS, Residual
from bench.subjects import CLASS_BY_CLASS, Contender, Gate, contender
from bench.workloads import CLASSIFIER, CLASSIFIERS, LAYERS, NONNEGATIVE, SIGNED, Cell, pose, rules_of
from verify.model import Subject
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from torch import Tensor

OURS = contender("lrp_rules")
#: Small enough for seconds: one rule of each kind on each layer.
RULES = {"ZPlus()", "ReLUGuidedBackprop()"}


def ask(subject: Contender, cell: Cell) -> Agreement:
    problem = pose(cell)
    with subject.on(cell, problem) as (call, module):
        return Gate(cell, problem).judge(call, module)


def wrong(change: Any) -> Contender:
    """Our rules, with the relevance changed on its way out."""

    class Wrong:
        def __init__(self, **arguments: Any) -> None:
            self.arguments = arguments

        def register(self, module: nn.Module) -> Any:
            def hook(_module: nn.Module, r: Any, _R: Any) -> tuple[Tensor]:
                return (change(r[0]),)

            return module.register_full_backward_hook(hook)

    return Contender("wrong", Subject("wrong", type("namespace", (), {"Epsilon": Wrong, "Pass": Wrong}), "0"))


@pytest.mark.parametrize("name", [name for name in LAYERS if "4096" not in name])
def test_right_rules_pass_on_each_layer(name: str) -> None:
    for rule in RULES & set(rules_of(LAYERS[name])):
        found = ask(OURS, Cell(name, rule, SIGNED, 2))
        assert found.holds, found
        assert found.entries >= 5


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("rule", ["Epsilon()", "Epsilon(zero_params='bias')", "AlphaBeta(2, 1)", "Flat()"])
def test_right_rules_pass_in_each_dtype(rule: str, dtype: str) -> None:
    found = ask(OURS, Cell("conv2d-3-64-3x3@112", rule, NONNEGATIVE, 1, dtype))
    assert found.holds, found


def test_the_plain_gradient_is_refused_as_a_rule() -> None:
    found = ask(wrong(lambda r: r), Cell("conv2d-64-64-3x3@56", "Epsilon()", SIGNED, 1))
    assert not found.holds
    assert found.ratio > 10
    assert "times the bound" in found.reason


def test_a_rule_that_is_wrong_at_a_border_is_refused() -> None:
    # right everywhere else, so that the window inside does not see it
    cell = Cell("conv2d-64-64-3x3@56", "ZPlus()", SIGNED, 2)
    problem = pose(cell)
    gate = Gate(cell, problem)
    with OURS.on(cell, problem) as (call, module):
        right = call()
        for sample, place in ((0, 0), (-1, -1)):
            bent = right.clone()
            bent[sample, :, place, place] *= 1.01
            assert not gate.judge(bent.clone, module).holds, (sample, place)
        assert gate.judge(call, module).holds


def test_nan_is_refused() -> None:
    found = ask(wrong(lambda r: r * torch.nan), Cell("relu-16", "Pass()", SIGNED, 4))
    assert not found.holds


def test_nothing_decided_is_no_agreement() -> None:
    assert not Agreement(0.0, 0).holds
    assert joined([]).reason == "there was nothing to compare"
    assert joined([Agreement(0.0, 0)]).reason == "rounding leaves every value inconclusive"


def test_the_worst_of_several_decides() -> None:
    found = joined([Agreement(0.5, 10), Agreement(float("nan"), 3, "NaN"), Agreement(9.0, 1, "off")])
    assert found.reason == "NaN"
    assert found.entries == 14
    assert not found.holds


@pytest.mark.parametrize("name", LAYERS)
def test_parts_are_affordable_and_cover_both_corners(name: str) -> None:
    problem = pose(Cell(name, "Pass()" if name.startswith("relu") else "Epsilon()", SIGNED, 2))
    parts = layer_parts(problem)
    for part in parts:
        outputs = part.problem.module(part.problem.x)
        assert outputs.shape == part.problem.relevance.shape
        if not name.startswith("relu"):
            assert part.problem.x[0].numel() * outputs[0].numel() <= 2 * LARGEST_MATRIX
    if len(parts) == 3:
        first, last, _ = parts
        assert first.keep.flatten()[0]
        assert last.keep.flatten()[-1]


@pytest.mark.parametrize("name", ["mlp", "audio-cnn"])
@pytest.mark.parametrize("composite", COMPOSITES)
def test_composites_pass_on_small_models(name: str, composite: str) -> None:
    found = ask(OURS, Cell(name, composite, SIGNED, 2, kind="model"))
    assert found.holds, found


def test_a_model_with_one_wrong_rule_is_refused_and_the_layer_named() -> None:
    import lrp_rules  # noqa: PLC0415

    names = {name: getattr(lrp_rules, name) for name in ("Epsilon", "Pass", "Norm", "AlphaBeta", "Flat")}
    names["ZPlus"] = lrp_rules.Epsilon  # planted
    subject = Contender("wrong", Subject("planted", type("namespace", (), names), "0"))
    found = ask(subject, Cell("audio-cnn", "EpsilonPlus", SIGNED, 2, kind="model"))
    assert not found.holds
    assert re.match(r"\d, ZPlus: .* times the bound", found.reason)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_composites_pass_on_all_classes_at_once(name: str) -> None:
    found = ask(OURS, Cell(name, "EpsilonPlus", SIGNED, 1, kind=CLASSIFIER))
    assert found.holds, found


def test_all_classes_are_what_each_of_them_is_alone() -> None:
    cell = Cell("mlp", "EpsilonPlus", SIGNED, 2, kind=CLASSIFIER)
    problem = pose(cell)
    with OURS.on(cell, problem) as (call, _), contender(f"lrp_rules{CLASS_BY_CLASS}").on(cell, problem) as (loop, _):
        found, expected = call(), loop()
    assert found.shape == (10, *problem.x.shape)
    distances = (found[:, None] - expected).abs().amax((2, 3))
    assert torch.equal(distances.argmin(1), torch.arange(10))  # apart from rounding, and that is for the gate
    with OURS.on(replace(cell, kind="model"), problem) as (_, module):
        for k, alone in enumerate(expected):
            logits = module(problem.x)
            of_class = logits.detach() * torch.eye(10)[k]
            assert torch.equal(torch.autograd.grad(logits, problem.x, of_class)[0], alone)


def test_a_rule_that_is_wrong_in_a_batch_of_relevances_alone_is_refused() -> None:
    import lrp_rules  # noqa: PLC0415

    class Epsilon(lrp_rules.Epsilon):
        def relevance(self, layer: Any, R: Tensor) -> Tensor:
            r = super().relevance(layer, R)
            return r * 2 if torch._C._functorch.is_legacy_batchedtensor(R) else r

    names = {"Epsilon": Epsilon, "Pass": lrp_rules.Pass}
    subject = Contender("wrong", Subject("planted", type("namespace", (), names), "0"))
    cell = Cell("mlp", "EpsilonPlus", SIGNED, 1, kind="model")
    assert ask(subject, cell).holds
    assert not ask(subject, replace(cell, kind=CLASSIFIER)).holds


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(5, 7, 3, stride=2, padding=1), (5, 9, 11)),
        (nn.Conv1d(3, 4, 5, dilation=2), (3, 20)),
        (nn.Linear(30, 20, bias=False), (30,)),
        (nn.AdaptiveAvgPool2d(3), (10, 7, 7)),
        (Residual(), (4, 5, 5, 2)),
        (nn.ReLU(), (4, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_part_of_a_module_holds_all_that_its_relevance_reaches(module: nn.Module, shape: tuple[int, ...]) -> None:
    # small integers, so that sums are exact in any order
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
    x = torch.randn(2, *shape)
    R, part = module_part(module, x, torch.Generator().manual_seed(0))
    leaf = x[:1].clone().requires_grad_()
    (r,) = torch.autograd.grad(module(leaf), leaf, (4 * R).round())
    if not isinstance(module, nn.ReLU):  # of which a few entries are looked at
        assert part.where(r).count_nonzero() == r.count_nonzero() > 0
    inner = part.problem.x.clone().requires_grad_()
    (own,) = torch.autograd.grad(part.problem.module(inner), inner, (4 * part.problem.relevance).round())
    assert torch.equal(own, part.where(r))


def test_a_wide_layer_within_a_model_is_decided_in_single_precision() -> None:
    x = torch.randn(1, 20000).relu()
    layer = nn.Linear(20000, 64)
    _, part = module_part(layer, x, torch.Generator().manual_seed(0))
    rule = OURS.subject.get("Epsilon")() if OURS.subject else None
    posed = part.problem
    found = Reference([part], "Epsilon", {}).judge(relevance_of(rule, posed.module, posed.x, posed.relevance))
    assert found.holds
    assert found.entries > 9000  # of 20,000 inputs, half of which are zero


def test_a_module_of_which_no_part_is_known_is_refused() -> None:
    with pytest.raises(TypeError, match=r"given Tanh, of which no part can be taken; add it to bench\.agreement"):
        module_part(nn.Tanh(), torch.randn(1, 3), torch.Generator())


def test_data_are_the_same_in_each_process_and_others_by_seed() -> None:
    cell = Cell("linear-16-16", "Epsilon()", SIGNED, 4)

    def weights(seed: int) -> Tensor:
        problem = pose(cell, seed)
        return torch.cat(
            [next(problem.module.parameters()).flatten(), problem.x.flatten(), problem.relevance.flatten()]
        )

    torch.manual_seed(5)
    first = weights(0)
    torch.manual_seed(6)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_nonnegative_data_have_exact_zeros_and_no_negative_entry() -> None:
    problem = pose(replace(Cell("linear-512-512", "ZPlus()"), signs=NONNEGATIVE))
    assert (problem.x >= 0).all()
    assert (problem.x == 0).double().mean() > 0.4


def test_models_are_those_that_they_are_named_after() -> None:
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in MODELS[name].build().parameters()) for name in ("vgg16@224",)}
    assert counts == {"vgg16@224": 138_357_544}  # as published, with biases
    resnet = MODELS["resnet18@224"].build()
    # 11,689,512 with batch normalisation: 9,600 parameters of it; folded, each channel keeps one bias
    assert sum(p.numel() for p in resnet.parameters()) == 11_689_512 - 9_600 + 4_800
    assert not any(isinstance(module, nn.BatchNorm2d) for module in resnet.modules())

"""Pipelines of others: zennit with and without its canonizers, and the plain gradient."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by

import verify
from lrp_rules import Epsilon, Norm, Pass, UnruledWarning, ZPlus, composites
from tests.lrp_rules.cases import handles
from tests.lrp_rules.networks import FAMILIES, IMAGE, NETWORKS, SEQUENCE, prepared, residual
from tests.lrp_rules.peer import load_zennit
from verify.auditing.formulas import gamma
from verify.auditing.judging import Judge

if TYPE_CHECKING:
    from verify.auditing.account import Row
    from verify.auditing.calls import Call

PLUS = composites.EpsilonPlus()


def some_input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def same(a: float, b: float, gross: float) -> bool:
    """Whether two sums differ by no more than rounding makes of at most a thousand terms of this size in all."""
    return abs(a - b) <= 2 * gamma(1000, 2.0**-53) * gross


def zennit(canonizers: Any = ()) -> Any:
    load_zennit()
    found: Any = pytest.importorskip("zennit.composites")
    return found.EpsilonPlus(canonizers=list(canonizers)).context


def test_zennit_without_a_canonizer() -> None:
    found = verify.audit(prepared(residual, constants=True), some_input(IMAGE), PLUS, pipeline=zennit())
    assert found.pipeline == "zennit.EpsilonPlus"
    assert not found.held
    notes = {(row.operation, row.module): row.note for row in found.faults}
    assert "Norm never ran here" in notes["Tensor.add_", "4"]
    norms = [note for (operation, _), note in notes.items() if operation == "Conv2d + BatchNorm2d"]
    assert len(norms) == 5
    assert all("Pass on a batch norm that moves its input by" in note for note in norms)
    assert len(found.faults) == 7


def test_zennit_with_its_canonizer_follows_its_rules() -> None:
    load_zennit()
    canonizers: Any = pytest.importorskip("zennit.torchvision")
    make, shape = FAMILIES["vgg"]
    model, x = prepared(make, constants=True), some_input(shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = verify.audit(model, x, PLUS, pipeline=zennit([canonizers.VGGCanonizer()]))
    assert found.held, str(found)
    assert found.unexplained < 1e-9
    merged = [row.note for row in found.rows if row.operation == "Conv2d + BatchNorm2d"]
    assert len(merged) == 3
    assert all("merged by a canonizer, which forgot the eps of 1e-05" in note for note in merged)
    assert handles(model) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_zennit_on_residual_blocks() -> None:
    load_zennit()
    resnet: Any = importlib.import_module("torchvision.models.resnet")
    canonizers: Any = importlib.import_module("zennit.torchvision")
    model = prepared(
        lambda: nn.Sequential(resnet.BasicBlock(3, 3), resnet.BasicBlock(3, 3), nn.Flatten(), nn.Linear(192, 4)),
        constants=True,
    )
    canonizer = canonizers.ResNetBasicBlockCanonizer()
    found = verify.audit(model, some_input(IMAGE), PLUS, pipeline=zennit([canonizer]))
    sums = [row for row in found.rows if row.operation == "Sum"]
    assert [(row.module, row.rule, row.verdict) for row in sums] == [
        ("1.canonizer_sum", "Norm", "held"), ("0.canonizer_sum", "Norm", "held"),
    ]  # fmt: skip
    # that canonizer knows of the sums alone
    assert [row.operation for row in found.faults] == ["Conv2d + BatchNorm2d"] * 4


def test_the_plain_gradient_follows_no_rule() -> None:
    found = verify.audit(prepared(residual, constants=True), some_input(IMAGE), PLUS, pipeline="gradient")
    assert {row.module for row in found.faults if "Epsilon never ran here" in row.note} == {"7"}
    held = {row.operation for row in found.rows if row.verdict == "held"}
    assert held <= {"Flatten"}


def test_plain_module_rules_name_each_sum_with_its_line() -> None:
    rules: dict[Any, Any] = {
        nn.Conv2d: ZPlus(), nn.BatchNorm2d: Pass(), nn.ReLU: Pass(), nn.AdaptiveAvgPool2d: Norm(), nn.Linear: Epsilon(),
    }  # fmt: skip
    with pytest.warns(UnruledWarning, match="no rule for Tensor.add_"):
        found = verify.audit(prepared(residual, constants=True), some_input(IMAGE), rules)
    assert [(row.operation, row.module, row.verdict) for row in found.faults] == [
        ("Tensor.add_", "4", "unexplained"), ("Tensor.add_", "3", "unexplained"),
    ]  # fmt: skip
    for row in found.faults:
        assert row.note == "x2: relevance is copied to both summands: put Norm on torch.add"
        assert row.where.rpartition(":")[0].endswith("networks.py")
        assert same(row.relevance_out, 2 * row.relevance_in, row.gross_out)
    passed = [row.note for row in found.rows if row.operation == "BatchNorm2d"]
    assert all(note.startswith("Pass on a batch norm that moves its input by") for note in passed)


def test_a_normalisation_under_norm_keeps_nothing() -> None:
    make, shape = NETWORKS["decoder"]
    norm = composites.EpsilonPlus(layer_map=[(nn.LayerNorm, Norm())])
    found = verify.audit(prepared(make, constants=True), some_input(shape), norm)
    assert [(row.operation, row.verdict) for row in found.faults] == [("LayerNorm", "unexplained")] * 2
    assert all("LayerNorm under Norm keeps nothing: use Pass or LayerNormRule" in row.note for row in found.faults)


def test_what_nobody_can_see_is_not_judged() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: Any, *R: Tensor) -> Tensor:
            return 2 * R[0]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(40, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Doubled.apply(self.layer(x.flatten(1)))  # type: ignore[no-untyped-call]
            return found

    found = verify.audit(Model(), some_input(SEQUENCE), {nn.Linear: Epsilon()}, pipeline="gradient")
    hidden = next(row for row in found.rows if row.operation == "DoubledBackward")
    assert hidden.verdict == "not judged"
    assert hidden.unexplained == hidden.relevance_in
    assert not found.held


class Shared(nn.Module):
    """A convolution whose output goes into a batch norm and around it, and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.token = nn.Conv1d(8, 4, 1), nn.BatchNorm1d(4), nn.Parameter(torch.ones(1, 4, 1))
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x.transpose(1, 2))
        z = torch.cat([self.token.expand(len(z), -1, -1), self.norm(z) + z], 2)
        found: Tensor = self.out(z.flatten(1))
        return found


def test_a_layer_that_is_used_by_its_batch_norm_and_by_others() -> None:
    found = verify.assert_conserves(prepared(Shared, constants=True), some_input(SEQUENCE), PLUS)
    rows = {row.operation: row for row in found.rows}
    assert set(rows) >= {"Conv1d + BatchNorm1d", "Conv1d"}
    shares, summed = (rows["Conv1d"], rows["Conv1d + BatchNorm1d"]), rows["Tensor.add"]
    assert same(sum(row.relevance_in for row in shares), summed.relevance_out, summed.gross_out)
    token = rows["torch.cat"]
    assert token.constants != 0
    assert same(token.relevance_out + token.constants, token.relevance_in, token.gross_in)


def test_what_is_meant_may_be_another_than_what_is_attached() -> None:
    model, x = prepared(residual, constants=True), some_input(IMAGE)
    found = verify.audit(model, x, PLUS, expected=composites.EpsilonPlus(epsilon=1e-3))
    assert [(row.operation, row.module) for row in found.faults] == [("Linear", "7")]
    assert found.pipeline == "attach"
    given = torch.ones(2, 5, dtype=torch.float64)
    assert verify.audit(model, x, PLUS, target=given).put_in == 10
    assert verify.audit(model, x, PLUS, target=-1).put_in == 2


def test_rules_of_modules_that_are_not_called_are_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(40, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.used(x.flatten(1))
            return found

    found = verify.audit(
        Idle(),
        some_input(SEQUENCE),
        {nn.Linear: Epsilon()},
        pipeline=lambda m: Epsilon().register(m.get_submodule("used")),
    )
    assert found.never_called == ("idle",)
    assert not found.held
    assert "never called, though a rule was meant for them: idle" in str(found)


def test_a_rule_of_ones_own_is_not_judged() -> None:
    class Twice(Epsilon):
        def relevance(self, layer: Any, R: Tensor) -> Tensor:
            return 2 * super().relevance(layer, R)

    model, x = prepared(residual, constants=True), some_input(IMAGE)
    own = composites.MixedComposite([composites.NameMapComposite({"7": Twice()}), PLUS])
    found = verify.audit(model, x, own)
    assert [(row.module, row.verdict) for row in found.faults] == [("7", "not judged")]
    assert found.faults[0].note == "Twice is a rule of your own, for which there is no formula here"
    assert found.faults[0].unexplained == found.faults[0].relevance_out - found.faults[0].relevance_in


def test_what_goes_elsewhere_than_to_the_inputs_is_unexplained(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Judge.row

    def row(judge: Judge, call: Call, calls: int) -> Row:
        if call.operation == "Flatten":
            call.r[object(), 0] = torch.ones(1, dtype=torch.float64)
        return plain(judge, call, calls)

    monkeypatch.setattr(Judge, "row", row)
    found = verify.audit(prepared(residual, constants=True), some_input(IMAGE), PLUS)
    assert [(one.operation, one.verdict) for one in found.faults] == [("Flatten", "unexplained")]
    assert "more goes to tensors that are none of them" in found.faults[0].note
    fault = found.faults[0]
    assert same(fault.unexplained, 1, fault.gross_in + fault.gross_out)


def test_a_module_of_functions_alone_is_looked_into() -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 40, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            z = F.linear(x.flatten(1), self.weight)
            return z + torch.tanh(z)

    found = verify.assert_conserves(Functions(), some_input(SEQUENCE), PLUS, pipeline=None)
    assert [(row.operation, row.rule) for row in found.rows] == [
        ("Tensor.add", "Norm"), ("torch.tanh", "Pass"), ("F.linear", "Epsilon"), ("Tensor.flatten", ""),
    ]  # fmt: skip

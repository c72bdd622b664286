"""Pipelines of others: zennit with and without its canonizers, and the plain gradient."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by

import verify
from lrp_rules import Epsilon, FoldBatchNorm, Norm, Pass, UnruledWarning, ZPlus, composites
from tests.lrp_rules.cases import handles
from tests.lrp_rules.networks import FAMILIES, IMAGE, NETWORKS, SEQUENCE, prepared, residual
from tests.lrp_rules.peer import load_zennit
from verify.auditing import pipelines
from verify.auditing.judging import Judge
from verify.auditing.rounding import gamma

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


EXACT: dict[Any, Any] = {
    nn.Conv2d: Epsilon(0.0), nn.Linear: Epsilon(0.0), nn.BatchNorm2d: FoldBatchNorm(Epsilon(0.0)), nn.ReLU: Pass(),
    torch.add: Norm(0.0), nn.AdaptiveAvgPool2d: Norm(0.0),
}  # fmt: skip


def test_gradient_times_input_is_epsilon_without_a_stabilizer() -> None:
    model, x = prepared(residual, constants=True), some_input(IMAGE)
    found = verify.assert_conserves(model, x, EXACT, pipeline="gradient*input")
    assert len(found.rows) == 15
    given = x.clone().requires_grad_()
    output = model(given)
    (gradient,) = torch.autograd.grad(output.amax(1).sum(), given)
    assert found.relevance[0] is not None
    assert torch.equal(found.relevance[0], gradient * x)
    assert same(found.put_in, float(output.detach().amax(1).sum()), float(output.detach().abs().sum()))
    wrong = verify.audit(model, x, {**EXACT, nn.Linear: ZPlus()}, pipeline="gradient*input")
    assert [(row.module, row.note) for row in wrong.faults] == [
        ("7", "its plain gradient: ZPlus never ran here"),
    ]  # fmt: skip


def test_departures_of_autolrp_are_named() -> None:
    autolrp: Any = pytest.importorskip("autolrp")
    model, x = prepared(residual, constants=True), some_input(IMAGE)[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that it does not write in place
        found = verify.audit(model, x, PLUS, pipeline="autolrp")
        given = autolrp.tensor(x)
        output = model(given)
        output[0, int(output.argmax())].lrp(config=autolrp.LRPConfig.composite())
    assert found.relevance[0] is not None
    assert torch.equal(found.relevance[0], given.relevance)
    assert not [row.note for row in found.faults if "that is known here" in row.note]
    notes = {(row.operation, row.module): row.note for row in found.faults}
    assert notes["Linear", "7"].startswith(
        "the bias takes abs(b) / (abs(z) + abs(b)), as in autoLRP; the rest is Epsilon"
    )
    assert notes["Tensor.add_", "4"].startswith("shares by magnitude, abs(x) / sum abs(x), as autoLRP gives")
    assert notes["AdaptiveAvgPool2d", "5"].startswith("its plain gradient: Norm never ran here")
    assert notes["Conv2d + BatchNorm2d", "4.conv2"].startswith("Pass on a batch norm that moves its input by")
    assert handles(model) == []


def test_means_of_autolrp_are_shared_by_magnitude() -> None:
    pytest.importorskip("autolrp")
    make, shape = NETWORKS["u-net"]
    found = verify.audit(prepared(make, constants=True), some_input(shape)[:1], PLUS, pipeline="autolrp")
    assert [row.note for row in found.faults if row.operation == "Tensor.mean"] == [
        "shares by magnitude, abs(x) / sum abs(x), as autoLRP gives; not Norm"
    ]


def test_departures_of_autolrp_on_a_transformer_are_named() -> None:
    pytest.importorskip("autolrp")
    make, shape = NETWORKS["decoder"]
    model, x = prepared(make, constants=True), some_input(shape)[:1]
    found = verify.audit(model, x, composites.AttnLRP(), pipeline="autolrp:attnlrp(gamma=0.25)")
    notes: dict[str, set[str]] = {}
    for row in found.faults:
        notes.setdefault(row.operation, set()).add(row.note)
    assert notes == {
        "Tensor.add": {"shares by magnitude, abs(x) / sum abs(x), as autoLRP gives; not Norm"},
        "Linear": {"the bias takes abs(b) / (abs(z) + abs(b)), as in autoLRP; the rest is Epsilon"},
        "F.gelu": {"R f(x) / x, as autoLRP gives; not Pass"},
        "LayerNorm": {
            "the bias takes abs(b) / (abs(y) + abs(b)), as in autoLRP; the rest is passed on, not by LayerNormRule"
        },
        "F.scaled_dot_product_attention": {
            "fused attention, in one piece: there is no formula for it. attach writes it out"
        },
    }


class Efficient(torch.autograd.Function):
    """As LXT's identity_rule_implicit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.gelu(x)
        ctx.save_for_backward(y / (x + 1e-10))
        return y

    @staticmethod
    def backward(ctx: Any, *R: Tensor) -> Tensor:
        found: Tensor = ctx.saved_tensors[0] * R[0]
        return found


def test_patches_as_those_of_lxt_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    patched: Any = types.ModuleType("patched_by_lxt")
    vars(patched).update(nn=nn, attention=len)

    def monkey_patch(module: Any) -> None:
        assert module is patched
        module.nn.GELU.original_forward = module.nn.GELU.forward
        module.nn.GELU.forward = lambda _self, x: Efficient.apply(x)  # type: ignore[no-untyped-call]
        module.attention = max

    lxt: Any = types.ModuleType("lxt.efficient")
    lxt.monkey_patch = monkey_patch
    monkeypatch.setitem(sys.modules, "lxt.efficient", lxt)
    monkeypatch.setitem(sys.modules, "patched_by_lxt", patched)
    before, model = nn.GELU.forward, nn.Sequential(nn.Linear(40, 6), nn.GELU(), nn.Linear(6, 3))
    rules: dict[Any, Any] = {nn.Linear: Epsilon(0.0), nn.GELU: Pass()}
    x = some_input(SEQUENCE).flatten(1)
    found = verify.audit(model, x, rules, pipeline="lxt:patched_by_lxt")
    assert [(row.module, row.verdict) for row in found.rows] == [("2", "held"), ("1", "deviates"), ("0", "held")]
    assert found.rows[1].note == "Pass with 1e-10 added to the input that it is divided by, as LXT does"
    assert found.rows[1].deviation < 1e-6
    assert nn.GELU.forward is before
    assert not hasattr(nn.GELU, "original_forward")
    assert vars(patched)["attention"] is len
    plain = verify.audit(model, x, rules, pipeline="gradient*input")
    assert plain.rows[1].note.startswith("its plain gradient: Pass never ran here; x")


def test_lxt_patches_torchvisions_transformer() -> None:
    """Where LXT is installed."""
    load_zennit()  # which knows how to load torchvision
    pytest.importorskip("lxt.efficient", exc_type=ImportError)
    vision: Any = importlib.import_module("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    model = vision.EncoderBlock(2, 8, 16, 0.0, 0.0)
    found = verify.audit(
        model, torch.randn(2, 5, 8), composites.CPLRP(0.0), pipeline="lxt:torchvision.models.vision_transformer"
    )
    verdicts = {row.operation: row.verdict for row in found.rows}
    assert {verdicts[name] for name in ("Linear", "LayerNorm", "Tensor.add")} == {"held"}
    assert [row.note for row in found.faults] == [
        "Pass with 1e-10 added to the input that it is divided by, as LXT does"
    ]


def test_fused_attention_in_one_piece_is_not_judged() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.doubled = nn.Linear(8, 24), False

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            found: Any = F.scaled_dot_product_attention(q, k, v)
            if self.doubled:
                found.grad_fn.register_hook(lambda r, _R: tuple(None if one is None else 2 * one for one in r))
            return found.mean(1)  # type: ignore[no-any-return]

    model, x = Fused(), torch.randn(2, 5, 8)
    assert verify.audit(model, x, composites.AttnLRP()).held
    model.doubled = True
    found = verify.audit(model, x, {nn.Linear: Epsilon(), torch.mean: Norm()}, pipeline="gradient")
    row = next(row for row in found.rows if row.operation == "F.scaled_dot_product_attention")
    assert (row.verdict, row.note) == (
        "not judged", "fused attention, in one piece: there is no formula for it. attach writes it out"
    )  # fmt: skip


class Constant(nn.Module):
    """Attention of which some inputs are detached."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.qkv, self.which = nn.Linear(8, 24), which

    def forward(self, x: Tensor) -> Tensor:
        given = zip("qkv", self.qkv(x).chunk(3, -1), strict=True)
        q, k, v = (2 * part.detach().clone() if name in self.which else part for name, part in given)
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(("which", "verdict"), [("qk", "held"), ("q", "held"), ("v", "deviates")])
def test_a_detached_query_is_what_stop_means(which: str, verdict: str) -> None:
    torch.manual_seed(0)
    model, x = Constant(which), torch.randn(2, 5, 8)
    found = verify.audit(model, x, composites.CPLRP(), pipeline="gradient")
    detached = [row.verdict for row in found.rows if row.operation == "Tensor.detach"]
    assert detached == [verdict] * len(which)
    other = verify.audit(model, x, composites.AttnLRP(), pipeline="gradient")  # there it is no constant
    assert {row.verdict for row in other.rows if row.operation == "Tensor.detach"} == {"deviates"}


def test_a_tensor_that_is_given_twice_is_two_inputs() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, x)

    for pipeline in (None, "gradient*input"):
        found = verify.audit(Twice(), torch.randn(2, 5), {torch.add: Norm(0.0)}, pipeline=pipeline)
        assert [(row.operation, row.verdict) for row in found.rows] == [("torch.add", "held")], str(found)


def test_pipelines_by_name() -> None:
    model, x = prepared(residual, constants=True), some_input(IMAGE)
    load_zennit()
    by_name = verify.audit(model, x, PLUS, pipeline="zennit:EpsilonPlus(epsilon=1e-6)")
    given = verify.audit(model, x, PLUS, pipeline=zennit())
    assert [row.note for row in by_name.rows] == [row.note for row in given.rows]
    with pytest.raises(ValueError, match=r"zennit.composites has no 'Nothing'; it has .*EpsilonPlus"):
        verify.audit(model, x, PLUS, pipeline="zennit:Nothing")
    with pytest.raises(ValueError, match="cannot be imported"):
        verify.audit(model, x, PLUS, pipeline="no_such_module:context")
    with pytest.raises(ImportError, match="no_such_module is needed for this pipeline"):
        pipelines._library("no_such_module", "no_such_module")


def test_captum_is_refused_with_the_reason() -> None:
    load_zennit()
    captum: Any = pytest.importorskip("captum.attr")
    model, x = prepared(residual, constants=True), some_input(IMAGE)
    for pipeline in ("captum", "captum:LRP", captum.LRP, captum.LRP(model), captum.LRP(model).attribute):
        with pytest.raises(ValueError, match="captum's LRP cannot be audited: it calls the model twice"):
            verify.audit(model, x, PLUS, pipeline=pipeline)


class Placed(nn.Module):
    """A learned constant is added to a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.position = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x) + self.position
        return y


def test_a_constant_that_the_gradient_leaves_out_is_named() -> None:
    model = Placed().double()
    found = verify.audit(model, torch.ones(1, 3).double(), composites.EpsilonPlus(), pipeline="gradient")
    (note,) = found.table.query("operation == 'Tensor.add'")["note"]
    assert "the input gets all of it, and the constant beside it nothing" in note

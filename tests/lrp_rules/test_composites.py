"""Composites on networks of every make: relevance is conserved, the output is the model's own, peers agree."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by

from lrp_rules import Composite, Epsilon, Flat, Gamma, Pass, UnruledWarning, ZBox, ZPlus, attach, composites
from lrp_rules.layers.numbers import agree
from tests.lrp_rules.cases import handles
from tests.lrp_rules.networks import FAMILIES, IMAGE, NETWORKS, UNet, prepared, residual
from tests.lrp_rules.peer import load_zennit

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = 1e-30


def some_input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()


def explained(model: nn.Module, rules: Any, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor, Any]:
    with attach(model, rules, **kwargs) as attached:
        output = model(x)
    largest = output.flatten(1).argmax(1)
    R = F.one_hot(largest, output.flatten(1).shape[1]).to(output.dtype).view(output.shape)
    return torch.autograd.grad(output, x, R)[0], output, attached


@pytest.mark.parametrize(
    ("name", "composite"),
    [(name, "CPLRP") for name in (*NETWORKS, *FAMILIES)]
    + [(name, "EpsilonOnly") for name in (*NETWORKS, "vit", "swin", "convnext", "maxvit")],
)
def test_networks_conserve_relevance(name: str, composite: str) -> None:
    make, shape = {**NETWORKS, **FAMILIES}[name]
    model, x = prepared(make, constants=False), some_input(shape)
    if composite == "CPLRP":
        rules: Composite = composites.CPLRP(TINY)
    else:
        rules = composites.EpsilonPlus(TINY, TINY, layer_map=[(composites.CONVOLUTIONS, Epsilon(TINY))])
    plain = model(x).detach()
    r, output, attached = explained(model, rules, x, strict=True)
    # what is written out, attention, is the same but for rounding
    assert agree(output, plain)
    assert torch.equal(output, plain) or name in {"encoder", "decoder", "vit", "lstm", "gru", "rnn"}
    # the one unit of relevance of each sample
    assert bool(((r.flatten(1).sum(1) - 1).abs() < 1e-9).all())
    assert attached.between.unruled == {}
    assert torch.equal(model(x), plain)
    assert handles(model) == []


@pytest.mark.parametrize("name", ["EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox", "ExcitationBackprop"])
def test_composites_for_convolutions_conserve_on_a_residual_network(name: str) -> None:
    arguments: dict[str, Any] = {"low": -4.0, "high": 4.0} if name == "EpsilonGammaBox" else {}
    if name != "ExcitationBackprop":
        arguments["epsilon"] = TINY
    rules = getattr(composites, name)(stabilizer=TINY, **arguments)
    model, x = prepared(residual, constants=False), some_input(IMAGE).abs().detach().requires_grad_()
    for parameter in model.parameters():  # so that no unit is dead: nothing is lost to one
        parameter.data.abs_()
    r, _, _ = explained(model, rules, x, strict=True)
    assert bool(((r.flatten(1).sum(1) - 1).abs() < 1e-9).all())


zennit: Any = load_zennit()
zennit_composites: Any = pytest.importorskip("zennit.composites")
zennit_canonizers: Any = pytest.importorskip("zennit.canonizers")
zennit_layers: Any = pytest.importorskip("zennit.layer")
NAMES = [
    "EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1", "EpsilonAlpha2Beta1Flat", "EpsilonGammaBox",
    "GuidedBackprop", "DeconvNet", "ExcitationBackprop", "BetaSmooth",
]  # fmt: skip


class Summed(nn.Module):
    """A residual block whose sum is a function, or the module that zennit knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, eps=0.0), nn.ReLU()
        self.sum: nn.Module | None = None

    def forward(self, x: Tensor) -> Any:
        around = self.norm(self.conv(x))
        return self.relu(around + x if self.sum is None else self.sum(torch.stack([around, x], -1)))


def canonical() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(), Summed(), nn.MaxPool2d(2), Summed(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_zennits_composites_with_its_canonizers_give_the_same(name: str) -> None:
    # with eps = 0, since zennit 0.5.1 leaves it in the batch norm that it has merged
    arguments: dict[str, Any] = {"low": -4.0, "high": 4.0} if name == "EpsilonGammaBox" else {}
    model, x = prepared(canonical, constants=True), some_input(IMAGE)
    R = torch.randn(2, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with attach(model, getattr(composites, name)(**arguments)):
        output = model(x)
    found = torch.autograd.grad(output, x, R)[0]
    for part in model.children():
        if isinstance(part, Summed):
            part.sum = zennit_layers.Sum()
    canonizers = [zennit_canonizers.SequentialMergeBatchNorm()]
    theirs = getattr(zennit_composites, name)(**arguments, canonizers=canonizers)
    with theirs.context(model) as modified:
        expected = torch.autograd.grad(modified(x), x, R)[0]
    assert agree(found, expected)
    # and with their canonizers in our composites
    ours = getattr(composites, name)(**arguments, canonizers=canonizers)
    with ours.context(model) as modified, warnings.catch_warnings():
        warnings.simplefilter("ignore", UnruledWarning)
        output = modified(x)
    assert agree(torch.autograd.grad(output, x, R)[0], expected)


@pytest.mark.parametrize(
    "name",
    [
        *NAMES,
        "LayerMapComposite",
        "SpecialFirstLayerMapComposite",
        "NameMapComposite",
        "MixedComposite",
        "NameLayerMapComposite",
    ],
)
def test_arguments_are_those_of_zennit(name: str) -> None:
    ours = list(inspect.signature(getattr(composites, name)).parameters)
    theirs = list(inspect.signature(getattr(zennit_composites, name)).parameters)
    if name == "BetaSmooth":
        theirs.remove("zero_params")  # which does nothing there
    assert [argument for argument in ours if argument in theirs] == theirs


class TwoInputs(nn.Module):
    """Two stems and what follows them, in an order that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle = nn.Conv2d(4, 2, 3), nn.Conv2d(4, 4, 1)
        self.stem, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        x = (x - 0.5) / 0.25
        return self.last(F.relu(self.middle(self.stem(x)) + self.other(x.flip(2))))


def test_first_layers_are_those_that_the_input_reaches_first() -> None:
    rules = composites.SpecialFirstLayerMapComposite(
        [(nn.Conv2d, ZPlus()), (torch.add, Pass()), (torch.div, Pass()), (F.relu, Pass())], [(nn.Conv2d, Flat())]
    )
    model = prepared(TwoInputs, constants=True)
    with attach(model, rules, ignore=torch.add) as attached:
        model(some_input(IMAGE))
    assert attached.between.first == {model.stem, model.other}
    assert "or Flat where the input comes first" in repr(attached)


def test_a_composite_names_a_layer_that_goes_its_own_way_by_what_it_calls() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)

    own, plain = nn.Sequential(Padded(3, 4, 3)).double(), nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double()
    plain.load_state_dict(own.state_dict())
    x, R = some_input(IMAGE), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for rules in (composites.EpsilonPlus(), composites.EpsilonGammaBox(-4.0, 4.0)):
        with attach(own, rules, strict=True) as attached:
            found = torch.autograd.grad(own(x), x, R)[0]
        assert sum(attached.between.calls.values()) == 1
        with attach(plain, rules):
            expected = torch.autograd.grad(plain(x), x, R)[0]
        # the two have the same rule, and one pads what the other does not
        assert agree(found, expected) or rules.first


def test_maps_and_mixtures_decide_by_their_order() -> None:
    named = composites.NameMapComposite([(["0", "nothing"], Gamma(1.0))])
    layers = composites.LayerMapComposite(
        [(nn.Conv2d, ZPlus()), ((nn.ReLU, nn.Flatten), Pass()), (nn.Linear, Epsilon())]
    )
    mixed = composites.MixedComposite([named, layers])
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 2)).double()
    with mixed.context(model) as modified:
        assert modified is model
        modified(some_input(IMAGE))
    attached = mixed.register(model)
    assert [type(one.hook) for one in attached.registrations] == [Gamma, Pass, ZPlus, Pass, Epsilon]
    modified(some_input(IMAGE))
    attached.remove()
    assert handles(model) == []


def test_a_composite_knows_no_model_and_can_be_used_again() -> None:
    rules = composites.EpsilonPlus()
    before = dict(vars(rules))
    for _ in range(2):
        for make in (residual, UNet):
            model, x = prepared(make, constants=True), some_input(IMAGE)
            first = explained(model, rules, x)[0]
            assert torch.equal(first, explained(model, rules, x)[0])
    assert vars(rules) == before


def test_rules_of_ones_own_come_first() -> None:
    rules = composites.EpsilonGammaBox(-4, 4, layer_map=[(nn.Linear, ZPlus())], first_map=[(nn.Conv2d, Flat())])
    assert isinstance(rules.rules[nn.Linear], ZPlus)
    assert isinstance(rules.first[nn.Conv2d], Flat)
    assert isinstance(rules.first[nn.Conv1d], ZBox)


@pytest.mark.parametrize(
    "create",
    [
        lambda: composites.LayerMapComposite([(nn.Linear, Epsilon)])  # type: ignore[list-item]
    ],
)
def test_a_class_in_place_of_a_rule(create: Callable[[], Composite]) -> None:
    with pytest.raises(TypeError, match=r"expected an object of a rule, Epsilon\(\)"):
        attach(nn.Sequential(nn.Linear(2, 2)), create())


def test_relevance_at_hidden_layers_comes_with_that_of_the_input() -> None:
    model, x = prepared(residual, constants=False), some_input(IMAGE)
    with attach(model, composites.CPLRP(TINY), keep=["2", "3.bn2", "5"]) as rules:
        output = model(x)
    R = F.one_hot(output.argmax(1), 5).double()
    ends: Any = [x, *[rules.kept[name] for name in ("2", "3.bn2", "5")]]
    at_input, after_relu, in_block, pooled = torch.autograd.grad(output, ends, R)
    for relevance in (at_input, after_relu, pooled):  # no layer goes around these
        assert bool(((relevance.flatten(1).sum(1) - 1).abs() < 1e-9).all())
    assert in_block.shape == (2, 4, 6, 6)  # the ReLU behind has written into that output, the shortcut goes around it
    with pytest.raises(ValueError, match="matches no module"):
        attach(model, composites.CPLRP(), keep="nothing")


RECURRENT: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm-deep": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "lstm-projected": (nn.LSTM, {"proj_size": 2}),
    "lstm-no-bias": (nn.LSTM, {"bias": False}),
    "gru": (nn.GRU, {"bidirectional": True}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm-cell": (nn.LSTMCell, {}),
    "gru-cell": (nn.GRUCell, {}),
    "rnn-cell": (nn.RNNCell, {}),
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_written_out_as_they_are_called(name: str, packed: bool) -> None:
    kind, kwargs = RECURRENT[name]
    model = prepared(lambda: nn.Sequential(kind(8, 4, **kwargs)), constants=False)
    x = some_input((2, 8) if name.endswith("cell") else (5, 2, 8))
    given: Any = x
    if packed and not name.endswith("cell"):
        first = kwargs.get("batch_first", False)
        given = nn.utils.rnn.pack_padded_sequence(x, [2, 2, 2, 1, 1] if first else [5, 3], batch_first=first)

    def output() -> Tensor:
        found: Any = model(given)
        found = found[0] if isinstance(found, tuple) and not isinstance(found, nn.utils.rnn.PackedSequence) else found
        return found.data if isinstance(found, nn.utils.rnn.PackedSequence) else found

    plain = output()
    with attach(model, composites.CPLRP(TINY), strict=True):
        explained = output()
    assert agree(explained, plain)
    R = torch.randn(plain.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    r = torch.autograd.grad(explained, x, R)[0]
    assert abs(float(r.sum() - R.sum())) < 1e-9

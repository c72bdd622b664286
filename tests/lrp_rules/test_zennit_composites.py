"""Our rules in zennit's composites, in place of its own.

Both are compared in float64. They round differently, so each comparison states how much rounding may do: the same
network and the same rules in float32 show how far rounding is amplified, and float64's unit is 2^29 times smaller.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import lrp_rules
from tests.lrp_rules.cases import handles
from tests.lrp_rules.peer import load_zennit

if TYPE_CHECKING:
    from collections.abc import Callable

zennit: Any = load_zennit()
composites: Any = pytest.importorskip("zennit.composites")
canonizers: Any = pytest.importorskip("zennit.canonizers")
zennit_rules: Any = pytest.importorskip("zennit.rules")
layers: Any = pytest.importorskip("zennit.layer")
types: Any = pytest.importorskip("zennit.types")


def vgg() -> nn.Module:
    """A small network of the same make as VGG: convolutions, activations in place, poolings, a classifier."""
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True),
                nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True),
            ),
            avgpool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(nn.Linear(24, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 3)),
        )
    ).eval()  # fmt: skip


class Block(nn.Module):
    """Two convolutions with batch norms, and a sum as a module, as zennit's composites want it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.sum, self.relu2 = layers.Sum(), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.sum(torch.stack([branch, x], dim=-1)))


def resnet() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Block(4),
        Block(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {"vgg": vgg, "resnet": resnet}
each_network = pytest.mark.parametrize("network", NETWORKS)
LOW, HIGH = torch.full((1, 3, 1, 1), -4.0), torch.full((1, 3, 1, 1), 4.0)


def base(r: Any) -> list[tuple[Any, Any]]:
    return [
        (types.Activation, r.Pass()),
        (layers.Sum, r.Norm()),
        (types.AvgPool, r.Norm()),
        (types.BatchNorm, r.Pass()),
    ]


def first_then(r: Any, first: Any, rest: Any, linear: Any) -> Any:
    return composites.SpecialFirstLayerMapComposite(
        [*base(r), (types.Convolution, rest), (nn.Linear, linear)], [(types.Convolution, first)]
    )


def by_name(r: Any) -> Any:
    """Names first, then types, by zennit's composite of composites."""
    return composites.MixedComposite(
        [
            composites.NameMapComposite([(("features.0", "0"), r.WSquare()), (("classifier.3", "7"), r.Epsilon(0))]),
            composites.LayerMapComposite([*base(r), (types.Convolution, r.ZPlus()), (nn.Linear, r.Epsilon(0.25))]),
        ]
    )


#: Each is made once of our rules and once of zennit's: ``r`` is either module.
COMPOSITES: dict[str, Callable[[Any], Any]] = {
    "EpsilonPlus": lambda r: composites.LayerMapComposite(
        [*base(r), (types.Convolution, r.ZPlus()), (nn.Linear, r.Epsilon(1e-3))]
    ),
    "EpsilonAlpha2Beta1": lambda r: composites.LayerMapComposite(
        [*base(r), (types.Convolution, r.AlphaBeta(2, 1, stabilizer=0.1)), (nn.Linear, r.Epsilon())]
    ),
    "EpsilonGammaBox": lambda r: first_then(r, r.ZBox(low=LOW, high=HIGH), r.Gamma(0.25), r.Epsilon(0.25)),
    "Gamma(3)-all-over": lambda r: composites.LayerMapComposite([*base(r), (types.Linear, r.Gamma(3, 0.1))]),
    "EpsilonPlusFlat": lambda r: first_then(r, r.Flat(), r.ZPlus(), r.Epsilon(0.25)),
    "zero_params": lambda r: first_then(
        r, r.WSquare(zero_params="bias"), r.ZPlus(zero_params=r.zero_bias()), r.Epsilon(0.25, ["bias"])
    ),
    "names-and-types": by_name,
    "names-alone": lambda r: composites.NameMapComposite(
        [(("features.0", "0"), r.Epsilon(0.25)), (("classifier.0", "7"), r.ZPlus())]
    ),
    "GuidedBackprop": lambda r: composites.LayerMapComposite([(nn.ReLU, r.ReLUGuidedBackprop())]),
    "Deconvnet": lambda r: composites.LayerMapComposite([(nn.ReLU, r.ReLUDeconvNet())]),
    "BetaSmooth": lambda r: composites.LayerMapComposite([(nn.ReLU, r.ReLUBetaSmooth(3))]),
}
each_composite = pytest.mark.parametrize("composite", COMPOSITES)


def attribution(composite: Any, network: nn.Module, x: Tensor, R: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    with composite.context(network) as modified:
        output = modified(x)
        (r,) = torch.autograd.grad(output, x, R)
    return r


def assert_same_rules(ours: Any, theirs: Any, network: nn.Module, x: Tensor, R: Tensor) -> None:
    """Hold two composites against each other, within what rounding explains.

    The distance e of float32 from float64 is what rounding does at 2^-24; at 2^-53 it does 2^-29 e. Both sides round:
    twice that; and by luck, e is up to 8 times smaller than it might be.
    """
    got, expected = attribution(ours, network, x, R), attribution(theirs, network, x, R)
    single = attribution(theirs, copy.deepcopy(network).float(), x.float(), R.float()).double()
    amplified = (single - expected).abs().max().item()
    assert expected.abs().max().item() > 0
    assert 0 < amplified < 0.01 * expected.abs().max().item()  # otherwise the comparison would see nothing
    assert (got - expected).abs().max().item() <= 16 * 2.0**-29 * amplified


@each_network
@each_composite
def test_our_rules_in_place_of_zennits(composite: str, network: str) -> None:
    model, x, R = NETWORKS[network](), torch.randn(2, 3, 8, 8), torch.randn(2, 3)
    if composite == "BetaSmooth":
        # on an activation in place, zennit's rule finds the output where it kept the input
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
    parameters = list(model.parameters())
    assert_same_rules(COMPOSITES[composite](lrp_rules), COMPOSITES[composite](zennit_rules), model, x, R)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert handles(model) == []


OWN: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "EpsilonPlus": (lambda: composites.EpsilonPlus(epsilon=0.1), lambda: COMPOSITES["EpsilonPlus"](_Epsilon(0.1))),
    "EpsilonGammaBox": (
        lambda: composites.EpsilonGammaBox(low=LOW, high=HIGH, epsilon=0.25),
        lambda: COMPOSITES["EpsilonGammaBox"](lrp_rules),
    ),
}


class _Epsilon:
    """Our rules with another default."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __getattr__(self, name: str) -> Any:
        if name == "Epsilon":
            return lambda *_: lrp_rules.Epsilon(self.epsilon)
        return getattr(lrp_rules, name)


@each_network
@pytest.mark.parametrize("composite", OWN)
def test_zennits_own_composites(composite: str, network: str) -> None:
    theirs, ours = OWN[composite]
    model = NETWORKS[network]()
    assert_same_rules(ours(), theirs(), model, torch.randn(2, 3, 8, 8), torch.randn(2, 3))


@pytest.mark.parametrize("composite", ["EpsilonPlus", "EpsilonGammaBox", "names-and-types"])
def test_canonizers_merge_batch_norms(composite: str) -> None:
    model, x, R = resnet(), torch.randn(2, 3, 8, 8), torch.randn(2, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def canonized(r: Any) -> Any:
        made = COMPOSITES[composite](r)
        made.canonizers = [canonizers.SequentialMergeBatchNorm()]
        return made

    assert_same_rules(canonized(lrp_rules), canonized(zennit_rules), model, x, R)
    # zennit leaves a convolution that had no bias with None again
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(
        attribution(canonized(lrp_rules), model, x, R), attribution(COMPOSITES[composite](lrp_rules), model, x, R)
    )


def test_canonizers_that_give_a_module_another_forward() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Any:
            return self.conv(x) + x

    def as_sum(module: nn.Module) -> Callable[[Tensor], Any]:
        return lambda x: module.canonizer_sum(torch.stack([module.conv(x), x], dim=-1))  # type: ignore[operator]

    def attributes(name: str, module: nn.Module) -> dict[str, Any] | None:
        return {"forward": as_sum(module), "canonizer_sum": layers.Sum()} if isinstance(module, Plain) else None

    def made(r: Any) -> Any:
        composite = COMPOSITES["EpsilonPlus"](r)
        composite.canonizers = [canonizers.AttributeCanonizer(attributes)]
        return composite

    model = nn.Sequential(Plain(), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    assert_same_rules(made(lrp_rules), made(zennit_rules), model, torch.randn(2, 3, 4, 4), torch.randn(2, 3))


@each_composite
def test_composites_are_registered_again_and_removed_twice(composite: str) -> None:
    model, x, R = vgg(), torch.randn(2, 3, 8, 8), torch.randn(2, 3)
    made = COMPOSITES[composite](lrp_rules)
    first = attribution(made, model, x, R)
    assert torch.equal(attribution(made, model, x, R), first)
    made.register(model)
    count = len(handles(model))
    made.register(model)  # removes what it has registered before
    assert len(handles(model)) == count > 0
    made.remove()
    made.remove()
    assert handles(model) == []


def test_an_exception_inside_a_context() -> None:
    model = vgg()
    with pytest.raises(KeyError), COMPOSITES["EpsilonPlus"](lrp_rules).context(model):
        raise KeyError
    assert handles(model) == []


def test_our_attach_says_the_same_as_zennits_composite() -> None:
    model, x, R = vgg(), torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3)
    rules: dict[Any, lrp_rules.Hook] = {
        nn.Conv2d: lrp_rules.ZPlus(),
        nn.Linear: lrp_rules.Epsilon(1e-3),
        nn.ReLU: lrp_rules.Pass(),
        nn.AdaptiveAvgPool2d: lrp_rules.Norm(),
    }
    with lrp_rules.attach(model, rules):
        output = model(x)
    (r,) = torch.autograd.grad(output, x, R)
    assert torch.equal(r, attribution(COMPOSITES["EpsilonPlus"](lrp_rules), model, x, R))


def test_planted_mistakes_are_caught() -> None:
    model, x, R = vgg(), torch.randn(2, 3, 8, 8), torch.randn(2, 3)

    class Careless(_Epsilon):
        def __getattr__(self, name: str) -> Any:
            return (lambda *_, **__: lrp_rules.AlphaBeta(1, 0, 1e-5)) if name == "ZPlus" else getattr(lrp_rules, name)

    with pytest.raises(AssertionError):  # another stabilizer, ten times 1e-6
        assert_same_rules(COMPOSITES["EpsilonPlus"](Careless(0)), COMPOSITES["EpsilonPlus"](zennit_rules), model, x, R)
    single = COMPOSITES["EpsilonPlus"](_Single())
    with pytest.raises(AssertionError):  # float32 inside
        assert_same_rules(single, COMPOSITES["EpsilonPlus"](zennit_rules), model, x, R)


class _Single:
    """Our rules, one of which rounds to float32."""

    def __getattr__(self, name: str) -> Any:
        class Rounded(lrp_rules.ZPlus):
            def relevance(self, layer: Any, R: Tensor) -> Tensor:
                return super().relevance(layer, R).float().double()

        return Rounded if name == "ZPlus" else getattr(lrp_rules, name)

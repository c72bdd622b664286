"""Which rule goes on which module of a model."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lrp_rules import Attachment, Epsilon, Flat, Gamma, Hook, Norm, Pass, Registration, ZBox, ZPlus, attach
from tests.lrp_rules.cases import Add, handles, integers, output_of, power_of_two, relevance

if TYPE_CHECKING:
    Key = str | type[nn.Module]
    from collections.abc import Callable, Iterable


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu, self.add = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), Add()

    def forward(self, x: Tensor) -> Tensor:
        result = self.add(self.relu(self.norm(self.conv(x))), x)
        assert isinstance(result, Tensor)
        return result


def model() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), Residual(), nn.AvgPool2d(2)),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)),
        )
    ).eval()


def put(model: nn.Module, rules: dict[Key, Hook], ignore: Key | Iterable[Key] = ()) -> Attachment:
    return attach(model, rules, ignore)


def where(model: nn.Module, attached: Attachment) -> dict[str, Hook]:
    """The rules by the names of their modules."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook.__self__, Registration):
                found[name] = hook.__self__.hook
    assert len(found) == len(attached.registrations)
    return found


#: Most of these look at what is attached, and call nothing.
pytestmark = pytest.mark.filterwarnings("ignore:.*was not called between attach:RuntimeWarning")

BLOCK = {"features.2.conv", "features.2.norm", "features.2.relu", "features.2.add"}
CONV, LINEAR, REST = ZPlus(), Epsilon(), Pass()


def test_types() -> None:
    network = model()
    with put(network, {nn.Conv2d: CONV, nn.Linear: LINEAR, nn.BatchNorm2d: REST, nn.ReLU: REST}) as attached:
        assert where(network, attached) == {
            "features.0": CONV, "features.1": REST, "features.2.conv": CONV, "features.2.norm": REST,
            "features.2.relu": REST, "classifier.0": LINEAR, "classifier.1": REST, "classifier.2": LINEAR,
        }  # fmt: skip
    assert handles(network) == []


def test_names() -> None:
    network = model()
    rules: dict[Key, Hook] = {
        "features.0": CONV,
        "features.2.conv": CONV,
        "features.2.norm": REST,
        "classifier.0": LINEAR,
        "classifier.2": LINEAR,
    }
    with put(network, rules) as attached:
        assert where(network, attached) == rules


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("features.*", {"features.0", "features.1", "features.3", *BLOCK}),
        ("*.0", {"features.0", "classifier.0"}),
        ("*.[02]", {"features.0", "classifier.0", "classifier.2"}),
        ("classifier.?", {"classifier.0", "classifier.1", "classifier.2"}),
        ("*conv", {"features.2.conv"}),
        ("features.2.*", BLOCK),
    ],
)  # fmt: skip
def test_patterns_match_layers_and_not_containers(pattern: str, expected: set[str]) -> None:
    network, rule = model(), Norm()
    with put(network, {pattern: rule, "*": REST}) as attached:
        found = where(network, attached)
    assert {name for name, hook in found.items() if hook is rule} == expected


def test_star_is_every_layer() -> None:
    network = model()
    with put(network, {"*": LINEAR}) as attached:
        found = where(network, attached)
    assert set(found) == {name for name, part in network.named_modules() if not list(part.children())}


def test_the_first_match_decides() -> None:
    network, first = model(), Flat()
    rules: dict[Key, Hook] = {
        "features.0": first,
        nn.Conv2d: CONV,
        "classifier.*": LINEAR,
        nn.Linear: first,
        nn.Module: REST,
    }
    # nn.Module would match the model itself, and take all of it
    with put(network, rules) as attached:
        assert where(network, attached) == {"": REST}
    del rules[nn.Module]
    with put(network, rules | {nn.BatchNorm2d: REST}) as attached:
        found = where(network, attached)
    assert found["features.0"] is first
    assert found["features.2.conv"] is CONV
    assert found["classifier.2"] is LINEAR
    with put(network, {nn.Conv2d: CONV, "features.0": first, "*": REST}) as attached:
        assert where(network, attached)["features.0"] is CONV


def test_subclasses_match() -> None:
    class Own(nn.Linear):
        pass

    network = nn.Sequential(Own(2, 2), parametrizations.weight_norm(nn.Linear(2, 2)))
    before = handles(network)
    with put(network, {nn.Linear: LINEAR}) as attached:
        assert where(network, attached) == {"0": LINEAR, "1": LINEAR}
    assert handles(network) == before


def test_a_match_takes_the_whole_module() -> None:
    network, block = model(), Norm()
    with put(network, {Residual: block, nn.Conv2d: CONV, nn.Linear: LINEAR}) as attached:
        assert set(where(network, attached)) == {"features.0", "features.2", "classifier.0", "classifier.2"}
    with put(network, {"features.2": block, nn.Conv2d: CONV, nn.Linear: LINEAR}) as attached:
        assert where(network, attached)["features.2"] is block


def test_the_model_itself() -> None:
    layer = nn.Linear(2, 2)
    for key in (nn.Linear, "", "*"):
        with put(layer, {key: LINEAR}) as attached:
            assert where(layer, attached) == {"": LINEAR}


def test_ignore_comes_first_and_takes_the_whole_module() -> None:
    network = model()
    with put(network, {nn.Conv2d: CONV, nn.Linear: LINEAR}, ignore=[Residual, "classifier.0"]) as attached:
        assert set(where(network, attached)) == {"features.0", "classifier.2"}
    with put(network, {"*": CONV}, ignore=["features.*", nn.Flatten]) as attached:
        assert set(where(network, attached)) == {"classifier.0", "classifier.1", "classifier.2"}


@pytest.mark.parametrize("key", ["classifier.0", nn.Flatten], ids=["name", "type"])
def test_a_single_key_may_be_ignored(key: Key) -> None:
    network = model()
    with put(network, {"*": CONV}, ignore=key) as one, put(model(), {"*": CONV}, ignore=[key]) as several:
        assert len(one.registrations) == len(several.registrations)


def test_a_shared_module_gets_one_rule_by_any_of_its_names() -> None:
    shared = nn.Linear(2, 2)
    network = nn.Sequential(OrderedDict(first=shared, again=shared, last=nn.Linear(2, 2)))
    for key in ("first", "again", "f*", "a*"):
        with put(network, {key: CONV, nn.Linear: LINEAR}) as attached:
            assert where(network, attached) == {"first": CONV, "last": LINEAR}


@pytest.mark.parametrize(
    "rules", [{nn.Conv2d: CONV}, {"classifier.*": LINEAR, nn.Conv2d: CONV}, {}], ids=["types", "names", "none"]
)
def test_modules_with_parameters_that_match_nothing(rules: dict[Any, Hook]) -> None:
    network = model()
    with pytest.raises(ValueError, match=r"no rule for .*features\.2\.norm \(BatchNorm2d\)") as error:
        put(network, rules)
    assert ("classifier.0 (Linear)" in str(error.value)) is ("classifier.*" not in rules)
    assert "ignore" in str(error.value)
    assert handles(network) == []


def test_a_model_that_is_itself_unmatched() -> None:
    with pytest.raises(ValueError, match=r"no rule for the model itself \(Linear\)"):
        put(nn.Linear(2, 2), {nn.Conv2d: CONV})


def test_modules_without_parameters_may_match_nothing() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Flatten())
    with put(network, {}) as attached:
        assert attached.registrations == []


@pytest.mark.parametrize("key", ["features.9", "nothing*", "Features.0", "features.[5-9]"])
@pytest.mark.parametrize("place", ["rules", "ignore"])
def test_names_that_match_no_module(place: str, key: str) -> None:
    network = model()
    with pytest.raises(ValueError, match="matches no module") as error:
        put(
            network, {"*": LINEAR, key: CONV} if place == "rules" else {"*": LINEAR}, [key] if place == "ignore" else []
        )
    assert repr(key) in str(error.value)
    assert "classifier.0" in str(error.value)
    assert handles(network) == []


@pytest.mark.parametrize("key", [3, None, int, nn.ReLU(), frozenset(["features.0"])], ids=repr)
def test_keys_that_are_neither_types_nor_names(key: Any) -> None:
    with pytest.raises(TypeError, match="expected a type of module") as error:
        put(model(), {key: LINEAR, "*": REST})
    assert repr(key) in str(error.value)


@pytest.mark.parametrize(
    "key", [3, None, nn.ReLU(), nn.Sequential(nn.ReLU())], ids=["number", "none", "module", "several"]
)
def test_what_is_ignored_is_neither_a_type_nor_a_name(key: Any) -> None:
    network = model()
    with pytest.raises(TypeError, match="expected a type of module"):
        put(network, {"*": LINEAR}, ignore=key)
    assert handles(network) == []


def test_an_exception_half_way_removes_all() -> None:
    class Refuses(Epsilon):
        def register(self, module: nn.Module) -> Any:
            raise KeyError(module)

    network = model()
    with pytest.raises(KeyError):
        put(network, {nn.Conv2d: CONV, nn.BatchNorm2d: REST, nn.Linear: Refuses()})
    assert handles(network) == []


def test_a_module_that_has_a_rule_already() -> None:
    network = model()
    with Epsilon().register(network.get_submodule("classifier.2")):
        before = handles(network)
        with pytest.raises(RuntimeError, match="already"):
            put(network, {"*": CONV})
        assert handles(network) == before


def test_remove() -> None:
    network = model()
    attached = put(network, {"*": CONV})
    assert handles(network) != []
    attached.remove()
    attached.remove()
    assert handles(network) == []
    with pytest.raises(KeyError), put(network, {"*": CONV}):
        raise KeyError
    assert handles(network) == []
    with put(network, {"*": CONV}):  # and again
        pass


def test_relevance_is_that_of_the_rules_one_by_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        for seed, parameter in enumerate(network.parameters()):
            parameter.copy_(integers(parameter.shape, seed))
    rules: dict[Any, Hook] = {
        "0": ZBox(-3, 3, power_of_two),
        nn.ReLU: Pass(),
        nn.AvgPool2d: Norm(power_of_two),
        nn.Linear: Gamma(0.25, power_of_two),
    }
    x, R = integers((3, 1, 5, 5), 1).requires_grad_(), integers((3, 2), 2)
    with put(network, rules):
        output = network(x)
    (got,) = torch.autograd.grad(output, x, R)

    activations = [x.detach()]
    for layer in network:
        activations.append(output_of(layer, activations[-1]))
    r = R
    for layer, activation, rule in reversed(
        list(
            zip(network, activations, [rules["0"], Pass(), rules[nn.AvgPool2d], Hook(), rules[nn.Linear]], strict=False)
        )
    ):
        r = relevance(rule, layer, activation, r)
    assert torch.equal(got, r)
    # a planted mistake: another rule in the middle
    with put(network, rules | {nn.ReLU: Norm(power_of_two)}):
        output = network(x)
    assert not torch.equal(torch.autograd.grad(output, x, R)[0], got)


@pytest.mark.parametrize("make", [model, lambda: nn.Sequential(model(), nn.ReLU())], ids=["model", "nested"])
def test_all_of_a_network(make: Callable[[], nn.Module]) -> None:
    network, x = make(), torch.randn(2, 1, 8, 8, requires_grad=True)[:, :, :6, :6]
    plain = network(x)
    with put(
        network,
        {nn.Conv2d: CONV, nn.Linear: LINEAR, nn.BatchNorm2d: REST, nn.ReLU: REST, Add: Norm(), nn.AvgPool2d: Norm()},
    ):
        output = network(x)
        (r,) = torch.autograd.grad(output, x, torch.ones_like(output))
    assert torch.equal(plain, output)
    assert bool(r.isfinite().all())
    assert handles(network) == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (ZPlus, r"expected an object of a rule, ZPlus\(\)"),
        (3, "expected an object of a rule, such as Eps"),
    ],
    ids=["class", "number"],
)
def test_what_is_no_rule_is_refused(rule: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        attach(nn.Sequential(nn.Linear(2, 2)), {nn.Linear: rule})


@pytest.mark.parametrize("rules", [ZPlus(), ZPlus, [ZPlus()], None], ids=["rule", "class", "list", "none"])
def test_what_maps_nothing_to_rules_is_refused(rules: Any) -> None:
    with pytest.raises(
        TypeError, match=r"the rules are .*; expected a dictionary .*, such as {nn\.Linear: Epsilon\(\)}"
    ):
        attach(nn.Sequential(nn.Linear(2, 2)), rules)


def test_what_is_no_model_is_refused() -> None:
    given: Any = nn.Linear
    with pytest.raises(TypeError, match=r"attach was given <class .*Linear'>, a type, as the model; expected a module"):
        attach(given, {nn.Linear: ZPlus()})


def test_a_type_that_is_given_by_its_name_is_answered_with_the_type() -> None:
    with pytest.raises(ValueError, match=r"'Linear' matches no module; .* for a type of module, give nn\.Linear"):
        attach(nn.Sequential(nn.Linear(2, 2)), {"Linear": ZPlus()})


def test_a_name_cannot_be_registered_on() -> None:
    name: Any = "0"
    with pytest.raises(TypeError, match="ZPlus cannot be registered on '0', a str; expected a module"):
        ZPlus().register(name)

"""Parameters: the effective ones, changed ones, and that the module never notices."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lrp_rules import ClampMod, GammaMod, NoMod, ParamMod, zero_bias
from lrp_rules.modules import effective_parameters
from tests.lrp_rules.cases import pickled

if TYPE_CHECKING:
    from collections.abc import Callable

W = [[-2.0, -0.5, 0.0], [0.5, 1.0, 2.0]]
B = [-1.0, 3.0]


def layer() -> nn.Linear:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(W))
        module.bias.copy_(torch.tensor(B))
    return module


def values(module: nn.Module) -> tuple[Any, Any]:
    assert isinstance(module.weight, Tensor)
    assert isinstance(module.bias, Tensor)
    return module.weight.tolist(), module.bias.tolist()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["bias"]),
        ([], ["bias"]),
        ((), ["bias"]),
        ("bias", ["bias"]),
        (["bias"], ["bias"]),
        ("weight", ["weight", "bias"]),
        (("weight",), ["weight", "bias"]),
        (["bias", "weight"], ["bias", "weight"]),
        ("bias_hh_l0", ["bias_hh_l0", "bias"]),
        ("", ["", "bias"]),
    ],
    ids=repr,
)
def test_zero_bias(given: Any, expected: list[str]) -> None:
    before = copy.copy(given)
    result = zero_bias(given)
    assert result == expected
    assert type(result) is list
    assert given == before
    assert result is not given


MODS: dict[str, tuple[Callable[..., ParamMod], Callable[[float], float]]] = {
    "ClampMod()": (ClampMod, lambda p: p),
    "ClampMod(min=0)": (lambda **k: ClampMod(min=0, **k), lambda p: max(p, 0)),
    "ClampMod(max=0)": (lambda **k: ClampMod(max=0, **k), lambda p: min(p, 0)),
    "ClampMod(-1,1)": (lambda **k: ClampMod(-1, 1, **k), lambda p: min(max(p, -1), 1)),
    "GammaMod()": (GammaMod, lambda p: 1.25 * p),
    "GammaMod(min=0)": (lambda **k: GammaMod(min=0, **k), lambda p: p + 0.25 * max(p, 0)),
    "GammaMod(2,max=0)": (lambda **k: GammaMod(2, max=0, **k), lambda p: p + 2 * min(p, 0)),
    "GammaMod(0.5,-1,1)": (lambda **k: GammaMod(0.5, -1, 1, **k), lambda p: p + 0.5 * min(max(p, -1), 1)),
    "NoMod()": (NoMod, lambda p: p),
    "ParamMod(square)": (lambda **k: ParamMod(lambda p, _: p**2, **k), lambda p: p**2),
}


@pytest.mark.parametrize("name", MODS)
def test_values(name: str) -> None:
    make, expected = MODS[name]
    weights, biases = [[expected(p) for p in row] for row in W], [expected(p) for p in B]
    for kwargs, answer in (
        ({}, (weights, biases)),
        ({"param_keys": ["weight"]}, (weights, B)),
        ({"param_keys": "bias"}, (W, biases)),
        ({"param_keys": []}, (W, B)),
        ({"zero_params": "bias"}, (weights, [0, 0])),
        ({"zero_params": ["weight", "bias"]}, ([[0] * 3] * 2, [0, 0])),
        ({"zero_params": "bia"}, (weights, biases)),
        ({"zero_params": "bias_"}, (weights, biases)),
    ):
        module = layer()
        with make(**kwargs)(module) as modified:
            assert values(modified) == answer
            assert values(module) == (W, B)
            x = torch.tensor([[1.0, 2.0, 3.0]])
            weight, bias = (torch.tensor(part, dtype=torch.float64) for part in answer)
            assert torch.equal(modified(x), x @ weight.T + bias)


def test_parameters_are_set_to_zero_before_they_are_modified() -> None:
    with ParamMod(lambda p, _: p + 1, zero_params="bias")(layer()) as modified:
        assert values(modified)[1] == [1, 1]


def test_the_module_never_notices() -> None:
    module = layer()
    before, parameters, names = copy.deepcopy(vars(module)), dict(module.named_parameters()), list(vars(module))
    with GammaMod(zero_params="bias")(module) as modified, ClampMod(min=0)(module) as other:
        assert modified is not module
        assert modified is not other
        assert isinstance(modified, nn.Linear)
        assert list(vars(module)) == names
    assert {name: id(p) for name, p in module.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert all(torch.equal(before["_parameters"][name], p) for name, p in parameters.items())


def test_exception_inside() -> None:
    module = layer()
    message = "of the user"
    with pytest.raises(KeyError, match=message), ClampMod(min=0)(module):
        raise KeyError(message)
    assert values(module) == (W, B)


@pytest.mark.parametrize(
    "mod",
    [
        ParamMod,
        lambda _, **kwargs: ClampMod(min=0, **kwargs),
        lambda _, **kwargs: GammaMod(**kwargs),
        lambda _, **kwargs: NoMod(**kwargs),
    ],
    ids=["ParamMod", "ClampMod", "GammaMod", "NoMod"],
)
@pytest.mark.parametrize(
    ("module", "keys"),
    [
        (nn.ReLU(), ["weight"]),
        (nn.Linear(2, 2), ["weight", "weigh"]),
        (nn.Linear(2, 2), "running_mean"),
        (nn.Sequential(nn.Linear(1, 1)), "weight"),
    ],
    ids=["no-parameters", "misspelt", "no-buffer", "only-below"],
)
def test_missing_parameters_are_named(mod: Callable[..., ParamMod], module: nn.Module, keys: Any) -> None:
    missing = keys if isinstance(keys, str) else keys[-1]
    with pytest.raises(RuntimeError, match="has no parameter") as error, mod(lambda p, _: p, param_keys=keys)(module):
        pass
    assert repr(missing) in str(error.value)
    with mod(lambda p, _: p, param_keys=keys, require_params=False)(module):
        pass


def test_a_parameter_that_is_none_is_not_missing() -> None:
    with ClampMod(min=0, param_keys=["weight", "bias"], zero_params="bias")(nn.Linear(2, 2, bias=False)) as modified:
        assert modified.bias is None


def test_a_module_without_parameters() -> None:
    with ClampMod(min=0)(nn.ReLU()) as modified:
        assert modified(torch.tensor([-1.0, 1.0])).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [None, 3, "clamp"])
def test_modifier_that_is_not_callable(bad: Any) -> None:
    for make in (ParamMod, ParamMod.ensure):
        with pytest.raises(TypeError, match="expected a callable") as error:
            make(bad)
        assert repr(bad) in str(error.value)


def test_ensure() -> None:
    mod = ClampMod(min=0)
    assert ParamMod.ensure(mod) is mod
    with ParamMod.ensure(lambda p, name: p + len(name))(layer()) as modified:
        assert values(modified) == ([[p + 6 for p in row] for row in W], [p + 4 for p in B])


def test_modifier_gets_names_and_effective_values() -> None:
    seen = {}

    def modifier(p: Tensor, name: str) -> Tensor:
        seen[name] = p.tolist()
        return p

    with ParamMod(modifier)(layer()):
        pass
    assert seen == {"weight": W, "bias": B}


@pytest.mark.parametrize(
    "mod", [ClampMod(-1, 2), GammaMod(0.5, min=0), NoMod(zero_params="bias")], ids=lambda m: type(m).__name__
)
def test_copies_and_pickles(mod: ParamMod) -> None:
    with mod(layer()) as modified:
        expected = values(modified)
    for other in (copy.copy(mod), copy.deepcopy(mod), pickled(mod)):
        with other(layer()) as modified:
            assert values(modified) == expected


def test_recurrent_modules_use_the_changed_parameters() -> None:
    module, x = nn.LSTM(3, 2), torch.randn(5, 1, 3)
    with ParamMod(lambda p, _: 0 * p)(module) as modified:
        assert torch.equal(modified(x)[0], torch.zeros(5, 1, 2))
    assert module(x)[0].abs().sum() > 0


# -------------------------------------------------------------------------------------------- effective parameters


def _old(wrap: Callable[..., nn.Module], **kwargs: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that they are old
            return wrap(nn.Linear(3, 2), **kwargs)

    return make


class Half(nn.Module):
    def forward(self, p: Tensor) -> Tensor:
        return p / 2


def _halved(module: nn.Module, name: str) -> nn.Module:
    return parametrize.register_parametrization(module, name, Half())


NORMED: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Linear(3, 2),
    "weight_norm": _old(nn.utils.weight_norm),
    "weight_norm-of-bias": _old(nn.utils.weight_norm, name="bias"),
    "spectral_norm": _old(nn.utils.spectral_norm),
    "weight_norm-parametrized": lambda: parametrizations.weight_norm(nn.Linear(3, 2)),
    "spectral_norm-parametrized": lambda: parametrizations.spectral_norm(nn.Linear(3, 2)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 2)),
    "two-parametrizations": lambda: _halved(_halved(parametrizations.weight_norm(nn.Linear(3, 2)), "weight"), "bias"),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NORMED)
def test_effective_parameters_are_what_the_forward_pass_used(name: str, training: bool) -> None:
    module = NORMED[name]().train(training)
    units = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    with torch.no_grad():
        output = module(units)
    state = copy.deepcopy(module.state_dict())
    found = effective_parameters(module)
    assert set(found) == {"weight", "bias"}
    assert found["weight"] is not None
    assert found["bias"] is not None
    assert torch.equal(nn.functional.linear(units, found["weight"], found["bias"]), output)
    after = module.state_dict()
    assert all(torch.equal(state[key], after[key]) for key in state)


@pytest.mark.parametrize("name", NORMED)
def test_changes_under_a_norm(name: str) -> None:
    module = NORMED[name]().eval()
    x = torch.randn(4, 3)
    found = effective_parameters(module)
    assert found["weight"] is not None
    assert found["bias"] is not None
    with ClampMod(min=0)(module) as modified:
        expected = nn.functional.linear(x, found["weight"].clamp(min=0), found["bias"].clamp(min=0))
        assert torch.equal(modified(x), expected)


class Nameless:
    """A pre-hook of torch's that makes no parameter, were there one."""

    __module__ = "torch.nn.utils.other"

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Do nothing."""


def test_a_hook_of_torch_that_makes_no_parameter() -> None:
    module = nn.Linear(3, 2)
    module.register_forward_pre_hook(Nameless())
    assert effective_parameters(module) == {"weight": module.weight, "bias": module.bias}

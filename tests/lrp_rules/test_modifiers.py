"""Rules made of modifiers, as the API describes them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    ClampMod,
    Epsilon,
    Flat,
    Gamma,
    GammaMod,
    NoMod,
    ParamMod,
    WSquare,
    ZBox,
    ZPlus,
    zero_bias,
)
from tests.lrp_rules.cases import (
    CASES,
    down,
    handles,
    integers,
    output_of,
    power_of_two,
    relevance,
    up,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def same(v: Tensor) -> Tensor:
    return v


def made_of_modifiers(name: str) -> BasicHook:  # noqa: PLR0911  one for each rule
    """The rules in the words of the API."""
    S = power_of_two
    both = [up, down]
    clamps = [ClampMod(min=0.0), ClampMod(max=0.0, zero_params=zero_bias())]
    opposite = [ClampMod(max=0.0), ClampMod(min=0.0, zero_params="bias")]
    match name:
        case "Epsilon":
            return BasicHook(stabilizer=S)
        case "Epsilon(zero_params='bias')":
            return BasicHook(param_modifiers=[NoMod(zero_params="bias")], stabilizer=S)
        case "ZPlus":
            return BasicHook(both, clamps, gradient_mapper=lambda R, z: [R / S(z[0] + z[1])] * 2)
        case "AlphaBeta":
            return BasicHook(
                both * 2,
                clamps + opposite,
                gradient_mapper=lambda R, z: [R / S(z[0] + z[1])] * 2 + [R / S(z[2] + z[3])] * 2,
                reducer=lambda x, c: 2 * (x[0] * c[0] + x[1] * c[1]) - (x[2] * c[2] + x[3] * c[3]),
            )
        case "Gamma":
            return BasicHook(
                [*both, *both, same],
                [
                    GammaMod(0.25, min=0.0),
                    GammaMod(0.25, max=0.0, zero_params="bias"),
                    GammaMod(0.25, max=0.0),
                    GammaMod(0.25, min=0.0, zero_params=["bias"]),
                    NoMod(),
                ],
                gradient_mapper=lambda R, z: (
                    [(z[4] > 0) * R / S(z[0] + z[1])] * 2 + [(z[4] < 0) * R / S(z[2] + z[3])] * 2 + [0 * R]
                ),
            )
        case "ZBox":
            return BasicHook(
                [same, lambda x: torch.full_like(x, -1), lambda x: torch.full_like(x, 2)],
                [NoMod(), ClampMod(min=0.0), ClampMod(max=0.0)],
                [same, torch.neg, torch.neg],
                gradient_mapper=lambda R, z: [R / S(z[0] + z[1] + z[2])] * 3,
            )
        case "WSquare":
            return BasicHook([torch.ones_like], [lambda p, _: p**2], stabilizer=S)
        case "Flat":
            return BasicHook(
                [torch.ones_like], [lambda p, name: 0 * p if name == "bias" else torch.ones_like(p)], stabilizer=S
            )
        case _:
            raise KeyError(name)


OURS: dict[str, Callable[[], BasicHook]] = {
    "Epsilon": lambda: Epsilon(power_of_two),
    "Epsilon(zero_params='bias')": lambda: Epsilon(power_of_two, "bias"),
    "ZPlus": lambda: ZPlus(power_of_two),
    "AlphaBeta": lambda: AlphaBeta(2, 1, power_of_two),
    "Gamma": lambda: Gamma(0.25, power_of_two),
    "ZBox": lambda: ZBox(-1, 2, power_of_two),
    "WSquare": lambda: WSquare(power_of_two),
    "Flat": lambda: Flat(power_of_two),
}
# a statistic is no parameter, so modifiers cannot say what the rules mean on a batch norm
MODIFIED = [name for name in CASES if "batchnorm" not in name]


@pytest.mark.parametrize("layer", MODIFIED)
@pytest.mark.parametrize("rule", OURS)
def test_rules_are_what_their_modifiers_say(rule: str, layer: str) -> None:
    module, x = CASES[layer].module(), CASES[layer].input()
    R = integers(output_of(module, x).shape, 2)
    assert torch.equal(relevance(OURS[rule](), module, x, R), relevance(made_of_modifiers(rule), module, x, R))


def test_planted_modifiers_are_caught() -> None:
    module, x = CASES["conv2d-circular"].module(), CASES["conv2d-circular"].input()
    R = integers(output_of(module, x).shape, 2)
    careless = BasicHook(
        [up, down],
        [ClampMod(min=0.0), ClampMod(max=0.0)],
        gradient_mapper=lambda R, z: [R / power_of_two(z[0] + z[1])] * 2,
    )  # the bias is in both of them
    assert not torch.equal(relevance(careless, module, x, R), relevance(ZPlus(power_of_two), module, x, R))


def test_modifiers_get_what_the_api_says() -> None:
    seen: dict[str, list[Any]] = {name: [] for name in ("input", "param", "output", "mapper", "reducer")}

    def mapper(R: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        seen["mapper"].append((R, tuple(outputs)))
        return [R, 2 * R]

    def reducer(inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        seen["reducer"].append((tuple(inputs), tuple(gradients)))
        return inputs[0] * gradients[0] + gradients[1]

    def note(name: str, factor: float) -> Callable[..., Tensor]:
        def modifier(v: Tensor, *more: str) -> Tensor:
            seen[name].append((v.shape, *more))
            return factor * v

        return modifier

    hook = BasicHook(
        [note("input", 1), note("input", 2)],
        [note("param", 1), note("param", -1)],
        [note("output", 1), note("output", 3)],
        mapper,
        reducer,
    )
    module, x, R = nn.Linear(4, 3), integers((2, 4), 1), integers((2, 3), 2)
    with torch.no_grad():
        module.weight.copy_(integers((3, 4), 3))
        module.bias.copy_(integers((3,), 4))
    r = relevance(hook, module, x, R)
    w, b = module.weight.detach(), module.bias.detach()
    assert seen["input"] == [(x.shape,)] * 2
    assert sorted(map(str, seen["param"])) == sorted(map(str, [(w.shape, "weight"), (b.shape, "bias")] * 2))
    assert seen["output"] == [(R.shape,)] * 2
    ((given, outputs),) = seen["mapper"]
    assert torch.equal(given, R)
    assert torch.equal(outputs[0], x @ w.T + b)
    assert torch.equal(outputs[1], 3 * (2 * x @ -w.T - b))
    ((inputs, gradients),) = seen["reducer"]
    assert torch.equal(inputs[1], 2 * x)
    assert torch.equal(
        gradients[1], 3 * (2 * R) @ -w
    )  # by the modified input: the input modifier is not differentiated
    assert torch.equal(r, x * (R @ w) + gradients[1])


def test_stabilizer_of_a_basic_hook_is_used() -> None:
    module, x, R = CASES["linear"].module(), CASES["linear"].input(), integers((3, 3), 2)
    assert torch.equal(
        relevance(BasicHook(stabilizer=lambda d: d + 100), module, x, R),
        relevance(Epsilon(lambda d: d + 100), module, x, R),
    )
    hook = BasicHook(stabilizer=4)
    assert torch.equal(relevance(hook.copy(), module, x, R), relevance(hook, module, x, R))


@pytest.mark.parametrize(
    "lists",
    [
        {"input_modifiers": [same], "param_modifiers": [NoMod(), NoMod()]},
        {"output_modifiers": [same] * 3, "input_modifiers": [same]},
    ],
    ids=["one-and-two", "three-and-one"],
)
def test_lists_of_different_lengths_are_refused(lists: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lists of modifiers have lengths") as error:
        BasicHook(**lists)
    assert str(sorted({len(given) for given in lists.values()})) in str(error.value)


def test_tuples_of_modifiers() -> None:
    module, x, R = CASES["linear"].module(), CASES["linear"].input(), integers((3, 3), 2)
    hook = BasicHook((same,), (ParamMod(lambda p, _: p),), (same,), lambda R, z: (R / power_of_two(z[0]),))
    assert torch.equal(relevance(hook, module, x, R), relevance(Epsilon(power_of_two), module, x, R))


@pytest.mark.parametrize("samples", [1, 3])
def test_a_mapper_may_give_one_tensor_for_one_output(samples: int) -> None:
    module, x, R = CASES["linear"].module(), CASES["linear"].input(samples), integers((samples, 3), 2)
    hook = BasicHook(gradient_mapper=lambda R, z: R / power_of_two(z[0]))
    assert torch.equal(relevance(hook, module, x, R), relevance(Epsilon(power_of_two), module, x, R))


def test_missing_parameters_are_named() -> None:
    hook = BasicHook(param_modifiers=[ClampMod(min=0, param_keys=["weight", "scale"])])
    with pytest.raises(RuntimeError, match="no parameter 'scale'"):
        relevance(hook, nn.Linear(3, 2), torch.randn(2, 3), torch.randn(2, 2))


def test_a_stabilizer_that_raises_leaves_nothing() -> None:
    def raises(d: Tensor) -> Tensor:
        raise KeyError(d)

    module = nn.Linear(3, 2)
    state = copy.deepcopy(module.state_dict())
    for hook in (Epsilon(raises), ZPlus(raises), BasicHook(stabilizer=raises), Gamma(stabilizer=raises)):
        with pytest.raises(KeyError):
            relevance(hook, module, torch.randn(2, 3), torch.randn(2, 2))
        assert handles(module) == []
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())

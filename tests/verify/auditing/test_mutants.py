"""Pipelines with one mistake: it is found where it was made, named, and nothing else is accused."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by

import verify
from lrp_rules import (
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    Stop,
    Uniform,
    UnruledWarning,
    ZPlus,
    attach,
    composites,
)  # fmt: skip
from tests.lrp_rules.networks import NETWORKS, prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.auditing.account import Row

GAMMA = composites.EpsilonGammaBox(-9.0, 9.0)
PLUS = composites.EpsilonPlus()


def some_input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def attached(rules: Any, **kwargs: Any) -> Callable[[nn.Module], Any]:
    @contextmanager
    def pipeline(model: nn.Module) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnruledWarning)
            with attach(model, rules, **kwargs):
                yield

    return pipeline


def named(rules: dict[str, Any], others: Composite) -> Callable[[nn.Module], Any]:
    return attached(composites.MixedComposite([composites.NameMapComposite(rules), others]))


def without(key: Any, others: Composite) -> Callable[[nn.Module], Any]:
    return attached(Composite({k: rule for k, rule in others.rules.items() if k not in key}, first=others.first))


def hooked(name: str, change: Callable[[Tensor], Tensor], others: Any) -> Callable[[nn.Module], Any]:
    """Change the relevance that leaves a module."""

    @contextmanager
    def pipeline(model: nn.Module) -> Iterator[None]:
        handle = model.get_submodule(name).register_full_backward_hook(lambda _m, r, _R: (change(r[0]),))  # type: ignore[index]
        with attach(model, others):
            yield
        handle.remove()

    return pipeline


@contextmanager
def detached(model: nn.Module) -> Iterator[None]:
    handle = model.get_submodule("3.conv2").register_forward_hook(lambda _m, _x, y: y.detach())
    with attach(model, PLUS):
        yield
    handle.remove()


@contextmanager
def lost(model: nn.Module) -> Iterator[None]:
    """A hook that somebody has taken off."""
    attachment = attach(model, PLUS)
    next(one for one in attachment.registrations if one.module is model.get_submodule("2.conv")).remove()
    yield
    attachment._remove()


@contextmanager
def doubled(model: nn.Module) -> Iterator[None]:
    """The sum of one block has no rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnruledWarning)
        with attach(model, PLUS) as attachment:
            rules, block = attachment.between.rules, model.get_submodule("4")
            norm = rules["add"]
            handles = [
                block.register_forward_pre_hook(lambda *_: rules.__delitem__("add")),
                block.register_forward_hook(lambda *_: rules.__setitem__("add", norm)),
            ]
            yield
            for handle in handles:
                handle.remove()


@contextmanager
def changed_between(model: nn.Module) -> Iterator[None]:
    """A hook on a tensor, between two modules."""

    def change(_module: nn.Module, _args: Any, output: Tensor) -> None:
        output.register_hook(lambda R: 1.001 * R)

    with attach(model, PLUS):
        handle = model.get_submodule("2.conv").register_forward_hook(change)
        yield
        handle.remove()


def one_sample(r: Tensor) -> Tensor:
    return torch.cat([r[:1], 1.5 * r[1:]])


def last_channel(r: Tensor) -> Tensor:
    return torch.cat([r[:, :-1], r[:, -1:] * (1 + 1e-9)], 1)


def border(r: Tensor) -> Tensor:
    changed = r.clone()
    changed[:, :, -1] *= 1 + 1e-6
    return changed


@dataclass
class Mutant:
    network: str
    rules: Any
    pipeline: Any
    #: Operation and module of the rows that are found, and what their notes have.
    found: list[tuple[str, str, str]]
    verdict: str = "deviates"


SOFTMAX = {F.softmax: Pass(), nn.Softmax: Pass()}
MUTANTS = {
    "no rule on the last layer": Mutant(
        "residual", PLUS, attached(PLUS, ignore="7"), [("Linear", "7", "its plain gradient: Epsilon never ran here")]
    ),
    "no rule on a convolution": Mutant(
        "gated",
        PLUS,
        attached(PLUS, ignore="2.conv"),
        [("Conv2d", "2.conv", "its plain gradient: ZPlus never ran here")],
    ),
    "another gamma on one layer": Mutant(
        "gated",
        GAMMA,
        named({"2.conv": Gamma(0.5)}, GAMMA),
        [("Conv2d", "2.conv", "this is what Gamma(0.5) gives, not Gamma(0.25)")],
    ),
    "ZPlus in place of Epsilon": Mutant(
        "residual", PLUS, named({"7": ZPlus()}, PLUS), [("Linear", "7", "this is what ZPlus gives, not Epsilon")]
    ),
    "another stabilizer on one layer": Mutant(
        "residual", PLUS, named({"7": Epsilon(1e-9)}, PLUS), [("Linear", "7", "Epsilon with a stabilizer of 1e-09")]
    ),
    "the bias dropped in one layer": Mutant(
        "residual",
        PLUS,
        named({"7": Epsilon(zero_params="bias")}, PLUS),
        [("Linear", "7", "this is what Epsilon without the bias gives")],
    ),
    "a batch norm passed": Mutant(
        "residual",
        PLUS,
        named({"4.bn2": Pass()}, PLUS),
        [("Conv2d + BatchNorm2d", "4.conv2", "Pass on a batch norm that moves its input by")],
    ),
    "a skip doubled in one block": Mutant(
        "residual",
        PLUS,
        doubled,
        [("Tensor.add_", "4", "Norm never ran here; x2: relevance is copied to both summands: put Norm on torch.add")],
    ),
    "a branch detached": Mutant("residual", PLUS, detached, [("Conv2d", "3.conv2", "detached")]),
    "a hook lost": Mutant("gated", PLUS, lost, [("Conv2d", "2.conv", "its plain gradient: ZPlus never ran here")]),
    "scaled by 1.001 in one layer": Mutant(
        "gated",
        PLUS,
        hooked("2.conv", lambda r: 1.001 * r, PLUS),
        [("Conv2d", "2.conv", "x1.001 of what ZPlus gives")],
    ),
    "the sign turned in one layer": Mutant(
        "gated", PLUS, hooked("2.conv", torch.neg, PLUS), [("Conv2d", "2.conv", "x-1 of what ZPlus gives")]
    ),
    "cast to float32 in one layer": Mutant(
        "gated",
        PLUS,
        hooked("2.conv", lambda r: r.float().double(), PLUS),
        [("Conv2d", "2.conv", "up to the rounding of single precision")],
    ),
    "nothing from one layer": Mutant(
        "gated", PLUS, hooked("2.conv", torch.zeros_like, PLUS), [("Conv2d", "2.conv", "nothing arrives")]
    ),
    "one sample wrong": Mutant(
        "gated", PLUS, hooked("2.conv", one_sample, PLUS), [("Conv2d", "2.conv", "not what ZPlus gives")]
    ),
    "one border wrong by a millionth": Mutant(
        "gated", PLUS, hooked("2.conv", border, PLUS), [("Conv2d", "2.conv", "not what ZPlus gives")]
    ),
    "softmax without Stop": Mutant(
        "decoder", PLUS, without({F.softmax, nn.Softmax}, PLUS), [("torch.softmax", "", "its plain gradient: Stop")]
    ),
    "a gate by its gradient": Mutant(
        "gated",
        PLUS,
        without({torch.mul}, PLUS),
        [("Tensor.mul", "2", "SignalTakesAll never ran here"), ("Tensor.mul", "0", "SignalTakesAll never ran here")],
    ),
    "means by their gradient": Mutant(
        "u-net", PLUS, without({torch.mean}, PLUS), [("Tensor.mean", "", "Norm never ran here")]
    ),
}


ATTN = composites.AttnLRP()
FLAT = composites.EpsilonPlusFlat()


def instead(rules: dict[Any, Any], others: Composite) -> Callable[[nn.Module], Any]:
    return attached(composites.MixedComposite([Composite(rules), others]))


MUTANTS |= {
    "a hook between two modules": Mutant(
        "gated", PLUS, changed_between, [("Conv2d", "2.conv", "not what was given to it, but x1.001: a hook on that")]
    ),
    "no rule for the first layer": Mutant(
        "u-net", FLAT, attached(PLUS), [("Conv2d", "down", "this is what ZPlus gives, not Flat")]
    ),
    "the rule of first layers on all": Mutant(
        "gated",
        PLUS,
        named({"2.up": Flat(), "2.conv": Flat()}, PLUS),
        [("Conv2d", "2.conv", "this is what Flat gives, not ZPlus")],
    ),
    "other bounds of the input": Mutant(
        "gated", GAMMA, attached(composites.EpsilonGammaBox(-8.0, 9.0)), [("Conv2d", "0.conv", "not what ZBox gives")]
    ),
    "no rule for products of attention": Mutant(
        "decoder",
        ATTN,
        without({torch.matmul}, ATTN),
        [("torch.matmul", "", "Bilinear never ran here"), ("torch.matmul", "", "Bilinear never ran here")],
    ),
    "Norm in place of Bilinear": Mutant(
        "decoder",
        ATTN,
        instead({torch.matmul: Norm()}, ATTN),
        [("torch.matmul", "", "this is what Norm gives, not Bilinear")] * 2,
    ),
    "Uniform in place of a gate": Mutant(
        "gated",
        PLUS,
        instead({torch.mul: Uniform()}, PLUS),
        [("Tensor.mul", place, "this is what Uniform gives, not SignalTakesAll") for place in "20"],
    ),
    "Stop in place of Softmax": Mutant(
        "decoder",
        ATTN,
        instead({F.softmax: Stop()}, ATTN),
        [("torch.matmul", "", "Bilinear, with an input taken for a constant")],
    ),
    "a normalisation passed": Mutant(
        "decoder",
        ATTN,
        instead({nn.LayerNorm: Pass()}, ATTN),
        [("LayerNorm", "norm2", "passed on as it is"), ("LayerNorm", "norm1", "passed on as it is")],
    ),
    "a normalisation by its gradient": Mutant(
        "decoder",
        PLUS,
        without(set(composites.NORMALISATIONS) | {F.layer_norm}, PLUS),
        [("LayerNorm", "norm2", "Pass never ran here"), ("LayerNorm", "norm1", "Pass never ran here")],
    ),
    "an activation by its gradient": Mutant(
        "decoder", PLUS, without({F.gelu}, PLUS), [("F.gelu", "", "Pass never ran here")]
    ),
    "an interpolation by its gradient": Mutant(
        "u-net", PLUS, without({F.interpolate}, PLUS), [("F.interpolate", "", "Norm never ran here")]
    ),
    "one channel wrong": Mutant(
        "u-net", PLUS, hooked("up", last_channel, PLUS), [("ConvTranspose2d", "up", "not what ZPlus gives")]
    ),
}


def faults(rows: tuple[Row, ...]) -> list[tuple[str, str, str]]:
    return [(row.operation, row.module, row.note) for row in rows if row.verdict != "held"]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_found_where_it_is_made(name: str) -> None:
    mutant = MUTANTS[name]
    make, shape = NETWORKS[mutant.network]
    found = verify.audit(prepared(make, constants=True), some_input(shape), mutant.rules, pipeline=mutant.pipeline)
    assert not found.held
    accused = [(row.operation, row.module) for row in found.faults]
    assert accused == [(operation, module) for operation, module, _ in mutant.found], faults(found.rows)
    for row, (_, _, note) in zip(found.faults, mutant.found, strict=True):
        assert row.verdict == mutant.verdict
        assert note in row.note


@pytest.mark.parametrize("name", MUTANTS)
def test_there_it_parts_from_one_without_it(name: str) -> None:
    mutant = MUTANTS[name]
    make, shape = NETWORKS[mutant.network]
    model, x = prepared(make, constants=True), some_input(shape)
    found = verify.compare_pipelines(model, x, mutant.rules, None, mutant.pipeline)
    told = [(row.operation, row.module) for row in found.parting]
    assert told == [(operation, module) for operation, module, _ in mutant.found], str(found)


@pytest.mark.parametrize("name", ["encoder", *sorted({mutant.network for mutant in MUTANTS.values()})])
def test_without_a_mistake_nothing_is_found(name: str) -> None:
    make, shape = NETWORKS[name]
    model, x = prepared(make, constants=True), some_input(shape)
    for rules in (PLUS, GAMMA):
        found = verify.assert_conserves(model, x, rules)
        assert found.unexplained < 1e-9
        assert {row.verdict for row in found.rows} == {"held"}

"""Large layers are done in parts, which must add up to the whole: seen here on small ones, bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import Epsilon, Stabilizer, WSquare, ZBox, ZPlus, linear_map, parts
from tests.lrp_rules.cases import CASES, FORMULAS, integers, output_of, power_of_two, relevance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lrp_rules.layer import Layer


class PowerOfTwo(Stabilizer):
    """The exact stabilizer, as one that is known to look at each entry by itself."""

    def __call__(self, denominator: Tensor) -> Tensor:
        return power_of_two(denominator)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", 1)
    monkeypatch.setattr(linear_map, "ROWS", 1)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("layer", CASES)
@pytest.mark.parametrize("rule", FORMULAS)
def test_parts_add_up(rule: str, layer: str) -> None:
    module, x = CASES[layer].module(), CASES[layer].input()
    R = integers(output_of(module, x).shape, seed=2)
    make, _ = FORMULAS[rule]
    hook: Any = make()
    hook.stabilizer = PowerOfTwo()
    whole = relevance(make(), module, x, R)
    assert torch.equal(relevance(hook, module, x, R), whole)


def count_parts(rule: Any, module: nn.Module, x: Tensor) -> int:
    """How many parts a rule's formula is given."""
    counted = 0
    original = type(rule).coefficients

    class Counting(type(rule)):  # type: ignore[misc]
        def coefficients(self, layer: Layer, vectors: Sequence[Tensor], R: Tensor) -> Sequence[Tensor]:
            nonlocal counted
            counted += 1
            result: Sequence[Tensor] = original(self, layer, vectors, R)
            return result

    rule.__class__ = Counting
    relevance(rule, module, x, torch.ones_like(output_of(module, x)))
    return counted


@pytest.mark.usefixtures("small_parts")
def test_large_layers_are_done_in_parts() -> None:
    linear, x = nn.Linear(4, 6), torch.randn(5, 4)
    conv, image = nn.Conv2d(1, 2, 2), torch.randn(5, 1, 3, 3)
    assert count_parts(ZPlus(), linear, x) == count_parts(Epsilon(), linear, x) == len(x) * len(linear.weight)
    assert count_parts(WSquare(), linear, x) == len(linear.weight)
    assert count_parts(ZPlus(), conv, image) == count_parts(Epsilon(), conv, image) == len(image)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "stabilizer", [Stabilizer(norm_scale=True), lambda d: d + 1e-3 * d.abs().max()], ids=["norm-scale", "callable"]
)
def test_a_stabilizer_that_may_look_around_is_given_the_whole(stabilizer: Any) -> None:
    assert count_parts(ZPlus(stabilizer), nn.Linear(4, 6), torch.randn(5, 4)) == 1
    assert count_parts(ZPlus(stabilizer), nn.Conv2d(1, 2, 2), torch.randn(5, 1, 3, 3)) == 1


@pytest.mark.usefixtures("small_parts")
def test_a_formula_of_ones_own_is_given_the_whole() -> None:
    seen: list[int] = []

    class ByTheBatch(ZPlus):
        def relevance(self, layer: Layer, R: Tensor) -> Tensor:
            seen.append(len(R))
            return super().relevance(layer, R) / R.sum()

    image = torch.randn(5, 1, 3, 3)
    relevance(ByTheBatch(), nn.Conv2d(1, 2, 2), image, torch.ones(5, 2, 2, 2))
    assert seen == [5]


@pytest.mark.usefixtures("small_parts")
def test_bounds_of_each_sample_stay_with_their_samples() -> None:
    module, image = nn.Conv2d(1, 2, 2).double(), integers((5, 1, 3, 3), seed=1)
    for k, parameter in enumerate(module.parameters()):
        parameter.data = integers(parameter.shape, seed=3 + k)  # exact, whether bounds are the same for all or not
    R = integers((5, 2, 2, 2), seed=2)
    low = torch.arange(-7.0, -2.0, dtype=torch.float64).view(5, 1, 1, 1)
    together = relevance(ZBox(low, 4.0), module, image, R)
    for i in range(5):
        alone = relevance(ZBox(float(low[i]), 4.0), module, image[i : i + 1], R[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "mixed-dtypes"])
def test_elementwise_formulas_in_parts(layout: str) -> None:
    x, R = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    x = {"contiguous": x, "transposed": torch.randn(4, 5).double().T, "mixed-dtypes": x.float()}[layout]
    called: list[int] = []

    def formula(v: Tensor, s: Tensor) -> Tensor:
        called.append(v.numel())
        return v.clamp(min=0) * s

    with torch.no_grad():
        assert torch.equal(parts.elementwise(formula, x, R), x.clamp(min=0) * R)
    assert called == ([1] * 20 if layout == "contiguous" else [20])

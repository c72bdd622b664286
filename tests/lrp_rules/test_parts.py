"""Large layers are done in parts, which must add up to the whole: seen here on small ones, bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import Epsilon, Gamma, Stabilizer, WSquare, ZBox, ZPlus
from lrp_rules.evaluate import rewriting
from lrp_rules.layers import blocks, convolution, known
from lrp_rules.layers import layer as layer_module
from tests.lrp_rules.cases import CASES, FORMULAS, integers, output_of, power_of_two, relevance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lrp_rules.evaluate.plan import Plan
    from lrp_rules.layers.layer import Layer


class PowerOfTwo(Stabilizer):
    """The exact stabilizer, as one that is known to look at each entry by itself."""

    def __call__(self, denominator: Tensor) -> Tensor:
        return power_of_two(denominator)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_module, "SMALL", -1)
    monkeypatch.setattr(blocks, "PART", 1)
    monkeypatch.setattr(known, "ROWS", 1)
    monkeypatch.setattr(known, "QUARTERED", 0)
    monkeypatch.setattr(known, "LEAST", 1)
    monkeypatch.setattr(layer_module, "ANEW", 0)


@pytest.mark.parametrize("layer", CASES)
@pytest.mark.parametrize("rule", FORMULAS)
def test_parts_add_up(rule: str, layer: str, request: pytest.FixtureRequest) -> None:
    module, x = CASES[layer].module(), CASES[layer].input()
    R = integers(output_of(module, x).shape, seed=2)
    make, _ = FORMULAS[rule]
    hook: Any = make()
    hook.stabilizer = PowerOfTwo()
    whole = relevance(make(), module, x, R)
    request.getfixturevalue("small_parts")
    assert torch.equal(relevance(make(), module, x, R), whole)  # one's own stabilizer is to see all denominators
    assert torch.equal(relevance(hook, module, x, R), whole)


def test_what_is_large_is_so_by_its_largest_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PART", 100)
    small, large = torch.empty(10, dtype=torch.float64), torch.empty(20, dtype=torch.float64)
    assert blocks.large(small, large)
    assert blocks.large(large, small)
    assert not blocks.large(small, small)


@pytest.mark.parametrize(
    ("capabilities", "size"),
    [
        ({"l2_cache_size": 2**20}, 2**20),
        ({"l2_cache_size": 2**18}, 2**19),
        ({"l2_cache_size": 2**30}, 2**21),
        ({}, 2**19),
    ],
    ids=["middle", "small", "shared", "untold"],
)
def test_a_part_is_as_large_as_a_cache(
    capabilities: dict[str, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert blocks._cache() == size


def test_an_older_torch_tells_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert blocks._cache() == 2**19


def count_parts(rule: Any, module: nn.Module, x: Tensor) -> int:
    """How many parts a rule's formula is given."""
    counted = 0
    plan = rewriting.plan

    def counting(*given: Any) -> Plan:
        made = plan(*given)
        assert made is not None
        original = made.coefficients

        def coefficients(layer: Layer, vectors: Sequence[Tensor], R: Tensor) -> Sequence[Tensor]:
            nonlocal counted
            counted += 1
            return original(layer, vectors, R)

        made.coefficients = coefficients  # type: ignore[method-assign]
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewriting, "plan", counting)
        relevance(rule, module, x, torch.ones_like(output_of(module, x)))
    return counted


@pytest.mark.usefixtures("small_parts")
def test_large_layers_are_done_in_parts() -> None:
    linear, x = nn.Linear(4, 6), torch.randn(5, 4)
    conv, image = nn.Conv2d(1, 2, 2), torch.randn(5, 1, 3, 3)
    assert count_parts(ZPlus(), linear, x) == len(linear.weight)  # and all samples, or weights would be read again
    assert count_parts(Epsilon(), linear, x) == 3  # a quarter of six outputs, rounded up, is two
    assert count_parts(WSquare(), linear, x) == len(linear.weight)
    assert count_parts(ZPlus(), conv, image) == count_parts(Epsilon(), conv, image) == len(image)


@pytest.mark.usefixtures("small_parts")
def test_small_layers_are_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = nn.Linear(4, 6), torch.randn(5, 4)
    monkeypatch.setattr(layer_module, "SMALL", x.numel() * 5 * 6)
    assert [count_parts(rule(), linear, x) for rule in (ZPlus, Epsilon, WSquare)] == [1, 1, 1]
    monkeypatch.setattr(layer_module, "SMALL", x.numel() * 5 * 6 - 1)
    assert [count_parts(rule(), linear, x) for rule in (ZPlus, Epsilon, WSquare)] == [6, 3, 6]


@pytest.mark.usefixtures("small_parts")
def test_outputs_are_done_in_quarters_where_no_weight_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = nn.Linear(4, 20), torch.randn(5, 4)
    assert count_parts(Epsilon(), linear, x) == 4
    monkeypatch.setattr(known, "QUARTERED", 2**40)
    assert count_parts(Epsilon(), linear, x) == 1
    assert count_parts(ZPlus(), linear, x) == 20


@pytest.mark.usefixtures("small_parts")
def test_small_linear_layers_are_done_by_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = nn.Linear(4, 6), torch.randn(5, 4)
    monkeypatch.setattr(known, "ROWS", linear.weight.numel())
    assert count_parts(ZPlus(), linear, x) == len(x)
    assert count_parts(Epsilon(), linear, x) == len(x) * 3


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


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rule", FORMULAS)
def test_a_relevance_can_be_viewed_like_its_input(rule: str, batch: int) -> None:
    # what comes side by side out of one convolution, or is cut out of something padded, is not handed on as it is
    for name in ("linear", "conv2d-circular", "conv2d-reflect-same", "transposed1d"):
        module, x = CASES[name].module(), CASES[name].input(batch)
        r = relevance(FORMULAS[rule][0](), module, x, output_of(module, x))
        assert r.is_contiguous()
        assert r.untyped_storage().nbytes() == r.nbytes


@pytest.mark.parametrize("rule", FORMULAS)
def test_a_relevance_is_not_what_windows_without_an_input_were_cut_from(rule: str) -> None:
    # of one sample with one channel, what is left of a wider tensor is contiguous
    module, x = nn.ConvTranspose1d(1, 2, 2, stride=2, output_padding=2, dilation=3), integers((1, 1, 3), 1)
    r = relevance(FORMULAS[rule][0](), module, x, output_of(module, x))
    assert r.untyped_storage().nbytes() == r.nbytes


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("gamma", [0.25, 10.0])
def test_a_weight_is_changed_once_for_all_samples(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = layer_module.WeightedLayer._changed

    def changed(self: Any, change: Any, weight: Tensor) -> Tensor:
        made.append(change)
        return original(self, change, weight)

    monkeypatch.setattr(layer_module.WeightedLayer, "_changed", changed)
    relevance(Gamma(gamma), nn.Conv2d(1, 2, 2), torch.randn(5, 1, 3, 3), torch.ones(5, 2, 2, 2))
    assert len(made) == (1 if gamma <= 1 else 2)


# --- A x from an output that holds a bias, too ------------------------------------------------------------------------


def with_bias(module: nn.Module, bias: float | Tensor) -> Any:
    for parameter in module.parameters():
        signs = torch.where(integers(parameter.shape, seed=4) < 0, -1.0, 1.0)
        parameter.data = (signs * integers(parameter.shape, seed=3, low=1)).float()
    assert isinstance(module.bias, Tensor)
    module.bias.data.copy_(torch.as_tensor(bias))
    return module


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 3), (4, 8)),
    "linear-by-rows": (lambda: nn.Linear(8, 5), (1, 8)),
    "linear-on-positions": (lambda: nn.Linear(8, 3), (2, 3, 8)),
    "conv2d": (lambda: nn.Conv2d(8, 3, 2), (2, 8, 4, 4)),
    "conv2d-circular": (lambda: nn.Conv2d(8, 3, 2, padding=1, padding_mode="circular"), (2, 8, 4, 4)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 4, 2, groups=2), (2, 4, 4, 4)),
    "transposed2d": (lambda: nn.ConvTranspose2d(8, 3, 2), (2, 8, 3, 3)),
    "transposed2d-stride": (lambda: nn.ConvTranspose2d(8, 3, 2, stride=2), (2, 8, 3, 3)),
}
RECOMPUTED = {"transposed2d-stride", "conv2d-groups"}


def without_bias(name: str, bias: float | Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, int]:
    """Return r, the exact one, and how often the whole layer was run in the backward pass."""
    make, shape = LAYERS[name]
    module, x = with_bias(make(), bias), integers(shape, seed=1, low=1).float()
    R = torch.ones_like(output_of(module, x))
    other = with_bias(make(), 0.0)
    whole = module.weight.numel()
    runs: list[int] = []
    for kind in (known.LinearLayer, known.ConvLayer, known.ConvTransposeLayer):
        original = kind.run_with

        def counted(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None, original: Any = original) -> Tensor:
            runs.extend([1] * (weight.numel() == whole))
            result: Tensor = original(self, x, weight, bias)
            return result

        monkeypatch.setattr(kind, "run_with", counted)
        original_matrix = kind.matrix

        def matrix(self: Any, change: Any = None, original: Any = original_matrix) -> Any:
            made = original(self, change)

            def forward(v: Tensor) -> Tensor:
                runs.append(1)
                result: Tensor = made.forward(v)
                return result

            return layer_module.Map(forward, made.transposed, made.fresh)

        monkeypatch.setattr(kind, "matrix", matrix)
    got = relevance(Epsilon(PowerOfTwo(), "bias"), module, x, R)
    count = len(runs)
    return got, relevance(Epsilon(PowerOfTwo()), other, x, R), count


def few_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_module, "ANEW", 0)
    monkeypatch.setattr(known, "LEAST", 1)  # and so few rows at a time
    for module in (known, convolution):
        monkeypatch.setattr(module, "TERMS", 4)


@pytest.mark.parametrize("name", LAYERS)
def test_a_small_bias_is_taken_from_the_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_terms(monkeypatch)
    got, expected, runs = without_bias(name, 1.0, monkeypatch)
    assert torch.equal(got, expected)
    assert (runs > 0) is (name in RECOMPUTED)


@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_that_has_taken_the_digits_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # beside 2^26, a float32 has no digit left for numbers below 4
    few_terms(monkeypatch)
    got, expected, runs = without_bias(name, 2.0**26, monkeypatch)
    assert torch.equal(got, expected)
    assert runs > 0


def test_a_bias_that_outweighs_the_last_output_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    few_terms(monkeypatch)
    bias = torch.ones(5)
    bias[-1] = 2.0**26
    got, expected, runs = without_bias("linear-by-rows", bias, monkeypatch)
    assert torch.equal(got, expected)
    assert runs > 0


def test_a_planted_careless_difference_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_module, "ANEW", 0)
    monkeypatch.setattr(known.LinearLayer, "excess", lambda self: torch.full((), float("inf")))
    got, expected, _ = without_bias("linear", 2.0**26, monkeypatch)
    assert not torch.equal(got, expected)

"""The box of ZBox, and what a callable stabilizer is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import (
    Flat,
    Stabilizer,
    WSquare,
    ZBox,
)
from lrp_rules.layers import layer as layer_module
from tests.lrp_rules.cases import (
    CASES,
    KNOWN,
    Dense,
    integers,
    output_of,
    power_of_two,
    relevance,
)

BOUNDS = {
    "numbers": (-3, 2.5),
    "0-d": (torch.tensor(-3), torch.tensor(2.5)),
    "per-channel": (torch.tensor([-3.0, -2]).view(1, 2, 1, 1), torch.tensor([1.0, 2]).view(1, 2, 1, 1)),
    "one-sample": (-integers((1, 2, 3, 4), 5, 0), integers((1, 2, 3, 4), 6, 0)),
    "per-sample": (-integers((3, 1, 1, 1), 5, 0), integers((3, 1, 1, 1), 6, 0)),
    "trailing-ones": (-integers((3, 2), 5, 0), integers((3, 2), 6, 0)),
    "trailing-ones-of-one": (torch.tensor([-3.0]), torch.tensor([3.0])),
    "longer-batch": (-integers((7, 2, 3, 4), 5, 0), integers((7, 2, 3, 4), 6, 0)),
    "mixed": (-2, integers((3, 2, 3, 4), 6, 0)),
    "integers": (torch.tensor([[[[-3]]]]), torch.tensor([[[[3]]]])),
    "lists": ([[[[-3.0]]]], [[[[3.0]]]]),
}


@pytest.fixture(autouse=True, params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """See the layers as small ones and as large ones, whose output ZBox uses."""
    if request.param == "large":
        monkeypatch.setattr(layer_module, "SMALL", -1)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_bounds_of_the_box_broadcast(bounds: str) -> None:
    case = KNOWN["conv2d-circular"]
    module, x = case.module(), case.input()
    R = integers(output_of(module, x).shape, seed=2)
    low, high = (torch.as_tensor(bound, dtype=torch.float64) for bound in BOUNDS[bounds])

    def full(bound: Tensor) -> Tensor:
        if bound.ndim in {1, 2}:
            bound = bound.view(bound.shape + (1,) * (4 - bound.ndim))
        return bound[:3].expand(3, 2, 3, 4) if bound.ndim else bound.expand(3, 2, 3, 4)

    got = relevance(ZBox(*BOUNDS[bounds], power_of_two), module, x, R)  # type: ignore[arg-type]
    assert torch.equal(got, Dense(module, x, R).zbox(full(low), full(high)))


WRONG_BOUNDS = {
    "channels-differ": torch.zeros(1, 3, 1, 1),
    "size-differs": torch.zeros(3, 2, 3, 5),
    "batch-shorter": torch.zeros(2, 2, 3, 4),
    "too-many-dimensions": torch.zeros(1, 3, 2, 3, 4),
    "leading-dimension-missing": torch.zeros(2, 3, 4),
}


@pytest.mark.parametrize("bound", WRONG_BOUNDS)
@pytest.mark.parametrize("name", ["low", "high"])
def test_bounds_that_do_not_broadcast_are_refused(name: str, bound: str) -> None:
    case = KNOWN["conv2d-circular"]
    module, x, wrong = case.module(), case.input(), WRONG_BOUNDS[bound]
    rule = ZBox(wrong, 3) if name == "low" else ZBox(-3, wrong)
    with pytest.raises(ValueError, match="does not broadcast") as error:
        relevance(rule, module, x, output_of(module, x))
    assert name in str(error.value)
    assert str(tuple(wrong.shape)) in str(error.value)
    assert str(tuple(x.shape)) in str(error.value)


@pytest.mark.parametrize("samples", [1, 2])
def test_bounds_by_channel_without_the_batch_dimension_are_refused(samples: int) -> None:
    # (3,) becomes (3, 1, 1, 1): three samples. Cut to the batch, the first channel's bound would go for all of them
    layer, x = nn.Conv2d(3, 2, 2), torch.rand(samples, 3, 4, 4)
    rule = ZBox(torch.tensor([-3.0, -2.0, -1.0]), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="does not broadcast"):
        relevance(rule, layer, x, output_of(layer, x))


def test_longer_bounds_are_cut_to_an_empty_batch() -> None:
    layer = nn.Linear(3, 2)
    assert relevance(ZBox(-torch.ones(4, 3), torch.ones(4, 3)), layer, torch.ones(0, 3), torch.ones(0, 2)).shape == (
        0,
        3,
    )


def test_longer_bounds_are_cut_for_linear_on_sequences() -> None:
    layer, x, R = nn.Linear(3, 2), integers((2, 5, 3), 1), integers((2, 5, 2), 2)
    for k, parameter in enumerate(layer.parameters()):
        parameter.data = integers(
            parameter.shape, 3 + k
        )  # exact, whether the bounds are the same for all samples or not
    got = relevance(ZBox(-3 * torch.ones(4, 5, 3), 3 * torch.ones(4, 5, 3)), layer, x, R)
    assert torch.equal(got, relevance(ZBox(-3, 3), layer, x, R))


def test_bounds_of_more_channels_than_an_unbatched_traced_input_are_refused() -> None:
    with pytest.raises(ValueError, match="does not broadcast"):
        relevance(
            ZBox(-torch.ones(7, 4, 4), torch.ones(7, 4, 4)), nn.AvgPool2d(2), torch.rand(3, 4, 4), torch.ones(3, 2, 2)
        )


def test_bounds_of_more_channels_than_an_unbatched_input_are_refused() -> None:
    with pytest.raises(ValueError, match="does not broadcast"):
        relevance(ZBox(-torch.ones(7, 4, 4), 1), nn.Conv2d(3, 2, 4), torch.rand(3, 4, 4), torch.ones(2, 1, 1))


def scaled(d: Tensor) -> Tensor:
    """Depends on the whole of a sample: any other view of what one sample is gives another number."""
    return power_of_two(d.abs().sum(dim=tuple(range(1, d.ndim)), keepdim=True))


@pytest.mark.parametrize("layer", ["conv2d-circular", "transposed1d", "batchnorm2d", "avgpool2d", "traced-linear"])
@pytest.mark.parametrize("rule", [WSquare, Flat])
def test_stabilizer_sees_whole_samples(rule: type[WSquare | Flat], layer: str) -> None:
    case = CASES[layer]
    module, x = case.module(), case.input()
    R = integers(output_of(module, x).shape, seed=2)
    oracle = Dense(module, x, R, scaled)
    assert torch.equal(relevance(rule(scaled), module, x, R), oracle.flat() if rule is Flat else oracle.wsquare())


@pytest.mark.parametrize("rule", [WSquare, Flat])
def test_stabilizer_sees_whole_samples_of_linear_on_sequences(rule: type[WSquare | Flat]) -> None:
    test_stabilizer_sees_whole_samples(rule, "linear-of-sequences")


def test_norm_scale_is_the_mean_over_the_sample_for_linear() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 7.0**0.5]]))
    scale = Stabilizer(1.0, norm_scale=True)
    d = layer.weight.detach().square().sum(1, keepdim=True).T  # (1, 7): its root mean square is 5, S(d) = (6, 12)
    got = relevance(WSquare(scale), layer, torch.ones(1, 2), torch.tensor([[6.0, 12.0]]))
    assert scale(d).round().tolist() == [[6.0, 12.0]]
    assert got.round(decimals=9).tolist() == [[1.0, 7.0]]  # entry by entry, eps would be (1, 7) and S(d) = (2, 14)


def test_bounds_of_two_shapes_meet_only_at_the_input() -> None:
    # both are one number for each of two samples; beside each other as they are, they would be compared crosswise
    layer, x, R = nn.Linear(4, 3), integers((2, 4), 1), integers((2, 3), 2)
    for parameter in layer.parameters():
        parameter.data = integers(parameter.shape, 3)
    low, high = torch.tensor([0.0, 2.0]), torch.tensor([[1.0], [3.0]])
    got = relevance(ZBox(low, high), layer, x, R)
    for i in range(2):
        alone = ZBox(float(low[i]), float(high[i]))
        assert torch.equal(got[i : i + 1], relevance(alone, layer, x[i : i + 1], R[i : i + 1]))


@pytest.mark.parametrize("swapped", [False, True])
def test_bounds_of_two_shapes_in_the_wrong_order_are_refused_at_the_input(swapped: bool) -> None:
    layer, x, R = nn.Linear(4, 3), integers((2, 4), 1), integers((2, 3), 2)
    flat, tall = torch.tensor([0.0, 4.0]), torch.tensor([[1.0], [3.0]])
    rule = ZBox(-tall, -flat) if swapped else ZBox(flat, tall)
    with pytest.raises(ValueError, match="low is above high"):
        relevance(rule, layer, x, R)


@pytest.mark.parametrize("shape", [(), (1, 2), (1, 1)], ids=str)
def test_a_relevance_has_a_derivative_by_the_bounds(shape: tuple[int, ...]) -> None:
    module = nn.Linear(2, 1, bias=False).double()
    module.weight.data = torch.tensor([[2.0, -2.0]], dtype=torch.float64)
    low, high = (torch.full(shape, bound, dtype=torch.float64, requires_grad=True) for bound in (-1.0, 3.0))
    x, R = torch.ones(1, 2).double(), torch.ones(1, 1).double()
    r = relevance(ZBox(low, high, lambda d: d), module, x, R, create_graph=True)
    # r_1 = 2 (x_1 - l_1) / d with d = 2 (x_1 - l_1) - 2 (x_2 - h_2) = 8: all of it, and its derivatives, is exact
    by_low, by_high = torch.autograd.grad(r[0, 0], (low, high))
    assert r.tolist() == [[0.5, 0.5]]
    assert torch.equal(by_low, torch.tensor([[-1.0, 0.0]]).double().div(8).sum_to_size(shape))
    assert torch.equal(by_high, torch.tensor([[0.0, -1.0]]).double().div(8).sum_to_size(shape))

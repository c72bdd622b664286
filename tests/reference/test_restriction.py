"""A layer cut to one position of its input gives what the whole layer gives there, and the same bound."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import pytest

from reference import restriction, rules
from reference.layers import AvgPool, BatchNorm, Conv, ConvTranspose, Linear, Weighted, affine
from reference.precision import FLOAT64
from reference.rounding import bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from reference.affine import Affine
    from reference.rules import Parts

_rng = np.random.default_rng(0)


def _some(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return _rng.standard_normal(shape)


LAYERS: dict[str, Weighted] = {
    "linear": Linear((3, 5), _some(4, 5), _some(4)),
    "conv1d-circular": Conv((2, 6), _some(3, 2, 3), _some(3), (1,), (2,), (1,), 1, "circular"),
    "conv2d-groups": Conv((4, 5, 4), _some(6, 2, 3, 2), _some(6), (2, 1), (1, 0), (1, 2), 2),
    "conv2d-holes": Conv((2, 7, 6), _some(2, 2, 2, 2), None, (3, 3), (0, 0), (1, 1)),
    "convtranspose2d": ConvTranspose((4, 3, 2), _some(4, 3, 3, 3), _some(6), (2, 2), (1, 1), (1, 1), (1, 1), 2),
    "batchnorm": BatchNorm((3, 2, 4), _some(3), _some(3), _some(3), 1 + _some(3) ** 2, 1e-5),
}
RULES: dict[str, Callable[[Affine], Parts]] = {
    "epsilon": rules.epsilon,
    "zplus": rules.zplus,
    "alphabeta": rules.alpha_beta,
    "gamma": rules.gamma,
    "wsquare": rules.wsquare,
    "flat": rules.flat,
}


@pytest.mark.parametrize("zero_params", [(), ("bias",)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "dense"), [*((name, False) for name in LAYERS), ("linear", True)])
def test_a_position_is_that_of_the_whole(
    name: str, dense: bool, rule: str, zero_params: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = LAYERS[name]
    if dense:
        monkeypatch.setattr(restriction, "_DENSE", 0)
        monkeypatch.setattr(restriction, "_BLOCK", 3)
    x, R = _some(prod(layer.input_shape)), _some(prod(layer.output_shape))
    stabilize = rules.Stabilizer(1e-3)
    whole = RULES[rule](affine(layer, x, zero_params))
    expected, room = rules.relevance(whole, R, stabilize), bound(whole, R, stabilize, FLOAT64).worst
    seen: set[int] = set()
    places = prod(layer.input_shape[:-1]) if isinstance(layer, Linear) else prod(layer.input_shape[1:])
    for place in range(places):
        entries, r, worst = restriction.position_at(layer, place, RULES[rule], x, R, stabilize, FLOAT64, zero_params)
        seen |= set(entries.tolist())
        assert (np.abs(r - expected[entries]) <= room[entries]).all()
        # as wide, but for the rounding of the bound itself: sums of n + m terms, a few of them
        assert (np.abs(worst - room[entries]) <= FLOAT64.gamma(8.0 * (len(x) + len(R) + 64)) * room[entries]).all()
    assert seen == set(range(len(x)))


def test_a_layer_that_cannot_be_cut_is_named() -> None:
    with pytest.raises(TypeError, match="given AvgPool, expected Conv"):
        restriction.at(AvgPool((1, 4), (2,), (2,), (0,)), 0)  # type: ignore[arg-type]

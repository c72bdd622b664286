"""Relevance of weights and biases: by hand, beside the ledger, and where it is refused."""

import numpy as np
import pytest

from reference import layers as ref
from reference import rules
from reference.ledger import ledger
from reference.parameters import of_parameters
from reference.precision import FLOAT64

LAYER = ref.Linear((2,), np.array([[2.0, -1.0], [1.0, 3.0]]), np.array([1.0, -2.0]))
X = np.array([3.0, -2.0])


def test_epsilon_by_hand() -> None:
    """S = (10, -6), s = (1, -1) for R = (10, 6): w x s is (6, 2) in the first row and (-3, 6) in the second."""
    found = of_parameters(rules.epsilon(ref.affine(LAYER, X)), ref.affine(LAYER, X), np.array([10.0, 6.0]), 1.0)
    assert found.weight.tolist() == [[6, 2], [-3, 6]]
    assert found.bias is not None
    assert found.bias.tolist() == [1, 2]


def test_alpha_beta_by_hand() -> None:
    """R = (10, 36): sa = (1, 9) times (6, 2), (3, 0) and b+ = (1, 0); sb = (10, -4) times (0, -6) and b- = (0, -2)."""
    layer = ref.affine(LAYER, X)
    found = of_parameters(rules.alpha_beta(layer), layer, np.array([10.0, 36.0]), 1.0)
    assert found.weight.tolist() == [[12, 4], [54, -24]]
    assert found.bias is not None
    assert found.bias.tolist() == [2, -8]


@pytest.mark.parametrize("rule", [rules.epsilon, rules.zplus, rules.alpha_beta, rules.gamma, rules.wsquare, rules.flat])
def test_all_weights_have_what_the_inputs_have_and_all_biases_what_the_bias_has(rule: object) -> None:
    rng = np.random.default_rng(3)
    conv = ref.Conv(
        (4, 6), rng.standard_normal((6, 2, 3)), rng.standard_normal(6), stride=(2,), padding=((1, 0),), dilation=(1,),
        groups=2, padding_mode="zeros",
    )  # fmt: skip
    layer = ref.affine(conv, rng.standard_normal(24))
    parts = rule(layer)  # type: ignore[operator]
    R = rng.standard_normal(len(layer.b))
    found, book = of_parameters(parts, layer, R), ledger(parts, R)
    assert found.bias is not None
    for values, bound, sink in (
        (found.weight, found.weight_bound, book.inputs),
        (found.bias, found.bias_bound, book.bias),
    ):
        assert bound is not None
        room = bound.sum() + FLOAT64.gamma(len(R) + 1) * np.abs(sink).sum()
        assert abs(values.sum() - sink.sum()) <= room
        assert room < 1e-9 * np.abs(R).sum()


def test_a_layer_without_a_weight_is_refused() -> None:
    layer = ref.affine(ref.Elementwise((3,), "relu"), np.ones(3))
    with pytest.raises(ValueError, match="expected a layer with a weight"):
        of_parameters(rules.epsilon(layer), layer, np.ones(3))


def test_entries_of_several_weights_are_refused() -> None:
    conv = ref.Conv(
        (1, 3), np.ones((1, 1, 3)), None, stride=(1,), padding=((1, 1),), dilation=(1,), groups=1,
        padding_mode="reflect",
    )  # fmt: skip
    layer = ref.affine(conv, np.ones(3))
    with pytest.raises(ValueError, match="sum of several weights"):
        of_parameters(rules.epsilon(layer), layer, np.ones(3))

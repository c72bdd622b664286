"""Layers in JSON: there and back, for every layer of the vectors and of the grid, and refused where they contradict."""

import json

import numpy as np
import pytest
from torch import nn

from reference.base import Layer as ReferenceLayer
from verify.formats.layer_json import OPTIONS, describe, family, layer_of, options_of, tensors_of
from verify.formats.torch_layers import describe as of_module
from verify.questions.layers import FAMILIES, LayerCase
from verify.questions.layers import LAYERS as GRID
from verify.questions.networks import LAYERS as NETWORKS
from verify.vectors import networks
from verify.vectors.layers import LAYERS, Layer


def built(layer: Layer) -> ReferenceLayer:
    tensors = {name: np.ones(shape) for name, shape in layer.tensors.items()}
    return layer_of(layer.options, tensors, layer.input_shape)


@pytest.mark.parametrize("layer", [*LAYERS, *networks.LAYERS], ids=lambda layer: layer.name)
def test_there_and_back(layer: Layer) -> None:
    text = json.dumps(layer.options)
    assert describe(built(layer)) == json.loads(text)
    assert list(describe(built(layer))) == ["type", *options_of(layer.options)]
    assert list(tensors_of(built(layer))) == list(layer.tensors)
    assert family(layer.options) in {*FAMILIES, *(case.family for case in NETWORKS)}


@pytest.mark.parametrize("case", [*GRID, *NETWORKS], ids=lambda case: case.name)
def test_every_layer_of_the_grid_can_be_written(case: LayerCase) -> None:
    layer = of_module(case.build(), case.sample_shape)
    again = layer_of(json.loads(json.dumps(describe(layer))), tensors_of(layer), layer.input_shape)
    assert again.output_shape == layer.output_shape
    assert describe(again) == describe(layer)
    assert family(describe(layer)) == case.family


def test_padding_same_is_before_and_after() -> None:
    layer = of_module(nn.Conv1d(1, 1, 4, padding="same"), (1, 5))
    assert describe(layer)["padding"] == [[1, 2]]
    assert describe(of_module(nn.Conv1d(1, 1, 3, padding=1), (1, 5)))["padding"] == [[1, 1]]


@pytest.mark.parametrize(
    ("layer", "tensors", "says"),
    [
        ({"type": "Conv4d"}, {}, "given type 'Conv4d', expected Elementwise or one of Linear"),
        ({}, {}, "given type None"),
        ({"type": "Elementwise", "function": "step"}, {}, "given function 'step', expected one of identity"),
        ({"type": "Linear", "axis": 1}, {}, r"given \['axis', 'type'\], expected \['type'\] for Linear"),
        ({"type": "Softmax"}, {}, r"expected \['type', 'axis'\]"),
        ({"type": "Softmax", "axis": 0}, {"weight": 1}, r"given the tensors \['weight'\], expected \[\] for Softmax"),
        ({"type": "Linear"}, {"weight": np.ones((3, 4))}, "last axis of input_shape"),
    ],
)
def test_what_is_no_layer_is_refused(layer: dict[str, object], tensors: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        layer_of(layer, tensors, (2, 5))


def test_the_vectors_have_every_type_of_layer() -> None:
    kinds = {name.replace("...", str(d)) for name in OPTIONS for d in (1, 2, 3)} | {"Elementwise"}
    # Norm on a sum is not asked
    assert {layer.type for layer in (*LAYERS, *networks.LAYERS)} == kinds - {"AvgPool...d", "Sum"}


@pytest.mark.parametrize(
    "layer", [layer for layer in LAYERS if len(layer.input_shape) > 1], ids=lambda layer: layer.name
)
def test_shapes_are_asymmetric(layer: Layer) -> None:
    assert layer.input_shape != layer.input_shape[::-1]

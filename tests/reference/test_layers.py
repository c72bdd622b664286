"""The matrices of the reference against torch's own forward pass: A x + b == module(x), within a derived bound."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reference import layers as ref
from reference.affine import positive, quantum
from reference.precision import FLOAT64
from reference.windows import Array, Shape

Built = tuple[nn.Module, ref.Layer]
Build = Callable[[], Built]


def array(parameter: torch.Tensor | None) -> Array | None:
    return None if parameter is None else parameter.detach().numpy()


def each(value: int | Shape, dims: int) -> Shape:
    return (value,) * dims if isinstance(value, int) else value


def kind(name: str, dims: int) -> Any:
    return getattr(nn, f"{name}{dims}d")


def linear(shape: Shape, outputs: int, *, bias: bool = True) -> Build:
    def build() -> Built:
        module = nn.Linear(shape[-1], outputs, bias)
        return module, ref.Linear(shape, module.weight.detach().numpy(), array(module.bias))

    return build


def conv(shape: Shape, outputs: int, kernel: Shape, **given: Any) -> Build:
    def build() -> Built:
        dims = len(kernel)
        module = kind("Conv", dims)(shape[0], outputs, kernel, **given)
        dilation = each(given.get("dilation", 1), dims)
        padding = given.get("padding", 0)
        pad = ref.same_padding(kernel, dilation) if padding == "same" else each(padding, dims)
        layer = ref.Conv(
            shape,
            module.weight.detach().numpy(),
            array(module.bias),
            each(given.get("stride", 1), dims),
            pad,
            dilation,
            given.get("groups", 1),
            given.get("padding_mode", "zeros"),
        )
        return module, layer

    return build


def transposed(shape: Shape, outputs: int, kernel: Shape, **given: Any) -> Build:
    def build() -> Built:
        dims = len(kernel)
        module = kind("ConvTranspose", dims)(shape[0], outputs, kernel, **given)
        layer = ref.ConvTranspose(
            shape,
            module.weight.detach().numpy(),
            array(module.bias),
            each(given.get("stride", 1), dims),
            each(given.get("padding", 0), dims),
            each(given.get("output_padding", 0), dims),
            each(given.get("dilation", 1), dims),
            given.get("groups", 1),
        )
        return module, layer

    return build


def average(shape: Shape, kernel: Shape, stride: Shape, padding: Shape, **given: Any) -> Build:
    def build() -> Built:
        module = kind("AvgPool", len(kernel))(kernel, stride, padding, **given)
        return module, ref.AvgPool(shape, kernel, stride, padding, **given)

    return build


def adaptive(shape: Shape, size: Shape) -> Build:
    return lambda: (kind("AdaptiveAvgPool", len(size))(size), ref.AdaptiveAvgPool(shape, size))


def norm(shape: Shape, *, parameters: bool = True) -> Build:
    def build() -> Built:
        module = kind("BatchNorm", max(1, len(shape) - 1))(shape[0], eps=0.01, affine=parameters).eval()
        with torch.no_grad():
            for value in (*module.parameters(), module.running_mean):
                value.copy_(torch.randn(shape[0]))
            module.running_var.copy_(torch.rand(shape[0]) + 0.1)
        mean, var = module.running_mean.numpy(), module.running_var.numpy()
        return module, ref.BatchNorm(shape, array(module.weight), array(module.bias), mean, var, module.eps)

    return build


LINEAR: dict[str, Build] = {
    "linear": linear((7,), 4),
    "linear without bias": linear((7,), 4, bias=False),
    "linear one to one": linear((1,), 1),
    "linear over positions": linear((2, 3, 5), 4),
    "conv1d": conv((3, 9), 4, (3,)),
    "conv1d stride padding dilation": conv((3, 14), 4, (4,), stride=3, padding=2, dilation=2),
    "conv1d same, even kernel": conv((2, 7), 3, (4,), padding="same"),
    "conv2d": conv((3, 5, 7), 4, (3, 2)),
    "conv2d without bias": conv((3, 5, 7), 4, (3, 2), bias=False),
    "conv2d asymmetric": conv((4, 9, 7), 6, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 3), groups=2),
    "conv2d depthwise": conv((4, 5, 6), 8, (3, 3), padding=1, groups=4),
    "conv2d same, dilated": conv((2, 6, 5), 3, (4, 3), padding="same", dilation=(3, 1)),
    "conv2d 1x1": conv((3, 2, 4), 5, (1, 1)),
    "conv2d as large as its input": conv((3, 4, 2), 5, (4, 2)),
    "conv3d": conv((2, 4, 3, 5), 4, (2, 3, 2), stride=(1, 2, 2), padding=(0, 1, 2), dilation=(2, 1, 1), groups=2),
    "conv transpose1d": transposed((3, 5), 4, (3,), stride=2, padding=1, output_padding=1),
    "conv transpose2d": transposed(
        (4, 3, 5), 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2
    ),
    "conv transpose2d dilated": transposed((2, 4, 3), 3, (3, 2), padding=(2, 1), dilation=(2, 3)),
    "conv transpose2d depthwise": transposed((3, 3, 4), 3, (2, 3), stride=2, groups=3, bias=False),
    "conv transpose3d": transposed((2, 2, 3, 2), 3, (2, 1, 3), stride=(2, 1, 3), padding=(0, 0, 1)),
    "batch norm of vectors": norm((4,)),
    "batch norm 1d": norm((3, 5)),
    "batch norm 2d": norm((3, 2, 4)),
    "batch norm 3d, no parameters": norm((2, 2, 3, 2), parameters=False),
    "adaptive 1d, not dividing": adaptive((2, 7), (3,)),
    "adaptive 2d, not dividing": adaptive((2, 7, 5), (3, 4)),
    "adaptive 2d, to one": adaptive((3, 5, 4), (1, 1)),
    "adaptive 2d, larger than the input": adaptive((1, 3, 2), (5, 4)),
    "adaptive 3d": adaptive((2, 4, 3, 5), (3, 2, 2)),
    "average 1d": average((2, 9), (3,), (2,), (1,)),
    "average 3d": average((2, 5, 4, 6), (2, 3, 2), (2, 1, 3), (1, 1, 0), ceil_mode=True, count_include_pad=False),
    "average 2d, divisor": average((2, 7, 6), (3, 2), (2, 2), (1, 0), divisor_override=5),
    "average 2d, divisor, padded, ceil": average((2, 6, 5), (3, 2), (2, 2), (1, 1), ceil_mode=True, divisor_override=4),
} | {
    f"conv2d {mode}, {name}": conv(shape, 4, kernel, padding_mode=mode, **given)
    for mode in ("reflect", "replicate", "circular")
    for name, shape, kernel, given in (
        ("padded", (3, 5, 4), (3, 3), {"padding": (2, 1)}),
        ("strided groups", (4, 6, 5), (3, 2), {"padding": (1, 2), "stride": (2, 1), "dilation": (1, 2), "groups": 2}),
        ("same", (2, 5, 6), (3, 4), {"padding": "same"}),
    )
} | {
    f"average 2d {shape} ceil={ceil} include={include}": average(
        shape, (3, 2), (2, 3), (1, 1), ceil_mode=ceil, count_include_pad=include
    )
    for shape in ((2, 6, 5), (1, 7, 7))
    for ceil in (False, True)
    for include in (False, True)
}  # fmt: skip

POOLS: dict[str, tuple[Shape, Shape, Shape, Shape, Shape, bool]] = {
    "1d": ((2, 9), (3,), (2,), (1,), (1,), False),
    "2d ceil": ((3, 6, 5), (3, 2), (2, 2), (1, 1), (1, 1), True),
    "2d dilated": ((2, 8, 7), (3, 2), (2, 1), (1, 0), (2, 3), False),
    "3d": ((2, 4, 5, 3), (2, 2, 3), (2, 1, 1), (0, 1, 1), (1, 1, 1), True),
}

FUNCTIONS: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "identity": (nn.Identity(), {}),
    "relu": (nn.ReLU(), {}),
    "leaky_relu": (nn.LeakyReLU(0.2), {"negative_slope": 0.2}),
    "tanh": (nn.Tanh(), {}),
    "sigmoid": (nn.Sigmoid(), {}),
    "softplus": (nn.Softplus(3, 5), {"beta": 3.0, "threshold": 5.0}),
    "gelu": (nn.GELU(), {}),
    "gelu tanh": (nn.GELU("tanh"), {"approximate": "tanh"}),
    "silu": (nn.SiLU(), {}),
    "elu": (nn.ELU(0.7), {"alpha": 0.7}),
}


@pytest.fixture(autouse=True)
def _float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def forward(module: nn.Module, x: Array, shape: Shape) -> Array:
    with torch.no_grad():
        y: torch.Tensor = module(torch.from_numpy(x).reshape(1, *shape))
    return np.asarray(y.numpy()[0])


def assert_same_map(layer: ref.Layer, module: nn.Module, x: Array) -> None:
    """A x + b is what the module makes of x, but for the rounding of both: gamma(n + 3) |A| |x| + |b| each."""
    expected = forward(module, x, layer.input_shape)
    assert layer.output_shape == expected.shape
    at = ref.affine(layer, x)
    got = at.A() @ at.x + at.b
    size = at.size() @ np.abs(at.x) + at.offset_size()
    room = 2 * FLOAT64.gamma(at.count().sum(1) + layer.roundings + 2) * size
    assert np.all(np.abs(got - expected.ravel()) <= room), np.abs(got - expected.ravel()).max()
    assert np.array_equal(at.z, got)


# torch warns that it copies the input to pad an even kernel
COPIES = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


@COPIES
@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_do_what_torch_does(name: str) -> None:
    module, layer = LINEAR[name]()
    for seed in range(3):
        assert_same_map(layer, module, np.random.default_rng(seed).standard_normal(layer.input_shape))


@COPIES
@pytest.mark.parametrize("name", [name for name in LINEAR if "conv" in name or name.startswith("linear")])
def test_matrix_of_another_weight(name: str) -> None:
    """A(w+) is the module with w+ in it: the change goes to the parameter, then the matrix is built."""
    module, layer = LINEAR[name]()
    x = np.random.default_rng(2).standard_normal(layer.input_shape)
    matrix = ref.affine(layer, x).A(positive)
    with torch.no_grad():
        module.weight.clamp_(min=0)  # type: ignore[operator]
        if module.bias is not None:
            module.bias.zero_()  # type: ignore[operator]
    expected = forward(module, x, layer.input_shape).ravel()
    room = 2 * FLOAT64.gamma(x.size + 2) * (np.abs(matrix) @ np.abs(x.ravel()))
    assert np.all(np.abs(matrix @ x.ravel() - expected) <= room)


@COPIES
@pytest.mark.parametrize(
    "wrong", ["transposed axes", "no bias", "other side", "one entry"], ids=lambda name: name.replace(" ", "-")
)
def test_a_wrong_matrix_is_seen(wrong: str) -> None:
    """The comparison rejects exchanged axes, a dropped bias, 'same' padded on the other side, one entry off."""
    given: dict[str, Any] = {"padding": "same"} if wrong == "other side" else {"padding": (1, 0)}
    module, layer = conv((2, 5, 5), 3, (4, 4), **given)()
    assert isinstance(layer, ref.Conv)
    weight, bias, padding = layer.weight, layer.bias, layer.padding
    if wrong == "transposed axes":
        weight = weight.swapaxes(2, 3)
    elif wrong == "no bias":
        bias = None
    elif wrong == "other side":
        padding = ((2, 1), (2, 1))
    else:
        weight = weight.copy()
        weight[1, 0, 2, 1] *= 1 + 1e-12
    broken = ref.Conv(layer.input_shape, weight, bias, layer.stride, padding, layer.dilation)
    x = np.random.default_rng(3).standard_normal(layer.input_shape)
    assert_same_map(layer, module, x)
    with pytest.raises(AssertionError):
        assert_same_map(broken, module, x)


def test_circular_padding_gathers_parameters() -> None:
    """Kernel (1, -3, 1) around a ring of two: each input meets both 1s of its neighbour, 1 + 1, and its own -3.

    With w = (1, -3, -1) the neighbour gets 1 - 1 = 0: A(w)+ is 0 there, while A(w+) holds the 1.
    """
    layer = ref.Conv((1, 2), np.array([[[1.0, -3.0, 1.0]]]), None, (1,), (1,), (1,), 1, "circular")
    assert np.array_equal(layer.matrix(layer.weight), [[-3, 2], [2, -3]])
    other = np.array([[[1.0, -3.0, -1.0]]])
    assert np.array_equal(positive(layer.matrix(other)), [[0, 0], [0, 0]])
    assert np.array_equal(layer.matrix(positive(other)), [[0, 1], [1, 0]])
    at = ref.affine(ref.Conv((1, 2), other, None, (1,), (1,), (1,), 1, "circular"), np.ones(2))
    assert np.array_equal(at.size(), [[3, 2], [2, 3]])
    assert np.array_equal(at.count(), [[1, 2], [2, 1]])


def test_border_of_zeros_counts_fewer() -> None:
    """A(1) 1 counts the inputs that an output sees: 2 at either end of three, 3 in the middle."""
    layer = ref.Conv((1, 3), np.array([[[5.0, 6.0, 7.0]]]), None, (1,), (1,), (1,))
    assert np.array_equal(layer.matrix(np.ones((1, 1, 3))).sum(1), [2, 3, 2])


@pytest.mark.parametrize("name", POOLS)
def test_max_pool(name: str) -> None:
    shape, kernel, stride, padding, dilation, ceil = POOLS[name]
    module = kind("MaxPool", len(kernel))(kernel, stride, padding, dilation, ceil_mode=ceil)
    layer = ref.MaxPool(shape, kernel, stride, padding, dilation, ceil)
    # few values, so that many windows hold equal maxima
    x = np.random.default_rng(4).integers(-2, 2, shape).astype(np.float64)
    y = forward(module, x, shape)
    assert layer.output_shape == y.shape
    assert np.array_equal(layer.value(x), y.ravel())
    given = torch.from_numpy(x)[None].requires_grad_()
    module(given).backward(torch.arange(1.0, y.size + 1).reshape(1, *y.shape))
    assert given.grad is not None
    assert np.array_equal(layer.jacobian(x).T @ np.arange(1.0, y.size + 1), given.grad.numpy().ravel())


def test_max_pool_gives_ties_to_the_first() -> None:
    layer = ref.MaxPool((1, 4), (2,), (2,), (0,), (1,))
    assert np.array_equal(layer.jacobian(np.array([3.0, 3.0, -1.0, -1.0])), [[1, 0, 0, 0], [0, 0, 1, 0]])


def nonlinear(name: str) -> tuple[nn.Module, ref.NonlinearLayer]:
    if name.startswith("softmax"):
        axis = int(name.split()[1])
        return nn.Softmax(axis + 1), ref.Softmax((3, 4, 2), axis)
    module, given = FUNCTIONS[name]
    return module, ref.Elementwise((2, 12), name.split(maxsplit=1)[0], **given)


@pytest.mark.parametrize("name", [*FUNCTIONS, "softmax 0", "softmax 1"])
def test_value_and_jacobian_of_nonlinear_layers(name: str) -> None:
    """Both within gamma(roundings) of their size, for torch's evaluation and for this one."""
    module, layer = nonlinear(name)
    x = np.concatenate([[0.0, -0.0, 1e-9, -1e-9, 8.0, -8.0, 30.0, -30.0], np.random.default_rng(5).normal(0, 2, 16)])
    value_size, slope_size = layer.sizes(x)
    room = 2 * FLOAT64.gamma(layer.roundings) if layer.roundings else 0.0
    assert np.all(np.abs(layer.value(x) - forward(module, x, layer.input_shape).ravel()) <= room * value_size)

    def flat(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = module(x.reshape(1, *layer.input_shape))
        return y.ravel()

    expected = torch.autograd.functional.jacobian(flat, torch.from_numpy(x)).numpy()
    assert np.all(np.abs(layer.jacobian(x) - expected) <= room * slope_size)


def test_relu_has_no_slope_at_zero() -> None:
    layer = ref.Elementwise((3,), "relu")
    assert np.array_equal(np.diagonal(layer.jacobian(np.array([-1.0, 0.0, 2.0]))), [0, 0, 1])


def test_zero_params_names_match_whole() -> None:
    """The real output z keeps what `zero_params` sets to zero; 'bias_' names nothing."""
    layer = ref.Linear((2,), np.array([[1.0, 2.0]]), np.array([4.0]))
    x = np.array([1.0, 1.0])
    assert ref.affine(layer, x, "bias").b == 0
    assert ref.affine(layer, x, "bias").z == 1 + 2 + 4
    assert ref.affine(layer, x, ["bias_", "b"]).b == 4
    assert not ref.affine(layer, x, ("weight", "bias")).A().any()
    assert ref.affine(layer, x, None).b == 4


def test_batch_norm_constant() -> None:
    """The layer (x - 1) 2 / sqrt(4) + 3 = x + 2."""
    layer = ref.BatchNorm((1,), np.array([2.0]), np.array([3.0]), np.array([1.0]), np.array([3.0]), 1.0)
    at = ref.affine(layer, np.array([5.0]))
    assert at.A() == 1
    assert at.b == 3 - 1
    assert at.z == 7


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, -0.75], 0.25),
        ([0.0, 0.0], np.inf),
        ([6.0, 0.0], 2.0),
        ([1.0, 0.1], 0.0),
        ([2.0**52, 1.0], 1.0),
        ([2.0**53, 1.0], 0.0),
        ([5e-324], 5e-324),
        ([*[1.0] * 20, 0.5], 0.5),
        ([np.inf], 0.0),
    ],
    ids=str,
)
def test_quantum(values: list[float], expected: float) -> None:
    assert quantum(np.array(values)) == expected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ref.Linear((3,), np.zeros((2, 4)), None), "given 3, expected 4"),
        (lambda: ref.Conv((3, 5), np.zeros((2, 2, 3)), None, (1,), (0,), (1,)), "given 3, expected 2"),
        (lambda: ref.ConvTranspose((3, 5), np.zeros((2, 2, 3)), None, (1,), (0,), (0,), (1,)), "given 3, expected 2"),
        (lambda: ref.affine(ref.Elementwise((3,), "relu"), np.zeros(2)), "given (2,), expected (3,)"),
        (lambda: ref.Elementwise((3,), "cosine"), "given function 'cosine', expected one of identity, relu"),
        (
            lambda: ref.Conv((1, 5), np.zeros((1, 1, 3)), None, (1,), (1,), (1,), 1, "mirror").matrix(),
            "padding_mode is 'mirror'",
        ),
    ],
    ids=["linear", "conv", "transpose", "input", "function", "padding"],
)
def test_a_description_that_contradicts_itself(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole below
        build()
    assert message in str(caught.value)

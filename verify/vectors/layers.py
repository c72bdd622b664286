"""The layers that the vectors ask about; asymmetric, so that reversed axes or a transposed weight are seen."""

from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]
Options = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """A layer in the form of `verify.formats.layer_json`, the shape of one sample, and the shapes of its tensors."""

    name: str
    options: Options
    input_shape: Shape
    tensors: dict[str, Shape] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """Its type in JSON."""
        return str(self.options["type"])

    @property
    def smooth(self) -> bool:
        """Whether it is not linear: Epsilon and Norm take its Jacobian."""
        return self.type in {"Elementwise", "Softmax"} or self.type.startswith("MaxPool")


def _linear(name: str, input_shape: Shape, outputs: int, *, bias: bool = True) -> Layer:
    tensors: dict[str, Shape] = {"weight": (outputs, input_shape[-1])}
    return Layer(name, {"type": "Linear"}, input_shape, tensors | ({"bias": (outputs,)} if bias else {}))


def _conv(
    name: str,
    input_shape: Shape,
    weight: Shape,
    *,
    stride: Shape = (),
    padding: tuple[Shape, ...] = (),
    dilation: Shape = (),
    groups: int = 1,
    padding_mode: str = "zeros",
    bias: bool = True,
) -> Layer:
    """Weight (O, C/groups, *kernel); padding (before, after) for each axis."""
    d = len(weight) - 2
    options = {
        "type": f"Conv{d}d",
        "stride": list(stride or (1,) * d),
        "padding": [list(pair) for pair in padding or ((0, 0),) * d],
        "dilation": list(dilation or (1,) * d),
        "groups": groups,
        "padding_mode": padding_mode,
    }
    return Layer(name, options, input_shape, {"weight": weight} | ({"bias": weight[:1]} if bias else {}))


def _transposed(
    name: str,
    input_shape: Shape,
    weight: Shape,
    *,
    stride: Shape = (),
    padding: Shape = (),
    output_padding: Shape = (),
    dilation: Shape = (),
    groups: int = 1,
    bias: bool = True,
) -> Layer:
    """Weight (C, O/groups, *kernel)."""
    d = len(weight) - 2
    options = {
        "type": f"ConvTranspose{d}d",
        "stride": list(stride or (1,) * d),
        "padding": list(padding or (0,) * d),
        "output_padding": list(output_padding or (0,) * d),
        "dilation": list(dilation or (1,) * d),
        "groups": groups,
    }
    tensors: dict[str, Shape] = {"weight": weight}
    return Layer(name, options, input_shape, tensors | ({"bias": (weight[1] * groups,)} if bias else {}))


def _average(
    name: str,
    input_shape: Shape,
    kernel_size: Shape,
    stride: Shape,
    padding: Shape = (),
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Layer:
    d = len(kernel_size)
    options = {
        "type": f"AvgPool{d}d",
        "kernel_size": list(kernel_size),
        "stride": list(stride),
        "padding": list(padding or (0,) * d),
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
        "divisor_override": divisor_override,
    }
    return Layer(name, options, input_shape)


def _adaptive(name: str, input_shape: Shape, output_size: Shape) -> Layer:
    return Layer(name, {"type": f"AdaptiveAvgPool{len(output_size)}d", "output_size": list(output_size)}, input_shape)


def _maximum(
    name: str,
    input_shape: Shape,
    kernel_size: Shape,
    stride: Shape,
    padding: Shape = (),
    dilation: Shape = (),
    *,
    ceil_mode: bool = False,
) -> Layer:
    d = len(kernel_size)
    options = {
        "type": f"MaxPool{d}d",
        "kernel_size": list(kernel_size),
        "stride": list(stride),
        "padding": list(padding or (0,) * d),
        "dilation": list(dilation or (1,) * d),
        "ceil_mode": ceil_mode,
    }
    return Layer(name, options, input_shape)


def _norm(name: str, input_shape: Shape, *, affine: bool = True) -> Layer:
    channels = input_shape[:1]
    own = {"weight": channels, "bias": channels} if affine else {}
    return Layer(
        name,
        {"type": "BatchNorm", "eps": 1e-5},
        input_shape,
        {**own, "running_mean": channels, "running_var": channels},
    )


def _function(function: str, **options: Any) -> Layer:
    return Layer(function.replace("_", "-"), {"type": "Elementwise", "function": function, **options}, (5,))


LAYERS: tuple[Layer, ...] = (
    _linear("linear-5-4", (5,), 4),
    _linear("linear-4-3-nobias", (4,), 3, bias=False),
    _linear("linear-1-3", (1,), 3),
    _linear("linear-6-1", (6,), 1),
    _linear("linear-positions", (3, 4), 2),
    _conv("conv1d-k3", (2, 5), (3, 2, 3)),
    _conv("conv1d-k3-s2-p1-d2", (2, 9), (2, 2, 3), stride=(2,), padding=((1, 1),), dilation=(2,)),
    _conv("conv1d-k4-same", (2, 5), (2, 2, 4), padding=((1, 2),)),
    _conv("conv1d-circular", (2, 4), (2, 2, 3), padding=((2, 2),), padding_mode="circular"),
    _conv("conv2d-k3x2-s2x1-p1x0", (2, 4, 3), (3, 2, 3, 2), stride=(2, 1), padding=((1, 1), (0, 0))),
    _conv("conv2d-k2-s3-rest", (2, 5, 4), (2, 2, 2, 2), stride=(3, 3), bias=False),
    _conv("conv2d-d2-p2", (1, 4, 5), (2, 1, 3, 3), padding=((2, 2), (2, 2)), dilation=(2, 2)),
    _conv("conv2d-g2", (4, 3, 2), (6, 2, 2, 2), groups=2),
    _conv("conv2d-depthwise", (3, 3, 4), (6, 1, 2, 2), groups=3),
    _conv("conv2d-circular", (1, 3, 4), (2, 1, 3, 2), padding=((2, 2), (1, 1)), padding_mode="circular"),
    _conv("conv2d-reflect", (1, 3, 4), (2, 1, 3, 3), padding=((1, 1), (2, 2)), padding_mode="reflect"),
    _conv("conv2d-replicate-s2", (1, 4, 3), (2, 1, 3, 3), stride=(2, 2), padding=((2, 2), (1, 1)),
          padding_mode="replicate"),
    _conv("conv3d-k2-s1x2x1-p0x1x0", (2, 2, 3, 3), (2, 2, 2, 2, 2), stride=(1, 2, 1),
          padding=((0, 0), (1, 1), (0, 0))),
    _transposed("convtranspose1d-k3", (2, 4), (2, 3, 3)),
    _transposed("convtranspose1d-s2-p1-d3-op2", (2, 3), (2, 2, 3), stride=(3,), padding=(1,), output_padding=(2,),
                dilation=(2,)),
    _transposed("convtranspose2d-s2-p1-op1", (3, 2, 4), (3, 2, 3, 2), stride=(2, 2), padding=(1, 0),
                output_padding=(1, 0)),
    _transposed("convtranspose2d-g2-d2-nobias", (4, 2, 3), (4, 3, 2, 2), dilation=(2, 1), groups=2, bias=False),
    _transposed("convtranspose3d-s2x1x2", (1, 2, 3, 2), (1, 2, 2, 2, 2), stride=(2, 1, 2)),
    _norm("batchnorm-channels", (4,)),
    _norm("batchnorm-images", (3, 2, 4)),
    _norm("batchnorm-plain", (3, 2), affine=False),
    _average("avgpool1d", (2, 7), (3,), (2,)),
    _average("avgpool2d-p1-ceil", (2, 4, 5), (3, 2), (2, 2), (1, 0), ceil_mode=True),
    _average("avgpool2d-p1-nopadcount", (1, 4, 5), (3, 3), (2, 2), (1, 1), count_include_pad=False),
    _average("avgpool2d-divisor", (1, 3, 4), (2, 2), (1, 2), divisor_override=3),
    _average("avgpool3d", (1, 2, 4, 3), (2, 2, 1), (2, 2, 1)),
    _adaptive("adaptiveavgpool1d", (2, 7), (3,)),
    _adaptive("adaptiveavgpool2d", (2, 5, 3), (3, 2)),
    _adaptive("adaptiveavgpool3d", (1, 3, 2, 5), (2, 1, 2)),
    _maximum("maxpool1d", (2, 7), (2,), (2,)),
    _maximum("maxpool2d-p1-ceil", (2, 4, 5), (3, 2), (2, 2), (1, 1), ceil_mode=True),
    _maximum("maxpool2d-d2", (1, 5, 4), (2, 2), (1, 1), dilation=(2, 2)),
    _maximum("maxpool3d", (1, 2, 4, 3), (2, 2, 1), (2, 2, 1)),
    _function("identity"),
    _function("relu"),
    _function("leaky_relu", negative_slope=0.1),
    _function("tanh"),
    _function("sigmoid"),
    _function("softplus", beta=2.0, threshold=20.0),
    _function("gelu", approximate="none"),
    _function("silu"),
    _function("elu", alpha=1.5),
    Layer("softmax", {"type": "Softmax", "axis": 0}, (3, 2)),
)  # fmt: skip

#: One of each kind, on which parameters of the rules and further kinds of data are tried.
CORE = ("linear-5-4", "conv2d-k3x2-s2x1-p1x0", "conv2d-circular", "convtranspose2d-s2-p1-op1")


def named(name: str) -> Layer:
    """Return the layer of that name."""
    return next(layer for layer in LAYERS if layer.name == name)

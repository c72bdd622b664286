"""A torch layer as the plain data that the reference takes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn

from reference import layers as ref
from reference import operations as ops
from verify.formats.operands import Add, MatMul, Multiply, Operands

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from reference.layers import Layer

Shape = tuple[int, ...]


def describe(module: nn.Module, input_shape: Shape) -> Layer:
    """Return ``module`` as the reference knows it, for one sample of ``input_shape``.

    Raises
    ------
    TypeError
        If the reference has no such layer.

    """
    for kind, build in _BUILDERS.items():
        if isinstance(module, kind):
            return build(module, tuple(input_shape))
    known = ", ".join(sorted(kind.__name__ for kind in _BUILDERS))
    msg = f"the reference has no layer for {module}; it knows {known}. Add one in reference/layers.py"
    raise TypeError(msg)


def array(tensor: Tensor | None) -> Any:
    """Return the exact values of a tensor in float64; None stays None."""
    return None if tensor is None else tensor.detach().cpu().double().numpy()


def _tuple(value: int | Shape, n: int) -> Shape:
    return (value,) * n if isinstance(value, int) else tuple(value)


def _linear(module: nn.Linear, shape: Shape) -> Layer:
    return ref.Linear(shape, array(module.weight), array(module.bias))


def _conv(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, shape: Shape) -> Layer:
    kernel = tuple(module.kernel_size)
    padding: Any = module.padding
    if padding == "same":
        padding = ref.same_padding(kernel, module.dilation)
    elif padding == "valid":
        padding = (0,) * len(kernel)
    return ref.Conv(
        shape,
        array(module.weight),
        array(module.bias),
        stride=tuple(module.stride),
        padding=tuple(padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
        padding_mode=module.padding_mode,
    )


def _conv_transpose(module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, shape: Shape) -> Layer:
    return ref.ConvTranspose(
        shape,
        array(module.weight),
        array(module.bias),
        stride=tuple(module.stride),
        padding=tuple(int(p) for p in module.padding),
        output_padding=tuple(module.output_padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
    )


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, shape: Shape) -> Layer:
    return ref.BatchNorm(
        shape,
        array(module.weight),
        array(module.bias),
        running_mean=array(module.running_mean),
        running_var=array(module.running_var),
        eps=module.eps,
    )


def _avg_pool(module: Any, shape: Shape) -> Layer:
    n = len(shape) - 1
    return ref.AvgPool(
        shape,
        kernel_size=_tuple(module.kernel_size, n),
        stride=_tuple(module.stride, n),
        padding=_tuple(module.padding, n),
        ceil_mode=module.ceil_mode,
        count_include_pad=module.count_include_pad,
        divisor_override=getattr(module, "divisor_override", None),
    )


def _adaptive(module: Any, shape: Shape) -> Layer:
    n = len(shape) - 1
    return ref.AdaptiveAvgPool(shape, output_size=_tuple(module.output_size, n))


def _max_pool(module: Any, shape: Shape) -> Layer:
    n = len(shape) - 1
    return ref.MaxPool(
        shape,
        kernel_size=_tuple(module.kernel_size, n),
        stride=_tuple(module.stride, n),
        padding=_tuple(module.padding, n),
        dilation=_tuple(module.dilation, n),
        ceil_mode=module.ceil_mode,
    )


def _elementwise(function: str, *names: str) -> Callable[[Any, Shape], Layer]:
    def build(module: Any, shape: Shape) -> Layer:
        return ref.Elementwise(shape, function, **{name: getattr(module, name) for name in names})

    return build


def _softmax(module: nn.Softmax, shape: Shape) -> Layer:
    assert module.dim is not None
    # one sample has no batch axis
    return ref.Softmax(shape, axis=module.dim - 1 if module.dim > 0 else module.dim)


def _flatten(_module: nn.Flatten, shape: Shape) -> Layer:
    return ref.Elementwise((prod(shape),), "identity")


def _layer_norm(kind: type[ops.LayerNorm]) -> Callable[[Any, Shape], Layer]:
    def build(module: Any, shape: Shape) -> Layer:
        if module.eps is None:
            msg = f"the eps of {module} depends on the dtype of its input; expected a number"
            raise TypeError(msg)
        bias = array(getattr(module, "bias", None))
        return kind(shape, array(module.weight), bias, module.eps, axes=len(module.normalized_shape))

    return build


def _group_norm(module: nn.GroupNorm, shape: Shape) -> Layer:
    return ops.GroupNorm(shape, array(module.weight), array(module.bias), module.eps, num_groups=module.num_groups)


def _instance_norm(module: Any, shape: Shape) -> Layer:
    if module.running_mean is not None and not module.training:
        msg = f"the reference knows {module} by the statistics of its input alone; expected track_running_stats=False"
        raise TypeError(msg)
    return ops.GroupNorm(shape, array(module.weight), array(module.bias), module.eps, num_groups=shape[0])


def _operands(module: Operands, shape: Shape) -> Layer:
    kind = next(kind for operation, kind in _OPERATIONS.items() if isinstance(module.operation, operation))
    constants = tuple(array(module.constant(position)) for position in range(len(module.shapes)))
    return kind(shape, module.shapes, constants)


_OPERATIONS: dict[type[nn.Module], type[ops.Operation]] = {Add: ops.Sum, Multiply: ops.Product, MatMul: ops.MatMul}
_BUILDERS: dict[type[nn.Module], Callable[[Any, Shape], Layer]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.ConvTranspose1d: _conv_transpose,
    nn.ConvTranspose2d: _conv_transpose,
    nn.ConvTranspose3d: _conv_transpose,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.AvgPool1d: _avg_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AvgPool3d: _avg_pool,
    nn.AdaptiveAvgPool1d: _adaptive,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.AdaptiveAvgPool3d: _adaptive,
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.MaxPool3d: _max_pool,
    nn.ReLU: _elementwise("relu"),
    nn.LeakyReLU: _elementwise("leaky_relu", "negative_slope"),
    nn.Tanh: _elementwise("tanh"),
    nn.Sigmoid: _elementwise("sigmoid"),
    nn.Softplus: _elementwise("softplus", "beta", "threshold"),
    nn.GELU: _elementwise("gelu", "approximate"),
    nn.SiLU: _elementwise("silu"),
    nn.ELU: _elementwise("elu", "alpha"),
    nn.Identity: _elementwise("identity"),
    nn.Flatten: _flatten,
    nn.Softmax: _softmax,
    nn.LayerNorm: _layer_norm(ops.LayerNorm),
    nn.RMSNorm: _layer_norm(ops.RMSNorm),
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    Operands: _operands,
}

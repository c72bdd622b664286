"""Functions that are layers: a call of one as the module of torch that does the same, with the tensors that it got."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    Reached = Callable[[Tensor], int]
    Found = tuple[nn.Module, list[Tensor]] | None


def bare(kind: type[nn.Module], tensors: dict[str, Tensor | None], **attributes: Any) -> Any:
    """Return a module of torch without the parameters that its constructor would draw, but with these."""
    module = object.__new__(kind)
    nn.Module.__init__(module)
    vars(module).update(attributes)
    for name, tensor in tensors.items():  # a tensor that was computed does as well
        module._parameters[name] = tensor  # type: ignore[assignment]
    return module


def as_layer(function: Any, args: Any, kwargs: Any, reached: Reached) -> Found:
    """Return the layer of a call and its input; None where a call is not one."""
    name = getattr(function, "__name__", "")
    if name == "softmax" and function is not F.softmax:
        name = "torch.softmax"
    maker = _MAKERS.get(name)
    if maker is None or not isinstance(args[0] if args else None, Tensor):
        return None
    try:
        given = _SIGNATURES[name].bind(*args, **kwargs)
    except TypeError:
        return None
    given.apply_defaults()
    values = given.arguments
    x = values.pop("input")
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    if not reached(x) or any(t.requires_grad and reached(t) for t in tensors):
        return None  # a weight that the input reaches is no weight, but a factor
    module = maker(x, **values)
    if module is None:
        return None
    dtype = values.get("dtype")
    return module, [x if dtype is None else x.to(dtype)]


def _signature(text: str) -> inspect.Signature:
    """Return the signature of a function of torch, which has none that Python knows."""
    parameters = []
    for part in text.split():
        name, _, default = part.partition("=")
        value = ast.literal_eval(default) if default else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value))
    return inspect.Signature(parameters)


def _linear(_x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    if weight.ndim != 2:
        return None
    return bare(nn.Linear, {"weight": weight, "bias": bias}, out_features=weight.shape[0], in_features=weight.shape[1])


def _sizes(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _convolution(kind: type[nn.Module], *, transposed: bool) -> Callable[..., Any]:
    def make(
        _x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
        output_padding: Any = 0,
    ) -> Any:  # fmt: skip
        dims = weight.ndim - 2
        first, second = weight.shape[:2]
        channels = (first, second * groups) if transposed else (second * groups, first)
        # its constructor knows what padding is made of
        like: Any = kind(1, 1, 1, padding=padding if isinstance(padding, str) else _sizes(padding, dims), device="meta")
        module = bare(kind, {"weight": weight, "bias": bias})
        attributes = {
            name: value for name, value in vars(like).items() if not name.startswith("_") or "reversed" in name
        }
        vars(module).update(
            {**attributes, "in_channels": channels[0], "out_channels": channels[1], "groups": groups,
             "kernel_size": tuple(weight.shape[2:]), "stride": _sizes(stride, dims),
             "dilation": _sizes(dilation, dims), "output_padding": _sizes(output_padding, dims), "training": False}
        )  # fmt: skip
        return module

    return make


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> Any:  # fmt: skip
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(x.ndim, nn.BatchNorm1d)
    module = bare(
        kind, {"weight": weight, "bias": bias}, num_features=x.shape[1], eps=eps, momentum=momentum,
        affine=weight is not None, track_running_stats=running_mean is not None, training=training,
    )  # fmt: skip
    module._buffers.update(running_mean=running_mean, running_var=running_var, num_batches_tracked=None)
    return module


def _layer_norm(
    _x: Tensor, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float, **_: Any
) -> Any:  # fmt: skip
    return bare(
        nn.LayerNorm, {"weight": weight, "bias": bias}, normalized_shape=tuple(normalized_shape), eps=eps,
        elementwise_affine=weight is not None,
    )  # fmt: skip


def _rms_norm(_x: Tensor, normalized_shape: Any, weight: Tensor | None, eps: float | None) -> Any:
    return bare(
        nn.RMSNorm, {"weight": weight}, normalized_shape=tuple(normalized_shape), eps=eps,
        elementwise_affine=weight is not None,
    )  # fmt: skip


def _group_norm(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    return bare(
        nn.GroupNorm, {"weight": weight, "bias": bias}, num_groups=num_groups, num_channels=x.shape[1], eps=eps,
        affine=weight is not None,
    )  # fmt: skip


def _softmax(_x: Tensor, dim: int | None, **_: Any) -> Any:
    return None if dim is None else nn.Softmax(dim)


def _instance_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float,
) -> Any:  # fmt: skip
    kind = {4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}.get(x.ndim, nn.InstanceNorm1d)
    module = bare(
        kind, {"weight": weight, "bias": bias}, num_features=x.shape[1], eps=eps,
        momentum=momentum, affine=weight is not None, track_running_stats=not use_input_stats, training=False,
    )  # fmt: skip
    module._buffers.update(running_mean=running_mean, running_var=running_var, num_batches_tracked=None)
    return module


_CONVOLVE = "input weight bias=None stride=1 padding=0 dilation=1 groups=1"
_TRANSPOSED = "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1"
_MAKERS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    **{
        f"conv{n}d": _convolution(kind, transposed=False) for n, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)
    },
    **{
        f"conv_transpose{n}d": _convolution(kind, transposed=True)
        for n, kind in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1)
    },
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "softmax": _softmax,
    "torch.softmax": _softmax,
}
_SIGNATURES = {
    name: _signature(text)
    for names, text in {
        "linear": "input weight bias=None",
        "conv1d conv2d conv3d": _CONVOLVE,
        "conv_transpose1d conv_transpose2d conv_transpose3d": _TRANSPOSED,
        "batch_norm": "input running_mean running_var weight=None bias=None training=False momentum=0.1 eps=1e-05",
        "layer_norm": "input normalized_shape weight=None bias=None eps=1e-05 cudnn_enable=True",
        "rms_norm": "input normalized_shape weight=None eps=None",
        "group_norm": "input num_groups weight=None bias=None eps=1e-05",
        "instance_norm": "input running_mean=None running_var=None weight=None bias=None use_input_stats=True "
        "momentum=0.1 eps=1e-05",
        "softmax": "input dim=None _stacklevel=3 dtype=None",
        "torch.softmax": "input dim=None dtype=None",
    }.items()
    for name in names.split()
}

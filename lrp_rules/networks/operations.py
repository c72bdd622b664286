"""The functions that networks call between their modules: which are one operation, and what a rule finds in a call.

An operation has many spellings: ``torch.add`` is also ``+``, ``+=``, ``Tensor.add_`` and ``operator.add``. A rule that
is given for one of them is in force for all.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrp_rules.networks.layers import as_layer
from lrp_rules.networks.written_out import RECURRENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Operations that a rule can be given for, by the names of the functions that do them. A sum of two tensors and their
#: difference are one operation, since both are sums of what each contributes.
SPELLINGS = {
    "add": "add sub subtract rsub __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ iadd isub",
    "mul": "mul multiply neg negative __mul__ __rmul__ __imul__ imul",
    "div": "div divide true_divide __truediv__ __rtruediv__ __itruediv__ __rdiv__ truediv itruediv",
    "pow": "pow square __pow__ __rpow__ __ipow__",
    "matmul": "matmul mm bmm mv dot inner einsum tensordot __matmul__ __rmatmul__",
    "addmm": "addmm baddbmm addmv",
    "sum": "sum cumsum fold index_add scatter_add",
    "mean": "mean",
    "avg_pool": "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d",
    "interpolate": "interpolate upsample grid_sample",
    "linear": "linear",
    "convolution": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "batch_norm": "batch_norm",
    "layer_norm": "layer_norm rms_norm group_norm instance_norm",
    "softmax": "softmax",
    "relu": "relu",
    "activation": "relu6 leaky_relu elu celu selu prelu rrelu threshold hardtanh hardshrink softshrink gelu silu mish "
    "hardswish hardsigmoid sigmoid tanh softplus logsigmoid softsign tanhshrink erf abs clamp clamp_min clamp_max clip "
    "exp log sqrt rsqrt expit special_expit",
    "norm": "norm",
    "normalize": "normalize",
    "glu": "glu",
    "scaled_dot_product_attention": "scaled_dot_product_attention",
    "multi_head_attention": "multi_head_attention_forward",
    **{name: name for name in RECURRENT},
}

#: Functions that hand each relevance to the entries that it belongs to, or drop what is constant, so that their
#: gradient is a rule already. Each is tested to conserve relevance.
_ROUTING = (
    "alias as_strided atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to cat chunk clone column_stack "
    "concat concatenate contiguous detach diagonal double dsplit dstack expand expand_as flatten flip fliplr flipud "
    "float gather half hsplit hstack index_select masked_fill masked_select meshgrid moveaxis movedim narrow pad "
    "permute pixel_shuffle pixel_unshuffle positive ravel repeat repeat_interleave reshape reshape_as roll rot90 "
    "scatter select split split_with_sizes squeeze stack swapaxes swapdims t take take_along_dim tensor_split tile to "
    "transpose tril triu type type_as unbind unflatten unfold unsqueeze view view_as vsplit vstack where max_pool1d "
    "max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin max min topk sort "
    "kthvalue median maximum minimum requires_grad_ retain_grad index_put index_copy slice_scatter select_scatter "
    "masked_scatter copy __getitem__ __setitem__ getitem setitem adjoint cpu cuda bfloat16 channel_shuffle diag_embed "
    "index_fill nan_to_num max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"
)
ROUTING = _ROUTING.split()
#: Those that look numbers up: what they give is where relevance ends, since no input before it requires a gradient.
LOOKUPS = {F.embedding, torch.embedding, F.embedding_bag}
#: Those that route where nothing is drawn at random: in eval mode.
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
#: Properties that are views.
VIEWS = ("T", "mT", "H", "mH", "data", "real")

_NAMESPACES: tuple[Any, ...] = (torch, Tensor, F, torch._C._nn, torch.special, operator)


def _spelled(names: Sequence[str]) -> dict[Any, str]:
    """Return the functions of these names, each with its name."""
    found: dict[Any, str] = {}
    for name in names:
        for space in _NAMESPACES:
            for spelling in (name, f"{name}_"):
                function = getattr(space, spelling, None)
                if function is not None:
                    found[function] = name
        if not name.startswith("_") and hasattr(torch.ops.aten, name):
            found[getattr(torch.ops.aten, name)] = name
    return found


#: What each function does, by the name of its operation.
OPERATIONS: dict[Any, str] = {
    function: operation for operation, names in SPELLINGS.items() for function in _spelled(names.split())
}
ROUTES: dict[Any, str] = {**_spelled(ROUTING), **{getattr(Tensor, name).__get__: name for name in VIEWS}}
_DROPS = _spelled(DROPOUTS)


def operation_of(function: Any) -> str | None:
    """Return the operation that a function does; None if no rule can be given for it."""
    return OPERATIONS.get(getattr(function, "overloadpacket", function))


def routes(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the gradient of this call is a rule already."""
    function = getattr(function, "overloadpacket", function)
    if function in _DROPS:
        share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
        training = kwargs.get("training", args[2] if len(args) > 2 else function not in vars(F).values())
        return not training or share == 0
    if kwargs.get("accumulate") or (ROUTES.get(function) == "index_put" and len(args) > 3 and args[3]):
        return False  # a sum
    return function in ROUTES


def in_place(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call writes to its first argument."""
    name = getattr(function, "__name__", "")
    if (name.endswith("_") and not name.startswith("__")) or name in _IN_PLACE:
        return True
    place = _INPLACE_ARGUMENT.get(name)
    return bool(kwargs.get("inplace", place is not None and len(args) > place and args[place]))


#: Where the functions that have it take ``inplace`` by position.
_INPLACE_ARGUMENT = {
    "relu": 1, "relu6": 1, "silu": 1, "mish": 1, "hardswish": 1, "hardsigmoid": 1, "selu": 1, "leaky_relu": 2, "elu": 2,
    "celu": 2, "threshold": 3, "hardtanh": 3, "rrelu": 4,
}  # fmt: skip


_IN_PLACE = {f"__{name}__" for name in ("iadd", "isub", "imul", "ipow")} | {"iadd", "isub", "imul"}


class FunctionCall(nn.Module):
    """One call of a function as a module: tensors that the input reaches are its inputs, all others a part of it."""

    def __init__(self, function: Callable[..., Any], name: str, leaves: list[Any], structure: Any) -> None:
        super().__init__()
        self.function, self.name, self.leaves, self.structure = function, name, leaves, structure
        self.positions: list[int] = []

    def forward(self, *inputs: Tensor) -> Any:
        leaves = list(self.leaves)
        for position, x in zip(self.positions, inputs, strict=True):
            leaves[position] = x
        for name, value in self._parameters.items():
            leaves[int(name.removeprefix("constant_"))] = getattr(self, name) if value is None else value
        args, kwargs = tree_unflatten(leaves, self.structure)
        return self.function(*args, **kwargs)

    def _get_name(self) -> str:
        return self.name


def as_module(
    function: Callable[..., Any], operation: str, args: Any, kwargs: Any, reached: Callable[[Tensor], int], name: str
) -> tuple[nn.Module, list[Tensor]]:
    """Return a module that does what a call of a function does, and its inputs."""
    layer = as_layer(function, args, kwargs, reached)
    if layer is not None:
        return layer
    writes = in_place(function, args, kwargs)
    leaves, structure = tree_flatten((args, kwargs))
    call = FunctionCall(_out_of_place(function) if writes else function, name, leaves, structure)
    for position, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or not leaf.requires_grad:
            continue
        if reached(leaf) or operation == "add":  # a constant has its share of a sum
            call.positions.append(position)
        else:
            call._parameters[f"constant_{position}"] = leaf  # type: ignore[assignment]
    inputs = [leaves[position] for position in call.positions]
    if writes:  # what is written to is needed as it was
        place = args[0].untyped_storage().data_ptr()
        leaves[:] = [_apart(leaf, place) for leaf in leaves]
        inputs = [_apart(x, place) for x in inputs]
    for position in call.positions:
        leaves[position] = None  # the node has them as long as they are needed
    return call, inputs


def _apart(leaf: Any, place: int) -> Any:
    """Return a copy of a tensor that lies at a place."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() == place else leaf


def _out_of_place(function: Callable[..., Any]) -> Callable[..., Any]:
    name = function.__name__
    other = getattr(torch, name.strip("_").removeprefix("i") if name in _IN_PLACE else name.removesuffix("_"), None)
    if other is not None and name not in vars(F):
        return other  # type: ignore[no-any-return]

    def call(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(first.clone(), *args, **kwargs)

    return call

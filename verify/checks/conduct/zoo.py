"""Conduct: the modules that torch has, and blocks as other libraries build them: a rule changes no output of them."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from verify.checks.conduct.containers import CHANGING
from verify.checks.conduct.probing import GRADIENT, Topic, arguments, attached, same_bits, unless_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject

    #: Makes a module, and what it is called with.
    Exhibit = Callable[[], tuple[nn.Module, tuple[Any, ...]]]


def _numbers(*shape: int) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.tensor([(7 * k % 13 - 6.5) / 4 for k in range(count)]).reshape(shape)


_FLAT, _1D, _2D, _3D = (2, 4), (2, 4, 6), (2, 4, 6, 6), (2, 4, 4, 4, 4)
_SPATIAL = {"1d": _1D, "2d": _2D, "3d": _3D}


def _one(name: str, shape: tuple[int, ...], *args: Any, **options: Any) -> Exhibit:
    """Return a module of torch.nn that is called with one tensor."""
    return lambda: (getattr(nn, name)(*args, **options), (_numbers(*shape),))


def _loss(name: str, *targets: Tensor, shape: tuple[int, ...] = _FLAT, **options: Any) -> Exhibit:
    """Return a module of torch.nn that is called with a tensor and others, which want no gradient."""
    return lambda: (getattr(nn, name)(**options), (_numbers(*shape), *targets))


def _unpool(name: str, shape: tuple[int, ...]) -> Exhibit:
    def build() -> tuple[nn.Module, tuple[Any, ...]]:
        pooled, indices = getattr(nn, name.replace("Unpool", "Pool"))(2, return_indices=True)(_numbers(*shape))
        return getattr(nn, name)(2), (pooled, indices)

    return build


_ACTIVATIONS = (
    "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU",
    "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softmax",
    "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Flatten", "Dropout", "AlphaDropout",
    "FeatureAlphaDropout",
)  # fmt: skip
#: They have a dim, and without it they warn.
_ALONG = {"LogSoftmax", "Softmax", "Softmin"}
#: With these arguments.
_OF_SPACE: dict[str, tuple[Any, ...]] = {
    "AdaptiveAvgPool": (2,), "AdaptiveMaxPool": (2,), "AvgPool": (2,), "BatchNorm": (4,), "CircularPad": (1,),
    "ConstantPad": (1, 0.5), "Conv": (4, 2, 2), "ConvTranspose": (4, 2, 2), "Dropout": (), "InstanceNorm": (4,),
    "LPPool": (2, 2), "MaxPool": (2,), "ReflectionPad": (1,), "ReplicationPad": (1,), "ZeroPad": (1,),
    "LazyBatchNorm": (), "LazyConv": (2, 2), "LazyConvTranspose": (2, 2), "LazyInstanceNorm": (),
}  # fmt: skip
_SMALL = {"dim_feedforward": 4, "dropout": 0.0, "batch_first": True}
_TARGETS, _CLASSES = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.5, 0.25]]), torch.tensor([1, 3])

MODULES: dict[str, Exhibit] = {
    **{name: _one(name, _FLAT, **({"dim": 1} if name in _ALONG else {})) for name in _ACTIVATIONS},
    **{
        f"{name}{dim}": _one(f"{name}{dim}", shape, *args)
        for name, args in _OF_SPACE.items()
        for dim, shape in _SPATIAL.items()
    },
    **{name: _unpool(name, _SPATIAL[name[-2:]]) for name in ("MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d")},
    "FractionalMaxPool2d": _one("FractionalMaxPool2d", _2D, 2, output_size=2),
    "FractionalMaxPool3d": _one("FractionalMaxPool3d", _3D, 2, output_size=2),
    "Linear": _one("Linear", _FLAT, 4, 3),
    "LazyLinear": _one("LazyLinear", _FLAT, 3),
    "Bilinear": _loss("Bilinear", _numbers(2, 3), in1_features=4, in2_features=3, out_features=2),
    "GroupNorm": _one("GroupNorm", _1D, 2, 4),
    "LayerNorm": _one("LayerNorm", _FLAT, 4),
    "RMSNorm": _one("RMSNorm", _FLAT, 4),
    "LocalResponseNorm": _one("LocalResponseNorm", _2D, 2),
    "CrossMapLRN2d": _one("CrossMapLRN2d", _2D, 2),
    "ChannelShuffle": _one("ChannelShuffle", _2D, 2),
    "PixelShuffle": _one("PixelShuffle", _2D, 2),
    "PixelUnshuffle": _one("PixelUnshuffle", _2D, 2),
    "Fold": _one("Fold", (2, 4, 4), (4, 4), 2, stride=2),
    "Unfold": _one("Unfold", _2D, 2),
    "Unflatten": _one("Unflatten", _FLAT, 1, (2, 2)),
    "Upsample": _one("Upsample", _2D, scale_factor=2),
    "UpsamplingBilinear2d": _one("UpsamplingBilinear2d", _2D, scale_factor=2),
    "UpsamplingNearest2d": _one("UpsamplingNearest2d", _2D, scale_factor=2),
    "Softmax2d": _one("Softmax2d", _2D),
    "Threshold": _one("Threshold", _FLAT, 0.5, -1.0),
    "Embedding": lambda: (nn.Embedding(5, 3), (torch.tensor([[0, 4], [2, 2]]),)),
    "EmbeddingBag": lambda: (nn.EmbeddingBag(5, 3), (torch.tensor([[0, 4], [2, 2]]),)),
    "RNN": _one("RNN", (2, 3, 4), 4, 3, batch_first=True),
    "LSTM": _one("LSTM", (2, 3, 4), 4, 3, batch_first=True),
    "GRU": _one("GRU", (2, 3, 4), 4, 3, batch_first=True),
    "RNNCell": _one("RNNCell", _FLAT, 4, 3),
    "LSTMCell": _one("LSTMCell", _FLAT, 4, 3),
    "GRUCell": _one("GRUCell", _FLAT, 4, 3),
    "MultiheadAttention": lambda: (nn.MultiheadAttention(4, 2, batch_first=True), (_numbers(2, 3, 4),) * 3),
    "TransformerEncoderLayer": _one("TransformerEncoderLayer", (2, 3, 4), 4, 2, **_SMALL),
    "TransformerDecoderLayer": lambda: (nn.TransformerDecoderLayer(4, 2, **_SMALL), (_numbers(2, 3, 4),) * 2),  # type: ignore[arg-type]
    "TransformerEncoder": lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, **_SMALL), 1),  # type: ignore[arg-type]
        (_numbers(2, 3, 4),),
    ),
    "TransformerDecoder": lambda: (
        nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, **_SMALL), 1),  # type: ignore[arg-type]
        (_numbers(2, 3, 4),) * 2,
    ),
    "Transformer": lambda: (nn.Transformer(4, 2, 1, 1, **_SMALL), (_numbers(2, 3, 4),) * 2),  # type: ignore[arg-type]
    "Sequential": lambda: (nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), (_numbers(2, 4),)),
    "DataParallel": lambda: (nn.DataParallel(nn.Linear(4, 3)), (_numbers(2, 4),)),
    "CosineSimilarity": _loss("CosineSimilarity", _numbers(1, 4)),
    "PairwiseDistance": _loss("PairwiseDistance", _numbers(1, 4)),
    "L1Loss": _loss("L1Loss", _TARGETS),
    "MSELoss": _loss("MSELoss", _TARGETS),
    "HuberLoss": _loss("HuberLoss", _TARGETS),
    "SmoothL1Loss": _loss("SmoothL1Loss", _TARGETS),
    "BCEWithLogitsLoss": _loss("BCEWithLogitsLoss", _TARGETS),
    "BCELoss": lambda: (nn.BCELoss(), (_numbers(*_FLAT).sigmoid(), _TARGETS)),
    "KLDivLoss": _loss("KLDivLoss", _TARGETS, reduction="sum"),
    "PoissonNLLLoss": _loss("PoissonNLLLoss", _TARGETS),
    "GaussianNLLLoss": _loss("GaussianNLLLoss", _TARGETS, _TARGETS + 1),
    "CrossEntropyLoss": _loss("CrossEntropyLoss", _CLASSES),
    "NLLLoss": _loss("NLLLoss", _CLASSES),
    "MultiMarginLoss": _loss("MultiMarginLoss", _CLASSES),
    "MultiLabelMarginLoss": _loss("MultiLabelMarginLoss", torch.tensor([[1, 3, -1, 0], [2, -1, 0, 1]])),
    "MultiLabelSoftMarginLoss": _loss("MultiLabelSoftMarginLoss", _TARGETS),
    "SoftMarginLoss": _loss("SoftMarginLoss", 2 * (_TARGETS > 0).float() - 1),
    "HingeEmbeddingLoss": _loss("HingeEmbeddingLoss", 2 * (_TARGETS > 0).float() - 1),
    "CosineEmbeddingLoss": _loss("CosineEmbeddingLoss", _TARGETS, torch.tensor([1.0, -1.0])),
    "MarginRankingLoss": _loss("MarginRankingLoss", _TARGETS, 2 * (_TARGETS > 0).float() - 1),
    "TripletMarginLoss": _loss("TripletMarginLoss", _TARGETS, 1 - _TARGETS),
    "TripletMarginWithDistanceLoss": _loss("TripletMarginWithDistanceLoss", _TARGETS, 1 - _TARGETS),
    "CTCLoss": lambda: (
        nn.CTCLoss(),
        (_numbers(4, 2, 3).log_softmax(2), torch.tensor([[1, 2], [2, 1]]), torch.tensor([4, 4]), torch.tensor([2, 2])),
    ),
    "AdaptiveLogSoftmaxWithLoss": lambda: (nn.AdaptiveLogSoftmaxWithLoss(4, 5, [2]), (_numbers(*_FLAT), _CLASSES)),
}


# Blocks of other libraries, by what is unusual in them


class _LayerNorm2d(nn.LayerNorm):
    """A subclass of a layer with a forward of its own (timm)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _BatchNormAct(nn.BatchNorm2d):
    """A normalisation with its activation (timm)."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.relu(super().forward(input), inplace=True)


class _StdConv(nn.Conv2d):
    """Weight standardisation (timm)."""

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return nn.functional.conv2d(input, weight, self.bias, self.stride)


class _Squeeze(nn.Module):
    """Squeeze and excitation (timm): a product of the input and what is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.act, self.expand = nn.Conv2d(4, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        return y


class _Attention(nn.Module):
    """Attention with a scale for each channel behind it, which is multiplied in place (timm)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gamma = nn.Linear(4, 12), nn.Parameter(torch.full((4,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        y: Tensor = x + nn.functional.scaled_dot_product_attention(q, k, v).mul_(self.gamma)
        return y


class _ConvModule(nn.Module):
    """A convolution, whose activation gets the block's ``inplace`` (mmcv); the norm has a name that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.inplace, self.norm_name = True, "bn"
        self.conv, self.activate = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.add_module(self.norm_name, nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Any:
        return self.activate(getattr(self, self.norm_name)(self.conv(x)))


class _Adapter(nn.Module):
    """A wrapper with its matrices in dictionaries (peft)."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.scaling = nn.Linear(4, 3), {"default": 2.0}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name, scale in self.scaling.items():
            result = result + self.lora_B[name](self.lora_A[name](self.lora_dropout[name](x))) * scale
        return result


def _wrapped_forward() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a module whose forward is another function, of the module alone (accelerate)."""
    module: Any = nn.Linear(4, 3)
    old = module.forward
    module.forward = lambda *args, **kwargs: old(*(a.clone() for a in args), **kwargs)
    return module, (_numbers(2, 4),)


class _Answers(nn.Module):
    """A dictionary that keeps its order, with what is no tensor in it (transformers)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return OrderedDict(logits=y, hidden_states=(x, y), attentions=None, name="answer")


class _Views(nn.Module):
    """The output is a view of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)[:, :1]


def _block(kind: type[nn.Module], *shape: int, args: tuple[Any, ...] = ()) -> Exhibit:
    return lambda: (kind(*args), (_numbers(*shape),))


BLOCKS: dict[str, Exhibit] = {
    "LayerNorm2d": _block(_LayerNorm2d, *_2D, args=(4,)),
    "BatchNormAct2d": _block(_BatchNormAct, *_2D, args=(4,)),
    "StdConv2d": _block(_StdConv, *_2D, args=(4, 2, 2)),
    "SqueezeExcite": _block(_Squeeze, *_2D),
    "Attention": _block(_Attention, 2, 3, 4),
    "ConvModule": _block(_ConvModule, *_2D),
    "LoRA": _block(_Adapter, 2, 4),
    "wrapped forward": _wrapped_forward,
    "ModelOutput": _block(_Answers, 2, 4),
    "view": _block(_Views, *_FLAT),
}


def built(build: Exhibit) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a module in eval mode that is the same whenever it is built, and its arguments."""
    torch.manual_seed(0)
    module, args = build()
    module.eval()
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        module(*args)
    return module, args


def _run(module: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(0)  # some draw random numbers in eval mode, too
    output = module(*(a.clone().requires_grad_(i == 0 and a.is_floating_point()) for i, a in enumerate(args)))
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


#: Each module sees Norm, a rule that changes parameters, and one that may do without the input.
_KINDS = (("Norm",), CHANGING, ("Epsilon", *GRADIENT))


_outputs: dict[Exhibit, list[Tensor]] = {}


def _alone(build: Exhibit, module: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """Return what a module gives without a rule; it is the same whenever it is built."""
    if build not in _outputs:
        _outputs[build] = [y.detach() for y in _run(module, args)]
    return _outputs[build]


def _part(exhibits: dict[str, Exhibit], rule: str) -> list[tuple[str, Exhibit]]:
    """Return what a rule is asked about: all takes long, so that rules of one kind share them among themselves."""
    kind = next(rules for rules in _KINDS if rule in rules)
    return list(exhibits.items())[kind.index(rule) :: len(kind)]


def _visited(exhibits: dict[str, Exhibit], rule: str, subject: Subject) -> Iterator[str]:
    """The output with a rule is bit for bit what it is without, or there is an error."""

    def ask(name: str, build: Exhibit) -> Iterator[str]:
        module, args = built(build)
        expected = _alone(build, module, args)
        with attached(subject.get(rule)(**arguments(rule, 2.0**-10)), module):
            found = _run(module, args)
        if len(found) != len(expected) or not all(map(same_bits, found, expected)):
            yield f"{name}: the output is another than without the rule"

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are new or old, and say so
        for name, build in _part(exhibits, rule):
            yield from unless_refused(ask(name, build))


TOPICS = (
    Topic("modules-of-torch", partial(_visited, MODULES)),
    Topic("blocks-of-others", partial(_visited, BLOCKS)),
)

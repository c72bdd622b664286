"""What is timed: layers and their sizes, the rules, and which of them make the cells of a run. Data, hardly any code.

A cell is plain data; :func:`pose` makes its module, input and relevance, the same in every process.
"""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bench.models import COMPOSITES, MODELS
from verify.model import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

OVERHEAD, COMPUTE, MEMORY = "overhead", "compute", "memory"
NONNEGATIVE, SIGNED = "x>=0", "signed"
#: The kind of cell that asks a model for the relevance of all of its classes, each in a batch of relevances.
CLASSIFIER = "classifier"
#: Bounds of every input that is drawn, and of ZBox.
LOW, HIGH = -3.0, 3.0


@dataclass(frozen=True)
class Workload:
    """A layer and the shape of one sample.

    ``batches`` says which batch sizes are timed, and what bounds each; ``scaled``, which ones are timed in a scaling.
    """

    name: str
    family: str
    code: str
    shape: tuple[int, ...]
    batches: Mapping[int, str]
    scaled: Mapping[int, str] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Make the layer: ``code`` is Python with torch's ``nn`` at hand."""
        module = eval(self.code, {"nn": nn})  # noqa: S307  our own text below, which a cell also prints
        assert isinstance(module, nn.Module)
        return module


LAYERS = {workload.name: workload for workload in (
    Workload("linear-16-16", "Linear", "nn.Linear(16, 16)", (16,), {4: OVERHEAD}, {64: OVERHEAD}),
    Workload("linear-512-512", "Linear", "nn.Linear(512, 512)", (512,), {1: OVERHEAD, 64: OVERHEAD, 1024: COMPUTE},
             {64: OVERHEAD}),
    Workload("linear-4096-4096", "Linear", "nn.Linear(4096, 4096)", (4096,), {1: MEMORY, 16: MEMORY, 64: COMPUTE},
             {64: COMPUTE}),
    *(Workload(f"linear-{n}-{n}", "Linear", f"nn.Linear({n}, {n})", (n,), {}, {64: regime})
      for n, regime in ((64, OVERHEAD), (256, OVERHEAD), (1024, COMPUTE), (2048, COMPUTE))),
    Workload("conv1d-64-64-9@1024", "Conv1d", "nn.Conv1d(64, 64, 9, padding=4)", (64, 1024), {4: COMPUTE}),
    Workload("conv2d-4-4-3x3@8", "Conv2d", "nn.Conv2d(4, 4, 3, padding=1)", (4, 8, 8), {1: OVERHEAD}),
    Workload("conv2d-64-64-3x3@56", "Conv2d", "nn.Conv2d(64, 64, 3, padding=1)", (64, 56, 56),
             {1: COMPUTE, 4: COMPUTE, 16: COMPUTE, 64: COMPUTE}, dict.fromkeys((1, 2, 4, 8, 16, 32, 64), COMPUTE)),
    Workload("conv2d-3-64-3x3@112", "Conv2d", "nn.Conv2d(3, 64, 3, padding=1)", (3, 112, 112), {4: COMPUTE}),
    Workload("conv2d-64-128-3x3-stride2@56", "Conv2d", "nn.Conv2d(64, 128, 3, stride=2, padding=1)", (64, 56, 56),
             {4: COMPUTE}),
    Workload("conv2d-32-32-3x3-dilation2@56", "Conv2d", "nn.Conv2d(32, 32, 3, padding=2, dilation=2)", (32, 56, 56),
             {4: COMPUTE}),
    Workload("conv2d-64-3x3-depthwise@56", "Conv2d", "nn.Conv2d(64, 64, 3, padding=1, groups=64)", (64, 56, 56),
             {4: MEMORY}),
    Workload("conv3d-16-16-3x3x3@16", "Conv3d", "nn.Conv3d(16, 16, 3, padding=1)", (16, 16, 16, 16), {4: COMPUTE}),
    Workload("convtranspose1d-64-64-4-stride2@512", "ConvTranspose1d",
             "nn.ConvTranspose1d(64, 64, 4, stride=2, padding=1)", (64, 512), {16: COMPUTE}),
    Workload("convtranspose2d-64-32-4x4-stride2@28", "ConvTranspose2d",
             "nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)", (64, 28, 28), {4: COMPUTE}),
    Workload("convtranspose3d-32-32-3x3x3-stride2@8", "ConvTranspose3d",
             "nn.ConvTranspose3d(32, 32, 3, stride=2, padding=1, output_padding=1)", (32, 8, 8, 8), {4: COMPUTE}),
    Workload("avgpool2d-2x2@56", "AvgPool2d", "nn.AvgPool2d(2)", (64, 56, 56), {16: MEMORY}),
    Workload("relu-16", "ReLU", "nn.ReLU()", (16,), {4: OVERHEAD}),
    Workload("relu-64@56", "ReLU", "nn.ReLU()", (64, 56, 56), {16: MEMORY}),
)}  # fmt: skip

#: The rules as they are written, with the name of the class and its arguments.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "Epsilon()": ("Epsilon", {}),
    "ZPlus()": ("ZPlus", {}),
    "AlphaBeta(2, 1)": ("AlphaBeta", {"alpha": 2.0, "beta": 1.0}),
    "Gamma(0.25)": ("Gamma", {"gamma": 0.25}),
    "ZBox(-3, 3)": ("ZBox", {"low": LOW, "high": HIGH}),
    "WSquare()": ("WSquare", {}),
    "Flat()": ("Flat", {}),
    "Norm()": ("Norm", {}),
    "Epsilon(zero_params='bias')": ("Epsilon", {"zero_params": "bias"}),
    # captum has AlphaBeta for these alone
    "AlphaBeta(1, 0)": ("AlphaBeta", {"alpha": 1.0, "beta": 0.0}),
    "Pass()": ("Pass", {}),
    "ReLUDeconvNet()": ("ReLUDeconvNet", {}),
    "ReLUGuidedBackprop()": ("ReLUGuidedBackprop", {}),
    "ReLUBetaSmooth()": ("ReLUBetaSmooth", {}),
}
LINEAR_RULES = tuple(rule for rule in RULES if not rule.startswith(("Pass", "ReLU", "AlphaBeta(1")))
ACTIVATION_RULES = ("Pass()", "ReLUDeconvNet()", "ReLUGuidedBackprop()", "ReLUBetaSmooth()")
#: Without parameters, what they do to weights and biases has nothing to do.
POOLING_RULES = ("Epsilon()", "Norm()", "ZPlus()", "AlphaBeta(2, 1)", "Gamma(0.25)", "WSquare()", "Flat()")


@dataclass(frozen=True)
class Cell:
    """One question to the clock, as plain data."""

    workload: str
    rule: str
    signs: str = NONNEGATIVE
    batch: int = 4
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    kind: str = "layer"
    axis: str = ""

    @property
    def id(self) -> str:
        """A readable name that no other cell has, fit for a file."""
        parts = (value for name, value in asdict(self).items() if not (name == "axis" and not value))
        return re.sub(r"[^\w@.=,-]+", "_", "--".join(str(part) for part in parts).replace(">=", "ge"))

    @property
    def family(self) -> str:
        """The type of the layer, or the model."""
        return (MODELS if self.is_model else LAYERS)[self.workload].family

    @property
    def is_model(self) -> bool:
        """Whether it is a whole model with a composite, and no layer with a rule."""
        return self.workload in MODELS

    @property
    def regime(self) -> str:
        """What bounds the gradient's time."""
        if self.is_model:
            return MODELS[self.workload].regime
        workload = LAYERS[self.workload]
        return {**workload.scaled, **workload.batches}.get(self.batch, COMPUTE)


# --- data -------------------------------------------------------------------------------------------------------------


def pose(cell: Cell, seed: int = 0) -> Problem:
    """Return module, input and relevance of a cell; random, but the same for the same cell and seed.

    Where rounding may decide the sign of an output, the relevance is zero: no reference could say what such an output
    should send back, and all inputs that it reaches would be left out of the comparison.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        to = {"dtype": getattr(torch, cell.dtype), "device": cell.device}
        if cell.is_model:
            model = MODELS[cell.workload].build().eval().to(**to)
            x = torch.randn(cell.batch, *MODELS[cell.workload].shape).clamp(LOW, HIGH).to(**to).requires_grad_()
            with torch.no_grad():
                logits = model(x)
            if cell.kind == CLASSIFIER:
                return Problem(model, x, torch.diag_embed(logits).transpose(0, 1).contiguous(), batched=True)
            top = logits.argmax(1, keepdim=True)
            return Problem(model, x, torch.zeros_like(logits).scatter(1, top, logits.gather(1, top)), batched=True)
        workload = LAYERS[cell.workload]
        module = workload.build().eval().to(**to)
        x = torch.randn(cell.batch, *workload.shape).clamp(LOW, HIGH)
        x = (x.relu() if cell.signs == NONNEGATIVE else x).to(**to)
        with torch.no_grad():
            _, arguments = RULES.get(cell.rule, ("", {}))  # the gradient beside itself has no rule
            relevance = torch.randn(module(x).shape).to(**to) * decided(
                module, x, without_bias="zero_params" in arguments
            )
        return Problem(module, x.requires_grad_(), relevance, batched=True)


def decided(module: nn.Module, x: Tensor, *, without_bias: bool = False) -> Tensor:
    """Where an output is larger than rounding: twice n u times the sum of the magnitudes behind it."""
    if isinstance(module, nn.ReLU):
        return torch.ones_like(x)
    plain, sizes = copy.deepcopy(module), copy.deepcopy(module)
    for parameter in sizes.parameters():
        parameter.abs_()
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if without_bias and bias is not None:
        getattr(plain, "bias").zero_()  # noqa: B009  a module's attributes are not known to the type checker
    output = plain(x)
    outputs = output[0].numel() if weight is None else output.shape[-1 if isinstance(module, nn.Linear) else 1]
    terms = (x[0].numel() if weight is None else weight.numel()) // outputs + 2
    # half precision stores finished sums, and adds in float32
    stored = torch.finfo(x.dtype).eps
    unit = terms * min(stored, torch.finfo(torch.float32).eps) + 2 * (stored if stored > 1e-5 else 0)
    clear: Tensor = output.abs() > 2 * unit * sizes(x.abs())
    return clear.to(x.dtype)


def multiply_adds(cell: Cell) -> float:
    """Return the multiply-adds of one sample's forward pass: the size of a layer."""
    workload = LAYERS[cell.workload]
    module = workload.build()
    weight = getattr(module, "weight", None)
    outputs = module(torch.zeros(1, *workload.shape)).numel()
    if weight is None:
        return float(prod(workload.shape))
    transposed = workload.family.startswith("ConvTranspose")
    positions = prod(workload.shape[1:]) if transposed else outputs // weight.shape[0]
    return float(weight.numel() * positions)


# --- cells ------------------------------------------------------------------------------------------------------------


def rules_of(workload: Workload) -> tuple[str, ...]:
    """Return the rules that make sense on a layer."""
    if workload.family == "ReLU":
        return ACTIVATION_RULES
    return POOLING_RULES if workload.family.startswith("AvgPool") else LINEAR_RULES


def _layers(
    chosen: Callable[[Workload, int, str], bool], signs: tuple[str, ...] = (NONNEGATIVE,), **more: Any
) -> Iterator[Cell]:
    for workload in LAYERS.values():
        for batch, regime in workload.batches.items():
            if chosen(workload, batch, regime):
                for rule, sign in itertools.product(rules_of(workload), signs):
                    yield Cell(workload.name, rule, sign, batch, **more)


GOALS = {("linear-512-512", 1024), ("linear-4096-4096", 64), ("conv2d-64-64-3x3@56", 4), ("conv2d-3-64-3x3@112", 4)}
QUICK = {("linear-16-16", 4), ("linear-512-512", 64), ("conv2d-64-64-3x3@56", 1), ("relu-16", 4), ("relu-64@56", 16)}
#: The models with few enough classes to ask for all of them.
CLASSIFIERS = ("mlp", "audio-cnn")
#: Rules whose growth with batch and size is followed.
SCALED = ("Epsilon()", "ZPlus()", "AlphaBeta(2, 1)", "Gamma(0.25)")


def quick_cells() -> list[Cell]:
    """Return the cells of a few minutes: each rule, small to middling, and the small models."""
    cells = [*_layers(lambda workload, batch, _: (workload.name, batch) in QUICK)]
    kinds = itertools.product(((4, "model"), (1, CLASSIFIER)), CLASSIFIERS)
    return [*cells, *(Cell(name, "EpsilonPlus", SIGNED, batch, kind=kind) for (batch, kind), name in kinds)]


def all_cells(device: str = "cpu") -> list[Cell]:
    """Return every cell, the most important ones first: what has a goal, each layer, dtypes, scaling, long ones."""
    both = (NONNEGATIVE, SIGNED)
    cells = [
        *_layers(lambda workload, batch, _: (workload.name, batch) in GOALS, both),
        *_layers(lambda _w, _b, regime: regime == OVERHEAD, both),
        *(
            Cell(name, composite, SIGNED, model.batch, kind="model")
            for name, model in MODELS.items()
            for composite in COMPOSITES
        ),
        *(
            Cell(name, composite, SIGNED, batch, kind=CLASSIFIER)
            for name in CLASSIFIERS
            for batch in (1, MODELS[name].batch)
            for composite in COMPOSITES
        ),
        *_layers(lambda _w, batch, regime: regime != OVERHEAD and batch != 64, both),
        *(Cell("conv2d-64-64-3x3@56", "AlphaBeta(1, 0)", sign, 4) for sign in both),
    ]
    for dtype in ("bfloat16", "float64"):
        cells += [replace(cell, dtype=dtype) for cell in _layers(lambda w, b, _: (w.name, b) in GOALS)]
    # a cell of a convolution with a large batch takes as long as ten others
    cells += [*_scaling(), *_layers(lambda *_: True, both)]
    return [replace(cell, device=device) for cell in dict.fromkeys(cells)]


def _scaling() -> Iterator[Cell]:
    """Yield the scalings: a layer with several batches over the batch, those with one over the size of the layer."""
    for rule, workload in itertools.product(SCALED, LAYERS.values()):
        for batch in workload.scaled:
            axis = "batch" if len(workload.scaled) > 1 else "size"
            yield Cell(workload.name, rule, NONNEGATIVE, batch, kind="scaling", axis=axis)

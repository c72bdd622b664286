"""The gate: no time is published of a relevance that disagrees with the reference. It asks :mod:`verify`.

What it proves. For one layer, the relevance that the timed call returned is compared with the reference, within what
rounding explains. An explicit matrix of a large layer would not fit, so the comparison is exact on parts: whole samples
of a ``Linear``; of a convolution or pooling, all channels of small windows, at both corners and at a random place of
different samples. An entry of the relevance depends on the outputs that read it, and those on the inputs that they
read: a window holds all of these, its outer entries are only there for the inner ones, which are compared. That the
entries outside of the windows are right too is inferred: they come from the same call.

For a model, each module with a rule is asked by itself, as it stands in the model with its composite on it, with its
own input from the timed forward pass: relevance is drawn for some of its outputs (of a convolution, all channels at one
place), and every entry that they reach is compared. That relevance is handed from one module to the next is autograd's
part and not looked at.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bench.models import Residual
from bench.workloads import decided
from verify.checks.agreement import Expected, gradient_agrees, judge, rows
from verify.model import Finding, Problem, Subject, Verdict
from verify.questions.layers import LayerCase
from verify.questions.variants import drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

#: Entries of a layer's explicit matrix that are affordable.
LARGEST_MATRIX = 2**24
#: Of a layer that works entry by entry, this many are compared.
ELEMENTS = 512
GRADIENT_RULES = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")


@dataclass(frozen=True)
class Agreement:
    """Whether a subject is right: the largest |got - expected| / bound, and how many entries say so.

    Those are the decided ones that are not zero.
    """

    ratio: float
    entries: int
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether every decided entry is within its bound, and there was one."""
        return self.entries > 0 and self.ratio <= 1


@dataclass(frozen=True)
class Part:
    """A part of a layer that the reference can take whole.

    ``where`` picks the part's inputs from the relevance that a subject returned, and ``keep`` those of them whose
    relevance depends on this part alone.
    """

    name: str
    problem: Problem
    where: Callable[[Tensor], Tensor]
    keep: Tensor


class Reference:
    """The reference on the parts of one problem, evaluated once for all subjects."""

    def __init__(self, parts: list[Part], rule: str, arguments: Mapping[str, Any], device: str = "cpu") -> None:
        self._parts, self._rule, self._arguments, self._device = parts, rule, dict(arguments), device
        self._known: dict[int, Expected] = {}

    def judge(self, relevance: Tensor) -> Agreement:
        """Compare what a subject returned for the whole problem."""
        found = [self._judge(index, part, relevance) for index, part in enumerate(self._parts)]
        return joined(found)

    def _judge(self, index: int, part: Part, relevance: Tensor) -> Agreement:
        got = part.where(relevance)
        case = LayerCase(part.name, "-", lambda: part.problem.module, tuple(part.problem.x.shape))
        if self._rule in GRADIENT_RULES:
            finding = gradient_agrees(
                lambda: part.problem, case, self._rule, self._arguments, self._device, _answered(self._rule, got)
            )
            return _agreement(finding, part, int(torch.count_nonzero(got)))
        if index not in self._known:
            variant = drawn(self._rule, self._arguments)
            self._known[index] = Expected(part.problem, case, variant, self._device)
        expected = self._known[index]
        keep = part.keep.flatten().cpu().numpy()
        r, wanted, worst, probable = (
            np.asarray(value).reshape(1, -1)[:, keep]
            for value in (rows(got, batched=True), expected.relevance, expected.worst, expected.probable)
        )
        finding = judge(r, wanted, worst, probable, expected.model.name)
        # a zero that follows from a zero of the input says nothing of a rule
        return _agreement(finding, part, int((np.isfinite(worst) & (wanted != 0)).sum()))


def joined(found: list[Agreement]) -> Agreement:
    """Return the worst of several, with all their entries."""
    if not found:
        return Agreement(float("nan"), 0, "there was nothing to compare")
    # NaN is the worst of all
    worst = max(found, key=lambda one: float("inf") if np.isnan(one.ratio) else one.ratio)
    entries = sum(one.entries for one in found)
    reason = worst.reason if not worst.ratio <= 1 or entries else "rounding leaves every value inconclusive"
    return Agreement(worst.ratio, entries, reason)


def _agreement(finding: Finding, part: Part, entries: int) -> Agreement:
    if finding.verdict in {Verdict.PASS, Verdict.INCONCLUSIVE}:
        return Agreement(finding.ratio or 0.0, entries)
    ratio = float("nan") if finding.ratio is None else finding.ratio
    return Agreement(ratio, entries, f"{part.name}: {finding.reason}".removeprefix(": "))


class _Answer:
    """A rule that gives the answer that was given before."""

    def __init__(self, relevance: Tensor) -> None:
        self._relevance = relevance

    def register(self, module: nn.Module) -> Any:
        """Put it on a module."""
        return module.register_full_backward_hook(lambda *_: (self._relevance,))


def _answered(rule: str, relevance: Tensor) -> Subject:
    return Subject("timed", SimpleNamespace(**{rule: lambda **_: _Answer(relevance)}), "")


# --- parts of a layer, relevance everywhere ---------------------------------------------------------------------------


def layer_parts(problem: Problem, seed: int = 0) -> list[Part]:
    """Return the parts of a problem's layer on which the relevance that was timed is compared."""
    draw = np.random.default_rng(seed)
    samples = dict.fromkeys([0, len(problem.x) - 1, int(draw.integers(len(problem.x)))])
    module = problem.module
    if isinstance(module, nn.ReLU):
        return [_elements(problem, sample) for sample in samples]
    if isinstance(module, nn.Linear):
        affordable = max(1, LARGEST_MATRIX // module.weight.numel())
        return [_window(problem, sample, [], f"sample {sample}") for sample in list(samples)[:affordable]]
    starts = _places(module, problem.x.shape, draw)
    places = zip((0, len(problem.x) - 1, int(draw.integers(len(problem.x)))), starts.items(), strict=True)
    return [_window(problem, sample, places_of, f"{name} of sample {sample}") for sample, (name, places_of) in places]


def _elements(problem: Problem, sample: int) -> Part:
    def where(t: Tensor) -> Tensor:
        return t[sample].flatten()[:ELEMENTS].unsqueeze(0)

    x, relevance = where(problem.x.detach()), where(problem.relevance)
    part = Problem(problem.module, x, relevance, batched=True)
    return Part(f"entries of sample {sample}", part, where, torch.ones_like(x, dtype=torch.bool))


@dataclass(frozen=True)
class _Place:
    """A window along one axis: its inputs, its first output, and which inputs depend on nothing outside of it."""

    inputs: slice
    output: int
    keep: slice


def _places(module: Any, shape: tuple[int, ...], draw: np.random.Generator) -> dict[str, list[_Place]]:
    """Return windows at both corners and inside, three inputs wide where that is affordable, else one."""
    found: dict[str, list[_Place]] = {}
    for kept in (3, 1):
        axes = [_Axis.of(module, axis, length, kept) for axis, length in enumerate(shape[2:])]
        found = {
            "first corner": [axis.at(0, axis.margin + kept) for axis in axes],
            "last corner": [axis.at(axis.length - axis.margin - kept, axis.length) for axis in axes],
            "inside": [axis.inside(draw) for axis in axes],
        }
        inputs = max(prod(place.inputs.stop - place.inputs.start for place in places) for places in found.values())
        if (inputs * shape[1]) ** 2 <= LARGEST_MATRIX // 2:
            break
    return found


@dataclass(frozen=True)
class _Axis:
    """One axis of ``length`` inputs. Inputs that share an output are at most ``margin`` apart.

    A window starts at a multiple of ``step``, and its outputs at ``numerator / step`` times its start.
    """

    length: int
    margin: int
    step: int
    numerator: int
    kept: int

    @classmethod
    def of(cls, module: Any, axis: int, length: int, kept: int) -> _Axis:
        """Read kernel, stride and dilation of a layer."""

        def along(value: Any) -> int:
            return int(value[axis] if isinstance(value, tuple) else value)

        stride = along(module.stride)
        reach = along(getattr(module, "dilation", 1)) * (along(module.kernel_size) - 1)
        if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            return cls(length, reach // stride, 1, stride, kept)
        return cls(length, reach, stride, 1, kept)

    def inside(self, draw: np.random.Generator) -> _Place:
        """Return a window at a random place."""
        width = 2 * self.margin + self.kept
        start = int(draw.integers(max(1, self.length - width + 1)))
        return self.at(start, start + width)

    def at(self, start: int, end: int) -> _Place:
        """Return the window of these inputs, or one that starts a little before."""
        start = max(0, start) // self.step * self.step
        end = min(self.length, end)
        first = 0 if start == 0 else self.margin
        last = end - start - (0 if end == self.length else self.margin)
        return _Place(slice(start, end), start // self.step * self.numerator, slice(first, last))


def _window(problem: Problem, sample: int, places: list[_Place], name: str) -> Part:
    inputs = (slice(sample, sample + 1), slice(None), *(place.inputs for place in places))

    def where(t: Tensor) -> Tensor:
        return t[inputs]

    x = where(problem.x.detach())
    with torch.no_grad():
        shape = problem.module(x).shape[2:]
    outputs = (slice(place.output, place.output + n) for place, n in zip(places, shape, strict=True))
    relevance = problem.relevance[(inputs[0], slice(None), *outputs)]
    keep = torch.zeros_like(x, dtype=torch.bool)
    keep[(slice(None), slice(None), *(place.keep for place in places))] = True
    return Part(name, Problem(problem.module, x, relevance, batched=True), where, keep)


# --- a module within a model, relevance at some of its outputs --------------------------------------------------------


def module_part(module: Any, x: Tensor, draw: torch.Generator) -> tuple[Tensor, Part]:
    """Return a relevance of the module's output for its input ``x``, zero but for a part, and that part.

    Raises
    ------
    TypeError
        If it is not known how to take a part of such a module.

    """
    x = x.detach()[:1]
    with torch.no_grad():
        output = module(x)
    relevance = torch.zeros_like(output)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=draw).to(output)

    narrowed, taken = module, (slice(None),) * x.ndim
    if isinstance(module, nn.ReLU):
        relevance = random(tuple(output.shape))
        return relevance, _elements(Problem(module, x, relevance, batched=True), 0)
    if isinstance(module, Residual):
        taken = (slice(None), *(slice(0, 1),) * (x.ndim - 3), slice(None), slice(None))
        narrowed = nn.Linear(2, 1, bias=False).to(x)
        nn.init.ones_(narrowed.weight)
        chosen: Any = taken[:-1]
    elif isinstance(module, nn.Linear):
        count = max(1, min(module.out_features, LARGEST_MATRIX // module.in_features // 4))
        chosen = (slice(None), torch.randperm(module.out_features, generator=draw)[:count])
        narrowed = _with_parameters(module, chosen[1])
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        chosen, taken, narrowed = _one_place(module, tuple(output.shape[2:]), draw)
    elif isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
        chosen = taken = (slice(None), slice(0, 8))
    else:
        msg = f"given {type(module).__name__}, of which no part can be taken; add it to bench.agreement.module_part"
        raise TypeError(msg)
    shape = tuple(relevance[chosen].shape)
    inputs = x[taken].reshape(1, -1, 2) if isinstance(module, Residual) else x[taken]
    with torch.no_grad():
        clear = decided(narrowed, inputs)
    wanted = random(tuple(clear.shape)) * clear
    relevance[chosen] = wanted.reshape(shape)
    part = Problem(narrowed, inputs, wanted, batched=True)
    keep = torch.ones_like(part.x, dtype=torch.bool)
    return relevance, Part("", part, lambda r: r[taken].reshape(part.x.shape), keep)


def _with_parameters(module: nn.Linear, outputs: Tensor) -> nn.Linear:
    """Return the layer with some of its outputs."""
    narrowed = nn.Linear(module.in_features, len(outputs), bias=module.bias is not None).to(module.weight)
    with torch.no_grad():
        narrowed.weight.copy_(module.weight[outputs])
        if module.bias is not None:
            narrowed.bias.copy_(module.bias[outputs])
    return narrowed


def _one_place(module: Any, lengths: tuple[int, ...], draw: torch.Generator) -> tuple[Any, Any, nn.Module]:
    """Return a place of a convolution's output that padding does not reach, its inputs, the layer for these."""
    chosen, taken = [slice(None), slice(None)], [slice(None), slice(None)]
    axes = zip(lengths, module.kernel_size, module.stride, module.padding, module.dilation, strict=True)
    for length, kernel, stride, padding, dilation in axes:
        first = -(-padding // stride)
        place = first + int(torch.randint(max(1, length - 2 * first), (), generator=draw))
        start = place * stride - padding
        chosen.append(slice(place, place + 1))
        taken.append(slice(start, start + dilation * (kernel - 1) + 1))
    narrowed = copy.copy(module)
    narrowed.padding = (0,) * len(lengths)
    return tuple(chosen), tuple(taken), narrowed

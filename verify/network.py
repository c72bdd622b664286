"""Check ``network``: real images through the trained network, every layer with the rule that is usual there.

Layer by layer: the reference says what each layer should make of the relevance that reached it from the subject itself,
so that a wrong rule fails where it is and nowhere else. Chain: the references of all layers, one after another in
float64, from the logit of the predicted class down to the pixels. Both take the subject's own boundaries h_k (h_0 the
image, h_12 the logits) as the exact inputs of the layers. How far rounding can take the chain: `verify.carrying`.

The file is long for what it draws: the table and the figure make up its last third.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table

from reference import rules as ref
from reference.layers import affine
from reference.ledger import ledger
from reference.precision import FLOAT64, model_for
from reference.rounding import bound
from verify.carrying import carried
from verify.comparator import Comparison, compare
from verify.digits import Images, load_images, load_model
from verify.model import Case, Finding, Level, Verdict
from verify.torch_layers import array, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from reference.affine import Affine
    from reference.precision import Model
    from reference.rules import Parts
    from verify.subjects import Subject

    Array = NDArray[np.float64]

#: The stabilizer of every rule here: its default.
STABILIZER = ref.Stabilizer(1e-6)
SINKS = ("inputs", "bias", "stabilizer", "zero branch")
DIGITS = (0, 3, 4, 7)


@dataclass(frozen=True)
class Step:
    """What is on one layer of the network. Without ``parts`` the layer hands its relevance on as it is."""

    layer: str
    family: str
    rule: str | None
    parts: Callable[[Affine], Parts] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


_RELU = Step("relu", "Activation", "Pass")
COMPOSITION = (
    Step("conv2d", "Conv2d", "ZBox", partial(ref.zbox, low=-1.0, high=1.0), {"low": -1.0, "high": 1.0}),
    _RELU,
    Step("conv2d", "Conv2d", "Gamma", partial(ref.gamma, gamma=0.25), {"gamma": 0.25}),
    _RELU,
    Step("maxpool2d", "MaxPool", "Norm", ref.norm),
    Step("conv2d", "Conv2d", "ZPlus", ref.zplus),
    _RELU,
    Step("avgpool2d", "AvgPool", "Norm", ref.norm),
    Step("flatten", "Activation", None),  # no rule: its plain gradient, which is the relevance in another shape
    Step("linear", "Linear", "Epsilon", ref.epsilon),
    _RELU,
    Step("linear", "Linear", "Epsilon", ref.epsilon),
)


@dataclass(frozen=True, eq=False)
class Judged:
    """Relevance of the subject against that of the reference, one row an image; bounds as in `reference.rounding`."""

    got: Array
    expected: Array
    worst: Array
    probable: Array
    comparison: Comparison


@dataclass(frozen=True, eq=False)
class LayerResult:
    """One layer: relevance at its input, and where what came in at its output went; sums are one number an image.

    ``balance`` is how far rounding can keep the sinks from adding up to ``incoming``, ``room`` how far it can keep the
    inputs' share from what comes in at the layer below. ``reached`` tells whether what came in is finite: if not, a
    layer above is wrong, and nothing can be said of this one. ``undecidable`` is the share of entries that the
    reference leaves undecided where it is what came in.
    """

    index: int
    step: Step
    incoming: Array
    sinks: Mapping[str, Array]
    balance: Array
    room: Array
    judged: Judged
    reached: bool
    undecidable: float

    @property
    def wrong(self) -> bool:
        """Whether the subject's rule on this layer is refuted."""
        return self.reached and self.judged.comparison.refuted


@dataclass(frozen=True, eq=False)
class NetworkResult:
    """All layers in the order of the network, and the chain: relevance of the pixels."""

    subject: str
    dtype: str
    model: str
    images: Images
    logits: Array
    layers: tuple[LayerResult, ...]
    chain: Judged


def pick(occurrence: int = 0, digits: Sequence[int] = DIGITS) -> Images:
    """Return one test image of each digit: its first, or a later ``occurrence`` (counted round and round)."""
    images = load_images()
    each = [torch.nonzero(images.labels == digit).ravel() for digit in digits]
    chosen = torch.stack([found[occurrence % len(found)] for found in each])
    return Images(images.pixels[chosen], images.labels[chosen])


def run(subject: Subject, images: Images, dtype: str, device: str = "cpu") -> NetworkResult:
    """Send images through the network under the rules of a subject, and judge every layer and the chain.

    Raises
    ------
    NotOfferedError
        If the subject lacks a rule of the composition.

    """
    model = load_model().to(device, getattr(torch, dtype))
    boundaries, relevances = _propagated(subject, model, images.pixels.to(device, getattr(torch, dtype)))
    described = [describe(module, tuple(h.shape[1:])) for module, h in zip(model, boundaries, strict=False)]
    h, R = ([array(t).reshape(len(t), -1) for t in tensors] for tensors in (boundaries, relevances))
    rounding = model_for(dtype, device)
    chain = R[-1]
    error = np.zeros((len(chain), 2, chain.shape[1]))  # worst case and probable case of each image
    layers: list[LayerResult] = []
    for index in reversed(range(len(COMPOSITION))):
        step, got, incoming = COMPOSITION[index], R[index], R[index + 1]
        reached = np.isfinite(incoming)
        expected, limits = incoming, np.zeros((len(got), 2, got.shape[1]))
        sinks = np.stack([incoming.sum(1), *np.zeros((3, len(got)))], 1)
        balance = room = 2 * FLOAT64.gamma(got.shape[1]) * np.abs(incoming).sum(1)
        open_ = np.zeros(len(got))
        if step.parts is not None:
            finite = np.where(reached, incoming, 0.0)
            rows = [
                _one(step.parts(affine(described[index], x)), *row, rounding=rounding)
                for x, *row in zip(h[index], got, finite, chain, error, strict=True)
            ]
            expected, limits, sinks, balance, room, chain, error, open_ = (
                np.stack(values) for values in zip(*rows, strict=True)
            )
        taken = dict(zip(SINKS, sinks.T, strict=True))
        judged = _judged(got, expected, limits)
        layers.append(
            LayerResult(
                index, step, incoming.sum(1), taken, balance, room, judged, bool(reached.all()), float(open_.mean())
            )
        )  # fmt: skip
    final = _judged(R[0], chain, error)
    return NetworkResult(subject.spec, dtype, rounding.name, images, h[-1], tuple(reversed(layers)), final)


def _one(parts: Parts, got: Array, R: Array, chain: Array, error: Array, *, rounding: Model) -> tuple[Array, ...]:
    """Take one image through one layer: relevance, limits and ledger from R; relevance and error of the chain."""
    limits, account = bound(parts, R, STABILIZER, rounding), ledger(parts, R, STABILIZER)
    # rounding takes a right relevance off zero, and over the edge of the range: neither may count against a subject
    least = bound(parts, 2 * np.where(chain == 0, 1.0, chain), STABILIZER, rounding)
    sinks = np.stack([account.inputs, account.bias, account.stabilizer, account.zero_branch])
    adding = FLOAT64.gamma(R.size + 4) * (np.abs(sinks).sum() + np.abs(R).sum())
    return (
        ref.relevance(parts, R, STABILIZER),
        np.stack([limits.worst, limits.probable]),
        np.array(account.total()),
        np.array(account.balance.sum() + adding),
        np.array(account.inputs_bound(limits, got) + adding),
        ref.relevance(parts, chain, STABILIZER),
        carried(parts, chain, error, STABILIZER, rounding),
        np.isposinf(least.worst).mean(),
    )


def _propagated(subject: Subject, model: nn.Sequential, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return every boundary, from the image to the logits, and the subject's relevance there."""
    handles: list[Any] = []
    try:
        for step, module in zip(COMPOSITION, model, strict=True):
            if step.rule is not None:
                handles.append(subject.get(step.rule)(**step.arguments).register(module))
        boundaries = [x.detach().requires_grad_()]
        for module in model:
            boundaries.append(module(boundaries[-1]))
        logits = boundaries[-1].detach()
        predicted = logits.argmax(1, keepdim=True)
        top = torch.zeros_like(logits).scatter(1, predicted, logits.gather(1, predicted))
        return boundaries, list(torch.autograd.grad(boundaries[-1], boundaries, top))
    finally:
        for handle in reversed(handles):
            handle.remove()


def _judged(got: Array, expected: Array, limits: Array) -> Judged:
    worst, probable = limits[:, 0], limits[:, 1]
    return Judged(got, expected, worst, probable, compare(got, expected, worst, probable))


# --- cases ------------------------------------------------------------------------------------------------------------

#: Results of the last runs with the subject each belongs to, so that the cases of one run share its work.
_recent: deque[tuple[Subject, tuple[int, str, str], NetworkResult]] = deque(maxlen=4)


def _result(subject: Subject, seed: int, dtype: str, device: str) -> NetworkResult:
    for known, key, result in _recent:
        if known is subject and key == (seed, dtype, device):
            return result
    result = run(subject, pick(seed), dtype, device)
    _recent.append((subject, (seed, dtype, device), result))
    return result


def cases(*, seed: int = 0, dtypes: Sequence[str] = ("float64", "float32"), device: str = "cpu") -> Iterator[Case]:
    """Yield a case for each layer that has a rule, and one for the chain. The seed picks the images."""
    for dtype in dtypes:
        for index, step in enumerate(COMPOSITION):
            if step.rule is not None:
                name = f"network/{index}-{step.layer}/{step.rule}/{dtype}"
                yield _case(name, step.rule, step.family, dtype, device, partial(_layer, index, seed, dtype, device))
        yield _case(f"network/chain/{dtype}", "all", "-", dtype, device, partial(_chain, seed, dtype, device))


def _case(id_: str, rule: str, layer: str, dtype: str, device: str, ask: Callable[[Subject], Finding]) -> Case:
    return Case(id_, rule, layer, "network", dtype, Level.MUST, ask, device)


def _layer(index: int, seed: int, dtype: str, device: str, subject: Subject) -> Finding:
    result = _result(subject, seed, dtype, device)
    layer = result.layers[index]
    if not layer.reached:
        return Finding(
            Verdict.INCONCLUSIVE, reason="NaN or infinity reaches this layer from above: a layer there is wrong",
            undecidable=layer.undecidable,
        )  # fmt: skip
    sums = {name: values.tolist() for name, values in layer.sinks.items()}
    return _finding(layer.judged, layer.undecidable, result, {"incoming": layer.incoming.tolist(), "ledger": sums})


def _chain(seed: int, dtype: str, device: str, subject: Subject) -> Finding:
    result = _result(subject, seed, dtype, device)
    wrong = [f"{layer.index} ({layer.step.rule})" for layer in result.layers if layer.wrong]
    open_ = float(np.isposinf(result.chain.worst).mean())  # the chain and its bounds are the reference's alone
    return _finding(result.chain, open_, result, {"layers that disagree": wrong})


def _finding(judged: Judged, undecidable: float, result: NetworkResult, details: dict[str, Any]) -> Finding:
    found = judged.comparison
    details = {"model": result.model, "images": result.images.labels.tolist(), **details}
    if found.undecided == 1:
        reason = "behind every entry, rounding decides the sign of a denominator, or numbers leave the dtype's range"
        return Finding(Verdict.INCONCLUSIVE, None, None, 1.0, reason, details, undecidable)
    reason = ""
    if found.refuted:
        assert found.index is not None
        image, entry = (int(i) for i in np.unravel_index(found.index, judged.got.shape))
        got, expected, worst = (values[image, entry] for values in (judged.got, judged.expected, judged.worst))
        reason = (
            f"image of {result.images.labels[image]}, entry {entry}: got {got:.9g}, expected {expected:.9g}, "
            f"ratio {found.ratio:.3g} to the bound {worst:.3g}"
        )
    verdict = Verdict.FAIL if found.refuted else Verdict.PASS
    return Finding(verdict, found.ratio, found.probable, found.undecided, reason, details, undecidable)


# --- table and figure -------------------------------------------------------------------------------------------------


def shares(layer: LayerResult) -> dict[str, tuple[float, float]]:
    """Return for each sink what it took over all images, and the same in per cent of what came in."""
    incoming = float(layer.incoming.sum())
    totals = {name: float(values.sum()) for name, values in layer.sinks.items()}
    return {name: (total, 100 * total / incoming if incoming else np.nan) for name, total in totals.items()}


def table(result: NetworkResult) -> Table:
    """Return where the relevance went, from the logits down, and the largest test ratio of each layer and the chain."""
    title = f"{result.subject}, {result.model}: {len(result.images.labels)} images through the digits network"
    printed = Table(title=title, caption="relevance summed over the images, and per cent of what came in")
    printed.add_column("layer")
    printed.add_column("rule")
    for name in ("ratio", "came in", *SINKS):
        printed.add_column(name, justify="right")
    for layer in reversed(result.layers):
        sinks = [f"{_short(total)} {_short(percent):>8} %" for total, percent in shares(layer).values()]
        ratio = f"{layer.judged.comparison.ratio:.2g}" if layer.reached else "?"
        name = f"{layer.index} {layer.step.layer}"
        printed.add_row(name, layer.step.rule or "(none)", ratio, f"{layer.incoming.sum():.4f}", *sinks)
    printed.add_section()
    top, pixels = float(result.layers[-1].incoming.sum()), float(result.chain.got.sum())
    reached = f"{_short(pixels)} {_short(100 * pixels / top if top else np.nan):>8} %"
    printed.add_row("chain", "all", f"{result.chain.comparison.ratio:.2g}", f"{top:.4f}", reached, "", "", "")
    return printed


def _short(value: float) -> str:
    """Four decimals, or the order of magnitude of what would vanish in them."""
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.4f}" if value else "0"


def draw(
    subject: Subject, path: Path | str, *, images: Images | None = None, dtype: str = "float64", device: str = "cpu"
) -> NetworkResult:
    """Draw images, both relevances of their pixels, the difference, and the ledger of each layer, as a PNG.

    Raises
    ------
    ValueError
        If the name does not end in ``.png``.
    OSError
        If the folder cannot be written to.

    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        msg = f"{path} ends in {path.suffix!r}; expected a name that ends in '.png'"
        raise ValueError(msg)
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}.png")
    try:
        unfinished.touch()
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}. Name a file in a folder that exists and may be written to"
        raise type(error)(error.errno, msg) from error
    try:
        result = run(subject, pick() if images is None else images, dtype, device)
        figure(result, f"{subject.spec} {subject.version}").savefig(unfinished, dpi=150)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return result


def figure(result: NetworkResult, title: str) -> Figure:
    """Return the figure that `draw` writes."""
    # only drawing needs matplotlib, and it takes longer to load than all checks take to run
    from matplotlib.figure import Figure  # noqa: PLC0415

    count = len(result.images.labels)
    whole = Figure(figsize=(11, 2.1 * count + 4.8), layout="constrained")
    largest = np.max([layer.judged.comparison.ratio for layer in result.layers])  # NaN, if there is any
    whole.suptitle(
        f"{title}, {result.dtype}: relevance of the predicted digit\n"
        f"largest ratio to the bound of rounding: {largest:.2g} in a layer, {result.chain.comparison.ratio:.2g} in all"
    )
    parts: Any = whole.subfigures(2, 1, height_ratios=(2.1 * count, 4.2))
    maps, bars = parts
    grid: Any = maps.subplots(count, 4, squeeze=False)
    for row in range(count):
        _draw_image(maps, list(grid[row]), result, row)
    headings = ("image", "relevance by hooks", "relevance by matrices", "difference")
    for ax, heading in zip(grid[0], headings, strict=True):
        ax.set_title(heading, fontsize=12)
    _draw_ledger(bars.subplots(1, 2, width_ratios=(5, 4)), result)
    return whole


def _draw_image(maps: SubFigure, axes: list[Axes], result: NetworkResult, row: int) -> None:
    side = result.images.pixels.shape[-1]
    got, expected = (v[row].reshape(side, side) for v in (result.chain.got, result.chain.expected))
    predicted = int(result.logits[row].argmax())
    axes[0].imshow(result.images.pixels[row, 0].numpy(), cmap="gray_r", vmin=-1, vmax=1)
    axes[0].set_ylabel(
        f"shows {result.images.labels[row]}, predicted {predicted}\nlogit {result.logits[row, predicted]:.4g}"
    )
    _draw_map(maps, axes[1:3], (got, expected), "RdBu_r")
    axes[3].set_xlabel(f"at most {_draw_map(maps, axes[3:], (got - expected,), 'PuOr_r'):.1e}")
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])


def _draw_map(maps: SubFigure, axes: list[Axes], values: tuple[Array, ...], colours: str) -> float:
    """Draw values on one symmetric scale, and return the largest magnitude."""
    sizes = np.abs(np.stack(values))
    largest = float(sizes.max(initial=0.0, where=np.isfinite(sizes)))
    limit = largest or 1.0
    shown = [ax.imshow(v, cmap=colours, vmin=-limit, vmax=limit) for ax, v in zip(axes, values, strict=True)]
    bar = maps.colorbar(shown[-1], ax=axes, ticks=[-limit, 0, limit], aspect=12, fraction=0.1, pad=0.02)
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in (-limit, 0, limit)])
    return largest


#: Okabe and Ito's colours, which colour-blind people tell apart.
_COLOURS = dict(zip(SINKS, ("#56B4E9", "#D55E00", "#F0E442", "#000000"), strict=True))


def _draw_ledger(axes: Sequence[Axes], result: NetworkResult) -> None:
    layers = list(reversed(result.layers))
    taken = [shares(layer) for layer in layers]
    for ax, names in zip(axes, (SINKS, SINKS[1:]), strict=True):
        ends = np.zeros((2, len(layers)))  # of what is stacked to the left and to the right of zero
        for name in names:
            width = np.nan_to_num([row[name][1] for row in taken], posinf=0.0, neginf=0.0)
            ax.barh(range(len(layers)), width, left=ends[(width > 0).astype(int), range(len(layers))],
                    color=_COLOURS[name], label=name, height=0.75)  # fmt: skip
            ends += np.minimum(width, 0), np.maximum(width, 0)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.use_sticky_edges = False
        ax.margins(x=0.06)
        ax.set_ylim(len(layers) - 0.4, -0.6)  # from the logits down
    rules = [f"{k.index} {k.step.layer}: {k.step.rule or 'no rule'}{' (WRONG)' * k.wrong}" for k in layers]
    axes[0].set_yticks(range(len(layers)), rules)
    axes[0].set_title("Where the relevance of each layer went", fontsize=12)
    axes[0].set_xlabel("per cent of what came in, all images")
    axes[1].set_title("What its inputs did not get", fontsize=12)
    axes[1].set_xlabel("per cent, enlarged")
    written = [", ".join(f"{n} {v:.2g} %" for n, (_, v) in row.items() if n != "inputs" and v) for row in taken]
    axes[1].tick_params(labelleft=False, labelright=True, left=False)
    axes[1].set_yticks(range(len(layers)), written, fontsize=9)
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)

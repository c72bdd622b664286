"""The digits network in full: a table and a figure of where the relevance of real images went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from verify.checks.network import SINKS, LayerResult, NetworkResult, pick, run
from verify.formats.files import atomically, check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from verify.model import Subject
    from verify.questions.digits import Images

    Array = NDArray[np.float64]


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
    try:
        check_writable(path)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}. Name a file in a folder that exists and may be written to"
        raise type(error)(error.errno, msg) from error
    result = run(subject, pick() if images is None else images, dtype, device)
    with atomically(path) as unfinished:
        figure(result, f"{subject.spec} {subject.version}").savefig(unfinished, dpi=150)
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

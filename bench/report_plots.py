"""The pictures of a report, as SVG and PNG: the same runs give the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from bench.report_charts import LIMIT
from bench.report_data import GRADIENT
from bench.report_text import MARKS, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.report_charts import Chart, Panel
    from bench.report_page import View
    from bench.report_views import Heat

#: Colours that the colour-blind can tell apart (Okabe and Ito), and a shape with each.
_SERIES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#6b7280", "D"))
_HEAT = LinearSegmentedColormap.from_list("ratio", ["#4393c3", "#f7f7f7", "#e0823d"])
_STYLE: Any = {
    "svg.hashsalt": "lrp-bench",  # without it, ids in the file are drawn anew each time
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d5dae0",
    "axes.axisbelow": True,
}


def draw(view: View, folder: Path) -> list[Path]:
    """Draw what there is to draw of a setting; return the paths of the SVG files, beside each of which lies a PNG."""
    title, slug = view.setting.name, view.setting.slug
    found = []
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE, "backend": "Agg"}):
        drawn: list[tuple[str, Figure]] = []
        legend = ", ".join(f"{mark} {state}" for state, mark in MARKS.items())
        for subject, heats in view.heats.items():
            drawn.append((f"heat-{subject}", _heat(heats, f"{subject}, in gradient times ({legend})\n{title}")))
        for peer, chart in view.peer_charts.items():
            text = f"{view.setting.own} compared with {peer}: time / {peer}'s, mean and range for each rule\n{title}"
            drawn.append((f"beside-{peer}", _chart(chart, view, text)))
        if view.models.lines:
            drawn.append(("models", _chart(view.models, view, f"Whole models, in gradient times\n{title}")))
        if view.memory.lines:
            drawn.append(("memory", _chart(view.memory, view, f"Peak memory, in units of the gradient's\n{title}")))
        if shown := [panel for panel in view.panels if panel.plot]:
            drawn.append(("size", _panels(shown, view, f"Time against size\n{title}")))
        for name, figure in drawn:
            path = folder / f"{slug}-{_safe(name)}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None, "Title": figure.get_suptitle()})
            figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
            found.append(path)
    return found


def _safe(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a dollar would start a formula


def _figure(width: float, height: float, title: str, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(_plain(title), fontsize=10, x=0.01, ha="left")
    return figure, figure.subplots(squeeze=False, **options)


def _heat(heats: Sequence[Heat], title: str) -> Figure:
    rows = max(len(heat.lines) for heat in heats)
    columns = [len(heat.layers) for heat in heats]
    figure, axes = _figure(
        2.2 * len(heats) + 0.75 * sum(columns), 1.3 + 0.27 * rows, title, ncols=len(heats), width_ratios=columns
    )
    for heat, ax in zip(heats, axes[0], strict=True):
        for y, line in enumerate(heat.lines):
            for x, layer in enumerate(heat.layers):
                cell = heat.cell(line, layer)
                unsure = cell.state == "ambiguous"
                color = _HEAT(0.5 + cell.warmth / 200) if cell.timed and not unsure else "#eef0f2"
                ax.add_patch(
                    mpl.patches.Rectangle(
                        (x, y), 0.96, 0.94, facecolor=color, hatch="///" * unsure, edgecolor="#c9ced4"
                    )
                )
                text = ratio(cell.mean) + " ?" * unsure if cell.timed else MARKS.get(cell.state, cell.state)
                ax.text(x + 0.48, y + 0.5, text, ha="center", va="center", fontsize=7)
        ax.set(xlim=(0, len(heat.layers)), ylim=(len(heat.lines), 0))
        ax.set_title(heat.regime, fontsize=9)
        ax.set_xticks([x + 0.5 for x in range(len(heat.layers))], [_plain(layer) for layer in heat.layers], rotation=30)
        ax.set_yticks([y + 0.5 for y in range(len(heat.lines))], [_plain(", ".join(line)) for line in heat.lines])
        ax.tick_params(length=0, labelsize=7)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    return figure


def _series(view: View, subject: str) -> tuple[str, str]:
    subjects = view.setting.subjects
    return _SERIES[min(subjects.index(subject), 3)] if subject in subjects else _SERIES[3]


def _chart(chart: Chart, view: View, title: str) -> Figure:
    figure, [[ax]] = _figure(7.5, 1.4 + 0.3 * len(chart.lines), title)
    for y, line in enumerate(chart.lines):
        for place, mark in enumerate(line.marks):
            color, shape = _series(view, mark.subject)
            height = y + 0.22 * (place - (len(line.marks) - 1) / 2)
            if mark.low and mark.high:
                ax.plot([mark.low, mark.high], [height] * 2, color=color)
            label = mark.subject if mark.subject not in ax.get_legend_handles_labels()[1] else None
            ax.plot(mark.value, height, shape, color=color, label=label, markersize=5)
    _logarithmic(ax.set_xscale, ax.xaxis, chart.axis.ticks, [f"{tick:g}" for tick in chart.axis.ticks])
    ax.set(xlim=(chart.axis.ticks[0], chart.axis.ticks[-1]), ylim=(len(chart.lines) - 0.5, -0.5))
    ax.set_yticks(range(len(chart.lines)), [_plain(line.label) for line in chart.lines])
    ax.axvline(1, color="#5b6570", zorder=0.5)
    if len(chart.subjects) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _panels(shown: Sequence[Panel], view: View, title: str) -> Figure:
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = _figure(3.4 * columns, 2.6 * rows + 0.6, title, nrows=rows, ncols=columns)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for panel, ax in zip(shown, axes.flat, strict=False):
        _panel(panel, view, ax)
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _panel(panel: Panel, view: View, ax: Axes) -> None:
    for curve in panel.curves:
        x, y = zip(*curve.points, strict=True)
        if curve.subject == LIMIT:
            ax.plot(x, y, "--", color="#111111", label="pass count", linewidth=1)
        else:
            color, shape = _series(view, curve.subject) if curve.subject != GRADIENT else _SERIES[3]
            ax.plot(x, y, color=color, marker=shape, markersize=4, label=curve.subject)
    plot = panel.plot
    assert plot is not None
    _logarithmic(ax.set_xscale, ax.xaxis, plot.across.ticks, [text for _, text in plot.x])
    _logarithmic(ax.set_yscale, ax.yaxis, plot.up.ticks, [text for _, text in plot.y])
    ax.set_title(_plain(panel.title), fontsize=8)
    ax.set_xlabel(panel.unit, fontsize=8)
    ax.tick_params(labelsize=7)


def _logarithmic(set_scale: Any, axis: Any, ticks: Sequence[float], texts: Sequence[str]) -> None:
    set_scale("log")
    axis.set_ticks(ticks, texts)
    axis.set_minor_locator(mpl.ticker.NullLocator())

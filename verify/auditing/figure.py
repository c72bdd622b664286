"""An audit as one picture: the flow down the network, with what did not hold marked and said."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from verify.auditing.picture import FAULT, SINKS, STRIP, picture
from verify.auditing.text import summary
from verify.formats.files import atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from verify.auditing.account import Account
    from verify.auditing.picture import Step

#: Up to so many operations, each is drawn by itself.
_EACH = 40
#: The strip is 1 wide and stands at 0.
_LEFT, _NAMES, _RIGHT = -0.85, 0.66, 2.25


def draw(audit: Account, path: str | Path) -> None:
    """Write the picture: a PNG, or what else matplotlib writes (``.svg``, ``.pdf``).

    Raises
    ------
    ValueError
        If matplotlib writes no files of this kind.

    """
    path = Path(path)
    drawn = figure(audit)
    kinds = drawn.canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        msg = f"{path} ends in {path.suffix!r}; expected one of {', '.join(f'.{kind}' for kind in sorted(kinds))}"
        raise ValueError(msg)
    with atomically(path) as unfinished:
        drawn.savefig(unfinished, dpi=150)


def figure(audit: Account) -> Figure:
    """Return the figure that `draw` writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  it takes a second
    from matplotlib.figure import Figure  # noqa: PLC0415  the same
    from matplotlib.patches import Patch  # noqa: PLC0415  the same

    flow = picture(audit, _EACH)
    count = len(flow.steps)
    tall = 1.5 + 0.26 * count
    whole = Figure(figsize=(10.5, tall))
    FigureCanvasAgg(whole)
    axes: Any = whole.add_axes((0.02, 0.65 / tall, 0.96, 1 - 1.5 / tall))
    axes.set_xlim(_LEFT, _RIGHT)
    axes.set_ylim(count + 0.05, -0.05)
    axes.axis("off")
    told = "\n".join(shorten(line, 130) for line in summary(audit))
    whole.text(0.02, 1 - 0.12 / tall, f"Audit of {audit.model} by {audit.pipeline}", va="top", fontsize=13)
    whole.text(0.02, 1 - 0.40 / tall, told, va="top", fontsize=9, color="black" if audit.held else FAULT)
    at = 0
    for name, steps in flow.blocks:
        axes.plot([_LEFT, _RIGHT], [at, at], color="#cccccc", linewidth=0.6, zorder=0)
        axes.text(_LEFT, at + 0.5, shorten(name, 18, placeholder="..."), va="center", fontsize=8)
        at += steps
    for index, step in enumerate(flow.steps):
        _draw_step(axes, index, step)
    marks = [
        Patch(color=STRIP, alpha=0.55, label="relevance on its way"),
        Patch(color=FAULT, alpha=0.55, label="✗ did not hold"),
        *(Patch(color=colour, label=name) for name, colour in SINKS.items()),
    ]
    whole.legend(
        handles=marks, loc="lower left", bbox_to_anchor=(0.01, 0), ncols=7, frameon=False, fontsize=8, title_fontsize=8,
        title="width: logarithm of the relevance" if flow.logarithmic else "width: relevance", alignment="left",
    )  # fmt: skip
    return whole


def _draw_step(axes: Axes, index: int, step: Step) -> None:
    a, b = 0.5 * step.above, 0.5 * step.below
    colour = STRIP if step.held else FAULT
    axes.fill([-a, a, b, -b], [index, index, index + 1, index + 1], color=colour, alpha=0.55, linewidth=0)
    for number, branch in enumerate(step.branches):
        start, y = max(a, b), index + (number + 1) / (len(step.branches) + 1)
        thick = max(1.2, min(16 / (len(step.branches) + 1), 150 * branch.width))
        style: Any = (0, (0.6, 0.25)) if branch.name == "unexplained" else "solid"
        axes.plot([start, start + 0.1], [y, y], color=branch.colour, linewidth=thick, linestyle=style)
        axes.lines[-1].set_solid_capstyle("butt")
    said = "black" if step.held else FAULT
    axes.text(_NAMES, index + (0.5 if step.held else 0.32), step.label, va="center", fontsize=7.5, color=said)
    if not step.held:
        note = shorten(step.rows[0].note, 108, placeholder=" ...")
        axes.text(_NAMES + 0.04, index + 0.74, note, va="center", fontsize=6.5, color="#444444")

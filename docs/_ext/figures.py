"""The figures of the site, drawn by the code that they are about: SVG, once for light pages and once for dark ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from examples import EPSILON, R, parts
from facts import FUNCTIONS, GRADIENT
from matplotlib.figure import Figure

from reference import layers, rules
from reference.ledger import ledger
from reference.precision import FLOAT32
from reference.rounding import bound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_INK = {"light": "#26323d", "dark": "#cfd6dd"}
_COLOURS = {"light": ("#0b62a3", "#b3541e", "#2e7d5b", "#7a4fa3"), "dark": ("#6db3ee", "#f0a070", "#74cfa4", "#c3a0ea")}


def draw(folder: Path, chosen: Mapping[str, Callable[[str], Figure]]) -> None:
    """Draw figures into a folder."""
    folder.mkdir(exist_ok=True)
    for theme, ink in _INK.items():
        style = {
            "svg.hashsalt": "lrp-rules",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "axes.facecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "axes.prop_cycle": mpl.cycler(color=_COLOURS[theme]),
        }
        with mpl.rc_context(style):
            for name, figure in chosen.items():
                figure(ink).savefig(folder / f"{name}-{theme}.svg", transparent=True, metadata={"Date": None})


def stabilizers(ink: str) -> Figure:
    """S(d) around zero."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    d = np.linspace(0, 3, 200)
    for label, stabilizer, style in (
        ("sum: d + ε sgn(d)", rules.Stabilizer(1.0), "-"),
        ("clip: sgn(d) max(|d|, ε)", rules.Stabilizer(1.0, clip=True), "--"),
    ):
        [line] = axes.plot(d, stabilizer(d), style, label=label)
        axes.plot(-d[1:], stabilizer(-d[1:]), style, color=line.get_color())
    axes.plot([-3, 3], [-3, 3], ":", color=ink, label="d itself")
    axes.plot(0, 1, "o", color=ink, label="S(0) = +ε")
    axes.set(xlabel="d, in units of ε", ylabel="S(d), in units of ε")
    axes.legend()
    return figure


def sinks(ink: str) -> Figure:
    """Where the relevance of the worked example goes."""
    names = [rule for rule in FUNCTIONS if rule not in GRADIENT]
    books = [ledger(parts(rule), R, EPSILON).total() for rule in names]
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    for number, sink in enumerate(("inputs", "bias", "stabilizer", "zero branch")):
        values = [getattr(book, sink.replace(" ", "_")) for book in books]
        axes.barh(places + 0.2 * (number - 1.5), values, 0.2, label=sink)
    axes.axvline(R.sum(), linestyle=":", color=ink)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel(f"relevance; the four bars of a rule add up to sum(R) = {R.sum():g} (dotted)")
    axes.legend(loc="best")
    return figure


def errors(ink: str) -> Figure:
    """The error of Epsilon in float32 beside its two bounds."""
    random = np.random.default_rng(0)
    worst, probable = [], []
    for _ in range(8):
        weight, x, relevance = random.normal(size=(64, 256)), random.normal(size=256), random.normal(size=64)
        weight, x, relevance = (values.astype(np.float32) for values in (weight, x, relevance))
        found = rules.epsilon(layers.affine(layers.Linear((256,), weight.astype(float), None), x.astype(float)))
        z = weight @ x
        got = x * (weight.T @ (relevance / (z + np.float32(1e-6) * np.where(z < 0, -1, 1).astype(np.float32))))
        limit = bound(found, relevance, 1e-6, FLOAT32)
        miss = np.abs(got - rules.relevance(found, relevance, 1e-6))
        decided = ~limit.inconclusive & (miss > 0)
        worst.append(miss[decided] / limit.worst[decided])
        probable.append(miss[decided] / limit.probable[decided])
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(-8, 0.5, 60)
    for label, ratios in (("worst case", worst), ("probable", probable)):
        axes.hist(np.log10(np.concatenate(ratios)), bins, alpha=0.6, label=f"error / bound, {label}")
    axes.axvline(0, linestyle=":", color=ink)
    axes.set(xlabel="log10 of the ratio; a mistake is right of 0", ylabel="entries")
    axes.legend()
    return figure


def digits(ink: str) -> Figure:
    """Relevance of a digit, one rule on every convolution and linear layer."""
    import torch  # noqa: PLC0415  seconds
    from torch import nn  # noqa: PLC0415

    import lrp_rules  # noqa: PLC0415
    from verify.questions.digits import model  # noqa: PLC0415

    network, images = model.load_model(), model.load_images()
    chosen = int((images.labels == 3).nonzero()[0])
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    grid = figure.subplots(3, 4)
    grid[0, 0].imshow(images.pixels[chosen, 0], cmap="gray_r")
    grid[0, 0].set_title("input", fontsize=9)
    for axes, rule in zip(grid.flat[1:], (name for name in FUNCTIONS if name != "Pass"), strict=True):
        image = images.pixels[chosen : chosen + 1].clone().requires_grad_()
        kind = getattr(lrp_rules, rule)
        if rule in GRADIENT:
            placed, ignored = {nn.ReLU: kind()}, (nn.Conv2d, nn.Linear, nn.AvgPool2d)
        else:
            one = kind(low=-1.0, high=1.0) if rule == "ZBox" else kind()
            # ZBox bounds the pixels: behind them is Gamma
            first, others = (one, lrp_rules.Gamma()) if rule == "ZBox" else (one, one)
            between = {nn.ReLU: lrp_rules.Pass(), nn.AvgPool2d: lrp_rules.Norm()}
            placed, ignored = {"0": first, nn.Conv2d: others, nn.Linear: others, **between}, ()
        with lrp_rules.attach(network, placed, ignore=ignored):
            output = network(image)[:, 3].sum()
        (r,) = torch.autograd.grad(output, image)
        most = r.abs().max().item()
        axes.imshow(r[0, 0], cmap="RdBu_r", vmin=-most, vmax=most)
        axes.set_title(rule, fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=ink)
    return figure


FIGURES: dict[str, Callable[[str], Figure]] = {
    "stabilizers": stabilizers,
    "sinks": sinks,
    "errors": errors,
    "digits": digits,
}

"""The picture of the README: one digit, its heat maps under four rules, and where the relevance went.

`python docs/_ext/picture.py` draws it again, from the network and the images that come with the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import nn

import lrp_rules
from reference import rules as formulas
from reference.layers import affine
from reference.ledger import ledger
from verify.formats.torch_layers import array, describe
from verify.questions.digits import load_images, load_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = Path(__file__).parents[1] / "_static" / "digit.png"
DIGIT = 3
#: Name, rule and formula of what is on every convolution and linear layer; poolings have Norm, ReLUs have Pass.
RULES = (
    ("Epsilon", lrp_rules.Epsilon(), formulas.epsilon),
    ("Gamma", lrp_rules.Gamma(), formulas.gamma),
    ("ZPlus", lrp_rules.ZPlus(), formulas.zplus),
    ("Flat", lrp_rules.Flat(), formulas.flat),
)
SINKS = ("inputs", "bias", "stabilizer", "zero branch")
LABELS = {"inputs": "the pixels", "bias": "biases", "stabilizer": "stabilizers", "zero branch": "zero branch"}
COLOURS = ("#2e7d5b", "#d08a2e", "#7a4fa3", "#9aa5b1")
INK = "#26323d"


def explained(rule: Any, formula: Any, image: torch.Tensor, digit: int) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the relevance of an image's pixels, and which share of the explained output went where."""
    model = load_model()
    pooling = (nn.MaxPool2d, nn.AvgPool2d)
    placed = {nn.Conv2d: rule, nn.Linear: rule, **dict.fromkeys(pooling, lrp_rules.Norm()), nn.ReLU: lrp_rules.Pass()}
    values = [image.clone().requires_grad_()]
    with lrp_rules.attach(model, placed):
        for module in model:
            values.append(module(values[-1]))
    output = values[-1][0, digit]
    found = torch.autograd.grad(output, values[:-1])
    relevance = [*found, torch.nn.functional.one_hot(torch.tensor([digit]), 10)]
    shares = dict.fromkeys(SINKS, 0.0)
    for module, x, R in zip(model, values, relevance[1:], strict=False):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d | nn.AvgPool2d):
            parts = formulas.norm if isinstance(module, pooling) else formula
            layer = affine(describe(module, tuple(x.shape[1:])), array(x).ravel())
            book = ledger(parts(layer), array(R).ravel(), 1e-6).total()
            for sink in SINKS[1:]:
                shares[sink] += getattr(book, sink.replace(" ", "_"))
    shares["inputs"] = float(relevance[0].sum())
    return relevance[0], shares


def _map(axes: Axes, values: Any, title: str, colours: str) -> None:
    most = abs(values).max()
    axes.imshow(values, cmap=colours, vmin=-most, vmax=most)
    axes.set_title(title, fontsize=12)
    axes.set(xticks=[], yticks=[])


def draw() -> Figure:
    """Return the figure: maps above, a bar for each rule below."""
    images = load_images()
    chosen = int((images.labels == DIGIT).nonzero()[0])
    image = images.pixels[chosen : chosen + 1]
    figure = Figure(figsize=(8.6, 4.0), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    grid = above.subplots(1, 1 + len(RULES))
    _map(grid[0], image[0, 0], f"a handwritten {DIGIT}", "gray_r")
    axes = below.subplots()
    for place, (name, rule, formula) in enumerate(RULES):
        r, shares = explained(rule, formula, image, DIGIT)
        _map(grid[place + 1], r[0, 0], name, "RdBu_r")
        ends = [0.0, 0.0]  # what is negative is drawn to the left
        for sink, colour in zip(SINKS, COLOURS, strict=True):
            share = 100 * shares[sink]
            axes.barh(
                place,
                share,
                0.7,
                ends[share < 0],
                color=colour,
                label=None if place or sink == "zero branch" else LABELS[sink],
            )
            ends[share < 0] += share
        print(name, {sink: round(100 * share, 2) for sink, share in shares.items()})  # noqa: T201
    axes.set_yticks(range(len(RULES)), [name for name, *_ in RULES], fontsize=11)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axvline(100, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("share of the output's relevance, in %", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    below.suptitle("Where the relevance went", fontsize=12)
    axes.legend(loc="lower left", fontsize=11, frameon=False)
    return figure


def main() -> None:
    """Write the file."""
    style = {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context(style):
        draw().savefig(FILE, dpi=180, metadata={"Software": None})


if __name__ == "__main__":
    main()

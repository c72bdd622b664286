"""The gallery: each network is trained for a second on numbers that are drawn, explained, and drawn.

`python docs/_ext/gallery.py` prints what the page says of each, and how long it took.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import networks
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by

import verify
from lrp_rules import attach, composites
from lrp_rules.recurrent import written_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

    from verify.auditing.audit import Audit

    #: Inputs, what is to be found of them, and where it is: 1 at the entries that tell.
    Task = tuple[Tensor, Tensor, Tensor]

SINKS = ("bias", "stabilizer", "dead", "constants")


# --- tasks: one place tells the class, all others are noise ---------------------------------------------------------


def images(count: int) -> Task:
    """Horizontal or vertical stripes in one of sixteen places of an image."""
    x, place, y = 0.3 * torch.randn(count, 1, 16, 16), torch.randint(16, (count,)), torch.randint(2, (count,))
    stripes = torch.tensor([1.0, -1.0]).repeat(2).expand(4, 4)
    where = torch.zeros_like(x)
    for sample in range(count):
        rows, columns = (slice(4 * at, 4 * at + 4) for at in divmod(int(place[sample]), 4))
        x[sample, 0, rows, columns] += stripes if y[sample] else stripes.T
        where[sample, 0, rows, columns] = 1
    return x, y, where


def masks(count: int) -> Task:
    """The same images; where the stripes are is what is to be found."""
    x, _, where = images(count)
    return x, where, where


def steps(count: int) -> Task:
    """Ten steps of four numbers: in one step the first is large, and the sign of the second tells the class."""
    x, place, y = 0.3 * torch.randn(count, 10, 4), torch.randint(10, (count,)), torch.randint(2, (count,))
    samples, where = torch.arange(count), torch.zeros(count, 10, 4)
    x[samples, place, 0], x[samples, place, 1] = 2.0, 4.0 * y - 2
    x[..., 1] += torch.randn(count, 10)
    where[samples, place, :2] = 1
    return x, y, where


def texts(count: int) -> Task:
    """Five to ten words of six, with padding behind; one of two further words is among them, and tells the class."""
    y, length = torch.randint(2, (count,)), torch.randint(5, 11, (count,))
    words = torch.randint(3, 8, (count, 10))
    # the first place is read in the end, and says nothing by itself
    place = 1 + (torch.rand(count) * (length - 1)).long()
    words[torch.arange(count), place] = 1 + y
    words[torch.arange(10) >= length[:, None]] = 0
    where = F.one_hot(words, 8) * (torch.arange(10) == place[:, None])[..., None]
    return F.one_hot(words, 8).float(), y, where.float()


def sounds(count: int) -> Task:
    """A low or a high tone, somewhere in noise."""
    x, y = 0.3 * torch.randn(count, 1, 96), torch.randint(2, (count,))
    time_, start = torch.arange(96), torch.randint(72, (count, 1))
    where = ((time_ >= start) & (time_ < start + 24)).float()[:, None]
    return x + where * torch.sin(time_ * (0.6 + 0.9 * y[:, None]))[:, None], y, where


# --- entries ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A network, what it is trained on, and what explains it."""

    make: type[nn.Module]
    task: Callable[[int], Task]
    composite: str
    draw: Callable[[Axes, Tensor, str], None]
    training: int = 150


def _image(axes: Axes, values: Tensor, colours: str) -> None:
    most = float(values.abs().max())
    axes.imshow(values[0].numpy(), cmap=colours, vmin=-most, vmax=most)


def _rows(axes: Axes, values: Tensor, colours: str) -> None:
    _image(axes, values.T[None], colours)


def _wave(axes: Axes, values: Tensor, colours: str) -> None:
    if colours == "gray":
        axes.plot(values[0].numpy())
    else:
        heights = values[0].tolist()
        axes.bar(range(len(heights)), heights, 1.0, color=["#b2182b" if v > 0 else "#2166ac" for v in heights])


def _nodes(axes: Axes, values: Tensor, colours: str) -> None:
    made, values = networks.Graph(), values.sum(-1)
    angle = torch.arange(len(values)) * 2 * torch.pi / len(values)
    x, y = angle.sin().tolist(), angle.cos().tolist()
    for source, target in made.edges.T.tolist():
        axes.plot([x[source], x[target]], [y[source], y[target]], color="#9aa5b1", linewidth=0.6, zorder=0)
    most = float(values.abs().max())
    axes.scatter(x, y, 160, values.tolist(), cmap=colours, vmin=-most, vmax=most, edgecolors="#9aa5b1")
    axes.set_aspect("equal")


ENTRIES: dict[str, Entry] = {
    "cnn": Entry(networks.CNN, images, "EpsilonPlus()", _image),
    "resnet": Entry(networks.ResNet, images, "EpsilonPlusFlat()", _image),
    "mobilenet": Entry(networks.MobileNet, images, "EpsilonPlus()", _image),
    "densenet": Entry(networks.DenseNet, images, "EpsilonPlus()", _image),
    "convnext": Entry(networks.ConvNeXt, images, "AttnLRP(gamma=0.25)", _image),
    "vit": Entry(networks.ViT, images, "AttnLRP()", _image, 250),
    "swin": Entry(networks.Swin, images, "AttnLRP()", _image, 250),
    "text-encoder": Entry(networks.TextEncoder, texts, "AttnLRP()", _rows, 250),
    "u-net": Entry(networks.UNet, masks, "EpsilonGammaBox(low=-3.0, high=3.0)", _image),
    "decoder": Entry(networks.Decoder, steps, "CPLRP()", _rows, 250),
    "lstm": Entry(networks.LSTM, steps, "EpsilonPlus()", _rows, 250),
    "graph": Entry(networks.Graph, steps, "EpsilonPlus()", _nodes, 250),
    "audio": Entry(networks.Audio, sounds, "EpsilonPlus()", _wave),
}


@dataclass(frozen=True)
class Found:
    """What became of an entry."""

    x: Tensor
    where: Tensor
    relevance: Tensor
    audit: Audit
    #: Over many inputs: how often the network is right, and how much of the relevance is where it should be.
    accuracy: float
    hit: float


def loss(output: Tensor, y: Tensor) -> Tensor:
    """Return the loss of classes, or of a mask."""
    if output.shape == y.shape:
        return F.binary_cross_entropy_with_logits(output, y)
    return F.cross_entropy(output, y)


@cache
def found(name: str) -> Found:
    """Train a network, and explain one input that it has not seen."""
    entry = ENTRIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = entry.make()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(entry.training):
            x, y, _ = entry.task(64)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        model.eval().double()
        x, y, where = entry.task(256)
    if isinstance(model, networks.LSTM):
        model.layer = written_out(model.layer)  # an audit judges its parts
    x.requires_grad_()
    with attach(model, made(entry.composite)):
        output = model(x.double())
    (relevance,) = torch.autograd.grad(output, x, _target(output))
    size = relevance.abs().flatten(1)
    hit = (size * where.flatten(1)).sum(1) / size.sum(1)
    right = (output > 0) == (y > 0) if output.shape == y.shape else output.argmax(1) == y
    one = x[:1].detach().double()
    audit = verify.audit(model, one, made(entry.composite), target=_target(output[:1]))
    (r,) = audit.relevance
    assert r is not None
    return Found(one[0], where[0], r[0], audit, float(right.double().mean()), float(hit.mean()))


def _target(output: Tensor) -> Tensor:
    """Return the relevance of the output: 1 for the largest number of each sample."""
    return F.one_hot(output.flatten(1).argmax(1), output[0].numel()).reshape(output.shape).to(output.dtype)


def made(words: str) -> Any:
    """Return the composite that is called so."""
    return eval(words, {}, vars(composites))  # noqa: S307  our own words


# --- what the page says --------------------------------------------------------------------------------------------


def markdown(name: str) -> str:
    """Return code, picture and ledger of an entry."""
    entry, result = ENTRIES[name], found(name)
    audit = result.audit
    picture = "\n\n".join(
        f"```{{image}} _figures/gallery-{name}-{theme}.svg\n:alt: the input of the network, and its relevance\n"
        f":class: only-{theme}\n```"
        for theme in ("light", "dark")
    )
    sinks = [sum(getattr(row, sink) for row in audit.rows) for sink in SINKS]
    columns = ["put in", "inputs", "biases", "stabilizers", "dead", "learned constants", "unexplained"]
    numbers = [audit.put_in, audit.arrived, *sinks, audit.unexplained]
    ledger = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n| {' | '.join(map(_shown, numbers))} |"
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(row.verdict for row in audit.rows).items())
    target = "the largest logit of all pixels" if entry.task is masks else "the larger logit"
    return (
        f"```python\n{inspect.getsource(entry.make)}\n\n"
        f"with attach(model, {entry.composite}):\n    output = model(x)\n"
        "(relevance,) = torch.autograd.grad(output, x, R)\n```\n\n"
        f"{picture}\n\n{ledger}\n\n"
        f"Explained: {target}. Operations: {verdicts}. Of 256 new inputs, the network is right for "
        f"{100 * result.accuracy:.0f} %, and {100 * result.hit:.0f} % of the magnitude of their relevance is on the "
        f"{100 * float(result.where.mean()):.0f} % of the numbers that tell the answer.\n"
    )


def _shown(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3f}"


def figure(name: str, ink: str) -> Figure:
    """Draw an input and its relevance."""
    entry, result = ENTRIES[name], found(name)
    drawn = Figure(figsize=(6.4, 2.4), layout="constrained")
    for axes, values, colours, title in zip(
        drawn.subplots(1, 2), (result.x, result.relevance), ("gray", "RdBu_r"), ("input", "relevance"), strict=True
    ):
        entry.draw(axes, values, colours)
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=ink)
    return drawn


def main() -> None:
    """Print all of it."""
    for name in ENTRIES:
        start = time.perf_counter()
        print(markdown(name).rpartition("```")[2], f"{name}: {time.perf_counter() - start:.1f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

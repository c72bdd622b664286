"""Check ``network``: real images through the trained network, every layer with the rule that is usual there.

Layer by layer: the reference says what each layer should make of the relevance that reached it from the subject itself,
so that a wrong rule fails where it is and nowhere else. Chain: the references of all layers, one after another in
float64, from the logit of the predicted class down to the pixels. Both take the subject's own boundaries h_k (h_0 the
image, h_12 the logits) as the exact inputs of the layers. How far rounding can take the chain:
`verify.checks.carrying`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference import rules as ref
from reference.layers import affine
from reference.ledger import ledger
from reference.precision import FLOAT64, model_for
from reference.rounding import bound
from verify.checks.agreement import expected_within
from verify.checks.carrying import carried
from verify.checks.comparator import Comparison, compare
from verify.formats.torch_layers import array, describe
from verify.model import Case, Finding, Level, NotOfferedError, Verdict
from verify.questions.digits import Images, load_images, load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from reference.affine import Affine
    from reference.precision import Model
    from reference.rules import Parts
    from verify.model import Subject

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
        If the subject lacks a rule of the composition, or fixes parameters of one.

    """
    if fixing := [step.rule for step in COMPOSITION if step.rule is not None and subject.parameters.get(step.rule)]:
        msg = f"{subject.spec} fixes parameters of {fixing[0]}; the network is asked with the defaults"
        raise NotOfferedError(msg)
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
            Verdict.INCONCLUSIVE, reason="NaN or infinity comes from the layers above: the mistake is in one of them",
            undecidable=layer.undecidable,
        )  # fmt: skip
    sums = {name: values.tolist() for name, values in layer.sinks.items()}
    return _finding(layer.judged, layer.undecidable, result, {"incoming": layer.incoming.tolist(), "ledger": sums})


def _chain(seed: int, dtype: str, device: str, subject: Subject) -> Finding:
    result = _result(subject, seed, dtype, device)
    wrong = [f"{layer.index} ({layer.step.rule})" for layer in result.layers if layer.wrong]
    open_ = float(np.isposinf(result.chain.worst).mean())  # the chain and its bounds are the reference's alone
    return _finding(result.chain, open_, result, {"layers that failed": wrong})


def _finding(judged: Judged, undecidable: float, result: NetworkResult, details: dict[str, Any]) -> Finding:
    found = judged.comparison
    details = {"model": result.model, "images": result.images.labels.tolist(), **details}
    if found.undecided == 1:
        reason = "for every value, rounding decides the sign of a denominator, or numbers leave the dtype's range"
        return Finding(Verdict.INCONCLUSIVE, None, None, 1.0, reason, details, undecidable)
    reason = ""
    if found.refuted:
        assert found.index is not None
        image, entry = (int(i) for i in np.unravel_index(found.index, judged.got.shape))
        got, expected, worst = (values[image, entry] for values in (judged.got, judged.expected, judged.worst))
        reason = (
            f"image of a {result.images.labels[image]}, entry {entry}: "
            f"got {got:.9g}, {expected_within(expected, worst, found.ratio)}"
        )
    verdict = Verdict.FAIL if found.refuted else Verdict.PASS
    return Finding(verdict, found.ratio, found.probable, found.undecided, reason, details, undecidable)

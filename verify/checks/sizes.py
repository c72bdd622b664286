"""Large layers: agreement at some positions of the input, and conservation of what some of the outputs hand on.

The positions are corners, edges and a few between, of some samples. The outputs are those that read one position: all
of a dense layer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference.affine import affine
from reference.base import Weighted
from reference.ledger import ledger
from reference.precision import model_for
from reference.restriction import at, position_at
from reference.rounding import bound
from verify.checks.agreement import content, judge, relevance_or_wrong, rows
from verify.checks.probing import of_python
from verify.formats.remembered import remembered
from verify.formats.torch_layers import describe
from verify.model import Case, Finding, Level, Verdict
from verify.questions import sizes
from verify.questions.covering.factors import FORMULAS
from verify.questions.fixed import as_fixed
from verify.questions.variants import Sample, Variant, level, variant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from reference.affine import Affine
    from reference.precision import Model
    from reference.rules import Part
    from verify.model import Subject
    from verify.questions.layers import LayerCase

    Array = NDArray[np.float64]

#: One of each way to gather, each with an edge that goes its own way.
_CONSERVED = (
    "linear-1030-700", "conv2d-64-64-at-56", "conv2d-circular-at-48", "convtranspose2d-at-28", "conv3d-at-18",
)  # fmt: skip
_NARROW = 600
#: The arguments of a rule, in turn over the layers: the default, and what may be computed in another way.
_VARIANTS: dict[str, tuple[str, ...]] = {
    "Epsilon": ("default", "zero_params=bias"),
    "Norm": ("default",),
    "ZPlus": ("default", "zero_params=bias"),
    "AlphaBeta": ("default", "alpha=4-beta=3"),
    "Gamma": ("default", "gamma=10", "stabilizer=callable"),
    "ZBox": ("default", "channels"),
    "WSquare": ("default",),
    "Flat": ("default",),
}


def cases(*, seed: int, dtypes: Sequence[str], device: str) -> Iterator[Case]:
    """Yield the cases: each rule on each layer, in one dtype and with one kind of input, which take turns."""
    for number, rule in enumerate(FORMULAS):
        for index, large in enumerate(sizes.LAYERS):
            turn = number + index
            # a rule meets every layer, and each of its variants half of them
            of = variant(rule, _VARIANTS[rule][turn % len(_VARIANTS[rule])])
            # the worst case of sums of more terms than these leaves nothing decided in float32
            narrow = turn % 3 == 2 and large.layer.shape[-1] < _NARROW
            dtype, kind = ("float64", "float32")[narrow], ("signed", "nonnegative")[index // 2 % 2]
            if dtype not in dtypes or (of.name == "channels" and len(large.layer.shape) < 3):
                of = variant(rule)
            if dtype not in dtypes:
                continue
            yield Case(
                id=f"agreement/{rule}/{large.layer.name}/{of.name}/{kind}/{dtype}",
                rule=rule,
                layer=large.layer.family,
                check="agreement",
                dtype=dtype,
                level=Level.SHOULD if of.level is Level.SHOULD else level(rule, large.layer),
                run=partial(of_python, partial(_agrees, large, of, dtype, kind, seed, device)),
                device=device,
            )

    for index, (rule, name) in enumerate(product(FORMULAS, _CONSERVED)):
        large, of = next(one for one in sizes.LAYERS if one.layer.name == name), variant(rule)
        if "float64" in dtypes:
            yield Case(
                id=f"conservation/{rule}/{name}/default/signed/float64",
                rule=rule,
                layer=large.layer.family,
                check="conservation",
                dtype="float64",
                level=level(rule, large.layer),
                run=partial(of_python, partial(_conserves, large, of, index, seed, device)),
                device=device,
            )


def _agrees(
    large: sizes.Large, of: Variant, dtype: str, kind: str, seed: int, device: str, subject: Subject
) -> Finding:
    problem, of = sizes.draw(large, dtype, kind, seed, device), as_fixed(of, subject)
    rule = subject.get(of.rule)(**of.arguments(tuple(problem.x.shape), problem.x.dtype))
    got, wrong = relevance_or_wrong(rule, problem)
    if wrong or got is None:
        return wrong or Finding(Verdict.ERROR)
    described = describe(problem.module, large.layer.sample_shape)
    assert isinstance(described, Weighted)
    model = model_for(dtype, device)
    x, R = (rows(t, batched=True) for t in (problem.x, problem.relevance))
    known = remembered(
        partial(_at_places, described, large.layer, of, x, R, model),
        "sizes", large.layer.name, described, content(of, problem), x, R, model,
    )  # fmt: skip
    found = got[known["sample"], known["entry"]]
    return judge(found[None], known["expected"][None], known["worst"][None], None, model.name)


def _conserves(large: sizes.Large, of: Variant, turn: int, seed: int, device: str, subject: Subject) -> Finding:
    """Give relevance to those outputs of the last sample that read one position, and to no others."""
    problem, of = sizes.draw(large, "float64", "signed", seed, device), as_fixed(of, subject)
    described = describe(problem.module, large.layer.sample_shape)
    assert isinstance(described, Weighted)
    places = sizes.places(large.layer)
    cut = at(described, places[turn % len(places)])
    relevance = torch.zeros_like(problem.relevance).flatten(1)
    relevance[-1, cut.rows] = problem.relevance.flatten(1)[-1, cut.rows]
    problem = replace(problem, relevance=relevance.view_as(problem.relevance))
    rule = subject.get(of.rule)(**of.arguments(tuple(problem.x.shape), problem.x.dtype))
    got, wrong = relevance_or_wrong(rule, problem)
    if wrong or got is None:
        return wrong or Finding(Verdict.ERROR)
    model = model_for("float64", device)
    x, R = (rows(t[-1:], batched=True)[0] for t in (problem.x, problem.relevance))
    sample = Sample(len(got) - 1, (len(got), *large.layer.sample_shape), batched=True)
    parts = _parts(of, sample, affine(cut, x[cut.columns], of.zero_params))
    account, limit = ledger(parts, R[cut.rows], of.stabilizer), bound(parts, R[cut.rows], of.stabilizer, model)
    inputs, room = np.zeros((len(got), 1)), np.zeros((len(got), 1))
    inputs[-1] = account.total().inputs
    room[-1] = account.inputs_bound(limit, got[-1])
    return judge(got.sum(1, keepdims=True), inputs, room, None, model.name, [account])


def _at_places(
    described: Weighted, layer: LayerCase, of: Variant, x: Array, R: Array, model: Model
) -> dict[str, NDArray[Any]]:
    """Ask the reference about some entries of some samples: which, their relevance, and the bounds."""
    found: list[tuple[Array, ...]] = []
    for index in sizes.samples(len(x)):
        sample = Sample(index, (len(x), *layer.sample_shape), batched=True)
        for place in sizes.places(layer):
            entries, r, limit = position_at(
                described, place, partial(_parts, of, sample), x[index], R[index], of.stabilizer, model, of.zero_params
            )
            found.append((np.full(len(r), index), np.asarray(entries), r, limit))
    return dict(
        zip(("sample", "entry", "expected", "worst"), map(np.concatenate, zip(*found, strict=True)), strict=True)
    )


def _parts(of: Variant, sample: Sample, layer: Affine) -> tuple[Part, ...]:
    return of.parts(layer, sample)

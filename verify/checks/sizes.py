"""Agreement on large layers, at some positions of the input: corners, edges and a few between, of some samples."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reference.base import Weighted
from reference.precision import model_for
from reference.restriction import position_at
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

#: The arguments of a rule, in turn over the layers: the default, and what may be computed in another way.
_NARROW = 600
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

"""What is asked about the rules for products, attention and normalisations: every check, for them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from verify.checks import agreement, laws, networks_conduct, networks_errors, second_order
from verify.checks.agreement import judge, rows
from verify.checks.laws_changes import Side, identity
from verify.formats.operands import MatMul, Operands
from verify.model import Case, Finding, Level, Verdict
from verify.questions.networks import (
    BILINEAR,
    LAYER_NORM,
    SIGNALS,
    SOFTMAX_OF_MODULE,
    STOP,
    UNIFORM,
    drawn,
    grid,
    level,
    named,
)
from verify.questions.variants import variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Problem, Subject
    from verify.questions.layers import LayerCase
    from verify.questions.variants import Variant

#: On which layers the laws and the derivatives are tried.
_ON: dict[str, tuple[str, ...]] = {
    "Uniform": ("product-broadcast", "product-of-3"),
    "SignalTakesAll": ("product-broadcast", "product-of-3"),
    "Bilinear": ("matmul", "matmul-broadcast", "product-broadcast"),
    "Softmax": ("softmax-last", "softmax-middle"),
    "Stop": ("softmax-last",),
    "LayerNormRule": ("layernorm", "layernorm-2-axes-nobias", "groupnorm", "rmsnorm"),
}


def cases(*, seed: int, dtypes: Sequence[str], device: str) -> Iterator[Case]:
    """Yield all cases of these rules, in the order of the report."""
    for layer, kind, of in grid():
        for dtype in dtypes:
            problem = partial(drawn, layer, kind, dtype, seed, device)
            for check, run in (("agreement", agreement.agrees), ("conservation", agreement.conserves)):
                yield Case(
                    id=f"{check}/{of.rule}/{layer.name}/{of.name}/{kind}/{dtype}", rule=of.rule, layer=layer.family,
                    check=check, dtype=dtype, level=level(of.rule), run=partial(run, problem, layer, of, device),
                    device=device,
                )  # fmt: skip
    yield from networks_errors.cases()
    yield from networks_conduct.cases()
    draw = partial(drawn, seed=seed)
    for dtype in dtypes:
        if dtype in {"float64", "float32"}:
            yield from _laws(draw, dtype)
    yield from _derivatives(draw)


def _defaults(layer: LayerCase) -> dict[str, Variant]:
    found = {of.rule: of for of in (UNIFORM, SOFTMAX_OF_MODULE, STOP, BILINEAR[0], LAYER_NORM[0])}
    return found | {"SignalTakesAll": SIGNALS[layer.name][0]} if layer.name in SIGNALS else found


def _derivatives(draw: Callable[..., Problem]) -> Iterator[Case]:
    """Check ``second-order``, with stabilizers that are felt."""
    for rule, names in _ON.items():
        for layer in named(*names):
            variants = {"Bilinear": BILINEAR, "LayerNormRule": LAYER_NORM}.get(rule)
            of = _defaults(layer)[rule] if variants is None else variants[1]
            runs = {of.name: partial(second_order.by_input, draw, layer, of)}
            if layer.weighted:
                runs[f"{of.name}/parameters"] = partial(second_order.by_parameters, draw, layer, of)
            for name, run in runs.items():
                yield Case(
                    id=f"second-order/{rule}/{layer.name}/{name}", rule=rule, layer=layer.family, check="second-order",
                    dtype="float64", level=Level.MUST, run=run,
                )  # fmt: skip


# --- laws -------------------------------------------------------------------------------------------------------------


def _laws(draw: Callable[..., Problem], dtype: str) -> Iterator[Case]:
    def case(law: str, rule: str, layer: LayerCase, run: Callable[[Subject], Finding]) -> Case:
        return Case(
            id=f"laws/{rule}/{law}/{layer.name}/{dtype}", rule=rule, layer=layer.family, check="laws", dtype=dtype,
            level=Level.MUST, run=run,
        )  # fmt: skip

    for rule, names in _ON.items():
        for layer in named(*names):
            of = _defaults(layer)[rule]
            problem = partial(draw, layer, "signed", dtype)
            yield case("additive-in-relevance", rule, layer, partial(laws.additive, problem, layer, of))
            yield case("relevance-times-2-to-20", rule, layer, partial(_scaled, problem, of))
            if rule in {"Uniform", "Bilinear"}:
                yield case("equal-shares", rule, layer, partial(_equal_shares, problem, layer, of))
    for rule, name, law, run in (
        ("SignalTakesAll", "product-broadcast", "independent-of-numbers", _independent),
        ("Uniform", "product-broadcast", "independent-of-numbers", _independent),
        ("Bilinear", "matmul", "transposed", _transposed),
        ("Bilinear", "matmul-constant-right", "constant-is-epsilon", _constant_is_epsilon),
        ("Softmax", "softmax-last", "relevance-like-the-output-vanishes", _vanishes),
        ("LayerNormRule", "layernorm-plain", "groupnorm-of-1-is-layernorm", _group_of_1),
    ):
        (layer,) = named(name)
        yield case(law, rule, layer, partial(run, partial(draw, layer, "signed", dtype), layer, _defaults(layer)[rule]))


def _scaled(problem_of: Callable[[], Problem], of: Variant, subject: Subject) -> Finding:
    """Check that r(2^20 R) = 2^20 r(R) in every bit."""
    problem = problem_of()
    large = replace(problem, relevance=problem.relevance * 2.0**20)
    one, other = (Side(side, of).run(subject) for side in (large, problem))
    return laws.bits(one, other * 2.0**20, "a relevance 2^20 times as large does not give one 2^20 times as large")


def _equal_shares(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that each operand gets the same sum."""
    side = Side(problem_of(), of)
    module: Any = side.problem.module
    sizes = [torch.Size(shape).numel() for shape in module.shapes]
    expected = side.expected(layer, subject)
    # each sum is off by the bounds of its terms, and by its own rounding
    sums, rooms = (
        [part.sum(1) for part in np.split(values, np.cumsum(sizes)[:-1], axis=1)]
        for values in (
            rows(side.run(subject), batched=True),
            expected.worst + 64 * expected.model.unit * np.abs(expected.relevance),
        )
    )
    first = np.stack([sums[0]] * (len(sums) - 1))
    return judge(np.stack(sums[1:]), first, np.stack(rooms[1:]) + rooms[0], None, expected.model.name)


def _independent(problem_of: Callable[[], Problem], _layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that other numbers of the same shape give the same relevance in every bit."""
    problem = problem_of()
    one, other = (Side(replace(problem, x=x), of).run(subject) for x in (problem.x, 3 - problem.x.flip(1)))
    return laws.bits(one, other, "other factors of the same shapes give another relevance")


def _transposed(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that V^T A^T gives what A V gives."""
    problem = problem_of()
    (rows_, inner), (_, columns) = problem.module.shapes  # type: ignore[misc]
    swapped = Operands(MatMul(), ((columns, inner), (inner, rows_)))

    def turned(x: Tensor, height: int, width: int) -> Tensor:
        """Two operands side by side, transposed and exchanged."""
        left, right = x.split([height * inner, inner * width], 1)
        parts = (right.reshape(-1, inner, width), left.reshape(-1, height, inner))
        return torch.cat([part.mT.flatten(1) for part in parts], 1)

    mirrored = replace(
        problem, module=swapped, x=turned(problem.x, rows_, columns), relevance=problem.relevance.mT.contiguous()
    )
    return laws.near(Side(problem, of), Side(mirrored, of), lambda r: turned(r, columns, rows_), layer, subject)


def _constant_is_epsilon(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that a product with a constant matrix is a linear layer under Epsilon."""
    problem = problem_of()
    outer: Any = problem.module
    weight = outer.constant(1).T
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    shape = outer.shapes[0]
    other = replace(problem, module=linear, x=problem.x.reshape(-1, *shape))
    epsilon = Side(other, variant("Epsilon"))
    expected = Side(problem, of).expected(layer, subject), epsilon.expected(layer, subject)
    room = expected[0].worst + expected[1].worst.reshape(expected[0].worst.shape)
    got, wanted = (rows(side.run(subject), batched=True) for side in (Side(problem, of), epsilon))
    return judge(got, wanted, room, None, expected[0].model.name)


def _vanishes(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that a relevance in proportion to the output goes nowhere: only the distances of scores matter."""
    problem = problem_of()
    with torch.no_grad():
        problem = replace(problem, relevance=problem.module(problem.x) * 3)
    side = Side(problem, of)
    got, expected = rows(side.run(subject), batched=True), side.expected(layer, subject)
    found = judge(got, np.zeros_like(got), 2 * expected.worst, None, expected.model.name)
    return replace(found, ratio=None, probable=None) if found.verdict is Verdict.PASS else found


def _group_of_1(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that one group of all channels is a LayerNorm over all of the sample."""
    problem = problem_of()
    channels, width = problem.x.shape[1:]
    one = replace(problem, module=nn.LayerNorm((channels, width), elementwise_affine=False))
    other = replace(problem, module=nn.GroupNorm(1, channels, affine=False))
    return laws.near(Side(one, of), Side(other, of), identity, layer, subject)

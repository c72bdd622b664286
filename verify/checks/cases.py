"""All cases: the grid as the checks ask it, and what each check asks besides, in the order of the report."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from verify.checks import (
    agreement,
    api,
    covering,
    errors,
    examples,
    helpers,
    laws,
    network,
    networks,
    second_order,
    second_order_chain,
    sizes,
)
from verify.checks.conduct import topics as conduct
from verify.model import Case, Level, Problem
from verify.questions.drawing import draw
from verify.questions.grid import DEFAULT_DTYPES, DTYPES, OF_DERIVATIVES, OF_LAWS, gradient_grid, linear_grid, named
from verify.questions.variants import VARIANTS, Variant, level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.questions.layers import LayerCase

__all__ = ["DEFAULT_DTYPES", "DTYPES", "all_cases"]


def all_cases(
    *, seed: int = 0, dtypes: Sequence[str] = DEFAULT_DTYPES, device: str = "cpu", depth: int = 2
) -> tuple[Case, ...]:
    """Return all of them, in the order of the report; at ``depth`` 3 each triple of options is asked together."""
    return (
        *_all_cases(seed, dtypes, device),
        *covering.cases(depth=depth, seed=seed, dtypes=dtypes, device=device),
        *sizes.cases(seed=seed, dtypes=dtypes, device=device),
    )


def _all_cases(seed: int, dtypes: Sequence[str], device: str) -> Iterator[Case]:
    yield from api.cases()
    yield from helpers.cases()
    for rule in dict.fromkeys(variant.rule for variant in VARIANTS):
        for layer, kind, variant in linear_grid(rule):
            yield from _comparisons(layer, kind, variant, dtypes, device, seed)
    for rule, layer, choices in gradient_grid():
        for kind in ("signed", "nonnegative", "zeros"):
            for arguments in choices:
                yield from _gradient_cases(rule, arguments, layer, kind, dtypes, device, seed)
    yield from errors.cases()
    yield from conduct.cases()
    yield from network.cases(seed=seed, dtypes=dtypes, device=device)
    drawn = partial(draw, seed=seed)
    yield from laws.cases(drawn, named(*OF_LAWS), [dtype for dtype in dtypes if dtype in DEFAULT_DTYPES])
    yield from examples.found()
    yield from examples.cases(seed=seed, dtypes=[dtype for dtype in dtypes if dtype in DEFAULT_DTYPES])
    yield from second_order.cases(
        drawn,
        named(*OF_DERIVATIVES),
        [(rule, arguments, layer) for rule, layer, choices in gradient_grid() for arguments in choices],
    )
    yield from second_order_chain.cases(drawn)
    yield from networks.cases(seed=seed, dtypes=dtypes, device=device)


def _comparisons(
    layer: LayerCase, kind: str, variant: Variant, dtypes: Sequence[str], device: str, seed: int
) -> Iterator[Case]:
    for dtype in dtypes:
        if dtype not in variant.dtypes:
            continue
        problem = partial(draw, layer, kind, dtype, seed, device)
        for check, run in (("agreement", agreement.agrees), ("conservation", agreement.conserves)):
            yield Case(
                id=f"{check}/{variant.rule}/{layer.name}/{variant.name}/{kind}/{dtype}",
                rule=variant.rule,
                layer=layer.family,
                check=check,
                dtype=dtype,
                level=Level.SHOULD if variant.level is Level.SHOULD else level(variant.rule, layer),
                run=partial(run, problem, layer, variant, device),
                device=device,
            )


def _gradient_cases(
    rule: str,
    arguments: dict[str, float],
    layer: LayerCase,
    kind: str,
    dtypes: Sequence[str],
    device: str,
    seed: int,
) -> Iterator[Case]:
    name = "-".join(f"{key}={value:g}" for key, value in arguments.items()) or "default"
    for dtype in dtypes:
        problem: Callable[[], Problem] = partial(draw, layer, kind, dtype, seed, device)
        yield Case(
            id=f"agreement/{rule}/{layer.name}/{name}/{kind}/{dtype}",
            rule=rule,
            layer=layer.family,
            check="agreement",
            dtype=dtype,
            level=level(rule, layer),
            run=partial(agreement.gradient_agrees, problem, layer, rule, arguments, device),
            device=device,
        )

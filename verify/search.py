"""Check ``search``: Hypothesis looks for numbers on which a rule is wrong, and shrinks what it finds.

The grid asks the same questions in every run; the search asks new ones, with the numbers on which floating point
breaks: zeros of both signs, subnormal, huge, tiny and nearly cancelling ones.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from verify.examples import CHECK, Example
from verify.model import BAD, Finding, Level, Outcome, Verdict
from verify.subjects import NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.subjects import Subject

#: Rules that are searched: those with a formula.
RULES = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
#: Examples in one round; a round is one rule.
ROUND = 100
_ADVERSARIAL = (
    0.0, -0.0, 1.0, -1.0, 2.0, -0.5, 1e-6, -1e-6, 1e-12, 1e6, -1e6, 1e12, 1e15, -1e15, 1e-30, 2.0**-126, 2.0**-149,
    -(2.0**-149), 1.0 + 2.0**-23, -1.0 - 2.0**-23, 1.0 + 2.0**-52, -1.0 - 2.0**-52, 1.0 / 3.0, -1.0 / 3.0,
)  # fmt: skip


def numbers(dtype: str) -> st.SearchStrategy[float]:
    """Return numbers of a dtype: simple ones, adversarial ones, and any of moderate size."""
    simple = st.integers(-3, 3).map(float)
    # beyond these, products and sums overflow, and there is nothing left to compare
    any_ = st.floats(-(2.0**30), 2.0**30, width=32 if dtype == "float32" else 64)
    return st.one_of(simple, st.sampled_from(_ADVERSARIAL), any_)


@st.composite
def _layers(draw: st.DrawFn) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """Draw the type, options and input shape of a layer."""
    kind = draw(st.sampled_from(("Linear", "Conv1d", "Conv2d", "ConvTranspose1d", "AvgPool1d")))
    n, channels, size = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(3, 6))
    if kind == "Linear":
        options: dict[str, Any] = {
            "in_features": draw(st.integers(1, 5)), "out_features": draw(st.integers(1, 4)), "bias": draw(st.booleans())
        }  # fmt: skip
        return kind, options, (n, options["in_features"])
    if kind == "AvgPool1d":
        kernel = draw(st.integers(1, 3))
        options = {
            "kernel_size": kernel,
            "stride": draw(st.integers(1, 2)),
            "padding": draw(st.integers(0, kernel // 2)),
        }
        return kind, options, (n, channels, size)
    options = {
        "in_channels": channels,
        "out_channels": channels * draw(st.integers(1, 2)),
        "kernel_size": draw(st.integers(1, 3)),
        "stride": draw(st.integers(1, 2)),
        "groups": draw(st.sampled_from((1, channels))),
        "bias": draw(st.booleans()),
    }
    if kind == "ConvTranspose1d":
        return kind, options | {"output_padding": draw(st.integers(0, options["stride"] - 1))}, (n, channels, size)
    options |= {
        "padding": draw(st.integers(0, 2)),
        "padding_mode": draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
    }
    spatial = (size,) if kind == "Conv1d" else (3, size)
    return kind, options, (n, channels, *spatial)


def _arguments(rule: str) -> st.SearchStrategy[dict[str, Any]]:
    epsilon = st.sampled_from((1e-6, 1e-9, 1e-3, 0.25, 4.0))
    zero = st.sampled_from((None, "bias"))
    if rule == "Epsilon":
        return st.fixed_dictionaries({"epsilon": epsilon, "zero_params": zero})
    common: dict[str, st.SearchStrategy[Any]] = {"stabilizer": epsilon}
    if rule != "Norm":
        common["zero_params"] = zero
    if rule == "Gamma":
        common["gamma"] = st.sampled_from((0.0, 0.25, 1.0, 7.0, 1e4))
    if rule == "ZBox":
        common |= {"low": st.sampled_from((-4.0, 0.0, -1e6)), "high": st.sampled_from((3.0, 1.0, 1e6))}
    if rule == "AlphaBeta":
        pairs = st.sampled_from(((2.0, 1.0), (1.0, 0.0), (1.5, 0.5), (9.0, 8.0)))
        return st.builds(
            lambda both, rest: rest | {"alpha": both[0], "beta": both[1]}, pairs, st.fixed_dictionaries(common)
        )
    return st.fixed_dictionaries(common)


@st.composite
def examples(draw: st.DrawFn, rule: str, dtypes: Sequence[str]) -> Example:
    """Draw an example for a rule."""
    dtype = draw(st.sampled_from(list(dtypes)))
    kind, options, shape = draw(_layers())
    number = numbers(dtype)
    # short lists are repeated over the tensor: what matters shrinks to few numbers
    values = st.lists(number, min_size=1, max_size=12).map(tuple)
    weighted = "Pool" not in kind
    return Example(
        rule=rule,
        arguments=draw(_arguments(rule)),
        kind=kind,
        options=options,
        shape=shape,
        weight=draw(values) if weighted else (),
        bias=draw(values) if weighted else (),
        x=draw(values),
        relevance=draw(values),
        dtype=dtype,
    )


class _FoundError(Exception):
    """A rule is wrong on an example; Hypothesis shrinks what raises it."""


def search(
    subject: Subject,
    *,
    seconds: float | None = None,
    count: int | None = None,
    rules: Sequence[str] = RULES,
    dtypes: Sequence[str] = ("float64", "float32"),
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Search until the budget is used up, in rounds over the rules; yield one outcome for each round.

    A rule that was found wrong is not searched again. ``progress`` is told how many examples were tried.
    """
    if seconds is None and count is None:
        msg = "search has no budget; give seconds, or a count of examples"
        raise ValueError(msg)
    start, tried, number, left = time.monotonic(), 0, 0, list(rules)
    while left:
        for rule in list(left):
            if (seconds is not None and time.monotonic() - start >= seconds) or (count is not None and tried >= count):
                return
            size = ROUND if count is None else min(ROUND, count - tried)
            outcome = _round(subject, rule, dtypes, seed + number, size, progress)
            number, tried = number + 1, tried + size
            if outcome.verdict is not Verdict.PASS:
                left.remove(rule)
            yield outcome


def _round(
    subject: Subject, rule: str, dtypes: Sequence[str], seed: int, count: int, progress: Callable[[int], None]
) -> Outcome:
    wrong: list[tuple[Example, Finding]] = []
    best = 0.0

    def ask(example: Example) -> None:
        nonlocal best
        finding = _finding(example, subject)
        best = max(best, finding.ratio or 0.0)
        if finding.verdict in BAD:
            wrong.append((example, finding))
            raise _FoundError

    run = hypothesis.seed(seed)(
        settings(
            max_examples=count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck), print_blob=False,
        )(hypothesis.given(examples(rule, dtypes))(ask))
    )  # fmt: skip
    begun = time.perf_counter()
    if not subject.offers(rule):
        return _outcome(
            f"{CHECK}/{rule}", rule, Finding(Verdict.NOT_OFFERED, reason=f"{subject.spec} has no {rule}"), 0.0
        )
    try:
        run()
    except (_FoundError, Flaky):
        # the last that failed is the smallest
        example, finding = _simplest(*wrong[-1], subject)
        return _outcome(example.id, rule, finding, time.perf_counter() - begun, example)
    finally:
        progress(count)
    name = f"{CHECK}/{rule}/seed-{seed}/{count}-examples"
    return _outcome(name, rule, Finding(Verdict.PASS, best), time.perf_counter() - begun)


def _simplest(example: Example, finding: Finding, subject: Subject) -> tuple[Example, Finding]:
    """Go on where Hypothesis stops: it changes one number, or the length of one list, and here both have to change."""
    left = _simpler(example)
    while (simpler := next(left, None)) is not None:
        if (found := _finding(simpler, subject)).verdict is finding.verdict:
            example, finding = simpler, found
            left = _simpler(example)
    return example, finding


def _simpler(example: Example) -> Iterator[Example]:
    """Yield the example with one number in place of a list, and with fewer features."""
    for name in ("weight", "bias", "x", "relevance"):
        values: tuple[float, ...] = getattr(example, name)
        for value in dict.fromkeys(values) if len(values) > 1 else ():
            yield replace(example, **{name: (value,)})  # type: ignore[arg-type]  # names of tuples
    if example.kind == "Linear":
        n, features = example.shape
        for options, shape in (
            ({"out_features": 1}, (n, features)),
            ({"in_features": 1}, (n, 1)),
            ({}, (1, features)),
        ):
            simpler = replace(example, options=example.options | options, shape=shape)
            if simpler != example:
                yield simpler


def _finding(example: Example, subject: Subject) -> Finding:
    try:
        return example.case().run(subject)
    except NotOfferedError as error:
        return Finding(Verdict.NOT_OFFERED, reason=str(error))
    except Exception as error:  # noqa: BLE001  the subject may raise anything
        return Finding(Verdict.ERROR, reason=f"{type(error).__name__}: {error}")


def _outcome(id_: str, rule: str, finding: Finding, seconds: float, example: Example | None = None) -> Outcome:
    layer, dtype = (example.kind, example.dtype) if example else ("-", "-")
    return Outcome(id_, rule, layer, CHECK, dtype, Level.MUST, seconds=seconds, **vars(finding))

"""What a search draws its examples from: the numbers on which floating point breaks, layers, parameters."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from verify.questions.examples import Example

if TYPE_CHECKING:
    from collections.abc import Sequence

# Hypothesis draws constants from the source of the modules that are loaded, but for installed ones. The process of a
# subject has that one, and the judge has not: with one seed, both would ask other examples, and right rules fail.
with contextlib.suppress(ImportError):  # versions that do not draw them have no such module
    vars(importlib.import_module("hypothesis.internal.conjecture.providers"))["is_local_module_file"] = lambda _: False

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

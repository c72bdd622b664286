"""One-sided times by pytest-benchmark: ``pytest bench/``, with its options, as in ``--benchmark-json FILE``.

They say what a call takes, not what it takes beside another one: for that, `lrp-bench run` interleaves the two.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bench.measuring import settle_heap
from bench.subjects import GRADIENT, OURS, Gate, contender
from bench.workloads import NONNEGATIVE, Cell, pose, quick_cells

if TYPE_CHECKING:
    from collections.abc import Iterable


def _cells() -> Iterable[Cell]:
    """Return the cells of a quick run, each layer's gradient first."""
    layers = itertools.groupby((cell for cell in quick_cells() if cell.kind == "layer"), lambda cell: cell.workload)
    for _, cells in layers:
        first, *others = cells
        yield from (replace(first, rule=GRADIENT), first, *others)


def pytest_generate_tests(metafunc: Any) -> None:
    """Make a test of each cell."""
    threads = torch.get_num_threads()
    cells = [replace(cell, threads=threads) for cell in _cells()]
    metafunc.parametrize("cell", cells, ids=[f"{cell.workload}-{cell.rule}-{cell.batch}" for cell in cells])


def test_layer(benchmark: Any, cell: Cell) -> None:
    """Time forward and backward of a layer with a rule, after the reference agreed."""
    assert cell.signs == NONNEGATIVE
    benchmark.group = cell.workload
    benchmark.extra_info |= {name: getattr(cell, name) for name in ("rule", "dtype", "device", "batch", "threads")}
    settle_heap()
    problem = pose(cell)
    with contender(GRADIENT if cell.rule == GRADIENT else OURS).on(cell, problem) as (call, module):
        if cell.rule != GRADIENT:
            agreement = Gate(cell, problem).judge(call, module)
            assert agreement.holds, agreement.reason
            benchmark.extra_info["agreement_ratio"] = agreement.ratio
        call()  # the first call is slow, and the number of rounds would follow from it
        benchmark(call)

"""The paired loop: calls of A and B in the order A B B A, one call a sample. The only file that reads the clock."""

from __future__ import annotations

import gc
import math
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Call = Callable[[], Any]
    #: Runs a call and returns how long it took, in seconds.
    Clock = Callable[[Call], float]

#: A and B within a quad.
ORDER = "ABBA"
#: A call that takes less than this many readings of the clock is repeated within a sample.
CLOCK_READINGS = 100
#: Seconds of a pair from which on its calls may hold so much memory that garbage is collected before each quad.
_HEAVY = 0.01


@dataclass(frozen=True)
class Effort:
    """How much is measured, all processes together.

    ``pairs_fast`` is for calls below a millisecond and ``pairs_slow`` the least for slow ones, between them the number
    falls with the time of a call. ``seconds`` limits one comparison, but each process does one quad in any case.
    ``warm_up`` is in seconds, for each side of a comparison in each process.
    """

    processes: int = 5
    pairs_fast: int = 400
    pairs_slow: int = 30
    seconds: float = 15.0
    warm_up: float = 0.02

    def quads(self, pair_seconds: float) -> int:
        """Return the quads of one process, when a call of A and one of B take ``pair_seconds`` together.

        >>> Effort(processes=5).quads(1e-4), Effort(processes=5).quads(0.02), Effort(processes=5).quads(10.0)
        (40, 4, 1)

        """
        pairs = min(max(self.pairs_fast * 2e-3 / max(pair_seconds, 1e-9), self.pairs_slow), self.pairs_fast)
        affordable = self.seconds / (2 * pair_seconds * self.processes)
        return max(1, min(math.ceil(pairs / 2 / self.processes), int(affordable)))


def wall_clock(call: Call) -> float:
    """Time one call on the CPU."""
    start = perf_counter_ns()
    kept = call()
    end = perf_counter_ns()
    del kept  # what a call allocated is freed after the clock has stopped
    return (end - start) * 1e-9


def clock_cost() -> float:
    """Return what one reading of the clock costs, in seconds."""
    return float(np.median([wall_clock(_nothing) for _ in range(200)]))


def _nothing() -> None:
    """What is timed to time the clock."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector from running inside a sample; who calls has collected before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def warm(call: Call, clock: Clock, seconds: float) -> float:
    """Call until ``seconds`` have passed, after a first call that is cold; return the median of the later half."""
    times = [clock(call) for _ in range(2)]
    while sum(times[1:]) < seconds:
        times.append(clock(call))
    return float(np.median(times[len(times) // 2 :]))


def paired(a: Call, b: Call, effort: Effort, clock: Clock = wall_clock) -> NDArray[np.float64]:
    """Time A against B in this process: seconds of each call (quads, 4), in the order A B B A.

    Both are warmed before anything is counted. A sample is one call, unless that is too short for the clock.
    """
    with quiet():
        pair = warm(a, clock, effort.warm_up) + warm(b, clock, effort.warm_up)
        calls = max(1, math.ceil(CLOCK_READINGS * clock_cost() / (pair / 2))) if clock is wall_clock else 1
        times = np.empty((effort.quads(pair * calls), len(ORDER)))
        sides = {"A": _repeated(a, calls), "B": _repeated(b, calls)}
        for quad in times:
            if pair > _HEAVY:
                gc.collect(1)  # what cycles a subject leaves would pile up; only new objects are looked at
            for position, side in enumerate(ORDER):
                quad[position] = clock(sides[side])
    return times / calls


def _repeated(call: Call, times: int) -> Call:
    if times == 1:
        return call

    def several() -> None:
        for _ in range(times):
            call()

    return several

"""The paired loop, with a clock that is made up: order, number of calls, repetition of what is too short."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from bench import pairing
from bench.pairing import Effort, paired


class Calls:
    """Two calls that take known times, and a clock that believes them."""

    def __init__(self, a: float = 1e-3, b: float = 2e-3) -> None:
        self.seconds = {"A": a, "B": b}
        self.log: list[str] = []

    def call(self, side: str) -> float:
        self.log.append(side)
        return self.seconds[side]

    def a(self) -> float:
        return self.call("A")

    def b(self) -> float:
        return self.call("B")

    @staticmethod
    def clock(call: pairing.Call) -> float:
        return float(call())


def test_order_is_abba_and_times_belong_to_their_calls() -> None:
    calls = Calls()
    times = paired(calls.a, calls.b, Effort(processes=1, pairs_slow=6, pairs_fast=6, warm_up=0), Calls.clock)
    np.testing.assert_array_equal(times, np.tile([1e-3, 2e-3, 2e-3, 1e-3], (3, 1)))
    assert "".join(calls.log) == "AABB" + 3 * "ABBA"  # warmed first


def test_warm_up_goes_on_until_its_time_is_up() -> None:
    calls = Calls()
    assert pairing.warm(calls.a, Calls.clock, seconds=0.0095) == 1e-3
    assert len(calls.log) == 1 + 10  # the first is cold


def test_a_cold_call_does_not_end_the_warm_up() -> None:
    times = iter([1.0, 2e-3, 2e-3, 2e-3])
    assert pairing.warm(lambda: None, lambda _: next(times), seconds=5e-3) == 2e-3
    assert not list(times)


@pytest.mark.parametrize(
    ("pair", "quads"),
    [(1e-5, 40), (1.9e-3, 40), (4e-3, 20), (0.1, 3), (1.0, 3), (4.0, 1), (1e3, 1)],
    ids="{}".format,
)
def test_fast_calls_get_many_quads_and_slow_ones_few(pair: float, quads: int) -> None:
    assert Effort(processes=5, seconds=30).quads(pair) == quads


def test_what_is_too_short_for_the_clock_is_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "clock_cost", lambda: 1e-5)  # a clock so slow that these calls are too short
    count = []
    effort = Effort(processes=1, pairs_fast=2, pairs_slow=2, warm_up=0, seconds=1e9)
    times = paired(lambda: count.append(1), lambda: None, effort)
    assert len(count) > 1000
    assert (times < 1e-3).all()  # one call's share


def test_the_collector_is_off_inside_and_as_before_after() -> None:
    seen = []
    paired(lambda: seen.append(gc.isenabled()), lambda: None, Effort(pairs_fast=2, pairs_slow=2, warm_up=0))
    assert not any(seen)
    assert gc.isenabled()


def test_cycles_of_heavy_calls_do_not_pile_up() -> None:
    class Cycle:
        alive = 0

        def __init__(self) -> None:
            self.itself = self
            Cycle.alive += 1
            most[0] = max(most[0], Cycle.alive)

        def __del__(self) -> None:
            Cycle.alive -= 1

    most = [0]

    def heavy(call: pairing.Call) -> float:
        call()
        return 0.1

    paired(Cycle, Cycle, Effort(processes=1, pairs_fast=40, pairs_slow=40, seconds=1e9, warm_up=0), heavy)
    assert most[0] <= 6 + 4  # warming, and one quad


def test_an_error_in_a_call_leaves_the_collector_on() -> None:
    def broken() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        paired(broken, broken, Effort())
    assert gc.isenabled()

"""Memory, limits and goals, CUDA's clock with a device that is made up, and the code that each cell shows."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bench import cuda, machine
from bench.limits import goal, passes_limit
from bench.memory import peak, peak_bytes
from bench.session import Plan
from bench.subjects import CLASS_BY_CLASS, contender
from bench.tabulating import code, command
from bench.workloads import CLASSIFIER, LAYERS, RULES, SIGNED, Cell, all_cells, multiply_adds, pose

if TYPE_CHECKING:
    from collections.abc import Callable

CONV = Cell("conv2d-64-64-3x3@56", "ZPlus()")


# --- memory -----------------------------------------------------------------------------------------------------------

#: Takes three blocks of malloc, writes to them and gives them back, several times; prints the page faults of the last.
FAULTS = """
import ctypes, os, resource
from bench import worker
stdout = os.dup(1)  # a worker prints to nowhere
libc, size = ctypes.CDLL(None), ctypes.c_size_t(2**23)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
{settle}
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
os.write(stdout, str(faults).encode())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc learns from blocks that are freed")
def test_the_heap_of_a_worker_is_not_given_back_and_faulted_in_again() -> None:
    # one of glibc's own variables would settle it as well
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def pages(settle: str) -> int:
        program = [sys.executable, "-c", FAULTS.format(settle=settle)]
        answer = subprocess.run(program, check=True, capture_output=True, text=True, env=environment)
        return int(answer.stdout)

    assert pages("") > 1000  # 24 MiB in pages of 4 KiB are 6144
    assert pages("worker.begin()") < 100


def test_peak_memory_is_what_was_held_at_a_time() -> None:
    x = torch.zeros(1000, 1000)

    def call() -> torch.Tensor:
        a = x + 1
        b = a * 2  # two of 4 MB
        del a
        return b + 1  # two again

    assert 8_000_000 <= peak_bytes(call) < 8_001_000


def test_a_call_that_holds_one_more_tensor_is_seen() -> None:
    x = torch.zeros(1000, 1000)
    assert peak_bytes(lambda: (x + 1) + (x + 2) * (x + 3)) - peak_bytes(lambda: (x + 1) + (x + 2)) >= 4_000_000


def test_peak_of_nothing() -> None:
    assert peak([]) == 0


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "signs", "limit"),
    [("Epsilon()", "signed", 1.0), ("ZPlus()", "x>=0", 1.5), ("ZPlus()", "signed", 2.5), ("Flat()", "x>=0", 0.5),
     ("AlphaBeta(1, 0)", "signed", 2.5), ("ZBox(-3, 3)", "x>=0", 1.5), ("Pass()", "x>=0", None),
     ("gradient", "x>=0", 1.0)],
)  # fmt: skip
def test_passes_limit(rule: str, signs: str, limit: float | None) -> None:
    assert passes_limit(replace(CONV, rule=rule, signs=signs)) == limit


@pytest.mark.parametrize(
    ("change", "subject", "baseline", "expected"),
    [
        ({}, "lrp_rules", "gradient", 1.65),
        ({"signs": SIGNED}, "lrp_rules", "gradient", 2.7),
        ({"rule": "Epsilon(zero_params='bias')"}, "lrp_rules", "gradient", 1.15),
        ({"workload": "linear-16-16"}, "lrp_rules", "gradient", 2.5),
        ({"workload": "linear-16-16", "rule": "Gamma(0.25)"}, "lrp_rules", "gradient", 3.5),
        ({"workload": "relu-64@56", "rule": "Pass()", "batch": 16}, "lrp_rules", "gradient", 1.2),
        ({"workload": "vgg16@224", "rule": "EpsilonPlus", "kind": "model"}, "lrp_rules", "gradient", 1.7),
        ({"workload": "mlp", "rule": "EpsilonPlus", "kind": "model"}, "lrp_rules", "gradient", None),
        ({"workload": "mlp", "rule": "EpsilonPlus", "kind": CLASSIFIER}, "lrp_rules", "gradient", None),
        ({"workload": "mlp", "kind": CLASSIFIER}, "lrp_rules", f"lrp_rules{CLASS_BY_CLASS}", 1.0),
        ({"workload": "linear-4096-4096", "batch": 1}, "lrp_rules", "gradient", None),
        ({"dtype": "bfloat16"}, "lrp_rules", "gradient", None),
        ({"device": "cuda"}, "lrp_rules", "gradient", None),
        ({}, "lrp_rules", "zennit", 1.0),
        ({}, "zennit", "gradient", None),
    ],
)
def test_goals(change: dict[str, Any], subject: str, baseline: str, expected: float | None) -> None:
    assert goal(replace(CONV, **change), subject, baseline) == expected


def test_every_cell_has_a_limit_or_no_passes() -> None:
    without = {cell.rule for cell in all_cells() if passes_limit(cell) is None and not cell.is_model}
    assert without == {"Pass()", "ReLUDeconvNet()", "ReLUGuidedBackprop()", "ReLUBetaSmooth()"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear-512-512", 512 * 512),
        ("conv2d-64-64-3x3@56", 64 * 64 * 9 * 56 * 56),
        ("conv2d-64-3x3-depthwise@56", 64 * 9 * 56 * 56),
        ("convtranspose1d-64-64-4-stride2@512", 64 * 64 * 4 * 512),
    ],
)
def test_multiply_adds(name: str, expected: int) -> None:
    assert multiply_adds(Cell(name, "Epsilon()")) == expected


# --- CUDA, without one ------------------------------------------------------------------------------------------------


class Device:
    """What of ``torch.cuda`` the clock asks for; its time is the number of calls so far."""

    def __init__(self) -> None:
        self.ticks, self.log = itertools.count(), list[str]()
        self.stream_now = FakeStream(self, "main")

    def Event(self, *, enable_timing: bool) -> FakeEvent:  # noqa: N802  torch's name
        assert enable_timing
        return FakeEvent(self)

    def Stream(self) -> FakeStream:  # noqa: N802
        return FakeStream(self, "side")

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802
        return FakeGraph(self)

    def synchronize(self) -> None:
        self.log.append("wait")

    def current_stream(self) -> FakeStream:
        return self.stream_now

    def stream(self, stream: FakeStream) -> FakeStream:
        return stream

    def graph(self, graph: FakeGraph) -> FakeGraph:
        return graph


class FakeEvent:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, -1

    def record(self) -> None:
        self.at = next(self.device.ticks)
        self.device.log.append("event")

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1000.0 * (end.at - self.at)


class FakeStream:
    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name

    def wait_stream(self, other: FakeStream) -> None:
        self.device.log.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.device.log.append(f"on {self.name}")

    def __exit__(self, *_: object) -> None:
        self.device.log.append(f"off {self.name}")


class FakeGraph:
    def __init__(self, device: Device) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.device.log.append("capture")

    def __exit__(self, *_: object) -> None:
        self.device.log.append("captured")

    def replay(self) -> None:
        self.device.log.append("replay")


def noted(device: Device) -> Callable[[], None]:
    return lambda: device.log.append("call")


def test_tf32_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    cuda.full_precision()
    assert not torch.backends.cudnn.allow_tf32


def test_a_call_stands_between_two_events_and_the_device_is_waited_for() -> None:
    device = Device()
    clock = cuda.EventClock(device)
    clock._flush.fill_(7)
    assert clock(noted(device)) == 1.0
    assert device.log == ["wait", "event", "call", "event", "wait"]
    assert not clock._flush.any()  # the cache was overwritten


def test_a_graph_is_warmed_on_a_stream_of_its_own_captured_once_and_replayed() -> None:
    device = Device()
    seconds = cuda.graph_seconds(noted(device), cuda.EventClock(device), replays=5, cuda=device)
    assert seconds == 1.0
    log = device.log
    assert log.count("call") == 3 + 1
    assert log[: log.index("capture")].count("call") == 3
    assert log[log.index("capture") + 1 : log.index("captured")] == ["call"]
    assert log.count("replay") == 2 + 5


# --- what a cell shows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["lrp_rules", "zennit", "gradient"])
@pytest.mark.parametrize(
    "cell",
    [
        Cell("linear-16-16", "AlphaBeta(2, 1)", SIGNED, dtype="float64"),
        Cell("relu-16", "Pass()"),
        Cell("linear-16-16", "Epsilon(zero_params='bias')"),
        Cell("mlp", "EpsilonPlus", SIGNED, kind="model"),
        Cell("mlp", "EpsilonPlus", SIGNED, kind=CLASSIFIER),
    ],
    ids=lambda cell: f"{cell.workload}-{cell.rule}-{cell.kind}",
)
def test_the_code_of_a_cell_runs(cell: Cell, subject: str) -> None:
    contender(subject)  # imports zennit where torchvision needs help
    names: dict[str, Any] = {}
    exec(code(cell, subject), names)  # noqa: S102  our own text
    classes = (10,) if cell.kind == CLASSIFIER else ()
    assert names["relevance"].shape == (*classes, *names["x"].shape)


def test_every_rule_is_written_as_it_is_made() -> None:
    import lrp_rules  # noqa: PLC0415

    for written, (name, arguments) in RULES.items():
        made = eval(written, vars(lrp_rules))  # noqa: S307  our own text
        assert type(made).__name__ == name
        given = getattr(lrp_rules, name)(**arguments)
        for argument in arguments:
            assert getattr(made, argument) == getattr(given, argument)


def test_the_command_of_a_cell_names_it() -> None:
    line = command(CONV, Plan((CONV,), against=("zennit", "captum")))
    assert line == (f"lrp-bench run --cell {CONV.id} --threads 1 --device cpu --against zennit,captum --out again")


def test_subjects_share_parameters_input_and_relevance() -> None:
    problem = pose(replace(CONV, workload="linear-16-16"))
    with contender("lrp_rules").on(CONV, problem) as (_, a), contender("gradient").on(CONV, problem) as (_, b):
        assert a is not b
        assert all(p is q for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_machine_facts_are_plain_and_stable_ones_hold_no_state() -> None:
    facts = machine.facts()
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 2**28
    assert "load" not in machine.stable()
    assert machine.stable() == machine.stable()
    assert machine.versions()["torch"] == torch.__version__


def test_workloads_name_what_bounds_them() -> None:
    assert {regime for workload in LAYERS.values() for regime in workload.batches.values()} == {
        "overhead", "compute", "memory"
    }  # fmt: skip

"""For ``pytest bench/``: only facts that stay the same, or pytest-benchmark takes each run for another machine's."""

from __future__ import annotations

from typing import Any

from bench.machine import stable


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:  # noqa: ARG001  a hook
    """Replace what pytest-benchmark has found out about the machine, such as its name in the network."""
    machine_info.clear()
    machine_info.update(stable())

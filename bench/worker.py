"""What a worker process does. Nothing here imports torch before `begin` has run, or an interrupt would be heard."""

from __future__ import annotations

import importlib
import os
import signal
import warnings
from typing import Any


def begin() -> None:
    """Prepare a worker: the keyboard and the terminal are the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries of C print too: torch's profiler, to begin with
        os.dup2(nowhere, stream)
    warnings.simplefilter("ignore")
    importlib.import_module("bench.measuring").settle_heap()


def measure(task: Any) -> Any:
    """Answer a task, see :mod:`bench.measuring`."""
    return importlib.import_module("bench.measuring").measure(task)

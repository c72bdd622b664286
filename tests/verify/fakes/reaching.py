"""A subject for runs on a cluster: it ends the worker that it was asked by, or waits until somebody does."""

import importlib
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from verify.model import Case, Finding, Level, Verdict

DTYPES = DEFAULT_DTYPES = ("float64",)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


Behaving: Any = importlib.import_module("behaving").Epsilon


class Epsilon(Behaving):  # type: ignore[misc]  # it lies beside this file, and in no package
    """The subject's rule. Above the process of a subject is that of its judge, and above that one Dask's."""

    def reaches_up(self) -> Finding:
        judge = os.getppid()
        for pid in (_parent(judge), judge):
            os.kill(pid, signal.SIGKILL)
        raise AssertionError

    def waits_once(self) -> Finding:
        told = Path(os.environ["REACHING_TELLS"])
        if told.exists():
            return Finding(Verdict.PASS)
        time.sleep(2)  # until the other cases have been answered
        told.write_text(f"{os.getpid()} {_parent(os.getppid())}", encoding="utf-8")
        time.sleep(1000)
        raise AssertionError


def _ask(behaviour: str, subject: Any) -> Finding:
    found: Finding = getattr(subject.get("Epsilon")(), behaviour)()
    return found


def all_cases(*, seed: int, dtypes: Sequence[str], device: str) -> tuple[Case, ...]:
    """One case of each kind among harmless ones; the check is the behaviour."""
    names = ["passes", "is_far_off", "reaches_up", "waits_once", "raises", "draws"]
    return tuple(
        Case(name, "Epsilon", "Linear", name, "float64", Level.MUST, partial(_ask, name), device) for name in names
    )

"""Cases and a subject for tests of the runner: each case makes the subject behave in the way it is named for."""

import ctypes
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from verify.model import Case, Finding, Level, Verdict

DTYPES = ("float64", "float32", "float16")
DEFAULT_DTYPES = ("float64", "float32")


class SilentError(Exception):
    """An exception whose message cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


class _Registers:
    """What a rule must do to be asked anything."""

    def register(self, module: torch.nn.Module) -> Any:
        return SimpleNamespace(remove=lambda: None)


class Epsilon(_Registers):
    """The subject's rule, one method a behaviour."""

    def passes(self) -> Finding:
        return Finding(Verdict.PASS, 0.25, 0.5, details={"model": "float64", "worst entry": {"entry": 3, "got": 1.5}})

    def crashes(self) -> Finding:
        os._exit(3)

    def exits(self) -> Finding:
        os._exit(0)

    def dies_later(self) -> Finding:
        threading.Timer(0.2, os._exit, [3]).start()
        return Finding(Verdict.PASS)

    def segfaults(self) -> Finding:
        ctypes.string_at(0)
        raise AssertionError

    def hangs(self) -> Finding:
        if "BEHAVING_STARTED" in os.environ:
            time.sleep(1)  # until the outcome before has been taken
            Path(os.environ["BEHAVING_STARTED"]).write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(1000)
        raise AssertionError

    def raises(self) -> Finding:
        message = "no\x1b[31m good\nat all"
        raise ValueError(message)

    def raises_below(self) -> Finding:
        json.loads("{")
        raise AssertionError

    def says_nothing(self) -> Finding:
        raise SilentError

    def stops(self) -> Finding:
        sys.exit(0)

    def prints(self) -> Finding:
        print("LOUD")  # noqa: T201
        print("LOUD", file=sys.stderr)  # noqa: T201
        os.write(1, b"LOUD\n")
        warnings.warn("LOUD", stacklevel=1)
        return Finding(Verdict.PASS)

    def returns_a_wrong_shape(self) -> Finding:
        return Finding(Verdict.FAIL, reason=f"relevance of shape {tuple(torch.zeros(2, 3).shape)}, expected (3, 2)")

    def returns_no_finding(self) -> Any:
        return None

    def is_far_off(self) -> Finding:
        return Finding(Verdict.FAIL, float("inf"), float("nan"), 0.5, "far off")

    def is_advised(self) -> Finding:
        return Finding(Verdict.FAIL, 2.0, reason="only advised")

    def gives_arrays(self) -> Finding:
        details = {"array": np.arange(3.0), "tensor": torch.ones(1, 2), "number": np.float32(0.5), "type": int}
        return Finding(Verdict.PASS, np.float64(0.5), details=details)

    def disables_gradients(self) -> Finding:
        torch.set_grad_enabled(False)
        return Finding(Verdict.PASS)

    def needs_gradients(self) -> Finding:
        return Finding(Verdict.PASS if torch.is_grad_enabled() else Verdict.FAIL)

    def draws(self) -> Finding:
        return Finding(Verdict.PASS, details={"drawn": torch.rand(1).item()})

    draws_again = draws


def _ask(behaviour: str, subject: Any) -> Finding:
    answer: Callable[[], Finding] = getattr(subject.get("Epsilon")(), behaviour)
    return answer()


def _missing(subject: Any) -> Finding:
    subject.get("Flat")
    raise AssertionError


def all_cases(*, seed: int, dtypes: Sequence[str], device: str) -> tuple[Case, ...]:
    """One case a behaviour and dtype; the check is the behaviour, so that `--check` selects it."""
    cases = []
    for dtype in dtypes:
        for behaviour in [name for name in vars(Epsilon) if not name.startswith("_")]:
            level = Level.SHOULD if behaviour == "is_advised" else Level.MUST
            name, run = f"{behaviour}/{dtype}", partial(_ask, behaviour)
            cases.append(Case(name, "Epsilon", "Linear", behaviour, dtype, level, run, device))
        cases.append(Case(f"missing/{dtype}", "Flat", "Conv2d", "missing", dtype, Level.MUST, _missing, device))
    # as some checks do, whatever dtypes are asked for
    for name, dtype in (("of-one-dtype", "float64"), ("of-no-dtype", "-")):
        cases.append(Case(name, "Epsilon", "-", "particular", dtype, Level.MUST, partial(_ask, "passes"), device))
    return tuple(cases)


def twice(*, seed: int, dtypes: Sequence[str], device: str) -> tuple[Case, ...]:
    """Two cases of one id."""
    return all_cases(seed=seed, dtypes=("float64", "float64"), device=device)


def unstable(*, seed: int, dtypes: Sequence[str], device: str) -> tuple[Case, ...]:
    """A case whose id is another one in every process."""
    return (Case(f"passes/{os.getpid()}", "Epsilon", "Linear", "passes", "-", Level.MUST, partial(_ask, "passes")),)

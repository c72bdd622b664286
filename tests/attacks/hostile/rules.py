"""Hostile implementations, ``rules:NAME``: Epsilon attacks, ZPlus is honest.

What lies gives wrong numbers and tries to have them pass; what breaks gives the right ones and tries to take something
else down with it. The file is long because it is a list: one attack after another.
"""

import ctypes
import gc
import inspect
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import lrp_rules
from reference import rounding, rules
from verify import model
from verify.checks import agreement, comparator
from verify.subjects import answering

#: Where an attack writes what it wants to be found by.
NOTES = "HOSTILE_NOTES"


def _subject(attack: Callable[..., Any], *, wrong: bool) -> SimpleNamespace:
    class Epsilon(lrp_rules.Epsilon):
        """The attack, before the relevance is computed; in place of it, if it returns one."""

        def relevance(self, layer: Any, R: Any) -> Any:
            found = attack(layer, R)
            if found is not None:
                return found
            r = super().relevance(layer, R)
            return r * 1.5 if wrong else r

    return SimpleNamespace(Epsilon=Epsilon, ZPlus=lrp_rules.ZPlus)


def lies(attack: Callable[..., Any]) -> SimpleNamespace:
    """Return a subject with wrong numbers."""
    return _subject(attack, wrong=True)


def breaks(attack: Callable[..., Any]) -> SimpleNamespace:
    """Return a subject with right numbers."""
    return _subject(attack, wrong=False)


# --- wrong numbers that want to pass ----------------------------------------------------------------------------------


@lies
def patches_the_comparator(*_: Any) -> None:
    fine = comparator.Comparison(0.0, 0.0, 0.0, None)
    for module in (comparator, agreement):
        vars(module)["compare"] = lambda *_: fine


@lies
def patches_the_verdict(*_: Any) -> None:
    passing = model.Finding(model.Verdict.PASS, 0.0)
    for module in (agreement, model):
        vars(module)["Finding"] = lambda *_, **__: passing


@lies
def patches_the_reference(_: Any, R: Any) -> None:
    rules.relevance = lambda *_: R


@lies
def patches_the_bound(*_: Any) -> None:
    real = rounding.bound
    vars(agreement)["bound"] = lambda *given: SimpleNamespace(**vars(real(*given)) | {"worst": np.inf})


@lies
def patches_autograd(*_: Any) -> None:
    real = torch.autograd.grad
    torch.autograd.grad = lambda *a, **k: tuple(2 * g for g in real(*a, **k))  # type: ignore[assignment]


@lies
def patches_what_is_written_down(*_: Any) -> None:
    vars(answering)["_written"] = lambda _: ({"shape": [3, 5], "dtype": "float64"}, b"\0" * 120)


@lies
def writes_through_stack_frames(*_: Any) -> None:
    for frame in inspect.stack():
        for value in list(frame.frame.f_locals.values()):
            if hasattr(value, "relevance") and hasattr(value, "module"):
                value.relevance.zero_()


@lies
def writes_to_all_that_gc_knows(*_: Any) -> None:
    for one in gc.get_objects():
        with suppress(Exception):
            if isinstance(one, torch.nn.Linear):
                torch.nn.init.zeros_(one.weight)


@lies
def writes_to_its_input(layer: Any, _: Any) -> None:
    with torch.no_grad():
        layer.x.zero_()


@lies
def writes_to_the_relevance(_: Any, R: Any) -> None:
    with torch.no_grad():
        R.zero_()


@lies
def writes_to_the_relevance_afterwards(_: Any, R: Any) -> None:
    threading.Timer(0.0, R.zero_).start()


class _Liar(torch.Tensor):
    """Says that it is what is expected."""

    def __eq__(self, _: object) -> Any:
        return torch.ones(self.shape, dtype=torch.bool)

    __hash__ = None  # type: ignore[assignment]

    def numpy(self, **_: Any) -> Any:
        return np.full(self.shape, np.nan)


@lies
def returns_a_lying_tensor(_: Any, R: Any) -> Any:
    return torch.ones(len(R), 5, dtype=R.dtype).as_subclass(_Liar)


def _seq() -> Any:
    """The number of the request that is answered now."""
    for one in inspect.stack():
        request = one.frame.f_locals.get("request")
        if isinstance(request, dict) and "seq" in request:
            return request["seq"]
    return None


def _say(message: Any, data: bytes = b"") -> None:
    if isinstance(message, dict):
        message |= {"seq": _seq()}
    head = json.dumps(message).encode()
    for path in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if str(path.readlink()).startswith("socket:"):
                os.write(int(path.name), struct.pack("!QQ", len(head), len(data)) + head + data)


_PASS = {
    "verdict": "pass", "ratio": 0.0, "probable": 0.0, "undecided": 0.0, "reason": "", "details": {}, "undecidable": 0.0,
}  # fmt: skip


@lies
def forges_a_verdict(*_: Any) -> None:
    _say({"finding": _PASS, "whole": True})


@lies
def forges_a_verdict_after_its_answers(*_: Any) -> None:
    _say({"answers": [], "asked": True, "after": _PASS, "left": "", "whole": True})


@lies
def forges_endless_answers(*_: Any) -> None:
    _say({"answers": [[{"shape": [2**40], "dtype": "float64"}]], "asked": True, "after": None, "left": ""})


@lies
def forges_rubbish(*_: Any) -> None:
    _say(["no", "object"])


@lies
def raises_a_verdict(*_: Any) -> None:
    raise model.UnansweredError(model.Finding(model.Verdict.PASS, 0.0))


@lies
def raises_what_ends_a_recording(*_: Any) -> None:
    raise answering.Enough


# --- ends of the process, and exceptions that are none ----------------------------------------------------------------


class _Silent(BaseException):
    def __str__(self) -> str:
        raise SystemExit(0)


@breaks
def raises_system_exit(*_: Any) -> None:
    raise SystemExit(0)


@breaks
def raises_generator_exit(*_: Any) -> None:
    raise GeneratorExit


@breaks
def raises_base_exception(*_: Any) -> None:
    raise BaseException("for all to see")  # noqa: EM101, TRY002, TRY003


@breaks
def raises_what_cannot_be_printed(*_: Any) -> None:
    raise _Silent


@breaks
def raises_megabytes(*_: Any) -> None:
    raise ValueError("wrong " * 2**20)


@breaks
def recurses(*_: Any) -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1)

    deeper(0)


@breaks
def exits_with_0(*_: Any) -> None:
    os._exit(0)


@breaks
def exits_with_0_by_the_c_library(*_: Any) -> None:
    ctypes.CDLL(None)._exit(0)


@breaks
def segfaults(*_: Any) -> None:
    ctypes.string_at(0)


@breaks
def hangs_with_the_lock_of_python(*_: Any) -> None:
    ctypes.PyDLL(None).sleep(1000)


@breaks
def ignores_signals_and_hangs(*_: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)


@breaks
def allocates_all_memory(*_: Any) -> None:
    kept = []
    while True:
        kept.append(np.empty(2**25))  # a quarter of a GiB


@breaks
def closes_every_file(*_: Any) -> None:
    os.closerange(0, 4096)


@breaks
def prints_megabytes(*_: Any) -> None:
    for stream in (1, 2):
        os.write(stream, b"x" * 2**22)
    print("x" * 2**22)  # noqa: T201


# --- processes that stay ----------------------------------------------------------------------------------------------


def _note(pid: int) -> None:
    with Path(os.environ[NOTES]).open("a", encoding="utf-8") as file:
        file.write(f"{pid}\n")


@breaks
def leaves_children(*_: Any) -> None:
    _note(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid)
    if (pid := os.fork()) == 0:
        time.sleep(1000)
    _note(pid)


@breaks
def leaves_a_session_of_its_own(*_: Any) -> None:
    if (pid := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            _note(os.getpid())
            time.sleep(1000)
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.2)  # until it has noted itself


# --- the state of all -------------------------------------------------------------------------------------------------

KEPT: list[Any] = []


def _enter(manager: Any) -> None:
    KEPT.append(manager)
    manager.__enter__()


class _Mode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


#: What is left changed, by a part of what the case is told, and how.
STATE: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float16),
    "modes of torch": lambda: torch.set_default_device("meta"),
    "modes": lambda: _enter(_Mode()),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "inference mode": lambda: _enter(torch.inference_mode()),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "oneDNN": lambda: torch._C._set_mkldnn_enabled(False),
    "denormal": lambda: torch.set_flush_denormal(True),
    "saved-tensor hooks": lambda: _enter(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: 2 * t)),
    "hooks of all modules": lambda: torch.nn.modules.module.register_module_forward_hook(lambda *g: g[2] * 2),
    "functions of torch": lambda: setattr(torch.nn.functional, "linear", lambda *_: torch.zeros(3, 4)),
    "autocast on cpu": lambda: torch.set_autocast_enabled("cpu", True),
    "number of threads": lambda: torch.set_num_threads(2),
    "NumPy's error handling": lambda: np.seterr(all="raise"),
    "imported modules": lambda: [sys.modules.pop(name) for name in list(sys.modules) if name.startswith("verify.")],
    "the current folder": lambda: os.chdir("/"),
    "the limit of recursion": lambda: sys.setrecursionlimit(90),
}


def _changing(change: Callable[[], Any]) -> SimpleNamespace:
    class Epsilon(lrp_rules.Epsilon):
        """Changes the state where it is taken off again: the relevance is there."""

        def register(self, module: Any) -> Any:
            handle = super().register(module)

            def remove() -> None:
                handle.remove()
                change()

            return SimpleNamespace(remove=remove)

    return SimpleNamespace(Epsilon=Epsilon, ZPlus=lrp_rules.ZPlus)


for _number, _change in enumerate(STATE.values()):
    globals()[f"changes_{_number}"] = _changing(_change)

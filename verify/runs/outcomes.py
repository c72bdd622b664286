"""One case of one subject becomes an outcome, whatever the subject does."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
import traceback
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Nothing here imports torch before it is called, see worker.py.
from verify.formats.text import shortened, text_of
from verify.model import (
    BAD,
    TIME_LIMIT,
    Case,
    Finding,
    NotOfferedError,
    Outcome,
    SubjectError,
    UnansweredError,
    Verdict,
)
from verify.runs.hosted import Hosted
from verify.runs.isolation import memory_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.model import Subject
    from verify.runs.state import State

#: Characters of a detail.
_LONGEST = 20_000
#: The detail that says what a case has left changed in its process.
_LEFT = "left changed"


def loaded(spec: str) -> Subject:
    """Load a subject in this process."""
    from verify.subjects.loading import load  # noqa: PLC0415  imports torch, see the top

    with _quiet():
        return load(spec)


def tried(subject: Subject) -> None:
    """Ask the smallest case; raise SubjectError where no rule of a subject runs at all."""
    from verify.subjects.asking import smoke  # noqa: PLC0415  imports torch, see the top

    with _quiet():
        reason = smoke(subject)
    if reason:
        raise SubjectError(reason)


def ask(case: Case, subject: Subject, seed: int, *, here: bool, time_limit: float = TIME_LIMIT) -> Outcome:
    """Ask one case of a subject, and turn whatever comes of it into a verdict."""
    from verify.checks.probing import has_no_parameters  # noqa: PLC0415  imports torch, see the top
    from verify.checks.undecided import held  # noqa: PLC0415  likewise

    start = time.perf_counter()
    seconds = None
    with case_of_its_own(seed, watched=not isinstance(subject, Hosted)) as state:
        try:
            with alive() if here else contextlib.nullcontext(), subject.asking(case, time_limit):
                finding = case.run(subject)
            seconds = time.perf_counter() - start
            finding = held(case, finding)
        except NotOfferedError as error:
            finding = Finding(Verdict.NOT_OFFERED, reason=text_of(error))
        except UnansweredError as error:
            finding = error.finding
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and here:
                raise  # the user's; a worker does not hear the keyboard
            finding = Finding(Verdict.ERROR, reason=reason_of(error, subject.spec))
            if here:
                finding = replace(finding, details={"traceback": _traceback(error)})
    if finding.verdict is Verdict.ERROR and has_no_parameters(case.rule, case.id, finding.reason):
        finding = Finding(Verdict.NOT_OFFERED, reason=finding.reason)
    left = subject.left if isinstance(subject, Hosted) else state.restore()
    return outcome_of(case, blamed(finding, left), time.perf_counter() - start if seconds is None else seconds)


@contextlib.contextmanager
def case_of_its_own(seed: int, *, watched: bool = True) -> Iterator[State]:
    """Let what an earlier case left behind decide nothing, or a case asked alone would answer otherwise.

    ``watched``: the case is asked in this process, and may change its state.
    """
    state = _state()
    reseed(seed)
    if watched and not _pinned:
        state.mark()
    importlib.import_module("torch").set_grad_enabled(True)
    with _quiet():
        yield state


@cache
def _state() -> State:
    from verify.runs.state import State  # noqa: PLC0415  imports torch, see the top

    return State()


_pinned: list[bool] = []


def pin() -> None:
    """Take the state of now for that from which every case of this process starts."""
    _state().mark()
    _pinned.append(True)


def whole() -> bool:
    """Whether that state could be put back after the last case."""
    return _state().whole


def blamed(finding: Finding, left: str) -> Finding:
    """Return the finding; of a case that leaves a changed state to the next ones, one that says so."""
    if not left:
        return finding
    if finding.verdict in BAD:
        return replace(finding, details={**finding.details, _LEFT: left})
    reason = f"the process is left changed, for all that comes after: {left}"
    return replace(finding, verdict=Verdict.FAIL, reason=reason)


@contextlib.contextmanager
def alive() -> Iterator[None]:
    """Let a call that would end this process, as if all were well, be an error of the case."""
    before = os._exit
    os._exit = _refuse_to_exit  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = before


def _refuse_to_exit(status: int) -> None:
    raise SystemExit(status)


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  an exception that cannot be printed is still reported
        return "(its traceback cannot be printed)"


def reseed(seed: int) -> None:
    """Do what ``torch.manual_seed`` does, without the traceback that it makes for a device that is not in use."""
    torch: Any = importlib.import_module("torch")
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def carried(id_: str) -> Case:
    """Return the case that an id carries whole, see verify/questions/examples.py; raise ValueError if it was cut."""
    from verify.checks.examples import case_of  # noqa: PLC0415  imports torch, see the top
    from verify.questions.examples import Example  # noqa: PLC0415  likewise

    return case_of(Example.from_id(id_))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings and keep prints off the standard output, which may be JSON; a debugger still shows on stderr."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def outcome_of(case: Case, finding: Finding, seconds: float) -> Outcome:
    """Join a case and what was found, as plain data."""
    return Outcome(
        id=case.id,
        rule=case.rule,
        layer=case.layer,
        check=case.check,
        dtype=case.dtype,
        level=case.level,
        verdict=finding.verdict,
        ratio=None if finding.ratio is None else float(finding.ratio),
        probable=None if finding.probable is None else float(finding.probable),
        undecided=float(finding.undecided),
        reason=shortened(finding.reason),
        seconds=seconds,
        details=_plain(finding.details),
        undecidable=None if finding.undecidable is None else float(finding.undecidable),
    )


def _plain(value: Any) -> Any:
    """Return plain data: what a check puts into details may hold scalars and arrays of NumPy or torch."""
    if type(value) is str and len(value) > _LONGEST:
        return value[: _LONGEST - 1] + "…"
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def reason_of(error: BaseException, spec: str) -> str:
    """Type, message, and the last frame in the subject, or the last of all if the subject is not on the way."""
    package = spec.partition(":")[0].partition(".")[0]
    frames = list(traceback.walk_tb(error.__traceback__))
    inside = [(f, line) for f, line in frames if str(f.f_globals.get("__name__")).partition(".")[0] == package]
    frame, line = (inside or frames)[-1]
    where = f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}"
    said = shortened(f"{type(error).__name__}: {text_of(error)}".removesuffix(": "))
    return f"{_of_memory(error)}{said} ({where})"


def _of_memory(error: BaseException) -> str:
    """Name the limit that an exception is about; empty for all others."""
    if not isinstance(error, MemoryError) and "allocate memory" not in text_of(error)[:1000]:
        return ""
    limit = memory_limit()
    return "" if limit is None else f"out of memory, of which a worker may have {limit / 2**30:.3g} GiB: "

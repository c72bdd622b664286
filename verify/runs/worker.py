"""What happens in a worker: cases and subjects are built there, and each answer is plain data."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Nothing here imports torch before `begin`: it takes seconds, in which an interrupt would print a traceback a worker.
from verify.formats.text import printable
from verify.model import TIME_LIMIT, Case, Finding, NotOfferedError, Outcome, SubjectError, UnansweredError, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Subject

#: Stands for exit status 0, see `begin`.
SILENT_EXIT = 120
_LONGEST_REASON = 400


class RunnerError(Exception):
    """The run cannot go on, for a reason that is no case's verdict."""


@dataclass(frozen=True)
class Source:
    """Where the cases come from, as plain data, so that a worker can build them again.

    ``function`` is ``MODULE:NAME`` of something that takes ``seed``, ``dtypes`` and ``device`` and returns the cases;
    and ``depth``, where another one is asked for than that of every run: how many options meet in a case.
    """

    dtypes: tuple[str, ...]
    seed: int = 0
    device: str = "cpu"
    function: str = "verify.checks.cases:all_cases"
    depth: int = 2

    def cases(self) -> dict[str, Case]:
        """Build the cases, by id, in the order of the report."""
        module, _, name = self.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        cases: dict[str, Case] = {}
        deeper = {} if self.depth == Source.depth else {"depth": self.depth}
        for case in function(seed=self.seed, dtypes=self.dtypes, device=self.device, **deeper):
            if case.id in cases:
                msg = f"{self.function} gives two cases the id {case.id}; an id must name one case"
                raise RunnerError(msg)
            cases[case.id] = case
        return cases


@dataclass(frozen=True)
class SubjectInfo:
    """What a report says of a subject. ``ours``: it is lrp_rules itself, which is held to every requirement."""

    spec: str
    version: str = "unknown"
    ours: bool = False


class Worker:
    """The cases and the subjects of one process. ``here``: this is the user's own process."""

    def __init__(
        self, source: Source, subjects: Sequence[str], time_limit: float = TIME_LIMIT, *, here: bool = False
    ) -> None:
        self._here = here
        self._time_limit = time_limit
        self._seed = source.seed
        self._is_grid = source.function == Source.function
        self._cases = source.cases()
        self._subjects: dict[str, Subject | Exception] = {}
        for spec in subjects:
            with contextlib.suppress(Exception):  # kept, see `_subject`
                self._subject(spec)

    def describe(self, spec: str) -> SubjectInfo:
        """Load a subject and say what it is."""
        from verify.subjects.asking import smoke  # noqa: PLC0415

        subject = self._subject(spec)
        with _quiet():
            reason = smoke(subject) if self._is_grid else None
        if reason:
            raise SubjectError(reason)
        return SubjectInfo(spec, subject.version, subject.is_ours)

    def answer(self, spec: str, id_: str) -> Outcome:
        """Ask one case."""
        subject = self._subject(spec)
        if id_ not in self._cases and id_.startswith("search/"):
            self._cases[id_] = carried(id_)
        if id_ not in self._cases:
            msg = f"a worker does not know the case {id_}: its source gives other cases there than here"
            raise RunnerError(msg)
        return ask(self._cases[id_], subject, self._seed, here=self._here, time_limit=self._time_limit)

    def _subject(self, spec: str) -> Subject:
        from verify.subjects.loading import load  # noqa: PLC0415  imports torch, see the top

        if spec not in self._subjects:
            try:
                with _quiet():
                    self._subjects[spec] = load(spec)
            except Exception as error:  # noqa: BLE001  kept, and raised for whoever asks for this subject
                self._subjects[spec] = error
        subject = self._subjects[spec]
        if isinstance(subject, Exception):
            raise subject
        return subject


def ask(case: Case, subject: Subject, seed: int, *, here: bool, time_limit: float = TIME_LIMIT) -> Outcome:
    """Ask one case of a subject, and turn whatever comes of it into a verdict."""
    from verify.checks.undecided import held  # noqa: PLC0415  likewise

    torch: Any = importlib.import_module("torch")
    # What an earlier case left behind must not decide this one, or a case asked alone would answer otherwise.
    reseed(seed)
    torch.set_grad_enabled(True)
    start = time.perf_counter()
    try:
        with _quiet(), subject.asking(case, time_limit):
            finding = case.run(subject)
        seconds = time.perf_counter() - start
        with _quiet():
            return outcome_of(case, held(case, finding), seconds)
    except NotOfferedError as error:
        finding = Finding(Verdict.NOT_OFFERED, reason=str(error))
    except UnansweredError as error:
        finding = error.finding
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and here:
            raise  # the user's; a worker does not hear the keyboard
        finding = Finding(Verdict.ERROR, reason=_reason(error, subject))
        if here:
            finding = replace(finding, details={"traceback": "".join(traceback.format_exception(error))})
    return outcome_of(case, finding, time.perf_counter() - start)


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


_worker: list[Worker | RunnerError] = []


def begin(source: Source, subjects: Sequence[str], time_limit: float) -> None:
    """Prepare a worker process. What goes wrong is kept for its first task; pebble would log it and start another."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    # Whatever the subject or a library of C prints, the report keeps its terminal.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    # pebble takes a process that ends with status 0 for one that has finished, and would wait for its answer.
    os._exit = partial(_exit, os._exit)  # type: ignore[assignment]
    try:
        importlib.import_module("torch").set_num_threads(1)
        _worker.append(Worker(source, subjects, time_limit))
    except Exception as error:  # noqa: BLE001  raised by every task
        _worker.append(RunnerError(f"a worker cannot start: {type(error).__name__}: {error}"))


def _exit(really: Callable[[int], None], status: int = 0) -> None:
    really(status or SILENT_EXIT)


def _this() -> Worker:
    worker = _worker[0]
    if isinstance(worker, RunnerError):
        raise worker
    return worker


def answer(spec: str, id_: str) -> Outcome:
    """Ask one case in this worker process."""
    return _this().answer(spec, id_)


def describe(spec: str) -> SubjectInfo:
    """Load a subject in this worker process and say what it is."""
    return _this().describe(spec)


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
        reason=_shortened(finding.reason),
        seconds=seconds,
        details=_plain(finding.details),
        undecidable=None if finding.undecidable is None else float(finding.undecidable),
    )


def _plain(value: Any) -> Any:
    """Return plain data: what a check puts into details may hold scalars and arrays of NumPy or torch."""
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def _reason(error: BaseException, subject: Subject) -> str:
    """Type, message, and the last frame in the subject, or the last of all if the subject is not on the way."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  an exception that cannot be printed is still reported
        message = "(its message cannot be printed)"
    package = subject.spec.partition(":")[0].partition(".")[0]
    frames = list(traceback.walk_tb(error.__traceback__))
    inside = [(f, line) for f, line in frames if str(f.f_globals.get("__name__")).partition(".")[0] == package]
    frame, line = (inside or frames)[-1]
    where = f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}"
    return f"{_shortened(f'{type(error).__name__}: {message}'.removesuffix(': '))} ({where})"


def _shortened(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"

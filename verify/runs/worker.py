"""What happens in a worker: cases and subjects are built there, and each answer is plain data."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

# Nothing here imports torch before `begin`: it takes seconds, in which an interrupt would print a traceback a worker.
from verify.model import TIME_LIMIT, Case, Outcome
from verify.runs.hosted import Host, Hosted, Reply
from verify.runs.isolation import adopt, can_fork, end_all
from verify.runs.outcomes import alive, ask, carried, loaded, tried
from verify.subjects.protocol import is_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from verify.model import Subject
    from verify.runs.rounds import Round

#: Stands for exit status 0, see `begin`.
SILENT_EXIT = 120


class RunnerError(Exception):
    """The run cannot go on, for a reason that is no case's verdict."""


class LostError(RunnerError):
    """The run cannot go on, for a reason that is none of the subject's; what was answered stays."""


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

    @property
    def is_grid(self) -> bool:
        """Whether these are the cases of `all_cases`."""
        return self.function == Source.function

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
    #: Parameters that it cannot change, rule by rule.
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Worker:
    """The cases and the subjects of one process. ``here``: this is the user's own process.

    ``memory`` are the bytes that the host of a subject may allocate; without ``isolated``, subjects are loaded in this
    process itself.
    """

    def __init__(
        self,
        source: Source,
        subjects: Sequence[str],
        time_limit: float = TIME_LIMIT,
        *,
        here: bool = False,
        isolated: bool = False,
        memory: int | None = None,
    ) -> None:
        self._here = here
        self._time_limit = time_limit
        self._source = source
        self._isolated = isolated
        self._memory = memory
        self._cases = source.cases()
        self._subjects: dict[str, Subject | Exception] = {}
        self._hosts: dict[str, Host] = {}
        for spec in subjects:
            with contextlib.suppress(Exception):  # kept, see `_subject`
                self._subject(spec)

    def describe(self, spec: str) -> SubjectInfo:
        """Load a subject and say what it is."""
        subject = self._subject(spec)
        if not isinstance(subject, Hosted) and self._source.is_grid:
            tried(subject)
        return SubjectInfo(spec, subject.version, subject.is_ours, subject.parameters)

    def answer(self, spec: str, id_: str) -> Outcome:
        """Ask one case."""
        subject = self._subject(spec)
        return ask(self._case(id_), subject, self._source.seed, here=self._here, time_limit=self._time_limit)

    def reply(self, spec: str, id_: str) -> Reply:
        """Ask the host of a subject one case, to be judged elsewhere."""
        self._subject(spec)
        return self._hosts[spec].ask(self._case(id_), self._time_limit)

    def searched(self, spec: str, one: Round) -> Outcome:
        """Search one round."""
        from verify.runs.search import searched  # noqa: PLC0415  imports torch, see the top

        return searched(self._subject(spec), one)

    def _case(self, id_: str) -> Case:
        if id_ not in self._cases and id_.startswith("search/"):
            return carried(id_)
        if id_ not in self._cases:
            msg = f"a worker does not know the case {id_}: its source gives other cases there than here"
            raise RunnerError(msg)
        return self._cases[id_]

    def _subject(self, spec: str) -> Subject:
        if spec not in self._subjects:
            try:
                self._subjects[spec] = self._made(spec)
            except Exception as error:  # noqa: BLE001  kept, and raised for whoever asks for this subject
                self._subjects[spec] = error
        subject = self._subjects[spec]
        if isinstance(subject, Exception):
            raise subject
        return subject

    def _made(self, spec: str) -> Subject:
        if self._isolated and not is_command(spec):
            return self._hosted(spec)
        with alive() if self._here else contextlib.nullcontext():
            return loaded(spec)

    def _hosted(self, spec: str) -> Hosted:
        from verify.questions.fixed import checked  # noqa: PLC0415  imports torch, see the top
        from verify.runs.host import handler  # noqa: PLC0415  likewise

        source, fork = self._source, can_fork() and self._source.device == "cpu"
        cases = (lambda: self._cases) if fork else source.cases
        make = partial(handler, cases, source.seed, spec, is_grid=source.is_grid)
        host = Host(spec, make, fork=fork, memory=self._memory)
        about = host.about()
        self._hosts[spec] = host
        return Hosted(spec, host.ask, str(about["version"]), parameters=checked(spec, about["parameters"]))


_worker: list[Worker | RunnerError] = []


def begin(source: Source, subjects: Sequence[str], time_limit: float, isolated: bool, memory: int | None) -> None:  # noqa: FBT001  pebble calls it so
    """Prepare a worker process. What goes wrong is kept for its first task; pebble would log it and start another."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    # Whatever the subject or a library of C prints, the report keeps its terminal.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    if isolated:
        adopt()
        # pebble's way to end a worker may meet one that is ending
        signal.signal(signal.SIGTERM, partial(_leave, signal.getsignal(signal.SIGTERM)))
    else:
        # pebble takes a process that ends with status 0 for one that has finished, and would wait for its answer.
        os._exit = partial(_exit, os._exit)  # type: ignore[assignment]
    try:
        importlib.import_module("torch").set_num_threads(1)
        _worker.append(Worker(source, subjects, time_limit, isolated=isolated, memory=memory))
    except Exception as error:  # noqa: BLE001  raised by every task
        _worker.append(RunnerError(f"a worker cannot start: {type(error).__name__}: {error}"))


def _leave(as_before: Any, number: int, frame: object) -> None:
    end_all()
    as_before(number, frame)


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


def reply(spec: str, id_: str) -> Reply:
    """Ask the host of a subject one case, in this worker process."""
    return _this().reply(spec, id_)


def searched(spec: str, one: Round) -> Outcome:
    """Search one round, in this worker process."""
    return _this().searched(spec, one)


def describe(spec: str) -> SubjectInfo:
    """Load a subject in this worker process and say what it is."""
    return _this().describe(spec)

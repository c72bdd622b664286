"""Runs cases against a subject. A crash or a hang is the verdict on one case, and the run goes on."""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from pebble import ProcessExpired, ProcessPool

from verify.formats.environment import cpu_count
from verify.model import TIME_LIMIT, Case, Finding, Outcome, Verdict
from verify.runs import outcomes, worker
from verify.runs.hosted import START_LIMIT, Hosted, Reply
from verify.runs.isolation import share_of_memory
from verify.runs.outcomes import loaded
from verify.runs.worker import RunnerError, Source, SubjectInfo
from verify.subjects.protocol import is_command

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from verify.model import Subject
    from verify.runs.rounds import Round


class Runner:
    """Workers that answer cases; a context manager, so that they are started once for any number of runs and subjects.

    With ``workers=0`` cases run in this process, for a debugger: then a crash is a crash, and nothing limits the time.
    ``subjects`` are loaded when a worker starts, others with their first case, within the time limit of that.
    ``beside``: how many such runners share the memory of the machine.
    """

    def __init__(
        self,
        source: Source,
        *,
        workers: int | None = None,
        time_limit: float = TIME_LIMIT,
        subjects: Sequence[str] = (),
        beside: int = 1,
    ) -> None:
        self.workers = cpu_count() if workers is None else workers
        self.time_limit = time_limit
        if self.workers < 0:
            msg = f"workers is {workers}; expected 0 (this process) or more"
            raise ValueError(msg)
        if not 0 < time_limit < math.inf:
            msg = f"time_limit is {time_limit}; expected a finite number of seconds above 0"
            raise ValueError(msg)
        self._setup = (source, tuple(subjects), time_limit)
        self._beside = beside
        self._isolated = os.name == "posix"
        self._pool: ProcessPool | None = None
        self._here: worker.Worker | None = None
        self._threads = 0
        self._lock = threading.Lock()
        self._asked: WeakSet[Future[Any]] = WeakSet()
        self._abandoned = False
        #: Where the workers are, and what a report has to say of that; empty for this machine.
        self.where = self.note = ""

    def __enter__(self) -> Self:
        if self.workers:
            self._start()
        else:
            torch = importlib.import_module("torch")
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in a worker: the order of sums depends on it
            self._here = worker.Worker(*self._setup, here=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._here is not None:
            self._here = None
            importlib.import_module("torch").set_num_threads(self._threads)

    def describe(self, subject: str) -> SubjectInfo:
        """Load a subject and return what there is to say of it.

        Raises
        ------
        SubjectError
            If it cannot be used; also if it takes its process with it, or never ends.

        """
        if self._here is not None:
            return self._here.describe(subject)
        from verify.model import SubjectError  # noqa: PLC0415  imports torch, see the top of worker.py

        try:
            info: SubjectInfo = self._schedule(worker.describe, subject, limit=None).result(START_LIMIT)
        except (BrokenProcessPool, ProcessExpired) as error:
            msg = f"{subject!r} ends its process when it is loaded"
            raise SubjectError(msg) from error
        except TimeoutError as error:
            msg = f"the subject {subject!r} was not loaded: no answer within {START_LIMIT:g} seconds"
            raise SubjectError(msg) from error
        return info

    def run(self, subject: str, cases: Iterable[Case]) -> Generator[Outcome, None, None]:
        """Yield the outcome of each case as it comes, in any order.

        Raises
        ------
        SubjectError
            If the subject cannot be used at all.
        RunnerError
            If no worker stays alive, or a worker does not know a case.

        """
        self.describe(subject)
        if self._here is None:
            yield from self._run(subject, deque(cases))
        else:
            for case in cases:
                yield self._here.answer(subject, case.id)

    def subject(self, spec: str) -> Subject:
        """Return a subject to be asked case by case, beside a run: in its own process, if it has one."""
        if self._here is not None or not self._isolated or is_command(spec):
            return loaded(spec)
        about = self.describe(spec)
        return Hosted(spec, partial(self.reply, spec), about.version, parameters=about.parameters)

    def reply(self, spec: str, case: Case, seconds: float) -> Reply:
        """Ask the host of a subject one case, to be judged here."""
        limit = seconds + self.time_limit + START_LIMIT
        try:
            reply: Reply = self._schedule(worker.reply, spec, case.id, limit=limit).result()
        except (BrokenProcessPool, ProcessExpired, TimeoutError) as error:
            return Reply(Finding(Verdict.CRASH, reason=f"the worker ended: {error}"))
        return reply

    def searched(self, spec: str, rounds: Iterable[Round]) -> Iterator[tuple[Round, Outcome]]:
        """Yield rounds of a search with their outcomes, in their order."""
        for one in rounds:
            try:
                yield one, self._schedule(worker.searched, spec, one, limit=None).result()
            except ProcessExpired as error:
                yield one, one.outcome(Finding(Verdict.CRASH, reason=_ended(error.exitcode)))

    def _run(self, subject: str, waiting: deque[Case]) -> Generator[Outcome, None, None]:
        running: dict[Future[Outcome], Case] = {}
        broken = 0  # times in a row that the pool broke before any answer
        while waiting or running:
            # A few cases ahead keep every worker busy. The time limit starts when a worker takes a case.
            while waiting and len(running) < 4 * self.workers:
                case = waiting.popleft()
                running[self._schedule(worker.answer, subject, case.id, limit=self._limit(subject))] = case
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            innocent = []
            for future in done:
                case = running.pop(future)
                try:
                    outcome = self._outcome(case, future)
                except BrokenProcessPool:
                    innocent.append(case)
                    continue
                broken = 0
                yield outcome
            if innocent:
                # The last worker died between two cases, by a thread of the subject say: no case can be blamed.
                broken += 1
                if broken > 2:
                    msg = f"the workers of subject {subject!r} end before they answer anything"
                    raise RunnerError(msg)
                waiting.extendleft([*innocent, *running.values()])
                running.clear()
                self._stop()
                self._start()

    def _limit(self, subject: str) -> float:
        # a process is limited by whoever speaks with it, and may have to be started again; what is left is the judge's
        return self.time_limit + (self.time_limit + START_LIMIT if self._isolated or is_command(subject) else 0)

    def _outcome(self, case: Case, future: Future[Outcome]) -> Outcome:
        try:
            return future.result()
        except TimeoutError:
            finding = Finding(Verdict.TIMEOUT, reason=f"no answer within {self.time_limit:g} seconds")
            return outcomes.outcome_of(case, finding, self.time_limit)
        except ProcessExpired as error:
            return outcomes.outcome_of(case, Finding(Verdict.CRASH, reason=_ended(error.exitcode)), 0.0)

    def abandon(self) -> None:
        """End what is asked now, from another thread than that which asks: an error is raised there, and ever after."""
        with self._lock:
            self._abandoned = True
            for future in self._asked:
                future.cancel()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        setup = (*self._setup, self._isolated, share_of_memory(self.workers * self._beside))
        self._pool = ProcessPool(self.workers, initializer=worker.begin, initargs=setup, context=context)

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]  # pebble leaves out the "-> None" of this one
            self._pool.join()
            self._pool = None

    def _schedule(self, function: Callable[..., Any], *args: object, limit: float | None) -> Future[Any]:
        if self._pool is None:
            msg = "the workers have not started; use the runner in a `with` statement"
            raise RuntimeError(msg)
        if not self._pool.active:
            self._stop()
            self._start()
        with self._lock:
            if self._abandoned:
                msg = "the run was ended"
                raise RunnerError(msg)
            future = self._pool.schedule(function, args=args, timeout=limit)
            self._asked.add(future)
        return future


def run(
    subject: str,
    cases: Iterable[Case],
    source: Source,
    *,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT,
) -> Generator[Outcome, None, None]:
    """Run cases of ``source`` against one subject and yield their outcomes as they come; see Runner."""
    with Runner(source, workers=workers, time_limit=time_limit, subjects=(subject,)) as runner:
        yield from runner.run(subject, cases)


def _ended(status: int | None) -> str:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"the process was ended by {signal.Signals(-status).name}"
    return f"the process ended with exit status {0 if status == worker.SILENT_EXIT else status}"

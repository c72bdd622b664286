"""What happens in a worker of Dask: it takes chunks of a job, and hands them to processes that it started for it.

A process lives from one chunk to the next, since its start takes seconds; it ends with its job, or when it is not
asked for a while: the client may have been killed. Nothing here imports torch or the subject.
"""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from verify.runs.cluster.alike import differences, environment_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: Seconds after which a process that nobody asks is ended.
IDLE = 120.0


class DiffersError(Exception):
    """This worker would answer otherwise than the client; the message says in what."""


@dataclass(frozen=True)
class Job:
    """What all chunks of one run have in common, as data that can be pickled.

    ``make`` is given how many judges share the memory of a machine, and makes what answers. ``environment`` is the
    client's, for this subject.
    """

    id: str
    spec: str
    environment: Mapping[str, str]
    make: Callable[[int], Engine]


class Engine(Protocol):
    """What answers chunks, by processes of its own. Only the thread that lent it uses it, but for `abandon`."""

    def __enter__(self) -> Self:
        """Start."""

    def __exit__(self, *_: object) -> None:
        """End the processes."""

    def abandon(self) -> None:
        """Let the thread that asks have an error now, and ever after."""


class _Station:
    """The processes of one job in this worker; as many as it has threads."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._idle: list[Engine] = []
        self._busy: list[Engine] = []
        self._timer: threading.Timer | None = None
        self.ended = False

    def lend(self) -> Engine | None:
        """Return something that answers, for one thread; None if the job has ended."""
        with self._lock:
            if self.ended:
                return None
            engine = self._idle.pop() if self._idle else self._job.make(_beside()).__enter__()
            self._busy.append(engine)
            return engine

    def take_back(self, engine: Engine) -> None:
        """Keep it for the next chunk, if there can be one."""
        with self._lock:
            self._busy.remove(engine)
            if not self.ended:
                self._idle.append(engine)
                self._wait()
                return
        engine.__exit__()

    def end(self) -> None:
        """End all processes, also busy ones."""
        with self._lock:
            self.ended = True
            for engine in self._busy:
                engine.abandon()
        self.rest()

    def rest(self) -> None:
        """End the processes that nobody asks."""
        with self._lock:
            idle = [*self._idle]
            self._idle.clear()
            if self._timer is not None:
                self._timer.cancel()
        for engine in idle:
            engine.__exit__()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(IDLE, self.rest)
        self._timer.daemon = True
        self._timer.start()


_stations: dict[str, _Station] = {}
_ended: set[str] = set()
_lock = threading.Lock()


def work(job: Job, ask: Callable[[Any, Sequence[Any]], Iterable[Any]], items: Sequence[Any]) -> list[Any]:
    """Answer one chunk; what there is of it if the job ends meanwhile.

    Raises
    ------
    DiffersError
        If this worker does not agree with the client. It may have joined after the others were compared.

    """
    with _lock:
        if job.id in _ended:
            return []
        if job.id not in _stations:
            # now, and not when this process started: its files may have changed since
            if found := differences(job.environment, environment_for(job.spec)):
                raise DiffersError("; ".join(found))
            _stations[job.id] = _Station(job)
        station = _stations[job.id]
    engine, answers = station.lend(), []
    if engine is None:
        return []
    try:
        for answer in ask(engine, items):
            if station.ended:
                break
            answers.append(answer)
    finally:
        station.take_back(engine)
    return answers


def end(id_: str) -> None:
    """End a job. It is called in the event loop of the worker, which must not wait for processes."""
    with _lock:
        _ended.add(id_)
        station = _stations.pop(id_, None)
    if station is not None:
        threading.Thread(target=station.end, daemon=True).start()


def dask_setup(_worker: Any) -> None:
    """Leave the keyboard to the client, in workers that it has started: a preload of Dask's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _beside() -> int:
    """Return how many judges share the memory of this machine, as far as this worker knows."""
    from distributed import get_worker  # noqa: PLC0415  only where Dask is
    from distributed.system import MEMORY_LIMIT  # noqa: PLC0415

    worker = get_worker()
    limit = worker.memory_manager.memory_limit
    return max(1, round(MEMORY_LIMIT / limit) if limit else 1) * worker.state.nthreads

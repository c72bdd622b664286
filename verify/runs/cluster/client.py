"""The client's side of a cluster: it connects, compares the workers with itself, deals out chunks, collects answers."""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import dask
from distributed import Client, KilledWorker, LocalCluster, as_completed

from verify.formats.environment import environment
from verify.model import SubjectError
from verify.runs.cluster import station
from verify.runs.cluster.alike import differences, environment_for
from verify.runs.selection import UnusableError
from verify.runs.worker import LostError, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from distributed import Future

#: Seconds within which a scheduler has to answer.
ANSWERS_WITHIN = 20.0
#: Seconds that a run waits for a worker where there is none: one may be in the queue of a batch system, or starting.
WORKER_WITHIN = 300.0
#: The most items of a chunk: about a second of cases, so that progress shows and little is asked again.
CHUNK = 64
#: Items that end workers, after which the others are not tried any more.
_DEADLY = 5
#: How many workers that differ are named.
_NAMED = 5
_POLL = 0.01


class Cluster:
    """A connection for one run of one subject; a context manager. ``make`` is that of `station.Job`.

    ``address`` is that of a scheduler, such as ``tcp://host:8786``, or ``local:N`` for N workers on this machine.
    """

    def __init__(self, address: str, spec: str, make: Callable[[int], station.Engine]) -> None:
        self._address = address
        self._local = _local(address)
        self._job = station.Job(uuid.uuid4().hex, spec, environment_for(spec), make)
        self._stack = contextlib.ExitStack()
        self._client: Client  # while it is entered
        self._looked = self._worked = 0.0
        #: Threads of all workers at the start; each asks one process.
        self.threads = 0
        #: How large the cluster is; and its processors, where these are not that of this machine.
        self.where = self.note = ""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            _hush(stack)
            address = self._address if self._local is None else stack.enter_context(_started(self._local))
            self._client = stack.enter_context(self._connected(address))
            self._compare()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def one(self, ask: Callable[[Any, Sequence[Any]], Iterable[Any]], item: Any, killed: Callable[[Any], Any]) -> Any:
        """Return the answer to one item."""
        (answer,) = self.ask(ask, [item], killed)
        return answer

    def ask(
        self,
        ask: Callable[[Any, Sequence[Any]], Iterable[Any]],
        items: Sequence[Any],
        killed: Callable[[Any], Any],
        most: int = CHUNK,
    ) -> Generator[Any, None, None]:
        """Yield the answers to all items as they come. ``ask`` is called in a worker, with what ``make`` made.

        A chunk whose worker is lost is asked again. One that is lost with several workers is taken apart at the end:
        each item is asked with nothing beside it, and ``killed`` gives the answer to one that is lost even so.

        Raises
        ------
        LostError
            If the scheduler is lost, or all workers for `WORKER_WITHIN` seconds.
        RunnerError
            If too many items end workers, or a worker fails for a reason of its own.

        """
        # several chunks for each thread, since some take longer than others
        size = max(1, min(most, len(items) // (4 * self.threads)))
        suspects: list[Any] = []
        for chunk, answers in self._chunks(ask, [items[i : i + size] for i in range(0, len(items), size)]):
            if answers is None:
                suspects += chunk
            else:
                yield from answers
        deadly = 0
        for item in suspects:
            ((_, answers),) = self._chunks(ask, [[item]])
            deadly += answers is None
            if deadly > _DEADLY:
                last = getattr(item, "id", item)
                msg = f"{self._job.spec!r} ends the workers of {self._address} again and again, last with {last}"
                raise RunnerError(msg)
            yield from [killed(item)] if answers is None else answers

    def _chunks(
        self, ask: Callable[[Any, Sequence[Any]], Iterable[Any]], chunks: Sequence[Sequence[Any]]
    ) -> Generator[tuple[Sequence[Any], list[Any] | None], None, None]:
        """Yield each chunk with its answers, None where they were lost with several workers."""
        futures = self._client.map(partial(station.work, self._job, ask), chunks, pure=False, key="lrp-verify")
        waiting: dict[Future[Any], Sequence[Any]] = dict(zip(futures, chunks, strict=True))
        del futures  # a future that nobody holds is forgotten by the cluster
        done = as_completed(waiting, loop=self._client.loop, with_results=True, raise_errors=False)
        self._worked = time.monotonic()
        try:
            while waiting:
                batch = done.next_batch(block=False)
                for future, result in batch:
                    yield waiting.pop(future), self._answers(future, result)
                if not batch:
                    time.sleep(_POLL)
                    self._look()
        finally:
            if waiting and self._client.status == "running":
                self._client.cancel(list(waiting), force=True)

    def _answers(self, future: Future[Any], result: Any) -> list[Any] | None:
        if future.status == "finished":
            answers: list[Any] = result
            return answers
        if future.status != "error":
            raise LostError(self._lost("the scheduler"))
        error = result[1]
        if isinstance(error, KilledWorker):
            return None
        if isinstance(error, station.DiffersError):
            msg = f"a worker that joined {self._address} differs from this machine: {error}"
            raise UnusableError(msg) from error
        if isinstance(error, SubjectError | RunnerError):
            raise error
        msg = f"a worker of {self._address} failed: {type(error).__name__}: {error}"
        raise RunnerError(msg) from error

    def _look(self) -> None:
        """See now and then whether there is a worker at all."""
        now = time.monotonic()
        if now - self._looked < 2:
            return
        self._looked = now
        try:
            there = self._client.nthreads()
        except Exception as error:
            raise LostError(self._lost("the scheduler")) from error
        if there:
            self._worked = now
        elif now - self._worked > WORKER_WITHIN:
            raise LostError(self._lost("the last worker"))

    def _lost(self, what: str) -> str:
        return f"the connection to {what} of {self._address} was lost"

    @contextlib.contextmanager
    def _connected(self, address: str) -> Generator[Client, None, None]:
        try:
            client = Client(address, timeout=ANSWERS_WITHIN, set_as_default=False)
        except (OSError, ValueError) as error:
            msg = (
                f"--cluster {address}: no scheduler answers there; expected the address that `dask scheduler` prints, "
                f"such as tcp://host:8786, or local:N ({error})"
            )
            raise UnusableError(msg) from error
        try:
            yield client
        finally:
            if client.status == "running":
                with contextlib.suppress(Exception):  # of workers that are no more
                    client.run(station.end, self._job.id, on_error="ignore")
            client.close(timeout=2)

    def _compare(self) -> None:
        """Raise UnusableError unless every worker is as this process."""
        try:
            self._client.wait_for_workers(1, timeout=WORKER_WITHIN)
        except TimeoutError as error:
            msg = f"--cluster {self._address}: no worker joined within {WORKER_WITHIN:g} seconds; nothing was run"
            raise UnusableError(msg) from error
        try:
            self._client.run_on_scheduler(differences, {}, {})  # it reads what it passes on
        except Exception as error:
            msg = f"--cluster {self._address}: the scheduler cannot use lrp-rules: {type(error).__name__}: {error}"
            raise UnusableError(msg) from error
        found = self._client.run(environment_for, self._job.spec, on_error="return")
        unlike: dict[tuple[str, ...], list[str]] = {}
        for worker, there in found.items():
            if isinstance(there, BaseException):
                lines = [f"lrp-rules cannot be used there: {type(there).__name__}: {there}"]
            else:
                lines = differences(self._job.environment, there)
            if lines:
                unlike.setdefault(tuple(lines), []).append(worker)
        if unlike:
            raise UnusableError("\n".join([_refused(self._address), *_named(unlike)]))
        workers = self._client.nthreads()
        self.threads = sum(workers.values())
        hosts = len({urlsplit(address).hostname for address in workers})
        counts = {"worker": len(workers), "host": hosts, "process": self.threads}
        one, other, each = (
            f"{n} {name}{'' if n == 1 else 'es' if name[-1] == 's' else 's'}" for name, n in counts.items()
        )
        self.where = f"{self._address}: {one} on {other}, {each}"
        processors = {str(one["cpu"]) for one in self._client.run(environment, "cpu", on_error="ignore").values()}
        if processors != {environment("cpu")["cpu"]}:
            self.note = f"Processors of the cluster: {', '.join(sorted(processors))}"


def _refused(address: str) -> str:
    return (
        f"--cluster {address}: workers differ from this machine, and would answer for something else; nothing was run"
    )


def _named(unlike: dict[tuple[str, ...], list[str]]) -> list[str]:
    lines = []
    for differing, workers in unlike.items():
        more = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
        lines.append(f"{', '.join(workers[:_NAMED])}{more}:")
        lines += [f"  {line}" for line in differing]
    return lines


def _local(address: str) -> int | None:
    """Return N of ``local:N``, and None for the address of a scheduler."""
    local = re.fullmatch(r"local:(\d+)", address)
    if not (int(local[1]) if local else re.match(r"[a-z]+://.", address)):
        msg = f"--cluster is {address!r}; expected the address of a Dask scheduler, such as tcp://host:8786, or local:N"
        raise UnusableError(msg)
    return int(local[1]) if local else None


@contextlib.contextmanager
def _started(workers: int) -> Generator[str, None, None]:
    """Start a scheduler in this process and workers on this machine; yield the address."""
    preload = [station.__name__]
    # also when a worker is started again: daemons may start no processes
    with (
        dask.config.set({"distributed.worker.daemon": False}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL,
            preload=preload,
        ) as cluster,
    ):  # fmt: skip
        yield cluster.scheduler_address


def _hush(stack: contextlib.ExitStack) -> None:
    """What Dask logs and warns of is told by us, where it matters."""
    for name in ("distributed", "distributed.client"):
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")

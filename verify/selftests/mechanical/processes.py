"""A process for each task, forked from one that has imported what is slow to import; a process may hang or die."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

Key = TypeVar("Key")


@dataclass(frozen=True)
class Task(Generic[Key]):
    """``function(answer, *arguments)`` in a process; it sends what it has to say to ``answer``, once."""

    key: Key
    function: Callable[..., None]
    arguments: tuple[Any, ...]


@dataclass
class _Running(Generic[Key]):
    key: Key
    process: BaseProcess
    ends: float


def run(tasks: Iterable[Task[Key]], workers: int, limit: float, warm: str) -> Iterator[tuple[Key, Any]]:
    """Yield (key, answer) as they come; a str says how a process ended that gave none.

    ``limit`` is in seconds for one task. ``warm`` is the module that is imported once for all of them.
    """
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([warm])
    waiting, running = iter(tasks), dict[Any, _Running[Key]]()
    try:
        while True:
            while len(running) < workers and (task := next(waiting, None)) is not None:
                receives, sends = context.Pipe(duplex=False)
                process = context.Process(target=task.function, args=(sends, *task.arguments), daemon=True)
                process.start()
                sends.close()  # so that the end of the process closes the pipe
                running[receives] = _Running(task.key, process, time.monotonic() + limit)
            if not running:
                return
            soonest = min(one.ends for one in running.values())
            ready = wait(list(running), max(soonest - time.monotonic(), 0.0))
            late = [pipe for pipe, one in running.items() if one.ends <= time.monotonic() and pipe not in ready]
            for pipe in [*ready, *late]:
                one = running.pop(pipe)
                yield one.key, f"no answer in {limit:g} s" if pipe in late else _received(pipe, one.process)
                _end(one.process)
                pipe.close()
    finally:
        for one in running.values():
            _end(one.process)


def _received(pipe: Connection, process: BaseProcess) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        return f"the process ended with exit status {process.exitcode}"


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join()

"""How a command exits, by what its report says."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
from enum import IntEnum
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from verify.runs.selection import UnusableError
from verify.runs.worker import RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.reports.report import Report


class Status(IntEnum):
    """How the command exits."""

    PASSED = 0
    FAILED = 1
    UNUSABLE = 2
    INTERRUPTED = 130


def status_of(report: Report) -> Status:
    """Return the status with which the command exits."""
    if report.interrupted:
        return Status.INTERRUPTED
    if not report.asked:
        return Status.UNUSABLE
    return Status.PASSED if report.passed else Status.FAILED


def exit_with(command: str, run: Callable[[], int]) -> None:
    """Run what a command does, and exit with the status that comes of it."""
    try:
        with _signals(), _any_character():
            status = run()
    except (UnusableError, RunnerError) as error:
        Console(stderr=True).print(f"{command}: {error}", soft_wrap=True, markup=False, highlight=False)
        status = Status.UNUSABLE
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    raise typer.Exit(int(status))


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let whoever ends the command by a signal have the report of what there is, as with Ctrl-C."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # `nohup` has one ignored; and only the main thread hears them
    heard = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    for number in heard:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _any_character() -> Iterator[None]:
    """Let a terminal that does not know a character show its number."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)

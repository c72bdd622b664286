"""How a command exits, by what its report says."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from verify.runs.selection import UnusableError
from verify.runs.worker import RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable

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
        status = run()
    except (UnusableError, RunnerError) as error:
        Console(stderr=True).print(f"{command}: {error}", soft_wrap=True, markup=False, highlight=False)
        status = Status.UNUSABLE
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    raise typer.Exit(int(status))

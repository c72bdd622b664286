"""One mutant in a process of its own: first the cases of the grid, then the tests of ``tests/lrp_rules``."""

from __future__ import annotations

import builtins
import ctypes
import importlib
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from verify.model import BAD, Subject
from verify.runs.outcomes import ask
from verify.runs.worker import Source
from verify.selftests.mechanical import mutator
from verify.selftests.mechanical.sources import PACKAGE, Sources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection

    import pytest

    from verify.model import Case

SOURCE = Source(("float64", "float32"))
#: Seconds of work for cases or tests of one step, and more for each of many: unlike those of the clock, they do not
#: depend on what else the machine does. A mutant that needs them all computes for ever; one that is only asked much
#: must not look like it.
CPU_LIMIT, CPU_EACH = 60, 0.2
#: Bytes for one mutant, so that one that takes all there is does not take it from others.
MEMORY_LIMIT = 4 * 2**30


@dataclass(frozen=True)
class Tests:
    """Files of tests, and which of theirs to run: all if ``ids`` is None."""

    __test__ = False

    files: tuple[str, ...]
    ids: frozenset[str] | None = None


@dataclass(frozen=True)
class Step:
    """What a mutant is asked before the next step, if it survives this one."""

    cases: tuple[str, ...] = ()
    tests: Tests | None = None


@dataclass(frozen=True)
class Fate:
    """Who killed a mutant: ``by`` is verify, tests, or what ended the process; empty if nothing did."""

    by: str = ""
    what: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Seen:
    """What ``lrp_rules`` itself does with a case or test: whether it fails, and which blocks run."""

    failed: bool
    blocks: frozenset[str]


@dataclass(frozen=True)
class Trouble:
    """Why there is nothing to say of a package."""

    reason: str


@cache
def cases() -> dict[str, Case]:
    """Return the grid, by id."""
    return SOURCE.cases()


def judge(answer: Connection, texts: Mapping[str, str], steps: Sequence[Step]) -> None:
    """Send the Fate of the package made of ``texts``, or a Trouble that is not the package's."""
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
        _prepare(texts)
        answer.send(_fate(steps))
    except TroubleError as error:
        answer.send(Trouble(str(error)))
    except Exception as error:  # noqa: BLE001  what a mutant raises is caught below
        answer.send(Trouble(f"{type(error).__name__}: {error}"))


def _fate(steps: Sequence[Step]) -> Fate:
    try:
        subject = _subject()
    except Exception as error:  # noqa: BLE001  whatever a mutant raises is its end
        return Fate("verify", f"import {PACKAGE}", f"{type(error).__name__}: {error}")
    for step in steps:
        tests = len(step.tests.ids or ()) if step.tests else 0
        parts = ((_of_cases, (step.cases, subject), len(step.cases)), (_of_tests, (step.tests,), tests))
        for judged, given, count in parts:
            fate = _apart(partial(judged, *given), count)
            if fate.by:
                return fate
    return Fate()


def _apart(judged: Callable[[], Fate], count: int) -> Fate:
    """Judge in a process of its own, where nothing has been run yet: some tests are skipped after a backward pass."""
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        _die_with_parent()
        seconds = int(CPU_LIMIT + CPU_EACH * count)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        try:
            there.send(judged())
        except Exception as error:  # noqa: BLE001  sent to where it is raised
            there.send(Trouble(f"{type(error).__name__}: {error}"))
        os._exit(0)
    there.close()
    try:
        answer: Fate | Trouble = here.recv()
    except EOFError:  # the mutant has ended the process, and so this one ends like it
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    os.waitpid(child, 0)
    if isinstance(answer, Trouble):
        raise TroubleError(answer.reason)
    return answer


class TroubleError(Exception):
    """A mistake of the run, and no kill."""


def _die_with_parent() -> None:
    """Leave no process behind where this one is ended from outside, for taking too long."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _of_cases(ids: Sequence[str], subject: Subject) -> Fate:
    for id_ in ids:
        outcome = ask(cases()[id_], subject, SOURCE.seed, here=False)
        if outcome.verdict in BAD:
            return Fate("verify", id_, outcome.reason)
    return Fate()


def _of_tests(tests: Tests | None) -> Fate:
    if tests is None:
        return Fate()
    watch = _Watch(tests.ids)
    _run_tests(watch, tests.files, "-x")
    return Fate("tests", *watch.failed[0]) if watch.failed else Fate()


def look(answer: Connection, texts: Mapping[str, str], ids: Sequence[str], tests: Tests | None) -> None:
    """Send what the package itself does, by id of a case or test: a dict of Seen, or a Trouble."""
    try:
        answer.send(_seen(texts, ids, tests))
    except Exception as error:  # noqa: BLE001  sent to where it is raised
        answer.send(Trouble(f"{type(error).__name__}: {error}"))


def _seen(texts: Mapping[str, str], ids: Sequence[str], tests: Tests | None) -> dict[str, Seen]:
    blocks: set[str] = set()
    vars(builtins)[mutator.NOTE] = blocks.add
    _prepare({name: mutator.noted(name, text) for name, text in texts.items()})
    subject, seen = _subject(), dict[str, Seen]()
    for id_ in ids:
        blocks.clear()
        outcome = ask(cases()[id_], subject, SOURCE.seed, here=False)
        seen[id_] = Seen(outcome.verdict in BAD, frozenset(blocks))
    if tests is not None:
        watch = _Watch(tests.ids, blocks)
        _run_tests(watch, tests.files)
        failed = {id_ for id_, _ in watch.failed}
        seen.update({id_: Seen(id_ in failed, found) for id_, found in watch.blocks.items()})
    return seen


def _prepare(texts: Mapping[str, str]) -> None:
    # what a mutant or a test prints is nobody's business
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    torch.set_num_threads(1)
    Sources(texts).install()


def _subject() -> Subject:
    namespace: Any = importlib.import_module(PACKAGE)
    return Subject(PACKAGE, namespace, namespace.__version__)


def _run_tests(watch: _Watch, files: Sequence[str], *options: str) -> None:
    import pytest  # noqa: PLC0415  a run of a few cases does without

    # the tests need no plugin, and to look for them takes longer than to run some tests
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    status = pytest.main([*files, "-q", "-p", "no:cacheprovider", "--tb=line", *options], plugins=[watch])
    # 5: a mutant may change the ids of tests, so that nothing is left of those that were chosen
    if status not in {0, 1, 5} and not watch.failed:
        watch.failed.append(("pytest", f"exit status {status}"))


class _Watch:
    """A plugin of pytest: runs what is chosen, and notes what fails and which blocks run."""

    def __init__(self, chosen: frozenset[str] | None, running: set[str] | None = None) -> None:
        self._chosen, self._running = chosen, set[str]() if running is None else running
        self.failed: list[tuple[str, str]] = []
        self.blocks: dict[str, frozenset[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what is not chosen."""
        if self._chosen is not None:
            items[:] = [item for item in items if item.nodeid in self._chosen]

    def pytest_runtest_logstart(self) -> None:
        """Begin a test."""
        self._running.clear()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """End a test."""
        self.blocks[nodeid] = frozenset(self._running)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot be imported."""
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append((report.nodeid, " ".join(report.longreprtext.split())[:300]))

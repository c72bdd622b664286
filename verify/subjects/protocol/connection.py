"""The process of a command: it is started, asked, and started again after whatever it did."""

from __future__ import annotations

import contextlib
import shlex
import time
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from verify.formats.environment import version
from verify.model import TIME_LIMIT, Finding, SubjectError, UnansweredError, Verdict
from verify.subjects.protocol import START_LIMIT, messages
from verify.subjects.protocol.messages import Errored, MessageError, Skipped, Started
from verify.subjects.protocol.process import Kind, Process, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray


#: Cases in a row that may cost a port its process: a port that always hangs would take days.
GIVE_UP = 10
_VERDICTS = {Kind.ENDED: Verdict.CRASH, Kind.LATE: Verdict.TIMEOUT, Kind.RUBBISH: Verdict.ERROR}
_GOODBYE = 1.0


class InvalidError(Exception):
    """The port says that the question is at fault; its subclasses are the exceptions of the API."""

    kind = "error"


class InvalidValueError(InvalidError, ValueError):
    """``error`` of kind "value"."""

    kind = "error 'value'"


class InvalidTypeError(InvalidError, TypeError):
    """``error`` of kind "type"."""

    kind = "error 'type'"


class MissingError(InvalidError, RuntimeError):
    """``error`` of kind "missing"."""

    kind = "error 'missing'"


_INVALID: dict[str, type[InvalidError]] = {
    "value": InvalidValueError,
    "type": InvalidTypeError,
    "missing": MissingError,
}


class Connection:
    """The process of a command, as long as it behaves; a new one after it did not."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.case = ""
        self.left: float | None = None  # None: this is no case, and each request has its own seconds
        self.started: Started | None = None
        self._process: Process | None = None
        self._seq = 0
        self._failures = 0
        self._gone = ""
        # also where a worker is told to end: multiprocessing then runs what is registered with it
        Finalize(self, Connection.close, args=(self,), exitpriority=10)

    def first_start(self) -> Finding | None:
        """Start the process; return what is wrong with it, if anything."""
        try:
            self._start()
        except UnansweredError as error:
            return error.finding
        return None

    @contextlib.contextmanager
    def asking(self, case: str, seconds: float) -> Iterator[None]:
        """Ask one case, with a number of seconds for all its requests together."""
        if self._gone:
            raise UnansweredError(Finding(Verdict.SKIPPED, reason=f"not asked: {self._gone}"))
        self.case, self.left = case, seconds
        try:
            yield
            self._check_quiet()
        except InvalidError as error:  # no check expected it
            raise UnansweredError(Finding(Verdict.ERROR, reason=f"the port answers {error.kind}: {error}")) from error
        except UnansweredError as error:
            if error.finding.verdict in {Verdict.CRASH, Verdict.TIMEOUT, Verdict.ERROR} and self._process is None:
                self._failures += 1
                if self._failures >= GIVE_UP:
                    self._gone = f"{GIVE_UP} cases in a row ended the process, the last one {case}"
            raise
        finally:
            self.case, self.left = "", None
        if self._process is not None:
            self._failures = 0

    def relevance(
        self, rule: str, parameters: Mapping[str, Any], layer: Mapping[str, Any], tensors: Mapping[str, Any]
    ) -> NDArray[Any]:
        """Return the relevance that the port answers.

        Raises
        ------
        UnansweredError
            If it gives none, with what became of the case.
        InvalidError
            If it says that the question is at fault.

        """
        if self._process is None:
            self._start()
        assert self._process is not None
        self._seq += 1
        request = messages.case(self._seq, self.case, rule, parameters, layer, tensors)
        try:
            asked = time.monotonic()
            line = self._process.ask(request, TIME_LIMIT if self.left is None else self.left)
            if self.left is not None:
                self.left = max(0.0, self.left - (time.monotonic() - asked))
            answer = messages.read_case(line, self._seq)
        except Trouble as trouble:
            raise self._failed(_VERDICTS[trouble.kind], str(trouble)) from trouble
        except MessageError as error:
            raise self._failed(Verdict.ERROR, f"the answer {error}") from error
        if isinstance(answer, Skipped):
            raise UnansweredError(Finding(Verdict.SKIPPED, reason=" ".join(filter(None, (answer.reason, answer.link)))))
        if isinstance(answer, Errored):
            raise self._errored(answer)
        return answer

    def close(self) -> None:
        """Tell the process that there is no more, and make sure that it ends."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(Trouble):
            process.ask(messages.stop(), _GOODBYE)
            process.end_input()
            process.wait(_GOODBYE)
        process.kill()

    def _start(self) -> None:
        self._seq = 0
        try:
            self._process, self.started = begin(self.command)
        except StartError as error:
            self._gone = f"the port did not start: {error.finding.reason}"
            raise UnansweredError(error.finding) from error

    def _check_quiet(self) -> None:
        if self._process is None:
            return
        try:
            more = self._process.unasked()
        except Trouble as trouble:
            raise self._failed(Verdict.ERROR, str(trouble)) from trouble
        if more:
            raise self._failed(Verdict.ERROR, f"more than one answer to case number {self._seq}: {more}")

    def _failed(self, verdict: Verdict, reason: str) -> UnansweredError:
        """Give up the process: what it would say next may belong to any case."""
        assert self._process is not None
        errors = self._process.errors
        self._process.kill()
        self._process = None
        return UnansweredError(_finding(verdict, reason, errors))

    def _errored(self, answer: Errored) -> BaseException:
        if answer.kind in _INVALID:
            return _INVALID[answer.kind](answer.message)
        assert self._process is not None
        context = {"context": answer.context} if answer.context else {}
        stderr = {"stderr": errors} if (errors := self._process.errors) else {}
        reason = f"the port answers error {answer.kind!r}: {answer.message}"
        return UnansweredError(Finding(Verdict.ERROR, reason=reason, details={**context, **stderr}))


class StartError(Exception):
    """A process that was started, and does not answer `start` as it should."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.reason)
        self.finding = finding


def begin(command: str) -> tuple[Process, Started]:
    """Start a command and exchange `start` with it.

    Raises
    ------
    SubjectError
        If there is no such command.
    StartError
        If it does not answer as it should.

    """
    try:
        process = Process(shlex.split(command))
    except (OSError, ValueError, IndexError) as error:
        msg = f"the command {command!r} cannot be started: {error}; expected a program and its arguments"
        raise SubjectError(msg) from error
    try:
        return process, messages.read_start(process.ask(messages.start(f"lrp-verify {version()}"), START_LIMIT))
    except (Trouble, MessageError) as error:
        verdict = _VERDICTS[error.kind] if isinstance(error, Trouble) else Verdict.ERROR
        reason = f"start: {'' if isinstance(error, Trouble) else 'the answer '}{error}"
        finding = _finding(verdict, reason, process.errors)
        process.kill()
        raise StartError(finding) from error
    except BaseException:
        process.kill()
        raise


def _finding(verdict: Verdict, reason: str, errors: str) -> Finding:
    """What became of a case, with what the process had to say of it on standard error."""
    last = errors.splitlines()[-1] if errors else ""
    return Finding(
        verdict, reason=f"{reason}; stderr: {last}" if last else reason, details={"stderr": errors} if errors else {}
    )

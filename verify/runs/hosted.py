"""A subject in Python in a process of its own, the host: the process that judges never imports it.

The host has the cases, too, and asks its subject the one that it is told to. Of a case that compares numbers, what
comes back are the relevances (`verify.subjects.answering`), and the case is then judged here, on data that were drawn
here. Of the others, which look at what a rule does to modules, hooks and errors, the host's own finding comes back.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from verify.model import Finding, NotOfferedError, Subject, SubjectError, UnansweredError, Verdict
from verify.runs.isolation import Isolated
from verify.subjects.protocol.process import Kind, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from verify.model import Case
    from verify.runs.isolation import Handler
    from verify.subjects.answering import Answers

#: Checks that are judged by relevances alone, with how often a case asks for one; None for as often as it does.
NUMBERS: Mapping[str, int | None] = {
    "agreement": 1, "conservation": 1, "second-order": 1, "laws": None, "search": None,
}  # fmt: skip
#: Seconds for a host to start and to load the subject; they do not count against a case.
START_LIMIT = 300.0
_VERDICTS = {Kind.ENDED: Verdict.CRASH, Kind.LATE: Verdict.TIMEOUT, Kind.RUBBISH: Verdict.ERROR}


@dataclass(frozen=True)
class Reply:
    """What a host says of one case, as plain data: a finding, or answers with what came after them, and what it left.

    ``asked``: the subject was asked before it raised what came after.
    """

    finding: Finding | None = None
    answers: list[Any] = field(default_factory=list)
    data: bytes = b""
    after: Finding | None = None
    asked: bool = True
    left: str = ""


class Host:
    """The process of one subject, as long as it lives; a new one after that."""

    def __init__(self, spec: str, make: Callable[[], Handler], *, fork: bool, memory: int | None) -> None:
        self.spec = spec
        self._start = partial(Isolated, make, fork=fork, memory=memory)
        self._process: Isolated | None = None
        self._about: dict[str, Any] = {}

    def about(self) -> dict[str, Any]:
        """Start the process, unless it runs, and return what it says of the subject.

        Raises
        ------
        SubjectError
            If the subject cannot be loaded.

        """
        if self._process is not None and self._process.alive and self._process.quiet:
            return self._about
        self.end()
        self._process = self._start()
        try:
            found, _ = self._process.ask({"do": "load"}, START_LIMIT)
        except Trouble as trouble:
            self._process = None
            msg = f"{self.spec!r} ends its process when it is loaded"
            if trouble.kind is not Kind.ENDED:
                msg = f"the subject {self.spec!r} was not loaded: {trouble}"
            raise SubjectError(msg) from trouble
        if "error" in found:
            self.end()
            raise SubjectError(str(found["error"]))
        self._about = found
        return found

    def ask(self, case: Case, seconds: float) -> Reply:
        """Ask one case; whatever the host does is a reply."""
        self.about()
        assert self._process is not None
        try:
            found, data = self._process.ask({"do": "case", "id": case.id, "numbers": case.check in NUMBERS}, seconds)
            reply = _answers(found, data) if case.check in NUMBERS else _whole(found)
        except Trouble as trouble:
            self._process = None
            return Reply(Finding(_VERDICTS[trouble.kind], reason=str(trouble)))
        except (KeyError, TypeError, ValueError) as error:
            self.end()
            return Reply(Finding(Verdict.ERROR, reason=f"the process of the implementation gave no answer: {error!r}"))
        if not found.get("whole", True):
            self.end()
        return reply

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
            self._process = None


def _answers(found: Mapping[str, Any], data: bytes) -> Reply:
    after = None if found["after"] is None else _finding(found["after"])
    if after is not None and after.verdict not in {Verdict.NOT_OFFERED, Verdict.ERROR}:
        msg = f"a verdict, {after.verdict}, which is not its own to make"
        raise ValueError(msg)
    return Reply(None, list(found["answers"]), data, after, bool(found["asked"]), str(found["left"]))


def _whole(found: Mapping[str, Any]) -> Reply:
    return Reply(_finding(found["finding"]))


def _finding(found: Mapping[str, Any]) -> Finding:
    numbers = {
        name: None if found[name] is None else float(found[name]) for name in ("ratio", "probable", "undecidable")
    }
    return Finding(
        Verdict(found["verdict"]), numbers["ratio"], numbers["probable"], float(found["undecided"]),
        str(found["reason"]), dict(found["details"]), numbers["undecidable"],
    )  # fmt: skip


@dataclass(frozen=True)
class Hosted(Subject):
    """A subject whose cases are answered elsewhere. ``namespace`` is a function that asks one: case, seconds, reply."""

    _now: list[tuple[Reply, Answers]] = field(default_factory=list)

    def offers(self, name: str) -> bool:  # noqa: ARG002  the host says so, case by case
        """Whether the subject has something of that name: it may."""
        return True

    def get(self, name: str) -> Any:  # noqa: ARG002  as above
        """Return what stands for a rule class; its instances have the answers of the case."""
        from verify.subjects.answering import Answered  # noqa: PLC0415  imports torch, see worker.py

        reply, answers = self._now[-1]
        if not reply.asked and not reply.answers:
            answers.next()
        return lambda *_, **__: Answered(answers)

    @contextlib.contextmanager
    def asking(self, case: Case, seconds: float) -> Iterator[None]:
        """Ask the case, and surround its judgement."""
        from verify.subjects.answering import Answers  # noqa: PLC0415  imports torch, see worker.py

        reply: Reply = self.namespace(case, seconds)
        self._now.clear()
        if reply.finding is not None:
            self._now.append((reply, Answers([], b"")))
            if reply.finding.verdict is Verdict.NOT_OFFERED:
                raise NotOfferedError(reply.finding.reason)
            raise UnansweredError(reply.finding)
        after = reply.after
        raised = (
            None if after is None
            else NotOfferedError(after.reason) if after.verdict is Verdict.NOT_OFFERED
            else UnansweredError(after)
        )  # fmt: skip
        self._now.append((reply, Answers(reply.answers, reply.data, raised)))
        yield

    @property
    def left(self) -> str:
        """What the case that was asked last has left changed in its process."""
        return self._now[-1][0].left if self._now else ""

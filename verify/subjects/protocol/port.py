"""A command line as a subject, with the rule classes of the API."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from verify.model import Finding, NotOfferedError, Subject, UnansweredError
from verify.subjects.protocol import COMMAND
from verify.subjects.protocol.connection import Connection
from verify.subjects.protocol.rules import rule_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.model import Case

#: Checks that need nothing but a relevance; the others look at what a rule does to a module of torch.
ASKED = frozenset({"agreement", "conservation", "errors", "laws", "search", "protocol"})


@dataclass(frozen=True)
class Port(Subject):
    """The subject that a command is. ``first``: why its process did not start, for the first case that is asked."""

    first: list[Finding] = field(default_factory=list)

    @property
    def connection(self) -> Connection:
        """What is behind it."""
        connection: Connection = self.namespace
        return connection

    def offers(self, name: str) -> bool:
        """Whether it said so when it started."""
        return self.connection.started is not None and name in self.connection.started.rules

    def get(self, name: str) -> Any:
        """Return a class of the API whose relevance the process gives, or raise NotOfferedError."""
        if not self.offers(name):
            msg = f"{self.spec.removeprefix(COMMAND)} has no {name}"
            raise NotOfferedError(msg)
        return self.with_fixed(name, rule_class(self.connection, name))

    @contextlib.contextmanager
    def asking(self, case: Case, seconds: float) -> Iterator[None]:
        """Surround one case: it may be one that a process cannot be asked."""
        if case.check not in ASKED:
            msg = f"{case.check} is about modules and tensors of torch, of which a process has none"
            raise NotOfferedError(msg)
        if case.check == "protocol":  # each has a process of its own
            yield
            return
        if self.first:
            raise UnansweredError(self.first.pop())
        with self.connection.asking(case.id, seconds):
            yield


def load(spec: str) -> Port:
    """Start a command and return it as a subject, also where it does not answer as it should: that is a verdict.

    Raises
    ------
    SubjectError
        If there is no such command.

    """
    connection = Connection(spec.removeprefix(COMMAND))
    trouble = connection.first_start()
    started = connection.started
    version = "unknown" if started is None else f"{started.version} ({started.name}, {started.language})"
    return Port(
        spec, connection, version, [] if trouble is None else [trouble],
        parameters={} if started is None else started.parameters,
    )  # fmt: skip

"""The runner whose workers are on a cluster."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Self

from verify.model import Case, Finding, Outcome, SubjectError, Verdict
from verify.runs.cluster.client import Cluster
from verify.runs.hosted import Reply
from verify.runs.outcomes import outcome_of
from verify.runs.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from verify.model import Subject
    from verify.runs.rounds import Round
    from verify.runs.worker import Source, SubjectInfo

#: What is said of a case that is lost with every worker that is asked it.
_DEADLY = Finding(Verdict.CRASH, reason="every worker of the cluster that was asked this ended")


class ClusterRunner(Runner):
    """A Runner for one subject whose processes run where a cluster's workers are."""

    def __init__(self, address: str, source: Source, *, time_limit: float, subject: str) -> None:
        super().__init__(source, workers=1, time_limit=time_limit, subjects=(subject,))
        self.cluster = Cluster(address, subject, partial(_runner, source, time_limit, subject))

    def __enter__(self) -> Self:
        self.cluster.__enter__()
        self.workers = self.cluster.threads
        self.where, self.note = self.cluster.where, self.cluster.note
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.__exit__()

    def describe(self, subject: str) -> SubjectInfo:
        """Load a subject in a worker and return what there is to say of it; see Runner."""
        info: SubjectInfo | None = self.cluster.one(_described, subject, lambda _: None)
        if info is None:
            msg = f"{subject!r} ends the workers of the cluster when it is loaded"
            raise SubjectError(msg)
        return info

    def run(self, subject: str, cases: Iterable[Case]) -> Generator[Outcome, None, None]:
        """Yield the outcome of each case as it comes, in any order; see Runner."""
        self.describe(subject)
        plain = [replace(case, run=_elsewhere) for case in cases]
        yield from self.cluster.ask(partial(_answered, subject), plain, lambda case: outcome_of(case, _DEADLY, 0.0))

    def reply(self, spec: str, case: Case, seconds: float) -> Reply:
        """Ask a case to be judged here; see Runner."""
        plain = replace(case, run=_elsewhere)
        found: Reply = self.cluster.one(partial(_replied, spec, seconds), plain, lambda _: Reply(_DEADLY))
        return found

    def searched(self, spec: str, rounds: Iterable[Round]) -> Iterator[tuple[Round, Outcome]]:
        """Yield rounds of a search with their outcomes, in their order; see Runner. One per worker is asked at once."""
        left = iter(rounds)
        while batch := list(islice(left, self.workers)):
            asked = self.cluster.ask(partial(_searched, spec), batch, lambda one: (one, one.outcome(_DEADLY)))
            yield from sorted(asked, key=lambda found: batch.index(found[0]))


# --- in a worker ------------------------------------------------------------------------------------------------------


def _runner(source: Source, time_limit: float, subject: str, beside: int) -> Runner:
    return Runner(source, workers=1, time_limit=time_limit, subjects=(subject,), beside=beside)


def _elsewhere(_: Subject) -> Finding:
    """Stand for what a case asks where it is only passed on: a worker makes the case again from its id."""
    msg = "a case that is passed on to a cluster was asked here; it can only be asked in a worker"
    raise RuntimeError(msg)


def _described(runner: Runner, specs: Sequence[str]) -> list[SubjectInfo]:
    return [runner.describe(spec) for spec in specs]


def _answered(subject: str, runner: Runner, cases: Sequence[Case]) -> Iterator[Outcome]:
    return runner.run(subject, cases)


def _replied(spec: str, seconds: float, runner: Runner, cases: Sequence[Case]) -> list[Reply]:
    return [runner.reply(spec, case, seconds) for case in cases]


def _searched(spec: str, runner: Runner, rounds: Sequence[Round]) -> Iterator[tuple[Round, Outcome]]:
    return runner.searched(spec, rounds)

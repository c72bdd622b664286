"""`lrp-verify --check search`: the search for new cases, within its budget, as a part of a run."""

from __future__ import annotations

import contextlib
import shlex
import sys
import warnings
from typing import TYPE_CHECKING

from rich.console import Console

from verify.model import BAD
from verify.runs.selection import SEARCH, searched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from verify.model import Outcome, Subject
    from verify.runs.search import Asked
    from verify.runs.selection import Request

#: Seconds, where nothing else is said.
BUDGET = 60.0


def rules_and_dtypes(request: Request) -> tuple[list[str], list[str]]:
    """Return what is searched; raise UnusableError if that is nothing."""
    from verify.checks.examples import RULES  # noqa: PLC0415  imports torch

    rules = searched("rule", request.filters["rule"], RULES)
    return rules, searched("dtype", request.dtypes, ("float64", "float32"))


def run(request: Request, subject: Subject, asked: Asked | None = None) -> Iterator[Outcome]:
    """Search, and yield an outcome for each round; ``asked``: elsewhere, see `verify.runs.search.search`."""
    from verify.runs.search import search  # noqa: PLC0415  imports torch

    rules, dtypes = rules_and_dtypes(request)
    seconds = request.seconds if request.seconds or request.examples else BUDGET
    console = Console(stderr=True)
    hidden = request.quiet or not console.is_terminal
    tried = 0
    with contextlib.nullcontext() if hidden else console.status("searching") as status:

        def progress(count: int) -> None:
            nonlocal tried
            tried += count
            if status is not None:
                status.update(f"searching: {tried} examples")

        # a search takes turns with what is printed, so it is quiet as a whole
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rounds = search(
                subject,
                seconds=seconds,
                count=request.examples,
                rules=rules,
                dtypes=dtypes,
                seed=request.seed,
                progress=progress,
                asked=asked,
            )
        while True:
            with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = next(rounds, None)
            if outcome is None:
                return
            yield outcome


def finds(outcomes: Iterable[Outcome], selected: Sequence[str]) -> list[Outcome]:
    """Return what a search found that was not among the selected cases."""
    known = frozenset(selected)
    return [o for o in outcomes if o.check == SEARCH and o.verdict in BAD and o.id not in known]


def advice(found: Sequence[Outcome]) -> str:
    """Say how a find becomes a part of every run."""
    from verify.questions.examples import FOUND  # noqa: PLC0415  imports torch

    lines = [f"  echo {shlex.quote(outcome.id)} >> {shlex.quote(str(FOUND))}" for outcome in found]
    return "\n".join(["To test in every run what the search found, append the ids to the list of examples:", *lines])

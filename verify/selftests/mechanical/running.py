"""All mutants: which cases and tests each is asked, and what became of them."""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from verify.model import RULES
from verify.questions.spreading import spread
from verify.selftests.mechanical import equivalents, mutator, processes, sources, trial
from verify.selftests.mechanical.trial import Fate, Seen, Step, Tests, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from verify.model import Case
    from verify.selftests.mechanical.mutator import Mutant

#: Of checks with many cases or slow ones, so many are in the pool that mutants are asked from; of the others all.
POOL = {"agreement": 800, "conservation": 100, "laws": 150, "second-order": 30, "network": 12}
#: How many cases a listed mutant must survive; of those that run the changed block, the most different ones.
CASES = 300
#: The same of tests: first some that run little else, then more.
TESTS = (25, 200)
#: Seconds for one mutant. What computes for ever ends sooner, see trial.CPU_LIMIT.
TIME_LIMIT = 3600.0
#: Seconds for the package itself.
LONGEST = 1800.0
TEST_FILES = "tests/lrp_rules"
WARM = "verify.selftests.mechanical.warm"


class UnusableError(Exception):
    """The run cannot begin, or says nothing; the message says why."""


@dataclass(frozen=True)
class Run:
    """What became of the mutants that were asked, in their order.

    ``all_ids`` are those of all there are; ``failing`` are the cases and tests that ``lrp_rules`` itself fails, which
    are asked of no mutant.
    """

    fates: Mapping[str, Fate]
    all_ids: frozenset[str]
    reasons: Mapping[str, str]
    failing: tuple[str, ...] = ()
    seconds: float = 0.0
    never_run: frozenset[str] = field(default_factory=frozenset)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Mutants that nothing kills and that are not listed, or without a reason."""
        return tuple(
            id_
            for id_, fate in self.fates.items()
            if not fate.by and self.reasons.get(id_, equivalents.UNKNOWN) == equivalents.UNKNOWN
        )

    @property
    def stale(self) -> Mapping[str, str]:
        """Entries of the list that hold no longer, and why."""
        gone = {id_: "no mutant is called so" for id_ in self.reasons if id_ not in self.all_ids}
        killed = {id_: f"killed by {self.fates[id_].what}" for id_ in self.reasons if self._is_killed(id_)}
        return gone | killed

    def _is_killed(self, id_: str) -> bool:
        return id_ in self.fates and bool(self.fates[id_].by)

    @property
    def held(self) -> bool:
        """Whether every mutant is killed or listed with a reason that holds."""
        return bool(self.fates) and not self.survivors and not self.stale


def all_mutants(texts: Mapping[str, str]) -> Iterator[Mutant]:
    """Yield the mutants of all files."""
    for file, text in texts.items():
        yield from mutator.mutants(file, text)


def chosen(mutants: Iterable[Mutant], every: int) -> list[Mutant]:
    """Return one in ``every``; which ones depends on their ids alone, so that an edit moves no other."""
    return [mutant for mutant in mutants if zlib.crc32(mutant.id.encode()) % every == 0]


def run(
    mutants: Sequence[Mutant],
    texts: Mapping[str, str],
    *,
    listed: Collection[str] = (),
    workers: int = 2,
    tests: Path = Path(TEST_FILES),
    known: Mapping[str, Fate] = MappingProxyType({}),
    told: Callable[[str, Fate], None] = lambda _id, _fate: None,
) -> tuple[dict[str, Fate], dict[str, Seen], frozenset[str]]:
    """Return what became of each mutant, what ``lrp_rules`` itself does, and the mutants whose block nothing runs.

    One that is not ``listed`` as equivalent survives only if it survives everything that runs its block. Those that are
    ``known`` are not asked; ``told`` is called after each that is.
    """
    pool = list(_pool(trial.cases().values()))
    files = tuple(sorted(str(path) for path in tests.glob("test_*.py")))
    if not files:
        msg = f"there are no tests in {tests}; run it in a checkout of the project, or name their folder by --tests"
        raise UnusableError(msg)
    seen = _seen(texts, pool, files, workers)
    choice = _Choice(seen, pool)
    never_run = frozenset(m.id for m in mutants if m.block and not choice.runs(m.block))

    def tasks() -> Iterator[processes.Task[str]]:
        for mutant in mutants:
            if mutant.id in known:
                continue
            changed = {**texts, mutant.file: mutant.source}
            yield processes.Task(
                mutant.id, trial.judge, (changed, choice.steps(mutant, everything=mutant.id not in listed))
            )

    fates = dict(known)
    for id_, answer in processes.run(tasks(), workers, TIME_LIMIT, WARM):
        if isinstance(answer, Trouble):
            msg = f"{id_} could not be tried: {answer.reason}"
            raise UnusableError(msg)
        fates[id_] = answer if isinstance(answer, Fate) else Fate("verify", "the process", answer)
        told(id_, fates[id_])
    return {m.id: fates[m.id] for m in mutants}, seen, never_run


def _pool(cases: Iterable[Case]) -> Iterator[str]:
    """Yield ids of cases: the first of every check before the second of any."""
    checks: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        checks[case.check].append(case)
    yield from _in_turn([case.id for case in spread(group)[: POOL.get(check)]] for check, group in checks.items())


def _in_turn(groups: Iterable[Sequence[str]]) -> Iterator[str]:
    return (id_ for id_ in chain.from_iterable(zip_longest(*groups)) if id_ is not None)


def _seen(texts: Mapping[str, str], pool: Sequence[str], files: tuple[str, ...], workers: int) -> dict[str, Seen]:
    parts: list[tuple[Sequence[str], Tests | None]] = [((), Tests(files))]
    parts += [(pool[k::workers], None) for k in range(workers)]
    tasks = [processes.Task(k, trial.look, (texts, *part)) for k, part in enumerate(parts)]
    seen: dict[str, Seen] = {}
    for _, answer in processes.run(tasks, workers, LONGEST, WARM):
        if not isinstance(answer, dict):
            msg = f"{sources.PACKAGE} itself could not be tried: {answer}"
            raise UnusableError(msg)
        seen.update(answer)
    return seen


class _Choice:
    """Which cases and tests a mutant is asked: those that run the changed block, its own rule's first."""

    def __init__(self, seen: Mapping[str, Seen], pool: Sequence[str]) -> None:
        held = {id_: one.blocks for id_, one in seen.items() if not one.failed}
        self._all = [id_ for id_ in pool if id_ in held]
        functions: dict[str, list[str]] = defaultdict(list)
        for id_ in sorted((id_ for id_ in held if "::" in id_), key=lambda id_: len(held[id_])):
            functions[id_.partition("[")[0]].append(id_)
        self._tests = list(_in_turn(functions.values()))
        self._running: dict[str, set[str]] = defaultdict(set)
        for id_, blocks in held.items():
            for block in blocks:
                self._running[block].add(id_)

    def runs(self, block: str) -> bool:
        """Whether any case or test runs the block."""
        return block in self._running

    def steps(self, mutant: Mutant, *, everything: bool) -> list[Step]:
        """Return what a mutant is asked, in the order that costs least."""
        cases, tests = self._among(self._all, mutant), self._among(self._tests, mutant)
        rule = mutant.scope.partition(".")[0]
        if rule in RULES:
            cases.sort(key=lambda id_: f"/{rule}/" not in id_)
        few, some = TESTS
        steps = [_step(cases[:CASES]), _step(tests=tests[:few]), _step(tests=tests[few:some])]
        return [*steps, _step(cases[CASES:], tests[some:])] if everything else steps

    def _among(self, ids: Sequence[str], mutant: Mutant) -> list[str]:
        if not mutant.block:
            return list(ids)
        running = self._running[mutant.block]
        # what looks at a signature runs nothing of it
        return [id_ for id_ in ids if id_ in running or id_.startswith("api/signature/")]


def _step(cases: Sequence[str] = (), tests: Sequence[str] = ()) -> Step:
    files = tuple(sorted({id_.partition("::")[0] for id_ in tests}))
    return Step(tuple(cases), Tests(files, frozenset(tests)) if tests else None)

"""What a run comes to: the judgement over all outcomes, the table of rules and layers, and its Markdown."""

from __future__ import annotations

import html
import math
import shlex
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from verify.explaining.deviations import is_known
from verify.formats.clauses import clauses
from verify.formats.text import percent, printable
from verify.model import BAD, Level, Outcome, Verdict, share_left
from verify.subjects.protocol import COMMAND, is_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from verify.explaining.diagnoses import Diagnosis
    from verify.runs.worker import SubjectInfo


@dataclass(frozen=True)
class Call:
    """How the run was asked for, as far as it decides what comes out. ``selected``: how many cases."""

    selected: int
    dtypes: tuple[str, ...]
    seed: int = 0
    device: str = "cpu"
    workers: int = 0
    time_limit: float = 0.0
    strict: bool = False
    #: What the line of `reproduce` does.
    reproduces: ClassVar[str] = "Reproduce"

    def reproduce(self, subject: SubjectInfo, outcome: Outcome) -> str:
        """Return the one line that asks this case alone."""
        name = "--command" if is_command(subject.spec) else "--subject"
        words = ["lrp-verify", name, subject.spec.removeprefix(COMMAND)]
        words += ["--seed", str(self.seed)] if self.seed else []
        words += ["--device", self.device] if self.device != "cpu" else []
        return shlex.join([*words, "--case", outcome.id])


@dataclass(frozen=True)
class Shard:
    """Which part of which cases was run: a hash of the ids of all parts together, and how many these are."""

    number: int = 1
    of: int = 1
    corpus: str = ""
    total: int = 0


@dataclass(frozen=True)
class Report:
    """All outcomes of a run, in the order of the cases, and what they come to."""

    subject: SubjectInfo
    call: Call
    outcomes: tuple[Outcome, ...]
    seconds: float = 0.0
    interrupted: bool = False
    environment: Mapping[str, Any] = field(default_factory=dict)
    shard: Shard = Shard()
    places: Mapping[str, int] = field(default_factory=dict)  # id -> its place among the cases of all shards
    notes: tuple[str, ...] = ()  # what is to be said of the known deviations, and of failures without a diagnosis
    stale: tuple[str, ...] = ()  # entries of known deviations that no case bears out
    diagnoses: tuple[Diagnosis, ...] = ()  # what explains the failures of a rule

    def decides(self, outcome: Outcome) -> bool:
        """Whether this outcome can fail the run: what we only advise decides for our own rules and when asked to."""
        return not is_known(outcome) and (outcome.level is Level.MUST or self.subject.ours or self.call.strict)

    @cached_property
    def failures(self) -> tuple[Outcome, ...]:
        """The failures that decide."""
        return tuple(outcome for outcome in self.unexplained if self.decides(outcome))

    @cached_property
    def advice(self) -> tuple[Outcome, ...]:
        """The failures that do not decide."""
        return tuple(outcome for outcome in self.unexplained if not self.decides(outcome))

    @cached_property
    def unexplained(self) -> tuple[Outcome, ...]:
        """The failures that are no known deviation."""
        return tuple(o for o in self.outcomes if o.verdict in BAD and not is_known(o))

    @cached_property
    def known(self) -> int:
        """How many failures are known deviations."""
        return sum(is_known(outcome) for outcome in self.outcomes)

    @cached_property
    def doubtful(self) -> tuple[Outcome, ...]:
        """Cases that pass, but lie outside the bound that rounding keeps with high probability."""
        return tuple(
            outcome
            for outcome in self.outcomes
            if outcome.verdict is Verdict.PASS and outcome.probable is not None and not outcome.probable <= 1
        )

    @cached_property
    def undecided(self) -> float:
        """The share of inconclusive values, see `share_undecided`."""
        return share_undecided(self.outcomes)

    @cached_property
    def verdicts(self) -> Counter[Verdict]:
        """How many cases there are of each verdict."""
        return Counter(outcome.verdict for outcome in self.outcomes)

    @property
    def remarks(self) -> list[str]:
        """What explains failures, and what is to be said of known deviations, a line each."""
        return [
            *(f"Diagnosis: {one}" for one in self.diagnoses),
            *self.notes,
            *(f"Stale known deviation: {entry}" for entry in self.stale),
        ]

    @property
    def asked(self) -> bool:
        """Whether the subject offered anything that could be asked."""
        return any(outcome.verdict not in _MISSING for outcome in self.outcomes)

    @property
    def passed(self) -> bool:
        """The verdict on the run: every selected case was run, and nothing that decides failed."""
        at_all = self.asked and not self.interrupted
        return at_all and not self.failures and not self.stale

    @property
    def models(self) -> list[str]:
        """The rounding models that the bounds were derived from."""
        return sorted({str(outcome.details["model"]) for outcome in self.outcomes if "model" in outcome.details})


def share_undecided(outcomes: Iterable[Outcome]) -> float:
    """Return the mean share of inconclusive values over those outcomes that compare values.

    It tells how much was asked, and fails nothing: what a subject may leave inconclusive is judged case by case, by
    :mod:`verify.checks.undecided`.
    """
    shares = [
        share_left(outcome)
        for outcome in outcomes
        if outcome.ratio is not None or outcome.verdict is Verdict.INCONCLUSIVE
    ]
    return sum(shares) / len(shares) if shares else 0.0


def largest(ratios: Iterable[float | None]) -> float | None:
    """Return the largest ratio. NaN is larger than any: nothing explains it."""
    known = [ratio for ratio in ratios if ratio is not None]
    return max(known, key=lambda ratio: (math.isnan(ratio), ratio), default=None)


@dataclass(frozen=True)
class Mark:
    """How a verdict looks in the table, also where there is only ASCII, and what it means."""

    sign: str
    ascii: str
    style: str
    meaning: str


_MISSING = frozenset({Verdict.NOT_OFFERED, Verdict.SKIPPED})
#: The column of cases that need no particular layer: the API, bad input.
NO_LAYER = "no layer"

#: The first that applies to a cell is its mark.
MARKS = {
    "fail": Mark("✗", "X", "bold red", "failed"),
    "convention": Mark("≠", "#", "yellow", "failed, since the rule follows another published convention"),
    "advice": Mark("!", "!", "yellow", "only recommended cases failed"),
    "known": Mark("~", "~", "yellow", "only known deviations failed"),
    "pass": Mark("✓", "+", "green", "passed"),
    "inconclusive": Mark("?", "?", "yellow", "inconclusive"),
    "skipped": Mark("s", "s", "dim", "skipped"),
    "not-offered": Mark("-", "-", "dim", "not offered"),
}


@dataclass(frozen=True)
class Cell:
    """Rule x family of layers: the verdict over all its cases, the largest ratio, the share of inconclusive values."""

    mark: str
    ratio: float | None
    undecided: float
    failed: int = 0
    asked: int = 0

    def lines(self, *, ascii_only: bool = False) -> list[str]:
        """Mark, with how many failed or the largest ratio; below, the share of inconclusive values, if any."""
        mark = MARKS[self.mark]
        first = mark.ascii if ascii_only else mark.sign
        if self.failed:
            first += f" {self.failed}/{self.asked}"
        elif self.ratio is not None:
            first += f" {self.ratio:.2g}"
        return [first, f"{percent(self.undecided)} ?"] if self.undecided else [first]


@dataclass(frozen=True)
class Grid:
    """The conformance table: cells by (rule, family), both in the order of the cases."""

    cells: Mapping[tuple[str, str], Cell]
    missing: tuple[str, ...] = ()  # rules of which nothing is offered: they have no row

    @property
    def rules(self) -> list[str]:
        """The rows; what was tried on no layer comes last."""
        rules = dict.fromkeys(rule for rule, _ in self.cells)
        tried = {rule for rule, family in self.cells if family != NO_LAYER}
        return sorted(rules, key=lambda rule: rule not in tried)

    @property
    def families(self) -> list[str]:
        """The columns; what needs no layer comes last."""
        return sorted(dict.fromkeys(family for _, family in self.cells), key=lambda family: family == NO_LAYER)

    def column(self, family: str) -> list[Cell | None]:
        """Return the cells of a family of layers, one a rule."""
        return [self.cells.get((rule, family)) for rule in self.rules]

    def legend(self, *, ascii_only: bool = False) -> str:
        """Explain the marks that occur, and the numbers beside them."""
        cells = self.cells.values()
        used = {cell.mark for cell in cells}
        words = [f"{m.ascii if ascii_only else m.sign} {m.meaning}" for name, m in MARKS.items() if name in used]
        if any(cell.failed for cell in cells):
            words.append("n/m: n of m cases failed")
        if any(cell.ratio is not None and not cell.failed for cell in cells):
            words.append("number: largest |got - expected| / bound, correct up to 1")
        if any(cell.undecided for cell in cells):
            words.append("% ?: inconclusive values, which rounding alone can change without limit")
        return "; ".join(words)


def grid(report: Report) -> Grid:
    """Return the conformance table."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in report.outcomes:
        layer = NO_LAYER if outcome.layer in {"", "-"} else outcome.layer
        groups.setdefault((outcome.rule or "-", layer), []).append(outcome)
    offered = {rule for (rule, _), group in groups.items() if {o.verdict for o in group} - _MISSING}
    missing = tuple(dict.fromkeys(rule for rule, _ in groups if rule not in offered)) if offered else ()
    return Grid(
        {
            key: Cell(
                _mark(report, group),
                largest(outcome.ratio for outcome in group),
                share_undecided(group),
                sum(outcome.verdict in BAD for outcome in group),
                sum(outcome.verdict not in _MISSING for outcome in group),
            )
            for key, group in groups.items()
            if key[0] not in missing
        },
        tuple(rule for rule in missing if rule != "all"),  # the chain of several rules
    )


def _mark(report: Report, outcomes: Sequence[Outcome]) -> str:
    found = {_standing(report, outcome) for outcome in outcomes}
    return next(mark for mark in MARKS if mark in found)


def _standing(report: Report, outcome: Outcome) -> str:
    if outcome.verdict not in BAD:
        return outcome.verdict.value
    if is_known(outcome):
        return "known"
    if any(one.conventional(outcome.check, outcome.verdict) and _about(one, outcome) for one in report.diagnoses):
        return "convention"
    return "fail" if report.decides(outcome) else "advice"


def _about(one: Diagnosis, outcome: Outcome) -> bool:
    return (one.rule, one.level) == (outcome.rule, outcome.level) and one.covers(outcome.id)


def subject_line(subject: SubjectInfo, call: Call, torch_version: str) -> str:
    """Return the line that says first what is tested: a verdict on something else than was meant is none."""
    version = "unknown version" if subject.version == "unknown" else subject.version
    name = f"{subject.spec} {version}"
    if is_command(subject.spec):
        name = f"the command {subject.spec.removeprefix(COMMAND)}, {version}"
    elif subject.ours:
        name = f"{name}, the rules of this project (--subject tests others)"
    return f"Tested: {name}; torch {torch_version}; device {call.device}; seed {call.seed}"


def totals(report: Report) -> str:
    """Return the last line: the verdict on the run, how many cases there were, and what became of them."""
    verdict = "PASSED" if report.passed else "FAILED"
    if report.interrupted:
        verdict = "INTERRUPTED"
    elif not report.asked:
        verdict = "NOTHING TESTED"
    done, selected = len(report.outcomes), report.call.selected
    cases = f"{selected} case{'s' * (selected != 1)}" if done == selected else f"{done} of {selected} cases"
    counts = [f"{count} {word}" for word, count in _counts(report).items() if count]
    words = [
        f"{cases} in {report.seconds:.1f} s",
        ", ".join(counts),
        f"{percent(report.undecided)} of the values inconclusive" if report.undecided else "",
        f"{len(report.stale)} stale known deviation{'s' * (len(report.stale) != 1)}" if report.stale else "",
    ]
    return f"{verdict}: " + "; ".join(filter(None, words))


def _counts(report: Report) -> dict[str, int]:
    """How many cases there are of each kind, failures first; each case counts once."""
    decided = Counter(outcome.verdict for outcome in report.failures)
    counts = {verdict.word: decided[verdict] for verdict in Verdict if verdict in BAD}
    counts["passed"] = report.verdicts[Verdict.PASS]
    counts["inconclusive"] = report.verdicts[Verdict.INCONCLUSIVE]
    counts[f"known deviation{'s' * (report.known != 1)}"] = report.known
    counts[f"failed recommendation{'s' * (len(report.advice) != 1)}"] = len(report.advice)
    return counts | {verdict.word: report.verdicts[verdict] for verdict in (Verdict.NOT_OFFERED, Verdict.SKIPPED)}


def cited(outcomes: Iterable[Outcome]) -> str:
    """Return the clauses of the specification that some cases are about: "specification 3.5, 7.1"."""
    found = dict.fromkeys(clause for o in outcomes for clause in clauses(o.id, o.check, o.rule, o.level))
    return f"specification {', '.join(found)}" if found else ""


def markdown(report: Report) -> str:
    """Return totals, table and legend in Markdown."""
    table = grid(report)
    columns = [table.rules]
    columns += [["<br>".join(cell.lines()) if cell else "" for cell in table.column(name)] for name in table.families]
    rows = [["rule", *table.families], ["---", *([":-:"] * len(table.families))], *zip(*columns, strict=True)]
    lines = ["| " + " | ".join(value.replace("|", "\\|") for value in row) + " |" for row in rows]
    title = f"**{_plain(f'{report.subject.spec} {report.subject.version}')}**: {totals(report)}"
    given = [f"Not offered: {', '.join(table.missing)}"] if table.missing else []
    remarks = [f"- {_plain(remark)}" for remark in (*given, *report.remarks)]
    return "\n".join([title, "", *lines, "", table.legend(), *([""] if remarks else []), *remarks, ""])


def _plain(text: str) -> str:
    """Return a line in which nothing is HTML: a page that shows the table would run what a command is named."""
    return html.escape(printable(text), quote=False)

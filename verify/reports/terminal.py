"""How a run and a single case read on a terminal, narrow ones and those without colour or Unicode among them."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from verify.formats.text import percent, printable
from verify.model import BAD, Level, Verdict
from verify.reports import network_table as ledger_table
from verify.reports.causes import grouped
from verify.reports.report import MARKS, Grid, cited, grid, largest, subject_line, totals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from rich.console import Console, RenderableType

    from verify.model import Outcome
    from verify.reports.report import Call, Report
    from verify.runs.worker import SubjectInfo

_SHOWN = 3  # cases of a group of failures
_LEVELS = {Level.MUST: "must (required)", Level.SHOULD: "should (recommended)"}
_DETAILS = {"model": "rounding as in"}
_ADVICE = "Failed recommendations: they fail the run only with --strict"


def show_tested(subject: SubjectInfo, call: Call, torch_version: str, console: Console) -> None:
    """Print what is tested, before anything else."""
    say(console, subject_line(subject, call, torch_version), "bold")


def show(report: Report, console: Console) -> None:
    """Print table, what explains failures, failures, recommendations, warnings and totals."""
    table = grid(report)
    if table.cells:
        ascii_only = console.options.ascii_only
        for block in _blocks(table, console.width, ascii_only=ascii_only):
            console.print(block)
            console.print()
        console.print(Text(table.legend(ascii_only=ascii_only), style="dim"))
        if table.missing:
            console.print(Text(f"Not offered: {', '.join(table.missing)}", style="dim"))
        console.print()
    network = ledger_table.table(report.outcomes)
    if network is not None:
        console.print(network)
    if report.remarks:
        for remark in report.remarks:
            say(console, remark, "bold")
        console.print()
    _failures(console, report, "Failures", report.failures, "bold red")
    _failures(console, report, _ADVICE, report.advice, "yellow")
    if report.doubtful:
        say(console, _doubts(report.doubtful), "yellow")
    show_totals(report, console)


def show_totals(report: Report, console: Console) -> None:
    """Print the last line, the verdict on the run."""
    say(console, totals(report), "bold green" if report.passed else "bold red")


def say(console: Console, text: str | Text, style: str = "") -> None:
    """Print what is never broken, so that it can be copied and searched for."""
    console.print(Text(text, style=style) if isinstance(text, str) else text, soft_wrap=True)


def _blocks(table: Grid, width: int, *, ascii_only: bool) -> Iterator[Table]:
    """As many families of layers side by side as fit, the rest below."""
    rules = table.rules
    gap = 3
    waiting = []
    for family in table.families:
        texts = [
            Text("\n".join(cell.lines(ascii_only=ascii_only)), MARKS[cell.mark].style) if cell else Text()
            for cell in table.column(family)
        ]
        # ConvTranspose2d takes two short lines rather than one wide column
        head = re.sub(r"(?<=[a-z])(?=[A-Z])", "\n", family)
        wide = max(len(line) for text in [head, *(text.plain for text in texts)] for line in text.split("\n"))
        waiting.append((Text(head), texts, wide + gap))
    while waiting:
        block = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        block.add_column("rule", no_wrap=True)
        room = width - max(map(len, ["rule", *rules]))
        shown: list[list[Text]] = []
        while waiting and (not shown or waiting[0][2] <= room):
            head_text, texts, needs = waiting.pop(0)
            block.add_column(head_text, no_wrap=True)
            shown.append(texts)
            room -= needs
        for rule, *row in zip(rules, *shown, strict=True):
            if any(text.plain for text in row):
                block.add_row(Text(rule), *row)
        yield block


def _failures(console: Console, report: Report, title: str, failures: Sequence[Outcome], style: str) -> None:
    """A paragraph for each cause, or rule and check: how many, where, the first few, and one line that reproduces."""
    if not failures:
        return
    say(console, title, style)
    asked = Counter((outcome.rule, outcome.check) for outcome in report.outcomes)
    for group in grouped(report, failures):
        of = list(dict.fromkeys((outcome.rule, outcome.check) for outcome in group))
        names = ", ".join(dict.fromkeys([*(rule or "-" for rule, _ in of), *(check for _, check in of)]))
        verdicts = {outcome.verdict for outcome in group}
        became = group[0].verdict.word if len(verdicts) == 1 else "failed"
        line = Text(f"  {names}: {len(group)} of {sum(asked[one] for one in of)} cases {became}", style="bold")
        worst = largest(outcome.ratio for outcome in group)
        where = [cited(group), *(_listed(getattr(outcome, name) for outcome in group) for name in ("layer", "dtype"))]
        where += [] if worst is None else [f"largest ratio {worst:.3g}"]
        say(console, line.append(f" ({'; '.join(filter(None, where))})", style="not bold dim"))
        alike = len(group) > _SHOWN and (len(of) > 1 or verdicts != {Verdict.FAIL})  # the cause is the same
        shown = group[: 1 if alike else _SHOWN]
        for outcome in shown:
            say(console, Text(f"    {outcome.id}: ").append(_verdict(outcome), style=style))
        if len(group) > len(shown):
            say(console, f"    and {len(group) - len(shown)} more", "dim")
        again = report.call.reproduce(report.subject, _clearest(group))
        say(console, f"    {report.call.reproduces}: {again}", "cyan")
    console.print()


def _clearest(group: Sequence[Outcome]) -> Outcome:
    """Return the failure that is furthest off, in float64 if there is one: least of it can be rounding."""

    def clear(outcome: Outcome) -> tuple[bool, bool, float]:
        ratio = -1.0 if outcome.ratio is None else outcome.ratio
        return outcome.dtype == "float64", math.isnan(ratio), 0.0 if math.isnan(ratio) else ratio

    return max(group, key=clear)


def _verdict(outcome: Outcome) -> str:
    return f"{outcome.verdict.word}: {outcome.reason}" if outcome.reason else outcome.verdict.word


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name for name in dict.fromkeys(names) if name.strip("-"))


def _doubts(doubtful: Sequence[Outcome]) -> str:
    first = ", ".join(outcome.id for outcome in doubtful[:_SHOWN])
    return (
        f"Warning: {len(doubtful)} cases passed, but with rounding errors that are very unlikely "
        f"(up to {largest(outcome.probable for outcome in doubtful):.3g} times the probable bound): "
        f"{first}{', ...' if len(doubtful) > _SHOWN else ''}"
    )


def show_case(report: Report, outcome: Outcome, console: Console, without: Collection[str] = ()) -> None:
    """Print everything that is known of one case, but for the details that are told elsewhere."""
    style = "green" if outcome.verdict is Verdict.PASS else "red" if outcome.verdict in BAD else "yellow"
    say(console, outcome.id, "bold")
    say(console, _verdict(outcome), style)
    facts = {name: getattr(outcome, name) for name in ("rule", "layer", "check", "dtype")}
    facts["level"] = (
        _LEVELS[outcome.level] if report.decides(outcome) else f"{_LEVELS[outcome.level]}; does not fail the run"
    )
    facts["specification"] = cited([outcome]).removeprefix("specification ") or None
    facts |= {"ratio": _ratio(outcome.ratio, "largest |got - expected| / bound; correct up to 1")}
    facts |= {"probable ratio": _ratio(outcome.probable, "the same with a bound that rounding very rarely exceeds")}
    facts |= {"inconclusive": f"{percent(outcome.undecided)} of the values", "time": f"{outcome.seconds:.3g} s"}
    tables, texts = {}, {}
    for name, value in outcome.details.items():
        if name in without:
            continue
        if isinstance(value, dict | list):
            tables[name] = value
        elif "\n" in str(value):
            texts[name] = str(value)
        else:
            facts[_DETAILS.get(name, name)] = value
    console.print(_pairs({name: value for name, value in facts.items() if value is not None}))
    for name, value in tables.items():
        say(console, f"\n{name}", "bold")
        console.print(_details(value))
    for name, value in texts.items():
        say(console, f"\n{name}", "bold")
        say(console, "\n".join(map(printable, value.splitlines())))
    console.print()


def _ratio(ratio: float | None, meaning: str) -> str | None:
    return None if ratio is None else f"{ratio:.3g} ({meaning})"


def _details(value: Any) -> RenderableType:
    if isinstance(value, dict):
        return _pairs(value)
    if not value or not all(isinstance(row, dict) for row in value):
        return Text(", ".join(_value(item).plain for item in value))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    names = list(dict.fromkeys(name for row in value for name in row))
    for name in names:
        table.add_column(Text(name), justify="right")
    for row in value:
        table.add_row(*(_value(row.get(name)) for name in names))
    return table


def _pairs(values: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(Text(name), _value(value))
    return table


def _value(value: Any) -> Text:
    if value is None:
        return Text()
    return Text(f"{value:.9g}" if isinstance(value, float) else printable(str(value)))

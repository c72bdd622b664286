"""The command ``lrp-bench``: measure, compare two runs, write a report."""

from __future__ import annotations

import json as json_
import shlex
import sys
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

# What imports torch is imported where it is used: workers start by importing this file, and `--help` is quick.
if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.session import Plan, Session


class Status(IntEnum):
    """How the command exits."""

    GOOD = 0
    FOUND = 1
    UNUSABLE = 2
    INTERRUPTED = 130


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 good, 1 found something (wrong or failed, or slower than before), 2 the call is unusable, "
    "130 interrupted: what is finished is kept, and --resume goes on.",
)  # fmt: skip
_MANY = "repeatable, or separated by commas; patterns such as 'Conv*' are welcome."


@app.callback()
def lrp_bench() -> None:
    """Measure how fast the rules are, beside the plain gradient and other libraries."""


@app.command()
def run(
    *,
    rule: Annotated[list[str] | None, typer.Option(help=f"Only these rules or composites; {_MANY}")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Only these types of layers, models, or workloads.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only these dtypes.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads of torch; repeatable.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Peers: zennit, captum, lxt, MODULE[:ATTRIBUTE].")] = None,
    subject: Annotated[str, typer.Option(metavar="MODULE[:ATTRIBUTE]", help="Whose rules are timed.")] = "lrp_rules",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")] = Path("bench-results"),
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin no cell that would end later: 90, 10m, 2h. Quick: 4m.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Each rule on a few layers, with wider intervals.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    cell: Annotated[list[str] | None, typer.Option(metavar="ID", help="Only this cell; repeatable.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the ids of the cells and stop.")] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the table as JSON; - is stdout.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the test data.")] = 0,
) -> None:
    """Measure, the most important cells first. Every finished cell is kept."""

    def measure() -> Status:
        from bench.selecting import select  # noqa: PLC0415  see the top
        from bench.session import Session  # noqa: PLC0415

        plan = select(
            subject=subject, against=_split(against), rules=rule or (), layers=_split(layer), dtypes=_split(dtype),
            ids=cell or (), device=device, threads=threads or (), seed=seed, quick=quick,
        )  # fmt: skip
        if list_:
            typer.echo("\n".join(one.id for one in plan.cells))
            return Status.GOOD
        _importable(plan)
        budget = _seconds(time_budget) if time_budget else 240.0 if quick else None
        session = Session(out, plan, shlex.join(["lrp-bench", *sys.argv[1:]]), resume=resume)
        return _measured(session, plan, budget, json)

    _exit(measure)


def _importable(plan: Plan) -> None:
    """Raise SubjectError where a subject that was named cannot be imported: better now than in every cell."""
    from bench.subjects import contender  # noqa: PLC0415

    for name in (plan.subject, *plan.against):
        contender(name)


def _measured(session: Session, plan: Plan, budget: float | None, json: str | None) -> Status:
    from bench import table  # noqa: PLC0415
    from bench.session import Workers  # noqa: PLC0415
    from bench.showing import Bar, shown  # noqa: PLC0415
    from bench.tabulating import tabulated  # noqa: PLC0415

    console = _console(stderr=json == "-")
    interrupted = False
    try:
        with Workers(plan.effort.processes) as workers, Bar(console) as bar:
            for done, of, cell in session.run(budget, workers):
                bar.show(done, of, cell.id)
    except KeyboardInterrupt:
        interrupted = True
    results = session.ordered()
    found, samples, floors = tabulated(results, plan, session.facts)
    session.write_facts(floor=floors)
    table.write(session.folder, found, samples, session.facts)
    shown(found, session.facts, console)
    if json is not None:
        rows = json_.dumps(json_.loads(found.to_json(orient="records")), indent=1)
        typer.echo(rows) if json == "-" else Path(json).write_text(rows + "\n")
    if session.left_out:
        console.print(f"{len(session.left_out)} cells are not measured; the same call with --resume goes on")
    console.print(f"{session.folder}: table.parquet, table.csv, samples.parquet, run.json")
    if interrupted:
        return Status.INTERRUPTED
    own = found[(found.subject == plan.subject) & (found.baseline == "gradient")]
    return Status.FOUND if own.status.isin(["wrong", "failed", "out-of-memory"]).any() else Status.GOOD


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Folder of a run.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of a later run.")],
    *,
    other_machine: Annotated[bool, typer.Option("--other-machine", help="Compare different machines.")] = False,
) -> None:
    """Say which cells have become slower or faster, in gradients of the same run. Exit 1 on a regression."""

    def comparison() -> Status:
        from bench.comparing import compared  # noqa: PLC0415  see the top
        from bench.showing import changes_shown  # noqa: PLC0415
        from bench.table import read  # noqa: PLC0415

        found = compared(read(old), read(new), other_machine=other_machine)
        changes_shown(found, _console())
        return Status.FOUND if any(one.regression for one in found) else Status.GOOD

    _exit(comparison)


@app.command(name="false-alarms")
def false_alarms(
    *,
    runs: Annotated[int, typer.Option(min=1, help="How many runs are compared with the one before.")] = 20,
    rule: Annotated[list[str] | None, typer.Option(help=f"Only these rules; {_MANY}")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Only these types of layers, models, or workloads.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Peers to measure beside, as in a run.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs; those that are there count.")] = Path(
        "bench-false-alarms"
    ),
) -> None:
    """Run the same code again and again, and say how often it is called slower or faster. Exit 1 if it ever is.

    By default of three cells, Epsilon and ZPlus on the smallest linear layer: the rate of a machine that is at rest.
    --rule '*' --layer '*' asks all cells of a quick run. An interrupted call, made again, goes on.
    """

    def ask() -> Status:
        from bench.false_alarms import Alarms, asked  # noqa: PLC0415  see the top
        from bench.showing import Bar, alarms_shown  # noqa: PLC0415

        options = [f"--rule={one}" for one in rule or ("Epsilon*", "ZPlus")]
        options += [f"--layer={one}" for one in layer or ("linear-16-16",)]
        options += [f"--against={one}" for one in against or ()]
        console, found, compared, interrupted = _console(), Alarms(), 0, False
        try:
            with Bar(console) as bar:
                bar.show(0, runs + 1, "run 0")
                for compared, found in asked(out, runs, [*options, f"--threads={threads}", "--quick"]):
                    if compared < runs:
                        bar.show(compared + 1, runs + 1, f"run {compared + 1}, {len(found.alarms)} false alarms so far")
        except KeyboardInterrupt:
            interrupted = True
        alarms_shown(found, compared, console)
        if interrupted:
            return Status.INTERRUPTED
        return Status.FOUND if found.alarms else Status.GOOD

    _exit(ask)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the report.")] = Path("bench-report"),
) -> None:
    """Write a page, Markdown, plots and the table of one run or several."""

    def reported() -> Status:
        from bench.report import write  # noqa: PLC0415  see the top

        typer.echo(write(runs, out))
        return Status.GOOD

    _exit(reported)


def _console(*, stderr: bool = False) -> Console:
    """Return a console; a file or a pipe is as wide as the table needs."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=160)


def _split(given: list[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for text in given or () for part in text.split(",") if part.strip())


def _seconds(text: str) -> float:
    """Return seconds from '90', '90s', '10m' or '2h'.

    >>> _seconds("90"), _seconds("10m"), _seconds("1.5h")
    (90.0, 600.0, 5400.0)

    """
    from bench.selecting import UnusableError  # noqa: PLC0415  see the top

    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        msg = f"--time-budget is {text!r}; expected a time such as 90, 10m or 2h"
        raise UnusableError(msg)
    return seconds


def _exit(command: Callable[[], Status]) -> None:
    """Run a command and exit with its status; what makes it unusable is said in a line."""
    from bench.selecting import UnusableError  # noqa: PLC0415  see the top
    from bench.table import TableError  # noqa: PLC0415
    from verify.model import SubjectError  # noqa: PLC0415

    unusable: tuple[type[Exception], ...] = (UnusableError, TableError, SubjectError, OSError)
    try:
        status: Any = command()
    except unusable as error:
        typer.echo(f"lrp-bench: {error}", err=True)
        status = Status.UNUSABLE
    raise typer.Exit(int(status))


def main() -> None:
    """Run the command."""
    app()

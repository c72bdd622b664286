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
    epilog="Exit status: 0 good; 1 a relevance disagrees with the reference, a measurement failed, or became slower; 2 "
    "wrong options; 130 interrupted: finished measurements are kept, and --resume continues.",
)  # fmt: skip
_MANY = "Several: repeat it, or use commas; * stands for anything."


def _version(value: bool) -> None:  # noqa: FBT001  typer calls it so
    if value:
        from verify.formats.environment import version  # noqa: PLC0415  see the top

        typer.echo(f"lrp-bench {version()}")
        raise typer.Exit


@app.callback()
def lrp_bench(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print the version and stop."),
    ] = False,
) -> None:
    """Measure how fast LRP rules are, in units of the plain gradient and beside other libraries."""


@app.command()
def run(
    *,
    rule: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help=f"Only these rules or composites. {_MANY}")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Only these types of layers, models or sizes, see --list.")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(metavar="DTYPE", help="Only these dtypes.")] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Device to compute on: cpu, cuda.")] = "cpu",
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads of torch. Several: repeat it.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Libraries to compare with: zennit, captum, lxt, or MODULE[:ATTRIBUTE]."),
    ] = None,
    subject: Annotated[str, typer.Option(metavar="MODULE[:ATTRIBUTE]", help="Implementation to time.")] = "lrp_rules",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")] = Path("bench-results"),
    time_budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Stop after about this time: 90, 10m, 2h. Default: none; with --quick 4m."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", metavar="", help="Each rule on a few layers only, with wider intervals.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", metavar="", help="Continue the run in --out.")] = False,
    cell: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this measurement. Several: repeat it.")
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", metavar="", help="Print the ids of the measurements and stop.")
    ] = False,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the table as JSON; - is standard output.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of the test data.")] = 0,
) -> None:
    """Measure, the most important measurements first. Each is kept as soon as it is finished."""

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
    from bench.subjects import SPECS, contender  # noqa: PLC0415
    from verify.model import SubjectError  # noqa: PLC0415
    from verify.runs.selection import meant  # noqa: PLC0415

    for name in (plan.subject, *plan.against):
        try:
            contender(name)
        except SubjectError as error:
            msg = f"{error}{'' if name in SPECS else meant(name, SPECS)}"
            raise SubjectError(msg) from error


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
        console.print(f"{len(session.left_out)} measurements are left; the same command with --resume continues")
    console.print(f"Written to {session.folder}: table.parquet, table.csv, samples.parquet, run.json")
    if interrupted:
        return Status.INTERRUPTED
    own = found[(found.subject == plan.subject) & (found.baseline == "gradient")]
    return Status.FOUND if own.status.isin(["disagrees", "failed", "out-of-memory"]).any() else Status.GOOD


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Folder of the first run.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the later run.")],
    *,
    other_machine: Annotated[
        bool, typer.Option("--other-machine", metavar="", help="Allow runs of different machines.")
    ] = False,
) -> None:
    """Compare two runs: which measurements became slower or faster, beyond noise. Exit status 1 if any is slower."""

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
    runs: Annotated[int, typer.Option(min=1, help="How many runs to compare, each with the one before.")] = 20,
    rule: Annotated[list[str] | None, typer.Option(metavar="RULE", help=f"Only these rules. {_MANY}")] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Only these types of layers, models or sizes.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Libraries to compare with, as in a run.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs; runs in it are used again.")] = Path(
        "bench-false-alarms"
    ),
) -> None:
    """Count false alarms: run the same code again and again, and see how often it is called slower or faster.

    Exit status 1 if it ever is. The default is three measurements: Epsilon and ZPlus on the smallest linear layer.
    --rule '*' --layer '*' takes all of a quick run. After an interruption, the same command continues.
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
    runs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of the runs.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")] = Path("bench-report"),
) -> None:
    """Write a report of one or several runs: a page in HTML, Markdown, plots, and the table."""

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
    app(prog_name="lrp-bench")

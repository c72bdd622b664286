"""The command `lrp-verify`: which cases of which subject, what to print, which files to write, how to exit.

It is longer than other files because every option is written out.
"""

from __future__ import annotations

import multiprocessing
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pebble import ProcessPool
from rich.console import Console
from typer.core import TyperGroup

from lrp_entry.extras import MissingExtraError, require
from verify.explaining.deviations import baseline
from verify.faces import auditing, running
from verify.formats.environment import cpu_count, torch_version, version
from verify.formats.files import write
from verify.formats.text import shortened, text_of
from verify.model import TIME_LIMIT
from verify.reports import export, terminal
from verify.reports.merging import merge as merge_files
from verify.reports.status import Status, exit_with, status_of
from verify.runs import searching, selection, shards
from verify.runs.selection import Request, UnusableError, check_files, select
from verify.runs.worker import Source
from verify.subjects.protocol import COMMAND

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from verify.explaining.asked import Numbers
    from verify.reports.report import Report


#: Where --help shows the options that follow, up to the next one that is named here.
_PANELS = dict.fromkeys(("workers", "strict"), "How to run") | {"subject": "What to test"}
_PANELS |= dict.fromkeys(("write_deviations", "json"), "What to print and write")


class _Group(TyperGroup):
    """The commands; a name that is none is most likely the implementation to test."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        panel = None
        for option in self.params:
            panel = _PANELS.get(str(option.name), panel)
            vars(option)["rich_help_panel"] = None if option.name == "version" else panel
            if getattr(option, "is_flag", False):
                vars(option)["metavar"] = ""  # and not the word bool

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command, or refuse what is none."""
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail(
                f"no command is named {args[0]!r}; to test a module, write --subject {args[0].removesuffix('.py')}"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Group, add_completion=False, pretty_exceptions_enable=False)


def _version(value: bool) -> None:  # noqa: FBT001  typer calls it so
    if value:
        typer.echo(f"lrp-verify {version()}")
        raise typer.Exit


_EPILOG = (
    "Examples: lrp-verify --subject my_rules --rule ZPlus\n\n"
    "lrp-verify --subject zennit.rules --deviations zennit --json run.json\n\n"
    "lrp-verify --command 'node ports/javascript/main.js' --check agreement\n\n"
    "Exit status: 0 passed, 1 failed, 2 wrong options or an implementation that cannot be used, 130 "
    "interrupted. Recommendations (level should) fail the run for lrp_rules itself, and for others with --strict."
)
_NO_WORKERS = "--workers is for this machine; with --cluster, each thread of its workers has one process"
_MANY = "Several: repeat it, or use commas; * stands for anything."


@app.callback(invoke_without_command=True, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def lrp_verify(
    context: typer.Context,
    *,
    subject: Annotated[str, typer.Option(metavar="MODULE[:ATTRIBUTE]", help="Implementation to test.")] = "lrp_rules",
    command: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Program to test, in any language: see docs/protocol.md.")
    ] = None,
    rule: Annotated[list[str] | None, typer.Option(metavar="RULE", help=f"Only these rules. {_MANY}")] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER", help="Only these types of layers, such as 'Conv*'; or single ones, such as nobias."
        ),
    ] = None,
    check: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="Only these checks.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only these kinds of data, such as zeros.")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(metavar="DTYPE", help="Only these dtypes.")] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Device to compute on: cpu, cuda, cuda:1.")] = "cpu",
    case: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Run one case in this process, and print all of its numbers.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of the test data.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Number of processes; 0 runs in this one. Default: one per CPU; 0 with --case."
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Dask cluster: the address of its scheduler, tcp://HOST:8786, or local:N for N workers here.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Run part K of N of the cases; lrp-verify merge puts the parts together."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help=f"Time for --check search. Default: {searching.BUDGET:g}.")
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of examples for --check search, in place of --seconds."),
    ] = None,
    depth: Annotated[
        int,
        typer.Option(
            min=2, max=3, metavar="N", help="2 asks every pair of options together, 3 every triple (an hour)."
        ),
    ] = 2,
    exit_first: Annotated[bool, typer.Option("-x", "--exitfirst", help="Stop at the first failure.")] = False,
    time_limit: Annotated[
        float, typer.Option(metavar="SECONDS", help="Seconds for one case; not with --workers 0.")
    ] = TIME_LIMIT,
    deviations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Accept known deviations: zennit, captum, lxt, autolrp, or a file. Several: repeat it."
        ),
    ] = None,
    write_deviations: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Write a first file for --deviations, of all that fails now."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Let recommendations fail the run.")] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write JSON; - is standard output.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table in Markdown.")] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw where relevance goes in a small network, on images of digits."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the ids of the cases and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what is tested, and the totals.")] = False,
    version: Annotated[  # noqa: ARG001  see _version
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Test an implementation of the rules of Layer-wise Relevance Propagation (LRP) against a reference."""
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    files = {"json": Path(json) if json and json != "-" else None, "junit": junit}
    files |= {"markdown": markdown, "figure": figure, selection.BASELINE: write_deviations}
    ids = tuple(case or ())
    if command is not None and subject != "lrp_rules":
        context.fail("--subject and --command both name an implementation to test; expected one of them")
    if cluster is not None and workers is not None:
        context.fail(_NO_WORKERS)

    def run() -> Status:
        request = Request(
            subject if command is None else f"{COMMAND}{command}",
            {"rule": _split(rule), "layer": _split(layer), "check": _split(check), "kind": _split(kind)},
            _split(dtype),
            ids,
            device,
            seed,
            workers if workers is not None else 0 if ids else cpu_count(),
            time_limit,
            strict,
            quiet,
            json,
            {name: path for name, path in files.items() if path is not None},
            (1, 1) if shard is None else shards.parse(shard),
            seconds,
            examples,
            tuple(deviations or ()),
            depth,
            exit_first,
            cluster,
        )
        return _list(request) if list_ else _verify(request)

    exit_with("lrp-verify", run)


@app.command()
def merge(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILES", help="The JSON files of all parts, written by --shard K/N --json FILE."),
    ],
    *,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write JSON; - is standard output.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table in Markdown.")] = None,
    deviations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Accept known deviations, as in the run. Only the merged run shows stale ones."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what is tested, and the totals.")] = False,
) -> None:
    """Put the parts of a run together: report, files and exit status are those of one run."""
    files = {"json": Path(json) if json and json != "-" else None, "junit": junit, "markdown": markdown}
    given = {name: path for name, path in files.items() if path is not None}

    def run() -> Status:
        check_files(given)
        report = merge_files(paths)
        known, call = running.known_deviations(deviations or (), report.subject.version), report.call
        if known is not None:
            report = running.explained(report, known, Source(call.dtypes, call.seed, call.device, selection.CASES))
        console = _console(json)
        terminal.show_tested(report.subject, report.call, str(report.environment["torch"]), console)
        (terminal.show_totals if quiet else terminal.show)(report, console)
        _write(json, given, report)
        return status_of(report)

    exit_with("lrp-verify", run)


@app.command("self-test")
def self_test(
    *,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per CPU.")] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Ask every check of every wrong rule, and print which finds which (minutes).")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write down which case finds which mistake, to be asked first from now on.")
    ] = False,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Dask cluster: tcp://HOST:8786, or local:N.")
    ] = None,
) -> None:
    """Test the tests: run them on wrong rules, each with one mistake. Exit status 1 if a mistake is not found.

    A wrong rule is asked until one case finds its mistake.
    """
    if cluster is not None and workers is not None:
        raise typer.BadParameter(_NO_WORKERS)

    def run() -> int:
        from verify.selftests import matrix as selftest  # noqa: PLC0415  imports torch

        if cluster is None:
            return selftest.main(workers=workers, whole=all_, write=record)
        running.require_cluster()
        from verify.selftests.clustered import ClusterJudges  # noqa: PLC0415  imports Dask

        return selftest.main(whole=all_, write=record, judges=partial(ClusterJudges, cluster))

    exit_with("lrp-verify", run)


app.command()(auditing.audit)
app.command()(auditing.compare_pipelines)


def _refuse_options(context: typer.Context) -> None:
    """Options of a run in front of another command would be ignored without a word."""
    given = [
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        name = context.invoked_subcommand
        context.fail(f"--{given[0].strip('_').replace('_', '-')} is no option of {name}; see lrp-verify {name} --help")


def main() -> None:
    """Run the command."""
    app(prog_name="lrp-verify")


def _split(values: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())


def _list(request: Request) -> Status:
    _, selected = select(request)
    typer.echo("\n".join(case.id for case in shards.deal(selected, *request.shard)))
    return Status.PASSED


# --- the run ----------------------------------------------------------------------------------------------------------


def _verify(request: Request) -> Status:
    if "figure" in request.files:
        try:
            require("figure", "--figure")
        except MissingExtraError as error:  # before the run, not after it
            raise UnusableError(str(error)) from error
    source, selected = select(request)
    # these import torch
    from verify.checks.comparator import ComparatorError, check_itself  # noqa: PLC0415
    from verify.model import SubjectError  # noqa: PLC0415

    if request.searching:
        searching.rules_and_dtypes(request)  # before anything is printed
    console = _console(request.json)
    part = shards.deal(selected, *request.shard)
    try:
        check_itself()
        running.known_deviations(request.deviations)  # what is wrong with them is said before anything starts
        with running.started(request, source, part) as runner:
            known = running.known_deviations(request.deviations, runner.describe(request.subject).version)
            report = running.run(
                request, source, runner, selected, part,
                lambda subject, call: terminal.show_tested(subject, call, torch_version(), console), known,
            )  # fmt: skip
            if known is not None:
                report = running.explained(report, known, source)
            if report.unexplained and not report.interrupted and (not request.quiet or request.json or request.files):
                report = running.diagnosed(report, request, runner, source)
            told = (
                running.numbers(request, report, runner, {case.id: case for case in selected})
                if request.ids and not request.quiet
                else {}
            )
    except (SubjectError, ComparatorError) as error:
        raise UnusableError(str(error)) from error
    _show(request, report, told, console)
    if selection.BASELINE in request.files:
        terminal.say(console, _write_baseline(request, report))
    if found := searching.finds(report.outcomes, [case.id for case in selected]):
        terminal.say(console, searching.advice(found))
    _write(request.json, request.files, report)
    if "figure" in request.files and not report.interrupted:
        _draw(request)
    return status_of(report)


def _show(request: Request, report: Report, told: Mapping[str, Numbers], console: Console) -> None:
    if request.ids and not request.quiet:
        from verify.reports import numbers  # noqa: PLC0415  NumPy

        for outcome in report.outcomes:
            found = told.get(outcome.id)
            terminal.show_case(report, outcome, console, () if found is None else ("ledger", "worst entry"))
            if found is not None:
                numbers.show(outcome.rule, outcome.dtype, found, console)
    if request.ids or request.quiet:
        terminal.show_totals(report, console)
    else:
        terminal.show(report, console)


def _console(json: str | None) -> Console:
    # standard output is for JSON alone if that goes there
    return Console(stderr=json == "-", highlight=False, markup=False, emoji=False)


def _write(json: str | None, files: Mapping[str, Path], report: Report) -> None:
    contents = {"json": export.json_bytes, "junit": export.junit_bytes, "markdown": export.markdown_bytes}
    if json == "-":
        typer.echo(export.json_bytes(report), nl=False)
    for name, path in files.items():
        if name in contents:
            _write_file(f"--{name}", path, contents[name](report))


def _write_baseline(request: Request, report: Report) -> str:
    path, name = request.files[selection.BASELINE], f"--{selection.BASELINE}"
    if report.interrupted:
        return f"{name} {path} was not written, since the run was interrupted"
    content = baseline.baseline(
        request.subject.removeprefix(COMMAND), report.subject.version, report.outcomes, selection.all_ids(request)
    )
    _write_file(name, path, content)
    count, failed = len(baseline.entries(report.outcomes)), len(report.unexplained)
    if not failed:
        return f"{path}: no known deviation, since nothing failed"
    return (
        f"{path}: {count} known deviation{'s' * (count != 1)} for {failed} failure{'s' * (failed != 1)}; "
        f"write the reason into each, and run with --deviations {shlex.quote(str(path))}"
    )


def _write_file(option: str, path: Path, content: bytes) -> None:
    try:
        write(path, content)
    except OSError as error:
        msg = f"{option} {path} could not be written: {error.strerror or error}"
        raise UnusableError(msg) from error


def _draw(request: Request) -> None:
    draw = partial(running.draw, request.subject, request.files["figure"], request.device)
    try:
        if request.workers == 0:
            draw()
        else:
            # in a process of its own: the subject may end it
            with ProcessPool(1, context=multiprocessing.get_context("spawn")) as pool:
                pool.schedule(draw).result()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        msg = f"--figure could not be drawn: {type(error).__name__}: {shortened(text_of(error))}"
        raise UnusableError(msg) from error

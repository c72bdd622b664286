"""The command `lrp-vectors`: generate the frozen vectors, check them, judge a port's answers, show a case."""

from __future__ import annotations

import fnmatch
import json as json_
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from verify.formats.environment import environment, version
from verify.formats.files import write as write_file
from verify.reports import export, terminal
from verify.reports.status import Status, exit_with, status_of
from verify.runs.selection import UnusableError, check_files
from verify.vectors import reading

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FOLDER = "Folder of the test vectors. Default: vectors, if it is there, or else those of this installation."
Folder = Annotated[Path | None, typer.Argument(metavar="DIR", help=_FOLDER)]
FolderOption = Annotated[Path | None, typer.Option("--vectors", metavar="DIR", help=_FOLDER)]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Only cases with ids such as 'epsilon-*-float64'. Several: repeat it."),
]
_EPILOG = "Exit status: 0 passed, 1 failed, 2 wrong options or a file that cannot be used."


def _version(value: bool) -> None:  # noqa: FBT001  typer calls it so
    if value:
        typer.echo(f"lrp-vectors {version()}")
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def lrp_vectors(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print the version and stop."),
    ] = False,
) -> None:
    """Test vectors: cases of the LRP rules as files, for implementations in any language."""


@app.command(epilog=_EPILOG)
def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the test vectors.")] = Path("vectors"),
    *,
    compare: Annotated[
        bool, typer.Option("--compare", metavar="", help="Write nothing, and print which files would change.")
    ] = False,
) -> None:
    """Write the test vectors: the same bytes every time. Released cases change only with the corpus version."""

    def run() -> Status:
        from verify.vectors.corpus import CorpusError  # noqa: PLC0415  mpmath
        from verify.vectors.released import ReleaseError  # noqa: PLC0415
        from verify.vectors.writing import differences, write  # noqa: PLC0415
        from verify.vectors.writing import generate as generated  # noqa: PLC0415

        try:
            contents = generated(folder)
        except (ReleaseError, CorpusError) as error:
            typer.echo(f"lrp-vectors: {error}")
            return Status.FAILED
        except (OSError, ValueError, LookupError) as error:
            message = f"{folder} has test vectors that cannot be read: {type(error).__name__}: {error}"
            raise UnusableError(message) from error
        lines = differences(folder, contents)
        if compare:
            typer.echo("\n".join([*lines, _generated(contents, folder, len(lines), wrote=False)]))
            return Status.FAILED if lines else Status.PASSED
        write(folder, contents)
        typer.echo(_generated(contents, folder, len(lines), wrote=True))
        return Status.PASSED

    exit_with("lrp-vectors", run)


def _generated(contents: Mapping[str, bytes], folder: Path, changed: int, *, wrote: bool) -> str:
    size = sum(map(len, contents.values())) / 1e6
    return f"{folder}: {len(contents)} files, {size:.1f} MB; {changed} {'written' if wrote else 'differ'}"


@app.command(epilog=_EPILOG)
def check(folder: Folder = None) -> None:
    """Check the test vectors: hashes, schema, ids and counts, and every expected value against the reference."""

    def run() -> Status:
        from verify.checks.comparator import check_itself  # noqa: PLC0415
        from verify.vectors.checking import check as checked  # noqa: PLC0415  jsonschema

        check_itself()
        path = folder or reading.here()
        if not path.is_dir():
            message = f"{path} is not a folder; expected the test vectors; `lrp-vectors generate {path}` writes them"
            raise UnusableError(message)
        start = time.perf_counter()
        problems, cases = checked(path)
        for problem in problems:
            typer.echo(str(problem))
        count = f"; {len(problems)} problem{'s' * (len(problems) != 1)}" if problems else ""
        typer.echo(f"{'FAILED' if problems else 'PASSED'}: {cases} cases in {time.perf_counter() - start:.1f} s{count}")
        return Status.FAILED if problems else Status.PASSED

    exit_with("lrp-vectors", run)


@app.command(epilog=_EPILOG)
def verify(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="File of answers: JSON Lines, or a JSON list.")],
    *,
    folder: FolderOption = None,
    only: Only = None,
    strict: Annotated[bool, typer.Option("--strict", metavar="", help="Let recommendations fail the run.")] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write JSON; - is standard output.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table in Markdown.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Print the totals only.")] = False,
) -> None:
    """Check the answers of an implementation: a JSON line for each case, {id, relevance | skipped | error}."""
    files = {"json": Path(json) if json and json != "-" else None, "markdown": markdown}
    given = {name: path for name, path in files.items() if path is not None}

    def run() -> Status:
        from verify.checks.comparator import check_itself  # noqa: PLC0415
        from verify.vectors.results import judge  # noqa: PLC0415  jsonschema

        check_itself()
        check_files(given)
        start = time.perf_counter()
        documents = reading.load(folder or reading.here())
        report = judge(str(results), _content(results), documents, _wanted(documents, only), strict=strict)
        report = replace(report, seconds=time.perf_counter() - start, environment=environment("cpu"))
        console = Console(stderr=json == "-", highlight=False, markup=False, emoji=False)
        (terminal.show_totals if quiet else terminal.show)(report, console)
        made = {"json": export.json_bytes, "markdown": export.markdown_bytes}
        if json == "-":
            typer.echo(export.json_bytes(report), nl=False)
        for name, path in given.items():
            write_file(path, made[name](report))
        return status_of(report)

    exit_with("lrp-vectors", run)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise UnusableError(message) from error


def _wanted(documents: Mapping[str, reading.Json], patterns: list[str] | None) -> list[str]:
    ids = [case["id"] for _, _, case in reading.each(documents)]
    wanted = [id_ for id_ in ids if not patterns or any(fnmatch.fnmatchcase(id_, pattern) for pattern in patterns)]
    if not wanted:
        message = (
            f"--only {' --only '.join(map(repr, patterns or ()))} fits none of the {len(ids)} ids, such as {ids[0]}"
        )
        raise UnusableError(message)
    return wanted


@app.command(epilog=_EPILOG)
def answer(
    *,
    subject: Annotated[
        str, typer.Option(metavar="MODULE[:ATTRIBUTE]", help="Implementation that answers.")
    ] = "lrp_rules",
    folder: FolderOption = None,
    only: Only = None,
) -> None:
    """Print the answers of an implementation in Python, in the form that `verify` reads."""

    def run() -> Status:
        import torch  # noqa: PLC0415  seconds, for nothing in the other commands

        from verify.model import SubjectError  # noqa: PLC0415  torch
        from verify.subjects.loading import load  # noqa: PLC0415  torch
        from verify.vectors.asking import answers  # noqa: PLC0415  torch

        documents = reading.load(folder or reading.here())
        wanted = set(_wanted(documents, only))
        try:
            found = load(subject)
        except SubjectError as error:
            raise UnusableError(str(error)) from error
        torch.set_num_threads(1)  # the tensors are small: threads would wait for each other
        for one in answers(documents.values(), found, wanted):
            typer.echo(json_.dumps(one, allow_nan=False))
        return Status.PASSED

    exit_with("lrp-vectors", run)


@app.command()
def path() -> None:
    """Print the folder of the test vectors that the other commands use."""
    typer.echo(reading.here().resolve())


@app.command(epilog=_EPILOG)
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of a case.")], *, folder: FolderOption = None
) -> None:
    """Print a case: formula, layer, inputs, expected values, and where the relevance goes."""

    def run() -> Status:
        from verify.vectors import showing  # noqa: PLC0415

        console = Console(highlight=False, markup=False, emoji=False)
        showing.show(*reading.find(reading.load(folder or reading.here()), id_), console)
        return Status.PASSED

    exit_with("lrp-vectors", run)


def main() -> None:
    """Run the command."""
    app(prog_name="lrp-vectors")

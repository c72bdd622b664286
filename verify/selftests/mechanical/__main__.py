"""The command ``python -m verify.selftests.mechanical``."""

from __future__ import annotations

import json as json_
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from verify.selftests.mechanical import equivalents, running, sources
from verify.selftests.mechanical.record import Record, RecordError
from verify.selftests.mechanical.running import Run

if TYPE_CHECKING:
    from verify.selftests.mechanical.trial import Fate


def main(
    *,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    every: Annotated[int, typer.Option(min=1, help="Only one mutant in so many, always the same ones.")] = 1,
    only: Annotated[
        str, typer.Option(metavar="TEXT", help="Only mutants with this in their ids; several by commas.")
    ] = "",
    tests: Annotated[Path, typer.Option(help="The tests that are asked after the grid.")] = Path(running.TEST_FILES),
    refresh: Annotated[bool, typer.Option("--refresh", help="Write what survives to the list of equivalents.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Print the ids of the mutants and stop.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Note what becomes of each mutant, and ask none again that FILE knows: an interrupted run goes on.",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what became of each mutant.")] = None,
) -> None:
    """Change lrp_rules in one place at a time, and see whether the verifier or a test notices."""
    console = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
    start = time.perf_counter()
    texts = sources.read()
    every_one = list(running.all_mutants(texts))
    parts = only.split(",")
    mutants = [mutant for mutant in running.chosen(every_one, every) if any(part in mutant.id for part in parts)]
    if list_:
        console.print("\n".join(mutant.id for mutant in mutants))
        return
    try:
        reasons = equivalents.load()
        notes = Record(record, mutants, texts, tests)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("mutants", total=len(mutants), completed=len(notes.known))

            def told(id_: str, fate: Fate) -> None:
                notes.add(id_, fate)
                bar.advance(task)

            fates, seen, never_run = running.run(
                mutants, texts, listed=reasons, workers=workers, tests=tests, known=notes.known, told=told
            )
    except (equivalents.EquivalentsError, RecordError, running.UnusableError) as error:
        console.print(f"verify.selftests.mechanical: {error}")
        raise typer.Exit(2) from None
    failing = tuple(id_ for id_, one in seen.items() if one.failed)
    all_ids = frozenset(mutant.id for mutant in every_one)
    ran = Run(fates, all_ids, reasons, failing, time.perf_counter() - start, never_run)
    show(ran, console)
    if json is not None:
        json.write_text(json_.dumps({id_: asdict(fate) for id_, fate in fates.items()}, indent=1), encoding="utf-8")
    if refresh:
        equivalents.refresh(reasons, ran.stale, ran.survivors)
    raise typer.Exit(0 if ran.held else 1)


def show(ran: Run, console: Console) -> None:
    """Print what became of the mutants of each file, and what is wrong with the list of equivalents."""
    table = Table("file", "mutants", "killed by verify", "by tests alone", "equivalent", "survive")
    total: Counter[str] = Counter()
    for file in dict.fromkeys(id_.partition(":")[0] for id_ in ran.fates):
        counts = Counter(_fate(ran, id_) for id_ in ran.fates if id_.startswith(f"{file}:"))
        table.add_row(file, str(counts.total()), *(str(counts[by]) for by in _COLUMNS))
        total += counts
    table.add_section()
    table.add_row("all", str(total.total()), *(str(total[by]) for by in _COLUMNS))
    console.print(table)
    if ran.failing:
        console.print(f"{len(ran.failing)} cases and tests are not asked, since lrp_rules itself fails them:")
        console.print("\n".join(f"  {id_}" for id_ in ran.failing[:_SHOWN]))
    for id_ in ran.survivors:
        note = " (no case and no test runs this)" if id_ in ran.never_run else ""
        console.print(f"SURVIVES: {id_}{note}")
    for id_, why in ran.stale.items():
        console.print(f"STALE: {id_}: {why}")
    console.print(f"{len(ran.fates)} mutants in {ran.seconds:.0f} s: {'all accounted for' if ran.held else 'not held'}")


#: How many of the cases that are not asked are named.
_SHOWN = 20
_COLUMNS = ("verify", "tests", "equivalent", "survives")


def _fate(ran: Run, id_: str) -> str:
    return ran.fates[id_].by or ("survives" if id_ in ran.survivors else "equivalent")


if __name__ == "__main__":
    typer.run(main)

"""Blind sets: implementations by somebody who had seen neither cases nor mutants, only the specification.

    python -m verify.selftests.blind            # all sets
    python -m verify.selftests.blind 2026-11-28-a --only ra_tanh_sigmoid
    python -m verify.selftests.blind 2026-11-28-a --write    # keep the answers as those of the day

A set is a folder of ``blind_sets``, with a module that has two dictionaries, ``WRONG`` and ``RIGHT``, from the names of
implementations to what is wrong with them, or unusual about them; each is an attribute of the module. All are built on
one of the right ones, ``plain``. The cases that ``plain`` fails, where its author understood the specification in
another way or was wrong by accident, are in ``aside.txt.xz``, and say nothing about the others; ``--aside`` writes it.

A wrong one is killed if it fails another case that decides for every subject, and a right one is accused if it does.
Each is asked in a process of its own, until one case decides; the cases come in the order of `lrp-verify`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import lzma
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from verify.model import BAD, Level
from verify.runs.order import by_urgency
from verify.runs.outcomes import ask
from verify.runs.worker import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.connection import Connection

    from verify.model import Case

SETS = Path(__file__).parent / "blind_sets"
#: Cases that the implementation below all others of a set fails, an id a line.
ASIDE = "aside.txt.xz"
PLAIN = "plain"
#: The answers of the day on which a set was first asked.
FIRST = "first.json"
#: Seconds for one implementation.
LIMIT = 3600.0


@dataclass(frozen=True)
class Answer:
    """What came of one implementation: the case that decides, if any, and one that only advises."""

    name: str
    wrong: bool
    what: str
    case: str = ""
    reason: str = ""
    advice: str = ""
    asked: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the verifier was right about it."""
        return bool(self.case) is self.wrong


def asked_of(folder: Path, name: str, cases: Iterable[Case], most: float = LIMIT) -> dict[str, Any]:
    """Ask an implementation until one case decides, or the seconds of its processor are used up."""
    from verify.subjects.loading import load  # noqa: PLC0415  imports torch

    sys.path.insert(0, str(folder))
    start, begun, asked, advice = time.perf_counter(), time.process_time(), 0, ""
    subject = load(f"{_module(folder)}:{name}")
    for case in by_urgency(cases):
        if time.process_time() - begun > most:
            break
        outcome = ask(case, subject, 0, here=False)
        asked += 1
        if outcome.verdict not in BAD:
            continue
        if outcome.level is Level.MUST:
            return {
                "case": case.id, "reason": outcome.reason, "advice": advice, "asked": asked,
                "seconds": time.perf_counter() - start,
            }  # fmt: skip
        advice = advice or case.id
    return {"advice": advice, "asked": asked, "seconds": time.perf_counter() - start}


def _module(folder: Path) -> str:
    (path,) = folder.glob("blind_?.py")
    return path.stem


def implementations(folder: Path) -> dict[str, tuple[bool, str]]:
    """Return the names of a set, with whether each is wrong, and what is wrong or unusual about it."""
    sys.path.insert(0, str(folder))
    module = importlib.import_module(_module(folder))
    return {
        name: (wrong, what) for wrong in (True, False) for name, what in (module.RIGHT, module.WRONG)[wrong].items()
    }


def set_aside(folder: Path) -> frozenset[str]:
    """Return the ids of the cases that say nothing about a set."""
    path = folder / ASIDE
    return frozenset(lzma.decompress(path.read_bytes()).decode().splitlines()) if path.exists() else frozenset()


def put_aside(folder: Path, cases: Iterable[Case]) -> int:
    """Ask ``plain`` all cases, and write down those that it fails."""
    from verify.subjects.loading import load  # noqa: PLC0415  imports torch

    sys.path.insert(0, str(folder))
    subject = load(f"{_module(folder)}:{PLAIN}")
    failed = [case.id for case in cases if ask(case, subject, 0, here=False).verdict in BAD]
    (folder / ASIDE).write_bytes(lzma.compress("".join(f"{id_}\n" for id_ in failed).encode()))
    return len(failed)


def _child(folder: Path, name: str, cases: Sequence[Case], most: float, sender: Connection) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    sender.send(asked_of(folder, name, cases, most))


def answer(folder: Path, name: str, *, wrong: bool, what: str, cases: Sequence[Case], most: float = LIMIT) -> Answer:
    """Ask one implementation in a process of its own, which has the cases from this one."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(folder, name, cases, most, sender), daemon=False)
    start = time.perf_counter()
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(LIMIT) else {"case": "-", "reason": "no answer within the time"}
    except EOFError:
        found = {"case": "-", "reason": "its process ended"}
    process.kill()
    process.join()
    return Answer(name, wrong, what, **{"seconds": time.perf_counter() - start, **found})


def ask_set(
    folder: Path, only: Sequence[str], cases: Sequence[Case], workers: int, console: Console, most: float = LIMIT
) -> list[Answer]:
    """Ask the implementations of a set, ``workers`` at a time."""
    named = {name: of for name, of in implementations(folder).items() if not only or name in only}
    aside = set_aside(folder)
    cases = [case for case in cases if case.id not in aside]
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress, ThreadPoolExecutor(workers) as pool:
        task = progress.add_task(folder.name, total=len(named))
        futures = [
            pool.submit(answer, folder, name, wrong=wrong, what=what, cases=cases, most=most)
            for name, (wrong, what) in named.items()
        ]
        for future in futures:
            future.add_done_callback(lambda _: progress.advance(task))
        return [future.result() for future in futures]


def show(folder: Path, answers: Sequence[Answer], console: Console) -> None:
    """Print what was missed and accused, and the rates."""
    for one in answers:
        if not one.good:
            said = f"accused by {one.case}: {one.reason}" if not one.wrong else f"advised by {one.advice or 'nothing'}"
            console.print(f"{'SURVIVES' if one.wrong else 'ACCUSED'} {one.name}: {one.what} ({said})")
    wrong, right = ([one for one in answers if one.wrong is of] for of in (True, False))
    killed, accused = sum(one.good for one in wrong), sum(not one.good for one in right)
    times = sorted(one.seconds for one in wrong if one.good)
    median = f"; seconds to the first failure, median: {times[len(times) // 2]:.1f}" if times else ""
    console.print(
        f"{folder.name}: {killed} of {len(wrong)} wrong killed, {accused} of {len(right)} right accused{median}"
    )


def _folders(parser: argparse.ArgumentParser, sets: Sequence[str], only: Sequence[str]) -> list[Path]:
    """Return the folders of the sets; end as an unusable call does where one is none, or a name is in none of them."""
    folders = [Path(name) if Path(name).is_dir() else SETS / name for name in sets]
    folders = folders or sorted(SETS.glob("*") if SETS.is_dir() else ())
    wrong = [folder.name for folder in folders if len(list(folder.glob("blind_?.py"))) != 1]
    if wrong or not folders:
        parser.error(f"no blind set: {', '.join(wrong) or SETS}; expected a folder of {SETS}, or a path")
    known = {name for folder in folders for name in implementations(folder)}
    if missing := [name for name in only if name not in known]:
        parser.error(f"no implementation of {', '.join(folder.name for folder in folders)}: {', '.join(missing)}")
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask blind sets; return 1 if the verifier was wrong about an implementation."""
    parser = argparse.ArgumentParser(
        prog="python -m verify.selftests.blind", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help="names of folders, or paths; default: all")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only this implementation; repeat it"
    )
    parser.add_argument("--seconds", type=float, default=LIMIT, help="ask each no longer; the cases come mixed")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers")
    parser.add_argument("--write", action="store_true", help=f"write {FIRST} of each set")
    parser.add_argument("--aside", action="store_true", help=f"ask {PLAIN} of each set everything, and write {ASIDE}")
    given = parser.parse_args(arguments)
    folders = _folders(parser, given.sets, given.only)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    importlib.import_module("torch").set_num_threads(1)
    console = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
    cases = list(Source(("float64", "float32")).cases().values())
    everything: dict[str, list[dict[str, Any]]] = {}
    good = True
    for folder in folders:
        if given.aside:
            console.print(f"{folder.name}: {put_aside(folder, cases)} of {len(cases)} cases are set aside")
            continue
        answers = ask_set(folder, given.only, cases, given.workers, console, given.seconds)
        show(folder, answers, console)
        good = good and all(one.good for one in answers)
        everything[folder.name] = [asdict(one) for one in answers]
        if given.write:
            (folder / FIRST).write_text(json.dumps(everything[folder.name], indent=1) + "\n", encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""How often two runs of the same code are called different: ``python -m bench.false_alarms [RUNS] [options of run]``.

Makes RUNS + 1 runs of a few small cells, each in fresh processes, and compares each run with the one before it, as
``lrp-bench compare`` does. Exit 1 if any cell of any comparison is called slower or faster.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.comparing import compared
from bench.table import read

RUNS = 20
CELLS = ("--layer", "linear-16-16", "--rule", "Epsilon*", "--rule", "ZPlus", "--quick", "--threads", "1")


def run(folder: Path, options: tuple[str, ...] = CELLS) -> None:
    """Run ``lrp-bench run`` into a folder, in a process of its own."""
    program = "from bench.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, "run", *options, "--out", str(folder)],  # noqa: S603  this project
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip


def main(runs: int = RUNS, options: tuple[str, ...] = CELLS) -> int:
    """Make the runs, and print how many comparisons of cells came to which verdict."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(index) for index in range(runs + 1)]
        run(folders[0], options)
        for old, new in itertools.pairwise(folders):
            run(new, options)
            changes = compared(read(old), read(new))
            counts.update(str(change.verdict) for change in changes)
            for change in changes:
                sys.stdout.write(f"{change.name}: {change.verdict} {change.estimate}\n")
            sys.stdout.flush()
    alarms, asked = counts["slower"] + counts["faster"], counts.total()
    sys.stdout.write(f"{runs} A/A runs, {asked} comparisons, {alarms} false alarms; {dict(counts)}\n")
    return int(alarms > 0)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(int(given[0]) if given else RUNS, tuple(given[1:]) or CELLS))

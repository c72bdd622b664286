"""The report of one run or several: a page that needs nothing else, Markdown, plots, and the table they show."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of the runs in the folders ``runs`` into the folder ``out``.

    Writes ``report.html``, ``report.md``, ``table.csv`` and ``plots/*.svg`` and ``.png``; returns the path of the page.

    Raises
    ------
    ValueError
        If a folder holds no run of this version's schema: names what is missing, and how to make one.

    """
    raise NotImplementedError

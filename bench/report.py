"""The report of one run or several: a page that needs nothing else, Markdown, plots, and the table they show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.report_data import load, shown
from bench.report_page import context, html, markdown
from bench.report_plots import draw
from verify.formats.files import write as write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write the report of the runs in the folders ``runs`` into the folder ``out``.

    Writes ``report.html``, ``report.md``, ``table.csv`` and ``plots/run*.svg`` and ``.png``; returns the path of the
    page. The same runs give the same bytes. Plots of an earlier report that this one has not are removed.

    Raises
    ------
    TableError
        If a folder holds no run of this version's schema: names what is missing, and how to make one.

    """
    settings = load(runs)
    filled = context(settings, ["lrp-bench", "report", *runs, "--out", out])
    (out / "plots").mkdir(parents=True, exist_ok=True)
    drawn = {view.setting.slug: draw(view, out / "plots") for view in filled["views"]}
    plots = {slug: [path.relative_to(out) for path in paths] for slug, paths in drawn.items()}
    current = {path.stem for paths in drawn.values() for path in paths}
    for path in (out / "plots").glob("run[0-9]*-*"):
        if path.is_file() and path.suffix in {".svg", ".png"} and path.stem not in current:
            path.unlink()
    write_file(out / "table.csv", shown(settings).to_csv(index=False, lineterminator="\n").encode())
    write_file(out / "report.md", markdown(filled, plots).encode())
    page = out / "report.html"
    write_file(page, html(settings, filled).encode())
    return page

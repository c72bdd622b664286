"""The report says what the table says: verdicts, what is missing and why, for any names and number of runs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from bench import report, table
from bench.report_data import load, problems, shown, strips
from bench.report_page import context, html, markdown, view
from bench.report_plots import draw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.report_data import Row

    Change = Callable[[pd.DataFrame], Any]

HOSTILE = "</script><img src=x onerror=alert(1)> | `a` *b* <b>c</b>"


def changed(source: Path, folder: Path, change: Change, **facts: Any) -> Path:
    """A copy of a run whose table is changed in place, or is what ``change`` returns."""
    run = table.read(source)
    frame = run.table.copy()
    other = change(frame)
    table.write(folder, frame if other is None else other, run.samples, run.facts | facts)
    return folder


def page(*folders: Path) -> str:
    """The HTML page of some runs."""
    settings = load(folders)
    return html(settings, context(settings, ["lrp-bench", "report"]))


def text(*folders: Path) -> str:
    """The Markdown of some runs."""
    settings = load(folders)
    return markdown(context(settings, ["lrp-bench", "report"]))


def rows(folder: Path) -> list[Row]:
    [setting] = load([folder])
    return setting.rows


# --- what is written --------------------------------------------------------------------------------------------------


def test_what_no_number_of_json_is_does_not_keep_the_page_from_working(example_run: Path, tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[frame.status == "disagrees", "agreement_ratio"] = float("inf")  # got something where zero is exact

    found = page(changed(example_run, tmp_path / "infinite", change))
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', found, re.DOTALL)
    read = json.loads(data, parse_constant=pytest.fail)  # a browser knows neither NaN nor Infinity
    ratios = [values[read["names"].index("agreement_ratio")] for _, values, _ in read["rows"]]
    assert "inf" in ratios


def test_page_text_table_and_plots_are_written(example_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert report.write([example_run], out) == out / "report.html"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "table.csv"} <= names
    plots = {name for name in names if name.startswith("plots/")}
    assert {name.removesuffix(".svg") for name in plots if name.endswith(".svg")} == {
        f"plots/run1-cpu-float32-2-{what}" for what in ("heat-lrp-rules", "heat-zennit", "heat-captum", "beside-zennit",
                                                        "models", "memory", "size")
    }  # fmt: skip
    assert {name.replace(".svg", ".png") for name in plots} == {name for name in plots if name.endswith(".png")}
    linked = re.findall(r"\]\((plots/[^)]+)\)", (out / "report.md").read_text())
    assert sorted(linked) == sorted(name for name in plots if name.endswith(".svg"))


def test_same_runs_give_the_same_bytes(example_run: Path, tmp_path: Path) -> None:
    def written() -> dict[str, bytes]:
        out = report.write([example_run], tmp_path / "out").parent
        return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    assert written() == written()


def test_plots_of_an_earlier_report_go_and_what_others_put_there_stays(
    example_run: Path, other_run: Path, tmp_path: Path
) -> None:
    out, plots = tmp_path / "out", tmp_path / "out" / "plots"
    report.write([example_run, other_run], out)
    mine = [plots / "mine.png", plots / "run1-notes.txt", plots / "run9-folder.png" / "mine.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    report.write([example_run], out)
    report.write([example_run], tmp_path / "fresh")
    left = {path.relative_to(out) for path in plots.rglob("*") if path.is_file() and path not in mine}
    assert left == {path.relative_to(tmp_path / "fresh") for path in (tmp_path / "fresh" / "plots").iterdir()}
    assert all(path.read_text() == "mine" for path in mine)


def test_page_needs_nothing_else(example_run: Path) -> None:
    found = page(example_run)
    assert "default-src 'none'" in found
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", found)
    assert not re.search(r"""https?://(?!www\.w3\.org/2000/svg)""", found)


def test_table_holds_every_row_that_is_shown(example_run: Path, example_table: pd.DataFrame, tmp_path: Path) -> None:
    shown(load([example_run])).to_csv(tmp_path / "table.csv", index=False)
    written = pd.read_csv(tmp_path / "table.csv")
    assert list(written) == list(table.COLUMNS)
    assert len(written) == len(example_table)
    pd.testing.assert_series_equal(written["ratio"], example_table["ratio"])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_missing_columns_are_named(example_run: Path, tmp_path: Path) -> None:
    folder = changed(example_run, tmp_path / "b", lambda frame: frame.drop(columns=["ratio", "goal"]))
    with pytest.raises(table.TableError, match=r"table\.parquet lacks ratio, goal; expected .* measure it again"):
        report.write([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_columns_of_samples_are_named(example_run: Path, tmp_path: Path) -> None:
    run = table.read(example_run)
    table.write(tmp_path / "b", run.table, run.samples.drop(columns="side"), run.facts)
    with pytest.raises(table.TableError, match=r"samples\.parquet lacks side; expected"):
        load([tmp_path / "b"])


def test_missing_facts_are_named(example_run: Path, tmp_path: Path) -> None:
    run = table.read(example_run)
    facts = {name: value for name, value in run.facts.items() if name != "floor"}
    table.write(tmp_path / "b", run.table, run.samples, facts)
    with pytest.raises(table.TableError, match=r"run\.json lacks floor; expected"):
        load([tmp_path / "b"])


def test_a_run_without_cells_is_refused(example_run: Path, tmp_path: Path) -> None:
    folder = changed(example_run, tmp_path / "b", lambda frame: frame.head(0))
    with pytest.raises(table.TableError, match=r"has no measurements; finish it with `lrp-bench run --resume --out"):
        load([folder])


def test_no_run_is_refused() -> None:
    with pytest.raises(table.TableError, match="no run is given; expected the folders"):
        load([])


def test_a_run_given_twice_is_refused(example_run: Path) -> None:
    with pytest.raises(table.TableError, match=r"holds run .*, which .* holds too; give each run once"):
        load([example_run, example_run])


# --- no time without agreement ----------------------------------------------------------------------------------------

#: A time that no other number of the run is.
_TIME = 55512.3


@pytest.mark.parametrize("status", ["disagrees", "unsupported", "out-of-memory", "failed"])
def test_a_cell_that_is_not_ok_shows_no_time(example_run: Path, tmp_path: Path, status: str) -> None:
    def change(frame: pd.DataFrame) -> None:
        bad = frame.index[frame.status == "ok"][3]
        frame.loc[bad, ["seconds", "baseline_seconds", "ratio", "ratio_low", "ratio_high"]] = _TIME
        frame.loc[bad, ["status", "reason"]] = status, "a reason of its own"

    folder = changed(example_run, tmp_path / "b", change)
    for written in (page(folder), text(folder), shown(load([folder])).to_csv()):
        assert "a reason of its own" in written
        assert not re.search(r"555[01]\d", written)


def test_a_cell_that_disagrees_is_wrong_whatever_its_status(example_run: Path, tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[frame.index[frame.status == "ok"][3], "agreement_ratio"] = 3.5

    before, after = (
        [row for row in rows(folder) if row["status"] == "disagrees"]
        for folder in (example_run, changed(example_run, tmp_path / "b", change))
    )
    [new] = [row for row in after if row not in before]
    assert (new["ratio"], new["seconds"], new["reason"]) == (None, None, "3.5 times what rounding can explain")


def test_samples_of_a_wrong_cell_are_left_out(example_run: Path, tmp_path: Path) -> None:
    [setting] = load([example_run])
    assert len(strips(setting)) == sum(row["status"] == "ok" for row in setting.rows)
    folder = changed(example_run, tmp_path / "b", lambda frame: frame.__setitem__("status", "disagrees"))
    assert strips(load([folder])[0]) == {}


def test_what_has_no_time_is_told_with_its_reason(example_run: Path) -> None:
    found = problems(rows(example_run))
    assert [(first["subject"], first["status"]) for first, _ in found] == [
        ("captum", "disagrees"), ("lrp_rules", "failed"), ("zennit", "out-of-memory"), ("captum", "unsupported"),
    ]  # fmt: skip
    for written in (page(example_run), text(example_run)):
        assert all(word in written for word in ("1.2e", "RuntimeError: made up", "the process was killed"))


def test_ok_without_a_ratio_is_told_too(example_run: Path, tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[frame.index[frame.status == "ok"][3], "ratio"] = float("nan")

    reasons = [first["reason"] for first, _ in problems(rows(changed(example_run, tmp_path / "b", change)))]
    assert "no ratio was recorded" in reasons


# --- any names --------------------------------------------------------------------------------------------------------


def test_hostile_names_are_text(example_run: Path, tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        for column in ("rule", "layer", "workload", "subject", "reason", "code", "command", "signs", "regime"):
            frame.loc[frame[column] != "gradient", column] = HOSTILE + frame[column]

    folder = changed(example_run, tmp_path / "b", change, machine=HOSTILE, command=HOSTILE, run_id=HOSTILE)
    found = page(folder)
    assert "<img" not in found
    assert "<b>c" not in found
    assert found.count("</script>") == page(example_run).count("</script>")
    outside_of_code = re.sub(r"`` .*? ``", "", text(folder))
    assert "<img" not in outside_of_code.replace(r"\<img", "")


def test_hostile_names_can_be_plotted(example_run: Path, tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        for column in ("rule", "layer", "subject"):
            frame.loc[frame[column] != "gradient", column] = "../$x_{ | " + frame[column]

    out = report.write([changed(example_run, tmp_path / "b", change)], tmp_path / "out").parent
    assert list((out / "plots").glob("*.svg"))
    assert {path.parent for path in tmp_path.rglob("*.svg")} == {out / "plots"}


def test_a_table_in_markdown_keeps_its_columns(example_run: Path, tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame["rule"] = frame["rule"] + " | x\ny"

    width = 0
    for line in text(changed(example_run, tmp_path / "b", change)).splitlines():
        columns = len(re.findall(r"(?<!\\)\|", line))
        assert columns in {0, width} or not width
        width = columns


# --- several runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def other_run(example_run: Path, tmp_path: Path) -> Path:
    """The same on another machine, in two dtypes, without whole models."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame.kind == "scaling", "dtype"] = "bfloat16"
        frame["ratio"] *= 2
        return frame[frame.kind != "model"]

    return changed(example_run, tmp_path / "other", change, run_id="other", machine="Another CPU")


def test_several_runs_stand_side_by_side(example_run: Path, other_run: Path) -> None:
    settings = load([example_run, other_run])
    assert [setting.slug for setting in settings] == ["run1-cpu-float32-2", "run2-cpu-float32-2", "run2-cpu-bfloat16-2"]
    for written in (page(example_run, other_run), text(example_run, other_run)):
        assert "Another CPU" in written
        assert "Side by side" in written
        assert "not in this run" in written  # the model, on the other machine
    assert "Side by side" not in page(example_run)


def test_a_view_of_a_run_with_nothing_but_failures_can_be_drawn(example_run: Path, tmp_path: Path) -> None:
    folder = changed(example_run, tmp_path / "b", lambda frame: frame.__setitem__("status", "failed"))
    found = view(load([folder])[0])
    assert found.refused["lrp_rules"] == {
        "failed": sum(one["subject"] == "lrp_rules" and one["baseline"] == "gradient" for one in rows(folder))
    }
    draw(found, tmp_path)
    assert page(folder).count("no time was measured") == 1  # in place of the curves


def test_a_peer_that_was_refused_is_not_laid_to_our_charge(example_run: Path, tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        pair = (frame.subject == "zennit") | (frame.baseline == "zennit")
        frame.loc[(frame.rule == "ZPlus()") & (frame.kind == "layer") & pair, ["status", "reason"]] = (
            "disagrees",
            "not ours",
        )

    found = rows(changed(example_run, tmp_path / "b", change))
    [pair] = [row for row in found if row["rule"] == "ZPlus()" and row["baseline"] == "zennit"]
    assert (pair["subject"], pair["refused"]) == ("lrp_rules", "zennit")
    assert [first["subject"] for first, _ in problems(found) if first["reason"] == "not ours"] == ["zennit"]
    assert ">zennit disagrees</td>" in page(tmp_path / "b")


def test_a_run_on_a_card_names_it(example_run: Path, tmp_path: Path) -> None:
    facts = {"facts": {"cuda": {"card": "Example Card", "memory_bytes": 2**34, "driver_version": "570.1"}}}
    folder = changed(example_run, tmp_path / "b", lambda _: None, **facts)
    assert "| GPU | Example Card, driver 570.1 |" in text(folder)
    assert "| GPU | \N{EM DASH} |" in text(example_run)
    assert "16.0 GiB" in page(folder)

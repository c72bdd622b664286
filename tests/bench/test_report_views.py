"""What the report says and draws: peers, the heat map, charts, curves, numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bench.report_charts import Axis, memory_chart, model_chart, panels, peer_chart, span
from bench.report_data import load
from bench.report_page import overview
from bench.report_text import interval, number, ratio, seconds, size
from bench.report_views import Headline, HeatCell, headline, heats, peers
from bench.statistics import Growth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bench.report_data import Row


def rows(folder: Path) -> list[Row]:
    [setting] = load([folder])
    return setting.rows


def test_peers_are_compared_by_the_geometric_mean(example_run: Path) -> None:
    [peer] = peers(rows(example_run))
    assert peer.baseline == "zennit"
    assert ratio(peer.mean) == "2.75×"  # 1 / sqrt(0.39 * 0.34)
    assert (peer.count("faster"), peer.count("slower")) == (2, 0)
    # zennit takes 4.1 and 6.4 gradients there, and the limits are 1.5 and 1
    assert ratio(peer.at_limit) == "4.18×"


def test_all_classes_of_a_classifier_are_told_apart_from_layers_and_models(example_run: Path) -> None:
    [setting] = load([example_run])
    row = next(row for row in setting.rows if row["kind"] == "model" and row["status"] == "ok")
    row = row | {"kind": "classifier", "layer": "MLP", "workload": "mlp", "goal": None, "goal_met": None}
    loop = row | {"baseline": "lrp_rules-class-by-class", "ratio": 0.5, "goal": 1.0, "goal_met": True}
    setting.rows.extend((row, loop))
    groups = overview([setting]).groups
    assert list(groups)[:2] == ["whole models", "all classes of a classifier"]
    assert [label for label, _ in groups["all classes of a classifier"]] == ["MLP, EpsilonPlus"]
    [line] = peer_chart(setting.rows, "lrp_rules-class-by-class").lines
    assert line.parts[0].label.endswith("batch 2, all classes")
    assert [ratio(peer.mean) for peer in peers(setting.rows) if "class" in peer.baseline] == ["2.00×"]


def test_heat_map_tells_ambiguous_failed_and_absent_apart(example_run: Path) -> None:
    maps = {heat.regime: heat for heat in heats(rows(example_run), "lrp_rules")}
    assert maps["overhead"].cell(("Flat()", "x>=0"), "Linear").state == "ambiguous"
    assert maps["overhead"].cell(("WSquare()", "x>=0"), "Linear").state == "failed"
    assert maps["overhead"].cell(("WSquare()", "x>=0"), "Linear").explanation == "failed: RuntimeError: made up"
    assert maps["overhead"].cell(("WSquare()", "x>=0"), "Conv9d").state == "absent"
    assert maps["compute"].cell(("ZPlus()", "x>=0"), "Conv2d").state == "ok"


@pytest.mark.parametrize(("value", "warmth"), [(1.0, 0), (8.0, 100), (100.0, 100), (0.125, -100), (8**0.5, 50)])
def test_colour_is_logarithmic_around_the_gradient(value: float, warmth: int) -> None:
    cell = HeatCell([{"status": "ok", "ratio": value, "verdict": "slower"}])
    assert cell.warmth == warmth


def test_models_show_what_is_missing(example_run: Path) -> None:
    [line] = model_chart(rows(example_run)).lines
    assert (line.label, line.missing) == ("VGG16, EpsilonPlus", ["zennit: out-of-memory"])
    assert line.of("lrp_rules") == 1.7


def test_the_headline_has_the_first_layers_that_have_goals_and_the_first_peer_beside(example_run: Path) -> None:
    found = rows(example_run)
    assert headline(found, "lrp_rules") == Headline(
        "zennit",
        ["conv2d-64-64-3x3@56, batch 4"],
        [("ZPlus(), x>=0", 1.5, ["1.62 (4.10)"]), ("AlphaBeta(2, 1), signed", 4.5, ["4.95"])],
    )
    without_peer = [row for row in found if row["subject"] != "zennit" and row["baseline"] != "zennit"]
    assert headline(without_peer, "lrp_rules") == Headline(
        "",
        ["conv2d-64-64-3x3@56, batch 4"],
        [("ZPlus(), x>=0", 1.5, ["1.62"]), ("AlphaBeta(2, 1), signed", 4.5, ["4.95"])],
    )


def test_a_headline_says_where_there_is_no_time_and_is_absent_without_goals(example_run: Path) -> None:
    found = rows(example_run)
    for row in found:
        if row["rule"] == "ZPlus()" and row["kind"] == "layer" and row["baseline"] == "gradient":
            row |= {"status": "disagrees", "ratio": None}
        if row["rule"].startswith("Alpha") and row["subject"] == "lrp_rules":
            row["workload"] = "another"
    told = headline(found, "lrp_rules")
    assert told is not None
    assert told.layers == ["conv2d-64-64-3x3@56, batch 4", "another, batch 4"]
    assert [cells for *_, cells in told.lines] == [["disagrees (disagrees)", "—"], ["—", "4.95"]]
    assert headline([row | {"goal": None} for row in found], "lrp_rules") is None


def test_a_chart_has_a_line_a_cell_below_each_rule(example_run: Path) -> None:
    chart = peer_chart(rows(example_run), "zennit")
    assert [line.label for line in chart.lines] == ["ZPlus()", "Epsilon()"]
    assert [part.label for part in chart.lines[0].parts] == ["conv2d-64-64-3x3@56, x>=0, batch 4"]
    assert chart.axis == Axis([0.2, 0.5, 1.0])


def test_memory_is_in_units_of_the_gradients(example_run: Path) -> None:
    lines = {line.label: line for line in memory_chart(rows(example_run)).lines}
    assert ratio(lines["ZPlus()"].of("zennit")) == "3.56×"  # 9.6 MB / 2.7 MB


def test_time_against_size_has_gradient_and_limit(example_run: Path) -> None:
    [panel] = panels(rows(example_run), "lrp_rules")
    curves = {curve.subject: curve for curve in panel.curves}
    assert list(curves) == ["lrp_rules", "gradient", "limit"]
    # 2 ms batch^0.97 and 1.6 times as much
    assert [curves[name].growth for name in ("lrp_rules", "gradient")] == [Growth(0.0, 0.97)] * 2
    assert [x for x, _ in curves["limit"].points] == [1, 4, 16, 64]
    for (_, limit), (_, gradient) in zip(curves["limit"].points, curves["gradient"].points, strict=True):
        assert limit == 1.5 * gradient


def test_a_subject_without_times_along_a_curve_is_named_once_for_each_status(example_run: Path) -> None:
    found = rows(example_run)
    for row in [row for row in found if row["kind"] == "scaling"]:
        reason = "has it not" if row["size"] < 16 else f"got {row['size']:g}"
        status = "unsupported" if row["size"] < 16 else "disagrees"
        found.append(row | {"subject": "zennit", "status": status, "reason": reason, "ratio": None})
    [panel] = panels(found, "lrp_rules")
    assert panel.missing == [
        "zennit, batch 1, 4: unsupported; has it not",
        "zennit, batch 16, 64: disagrees; the first: got 16",
    ]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1.0], [1, 2]),
        ([0.3, 1.0, 4.0], [0.2, 0.5, 1, 2, 5]),
        ([1.0, 64.0], [1, 2, 5, 10, 20, 50, 100]),
        ([1e-6, 1.0], [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]),
    ],
    ids=str,
)
def test_axis_holds_every_value(values: Sequence[float], ticks: Sequence[float]) -> None:
    axis = span(values)
    assert axis.ticks == ticks
    assert all(0 <= axis.place(value) <= 100 for value in values)
    assert (axis.place(ticks[0]), axis.place(ticks[-1])) == (0, 100)


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (number, 0.0, "0"),
        (number, 1.0, "1.00"),
        (number, 999.6, "1000"),
        (number, -0.5, "-0.500"),
        (number, float("nan"), "—"),
        (number, float("inf"), "inf"),
        (ratio, 1.6249, "1.62\N{MULTIPLICATION SIGN}"),
        (ratio, None, "—"),
        (seconds, 0.0009996, "1.00 ms"),
        (seconds, 3.2e-9, "3.20 ns"),
        (size, 1023.9, "1020 B"),
        (size, 5.0, "5.00 B"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(write: Callable[[Any], str], value: Any, expected: str) -> None:
    assert write(value) == expected


def test_an_interval_without_an_end_is_none() -> None:
    assert interval(0.98, 1.02) == "[0.980, 1.02]"
    assert interval(0.98, None) == ""

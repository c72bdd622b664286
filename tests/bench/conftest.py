"""A small run, made up: every status, verdict and kind that a table can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench import table

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_RUN: dict[str, Any] = {
    "schema_version": table.SCHEMA_VERSION,
    "run_id": "20261123T120000-0000",
    "started": "2026-11-23T12:00:00+00:00",
    "machine": "Example CPU, 2 cores",
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
    "kind": "layer",
    "signs": "x>=0",
    "status": "ok",
    "floor": 0.004,
    "pairs": 200,
    "processes": 5,
    "command": "lrp-bench run --layer Conv2d --rule ZPlus",
    "code": "import torch\nfrom lrp_rules import ZPlus\nlayer = torch.nn.Conv2d(64, 64, 3, padding=1)\n",
}
_CONV = {"workload": "conv2d-64-64-3x3@56", "layer": "Conv2d", "batch": 4, "regime": "compute"}
_TINY = {"workload": "linear-16-16", "layer": "Linear", "batch": 4, "regime": "overhead"}
_VGG = {"workload": "vgg16@224", "layer": "VGG16", "kind": "model", "batch": 2, "regime": "compute"}


def _row(cell: dict[str, Any], rule: str, subject: str, baseline: str, ratio: float, **more: Any) -> dict[str, Any]:
    base = {"overhead": 5e-5, "compute": 1e-2}[cell["regime"]]
    versions = {"lrp_rules": "0.1.0", "zennit": "0.5.1", "captum": "0.9.0"}
    row = {
        **_RUN, **cell, "rule": rule, "subject": subject, "subject_version": versions.get(subject, "2.13.0"),
        "baseline": baseline, "baseline_seconds": base, "seconds": base * ratio, "ratio": ratio,
        "ratio_low": ratio * 0.99, "ratio_high": ratio * 1.01, "outliers_mild": 3, "outliers_severe": 1,
        "verdict": "faster" if ratio < 0.97 else "slower" if ratio > 1.03 else "same", "passes_limit": 1.5,
        "agreement_ratio": 0.31, "agreement_entries": 640, "peak_bytes": 3.2e6, "baseline_peak_bytes": 2.7e6,
    }  # fmt: skip
    row |= more
    if "goal" in row:
        row["goal_met"] = row["ratio"] <= row["goal"]
    if row["status"] != "ok":
        numbers = ("seconds", "baseline_seconds", "ratio", "ratio_low", "ratio_high", "peak_bytes")
        row |= dict.fromkeys(numbers, None) | {"verdict": "", "pairs": 0, "processes": 0}
    return row


def example_rows() -> list[dict[str, Any]]:
    """The rows of the run."""
    zennit, captum = "zennit", "captum"
    rows = [
        _row(_TINY, "gradient", "gradient", "gradient", 1.002, passes_limit=1.0),
        _row(_CONV, "gradient", "gradient", "gradient", 0.999, passes_limit=1.0),
        _row(_CONV, "ZPlus()", "lrp_rules", "gradient", 1.62, goal=1.65),
        _row(_CONV, "ZPlus()", zennit, "gradient", 4.1, peak_bytes=9.6e6),
        _row(_CONV, "ZPlus()", "lrp_rules", zennit, 0.39, goal=1.0),
        _row(_CONV, "ZPlus()", captum, "gradient", 0.0, status="disagrees", agreement_ratio=1.2e6,
             reason="sample 0, entry 17: got 0.41, expected 0.52, 1.2e+06 times the bound 9.2e-08"),
        _row(_CONV, "AlphaBeta(2, 1)", "lrp_rules", "gradient", 4.95, goal=4.8, signs="signed", passes_limit=4.5),
        _row(_CONV, "AlphaBeta(2, 1)", captum, "gradient", 0.0, status="unsupported", signs="signed",
             reason="captum has AlphaBeta for alpha=1 and beta=0 alone, not for alpha=2 and beta=1"),
        _row(_TINY, "Epsilon()", "lrp_rules", "gradient", 2.2, goal=2.5, passes_limit=1.0),
        _row(_TINY, "Epsilon()", zennit, "gradient", 6.4, passes_limit=1.0),
        _row(_TINY, "Epsilon()", "lrp_rules", zennit, 0.34, goal=1.0, passes_limit=1.0),
        _row(_TINY, "Flat()", "lrp_rules", "gradient", 1.01, ratio_low=0.95, ratio_high=1.08, verdict="ambiguous",
             passes_limit=0.5),
        _row(_TINY, "WSquare()", "lrp_rules", "gradient", 0.0, status="failed", reason="RuntimeError: made up"),
        _row(_VGG, "EpsilonPlus", "lrp_rules", "gradient", 1.7, goal=1.7, passes_limit=None),
        _row(_VGG, "EpsilonPlus", zennit, "gradient", 0.0, status="out-of-memory", reason="the process was killed"),
    ]  # fmt: skip
    for batch in (1, 4, 16, 64):
        cell = {
            **_CONV,
            "batch": batch,
            "kind": "scaling",
            "axis": "batch",
            "size": float(batch),
            "exponent": 0.97,
            "overhead_seconds": 0.0,
        }
        seconds = 2e-3 * batch**0.97
        rows.append(
            _row(cell, "ZPlus()", "lrp_rules", "gradient", 1.6, seconds=1.6 * seconds, baseline_seconds=seconds)
        )
    return rows


@pytest.fixture
def example_table() -> pd.DataFrame:
    """The table of a made-up run."""
    return table.frame(example_rows())


@pytest.fixture
def example_samples(example_table: pd.DataFrame) -> pd.DataFrame:
    """Raw samples behind it: two processes of five quads."""
    draw, rows = np.random.default_rng(0), []
    for row in example_table[example_table.status == "ok"].to_dict("records"):
        for process, quad, position in np.ndindex(2, 5, 4):
            side = "ABBA"[position]
            seconds = row["seconds" if side == "A" else "baseline_seconds"] * draw.lognormal(0, 0.02)
            known = {name: row[name] for name in table.SAMPLE_COLUMNS if name in row}
            place = {"process": process, "quad": quad, "position": position, "side": side, "seconds": seconds}
            rows.append(known | place)
    return table.sample_frame(rows)


@pytest.fixture
def example_facts() -> dict[str, Any]:
    """What ``run.json`` holds, as :mod:`bench.machine` writes it."""
    return {
        "schema_version": table.SCHEMA_VERSION,
        "run_id": _RUN["run_id"],
        "started": _RUN["started"],
        "ended": "2026-11-23T12:10:00+00:00",
        "machine": _RUN["machine"],
        "commit": "0123456789abcdef",
        "command": "lrp-bench run --against zennit,captum --out example",
        "subject": "lrp_rules",
        "seed": 0,
        "floor": {"overhead": 0.004, "compute": 0.004, "memory": 0.004},
        "facts": {
            "processor": "Example CPU", "cores": 2, "memory_bytes": 8 * 2**30, "load": [0.1, 0.2, 0.3],
            "governor": "performance", "turbo": None, "system": "Linux-6.1-x86_64", "python": "3.11.7",
            "torch": "2.13.0+cpu", "torch_config": "PyTorch built with: ...",
            "threads": 2, "interop_threads": 2, "cuda": None,
        },
        "versions": {"lrp_rules": "0.1.0", "zennit": "0.5.1", "captum": "0.9.0", "numpy": "2.4.6", "torch": "2.13.0"},
        "options": {"processes": 5, "time_budget": 600.0, "quick": False},
        "left_out": [],
    }  # fmt: skip


@pytest.fixture
def example_run(
    tmp_path: Path, example_table: pd.DataFrame, example_samples: pd.DataFrame, example_facts: dict[str, Any]
) -> Path:
    """The folder of the run."""
    folder = tmp_path / "run"
    table.write(folder, example_table, example_samples, example_facts)
    return folder

"""The result of a run: one tidy table, its raw samples, and facts about the machine. The columns are documented here.

A folder of a run holds ``table.parquet`` and ``table.csv`` (the same), ``samples.parquet`` (every call that was timed)
and ``run.json`` (:mod:`bench.machine`). Every number of the table follows from the samples.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

T = TypeVar("T")

SCHEMA_VERSION = 2

#: What each column means. One row a cell, subject and baseline. A number that does not apply is missing (NaN).
COLUMNS: dict[str, tuple[str, str]] = {
    "schema_version": ("int64", "version of this table's columns"),
    "run_id": ("str", "the run: when it started and four random digits"),
    "started": ("str", "when the run started, ISO 8601, UTC"),
    "machine": ("str", "processor, cores and card: the name under which runs are comparable"),
    "device": ("str", "cpu, cuda"),
    "dtype": ("str", "float32, float64, bfloat16"),
    "threads": ("int64", "threads of torch"),
    "workload": ("str", "the layer or model and its size, such as conv2d-64-64-3x3@56"),
    "kind": ("str", "layer, model, scaling, classifier (all of its classes at once)"),
    "layer": ("str", "type of the layer, such as Conv2d; the name of a model"),
    "rule": ("str", "the rule with its parameters, such as AlphaBeta(2, 1); the composite of a model"),
    "signs": ("str", "of the input: 'x>=0' as behind a ReLU, or 'signed'"),
    "batch": ("int64", "samples in one call"),
    "regime": ("str", "overhead, compute, memory: what bounds the gradient's time"),
    "subject": ("str", "whose time it is: gradient, lrp_rules, zennit, captum"),
    "subject_version": ("str", "its version"),
    "baseline": ("str", "with what it was paired: gradient, or the peer beside which lrp_rules stands"),
    "status": (
        "str",
        "ok, unsupported, disagrees (with the reference), out-of-memory, failed; without ok there is no time",
    ),
    "reason": ("str", "why it is not ok"),
    "seconds": ("float64", "median time of one call of the subject: forward and backward"),
    "baseline_seconds": ("float64", "the same of the baseline, in the same pairs"),
    "ratio": ("float64", "exp of the median log ratio of the pairs, subject over baseline: below 1 is faster"),
    "ratio_low": ("float64", "lower end of its 95 % interval: bootstrap over processes and quads"),
    "ratio_high": ("float64", "upper end"),
    "verdict": ("str", "the subject beside its baseline: faster, slower, same, ambiguous"),
    "floor": ("float64", "noise floor of the run for this regime: how far gradient over gradient was from 1"),
    "pairs": ("int64", "pairs of calls; a quad A B B A is two"),
    "processes": ("int64", "fresh processes that took part"),
    "outliers_mild": ("int64", "calls beyond 1.5 interquartile ranges, by their process; none is dropped"),
    "outliers_severe": ("int64", "calls beyond 3 interquartile ranges"),
    "passes_limit": ("float64", "pass count: the time of the matrix products of the rule alone, in gradient times"),
    "goal": ("float64", "goal of the subject against this baseline, as a ratio; missing where there is none"),
    "goal_met": ("object", "whether ratio <= goal: True, False, or None without a goal"),
    "agreement_ratio": ("float64", "largest |got - expected| / bound on the data that was timed; at most 1 is right"),
    "agreement_entries": ("int64", "entries of the relevance that were compared with the reference"),
    "peak_bytes": ("float64", "peak memory of one call of the subject, beyond what was there before"),
    "baseline_peak_bytes": ("float64", "the same of the baseline"),
    "graph_seconds": ("float64", "time of one CUDA graph replay: without launches"),
    "axis": ("str", "what a scaling varies: 'batch' or 'size'; else empty"),
    "size": ("float64", "its value: samples, or multiply-adds of one sample's forward pass"),
    "overhead_seconds": ("float64", "a of seconds = a + c size^k, fitted over all rows of the scaling"),
    "exponent": ("float64", "k of it"),
    "code": ("str", "Python that makes the cell"),
    "command": ("str", "the command that measures the cell again"),
}

#: The raw samples: one row a call.
SAMPLE_COLUMNS: dict[str, str] = {
    "run_id": "str", "device": "str", "dtype": "str", "threads": "int64", "workload": "str", "kind": "str",
    "rule": "str", "signs": "str", "batch": "int64", "axis": "str", "subject": "str", "baseline": "str",
    "process": "int64", "quad": "int64", "position": "int64", "side": "str", "seconds": "float64",
}  # fmt: skip

#: What tells one cell from another, on any machine and in any run; subject and baseline tell its rows apart.
CELL = ["device", "dtype", "threads", "workload", "kind", "rule", "signs", "batch", "axis"]
ROW = [*CELL, "subject", "baseline"]


class TableError(Exception):
    """A folder holds no run, or one that this version cannot read; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """One run: its table, its raw samples, the facts of its machine, and where it was read."""

    table: pd.DataFrame
    samples: pd.DataFrame
    facts: dict[str, Any]
    folder: Path


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as the table, columns in their order and of their type.

    Raises
    ------
    TableError
        If a row has a column that is not documented.

    """
    return _frame(rows, {name: dtype for name, (dtype, _) in COLUMNS.items()})


def sample_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return raw samples as a table: ``side`` A is the subject and B the baseline, ``position`` 0 to 3 in A B B A."""
    return _frame(rows, SAMPLE_COLUMNS)


_MISSING: dict[str, Any] = {"int64": 0, "float64": float("nan"), "str": "", "object": None}


def _frame(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    rows = list(rows)
    unknown = sorted({name for row in rows for name in row} - set(columns))
    if unknown:
        msg = f"rows have {', '.join(unknown)}; expected only columns of the table, see bench.table"
        raise TableError(msg)
    return pd.DataFrame(
        {
            name: pd.Series([_or(row.get(name), _MISSING[dtype]) for row in rows], dtype=dtype)
            for name, dtype in columns.items()
        }
    )


def _or(value: Any, missing: Any) -> Any:
    return missing if value is None else value


def write(folder: Path, table: pd.DataFrame, samples: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write a run into its folder, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _atomically(folder / "table.parquet", lambda path: table.to_parquet(path, index=False))
    _atomically(folder / "table.csv", lambda path: table.to_csv(path, index=False))
    _atomically(folder / "samples.parquet", lambda path: samples.to_parquet(path, index=False))
    write_json(folder / "run.json", facts)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    _atomically(path, lambda part: part.write_text(json.dumps(value, indent=1) + "\n"))


def _atomically(path: Path, write_to: Callable[[Path], Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_to(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read(folder: Path) -> Run:
    """Read the run in a folder.

    Raises
    ------
    TableError
        If there is none, a file of it is damaged, or its table has another schema version.

    """
    needed = [folder / name for name in ("table.parquet", "samples.parquet", "run.json")]
    if absent := [path.name for path in needed if not path.is_file()]:
        msg = f"{folder} has no {', '.join(absent)}; expected the folder that `lrp-bench run --out` has written"
        raise TableError(msg)
    table = loaded(needed[0], pd.read_parquet)
    versions = sorted({int(version) for version in table.get("schema_version", [-1])})
    if versions not in ([], [SCHEMA_VERSION]):
        msg = f"{folder} has schema version {versions}, expected {SCHEMA_VERSION}; measure it again with this version"
        raise TableError(msg)
    return Run(table, loaded(needed[1], pd.read_parquet), loaded(needed[2], read_json), folder)


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text())


def loaded(path: Path, load: Callable[[Path], T]) -> T:
    """Return ``load(path)``.

    Raises
    ------
    TableError
        If the file is not what ``load`` reads, as one is that was cut off or edited.

    """
    try:
        return load(path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        msg = f"{path} cannot be read ({type(error).__name__}: {error}); expected it as `lrp-bench run` has written it"
        raise TableError(msg) from error

"""The table keeps its columns, its types and its numbers, on the way to files and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from bench import table

if TYPE_CHECKING:
    from pathlib import Path


def test_comes_back_as_it_was_written(
    example_run: Path, example_table: pd.DataFrame, example_samples: pd.DataFrame
) -> None:
    run = table.read(example_run)
    pd.testing.assert_frame_equal(run.table, example_table)
    pd.testing.assert_frame_equal(run.samples, example_samples)
    assert list(run.table) == list(table.COLUMNS)
    assert not list(example_run.glob(".*"))  # nothing half written


def test_csv_is_the_same_table(example_run: Path, example_table: pd.DataFrame) -> None:
    types = {name: dtype for name, (dtype, _) in table.COLUMNS.items() if dtype != "object"}
    read = pd.read_csv(example_run / "table.csv", dtype=types, keep_default_na=False, na_values={
        name: [""] for name, (dtype, _) in table.COLUMNS.items() if dtype in {"float64", "object"}
    })  # fmt: skip
    pd.testing.assert_frame_equal(read[list(types)], example_table[list(types)])


def test_a_row_is_told_apart_by_its_key(example_table: pd.DataFrame) -> None:
    assert not example_table.duplicated(table.ROW).any()


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(table.TableError, match="rows have speed; expected only columns of the table"):
        table.frame([{"speed": 1.0}])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(table.TableError, match=r"has no table\.parquet, samples\.parquet, run\.json; expected"):
        table.read(tmp_path)


def test_another_schema_is_refused(example_run: Path, example_table: pd.DataFrame) -> None:
    example_table.assign(schema_version=99).to_parquet(example_run / "table.parquet")
    expected = rf"has schema version \[99\], expected {table.SCHEMA_VERSION}; measure it again"
    with pytest.raises(table.TableError, match=expected):
        table.read(example_run)


@pytest.mark.parametrize("name", ["table.parquet", "samples.parquet", "run.json"])
def test_a_file_that_was_cut_off_is_named(name: str, example_run: Path) -> None:
    whole = (example_run / name).read_bytes()
    (example_run / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(table.TableError, match=rf"{name} cannot be read \(.*; expected it as"):
        table.read(example_run)


def test_a_failed_write_leaves_the_old_file(example_run: Path) -> None:
    before = (example_run / "run.json").read_text()
    with pytest.raises(TypeError):
        table.write_json(example_run / "run.json", {"a": object()})
    assert (example_run / "run.json").read_text() == before
    assert json.loads(before)["machine"] == "Example CPU, 2 cores"

"""What an audit says: the table, text, JSON, the page, and the command."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import verify
from lrp_rules import attach, composites
from tests.lrp_rules.networks import IMAGE, prepared, residual
from verify.auditing import account
from verify.auditing.account import Row
from verify.auditing.page import page
from verify.auditing.text import markdown, text
from verify.faces.cli import app

PLUS = composites.EpsilonPlus()


def made() -> tuple[nn.Module, Tensor]:
    return prepared(residual, constants=True), torch.randn(
        IMAGE, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )


def wrong(model: nn.Module) -> Any:
    return attach(model, PLUS, ignore="7")


@pytest.fixture(scope="module")
def found() -> verify.Audit:
    return verify.audit(*made(), PLUS, pipeline=wrong)


def test_the_table(found: verify.Audit) -> None:
    table = found.table
    assert list(table.columns) == [one.name for one in fields(Row)][:-1]
    assert len(table) == len(found.rows)
    assert "entries" not in table
    assert table.iloc[0].operation == "Linear"
    assert list(table[table.verdict != "held"].module) == ["7"]
    assert table.calls[table.module == "4.relu"].tolist() == [2, 2]
    net = table.relevance_in - table.relevance_out - table[["bias", "stabilizer", "dead", "constants"]].sum(axis=1)
    assert bool(((net + table.unexplained).abs() <= 1e-12 * table.gross_in.max()).all())


def test_the_text_has_one_line_for_each_block_and_the_faults(found: verify.Audit) -> None:
    lines = str(found).splitlines()
    assert lines[0] == "Audit of Sequential by wrong: 15 operations"
    assert [line.split()[0] for line in lines if line.split()[:1] and line.endswith("held")][:3] == ["6", "5", "4"]
    assert any(line.split()[:3] == ["7", "Linear", "Epsilon"] and line.endswith("deviates") for line in lines)
    assert "      its plain gradient: Epsilon never ran here" in lines
    assert lines[-1] == "did not hold: 1 deviates, 14 held"
    assert len(text(found, every=True).splitlines()) > len(lines) + 10


def test_what_rounding_could_hide_is_said() -> None:
    model, x = made()
    double, single = verify.audit(model, x, PLUS), verify.audit(model.float(), x.float(), composites.EpsilonPlus(1e-9))
    assert repr(double) == "<Audit of Sequential by attach, 15 operations, held>"
    assert 0 < double.table.room.max() < 1e-9
    assert single.table.room.max() > 1e3 * double.table.room.max()
    hidden = replace(single, rows=(*single.rows[1:], replace(single.rows[0], room=0.04)))
    assert "rounding could hide a deviation of 0.04 in a row" in str(hidden)
    assert "rounding could hide" not in str(double)


def test_json_and_markdown(found: verify.Audit) -> None:
    content = json.loads(found.to_json())
    schema = json.loads((Path(account.__file__).parent / "lrp-audit-1.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    unknown = replace(found.rows[0], deviation=float("nan"), verdict="not judged")
    odd = json.loads(replace(found, rows=(unknown,)).to_json())
    jsonschema.validate(odd, schema)
    assert odd["rows"][0]["deviation"] == "nan"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "held": "yes"}, schema)
    assert content["held"] is False
    assert [row["verdict"] for row in content["rows"]].count("deviates") == 1
    assert "| Linear | 7 |" in markdown(found)


def test_the_page_needs_nothing_else_and_escapes_names(found: verify.Audit, tmp_path: Path) -> None:
    found.html(tmp_path / "audit.html")
    content = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert "http" not in content.replace("http://www.w3.org", "")
    assert content.count('<tr id="row-') == len(found.rows)
    assert content.count("<polygon") == len(found.rows)
    hostile = verify.Audit("<script>alert(1)</script>", "p", found.rows, 1.0, 1.0, (), torch.ones(1))
    assert "<script>alert" not in page(hostile)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["made"], 0, "held: 15 held"),
        (["made", "--pipeline", "test_audited:wrong"], 1, "its plain gradient: Epsilon never ran here"),
        (["made", "--rules", "EpsilonGammaBox(-9, high=9)"], 0, "held: 15 held"),
        (["made", "--rules", "EpsilonGammaBox"], 2, "--rules: EpsilonGammaBox cannot be made"),
        (["made", "--rules", "Nothing"], 2, "it has AttnLRP, BetaSmooth"),
        (["made", "--target", "99"], 2, "target is 99; the model has 5 outputs"),
        (["nothing"], 2, "cannot be imported"),
        (["PLUS"], 2, "expected a function that returns a model and an input"),
    ],
)
def test_the_command(
    arguments: list[str], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_audited.py").write_text(f"from {__name__} import PLUS, made, wrong\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["audit", f"test_audited:{arguments[0]}", *arguments[1:]])
    assert result.exit_code == status, result.output
    assert said in result.output.replace("\n", " ") or said in result.output


def test_the_command_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_audited.py").write_text(f"from {__name__} import PLUS, made, wrong\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    files = ["--json", "a.json", "--html", "a.html", "--markdown", "a.md"]
    assert CliRunner().invoke(app, ["audit", "test_audited:made", *files]).exit_code == 0
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["held"] is True
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("**Audit of Sequential by attach**")
    missing = CliRunner().invoke(app, ["audit", "test_audited:made", "--html", "no/folder/a.html"])
    assert missing.exit_code == 2

"""What an audit says: the table, text, JSON, the page, and the command."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from matplotlib.image import imread, imsave
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import verify
from lrp_rules import Epsilon, attach, composites
from tests.lrp_rules.networks import IMAGE, prepared, residual
from verify.auditing import account
from verify.auditing.account import Row
from verify.auditing.figure import figure
from verify.auditing.judging import entries
from verify.auditing.page import page
from verify.auditing.picture import picture
from verify.auditing.text import markdown, text
from verify.faces.auditing import _read
from verify.faces.cli import app

PLUS = composites.EpsilonPlus()


def made() -> tuple[nn.Module, Tensor]:
    return prepared(residual, constants=True), torch.randn(
        IMAGE, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )


def made_alone() -> nn.Module:
    return made()[0]


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
    assert "rounding could hide a deviation of 0.04 in a row at worst, and of " in str(hidden)
    assert 0 < max(row.probable_room for row in single.rows) < single.table.room.max()
    coarse = replace(double, rows=(replace(double.rows[0], room=0.04),))
    assert "rounding could hide a deviation of 0.04 in a row (columns room)" in str(coarse)
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
        (["made", "--pipeline", "captum"], 2, "captum's LRP cannot be audited"),
        (["made", "--pipeline", "gradient"], 1, "Epsilon never ran here"),
        (["made_alone", "--input", "image.npy"], 0, "held: 15 held"),
        (["made", "--input", "image.png"], 0, "held: 15 held"),
        (["made", "--input", "image.jpeg"], 2, "expected a file that ends in .npy or .png"),
        (["made", "--input", "none.npy"], 2, "--input none.npy cannot be read: "),
        (["made", "--input", "odd.npy"], 2, "--input odd.npy cannot be read: "),
        (["made", "--input", "odd.png"], 2, "--input odd.png cannot be read: "),
        (["made", "--png", "a.gif"], 2, "expected a name that ends in .png"),
        (["made_alone"], 2, "a model without an input; expected a function that returns a model and an input"),
        (["made", "--target", "99"], 2, "target is 99; the model has 5 outputs"),
        (["nothing"], 2, "cannot be imported"),
        (["PLUS"], 2, "expected a function that returns a model and an input"),
    ],
)
def test_the_command(
    arguments: list[str], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_audited.py").write_text(f"from {__name__} import PLUS, made, made_alone, wrong\n")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "image.npy", rng.normal(size=IMAGE).astype(np.float32))
    imsave(tmp_path / "image.png", rng.integers(0, 256, (*IMAGE[2:], 4), np.uint8))
    for odd in ("odd.npy", "odd.png"):
        (tmp_path / odd).write_bytes(b"no array and no image")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["audit", f"test_audited:{arguments[0]}", *arguments[1:]])
    assert result.exit_code == status, result.output
    assert said in result.output.replace("\n", " ") or said in result.output


def test_the_command_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_audited.py").write_text(f"from {__name__} import PLUS, made, wrong\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    files = ["--json", "a.json", "--html", "a.html", "--markdown", "a.md", "--png", "a.png"]
    assert CliRunner().invoke(app, ["audit", "test_audited:made", *files]).exit_code == 0
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["held"] is True
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("**Audit of Sequential by attach**")
    assert imread(tmp_path / "a.png").shape[1] == 1575
    missing = CliRunner().invoke(app, ["audit", "test_audited:made", "--html", "no/folder/a.html"])
    assert missing.exit_code == 2


def test_an_image_is_read_as_it_is_shown(tmp_path: Path) -> None:
    colours = np.zeros((2, 3, 4), np.uint8)
    colours[0, 1] = (255, 51, 0, 255)
    imsave(tmp_path / "a.png", colours)
    image = _read(tmp_path / "a.png")
    assert image.shape == (1, 3, 2, 3)
    assert torch.equal(image[0, :, 0, 1], torch.tensor([1, 0.2, 0], dtype=image.dtype))
    assert float(image.sum()) == float(image[0, :, 0, 1].sum())
    Image.fromarray(np.full((2, 3), 102, np.uint8)).save(tmp_path / "grey.png")
    assert torch.equal(_read(tmp_path / "grey.png"), torch.full((1, 1, 2, 3), 0.4, dtype=torch.float32))


def test_the_picture(found: verify.Audit, tmp_path: Path) -> None:
    drawn = figure(found)
    said = [text.get_text() for text in (*drawn.axes[0].texts, *drawn.texts)]
    assert "✗ Linear 7" in said
    assert "its plain gradient: Epsilon never ran here" in said
    assert "Audit of Sequential by wrong" in said
    # each step is as wide as what is on its way: nothing is lost here but in biases and where it is accused
    steps = picture(found).steps
    assert [step.held for step in steps].count(False) == 1
    assert max(step.above for step in steps) == 1
    for above, below in itertools.pairwise(steps):
        assert above.below == below.above
    found.figure(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<?xml")
    with pytest.raises(ValueError, match=r"ends in '.doc'; expected one of .*\.png"):
        found.figure(tmp_path / "a.doc")


def test_what_held_in_a_row_is_one_step_of_a_picture_of_many() -> None:
    found = verify.audit(*made(), PLUS, pipeline=lambda model: attach(model, PLUS, ignore="4.conv1"))
    flow = picture(found, most=10)
    assert sum(len(step.rows) for step in flow.steps) == len(found.rows)
    labels = [step.label for step in flow.steps]
    assert labels[3:6] == ["4 operations", "✗ Conv2d + BatchNorm2d 4.conv1", "5 operations"], labels
    assert [name for name, _ in flow.blocks] == [name for name, _ in picture(found).blocks]


@pytest.mark.parametrize(("most", "blocks"), [(15, 2), (14, 4), (4, 4), (3, 2), (1, 2)])
def test_blocks_of_a_picture_are_as_small_as_leave_no_more_steps(found: verify.Audit, most: int, blocks: int) -> None:
    rows = tuple(replace(row, module=f"{i // 8}.{i // 4}.{i}", verdict="held") for i, row in enumerate(found.rows))
    flow = picture(replace(found, rows=rows), most)
    assert len(flow.blocks) == blocks
    assert len(flow.steps) == (15 if most == 15 else blocks)


def test_entries_are_those_that_are_furthest_off_and_others(found: verify.Audit) -> None:
    row = found.rows[0]
    assert row.ratio == max(entry.ratio for entry in row.entries) > 1
    assert all(not entry.ratio > 1 for other in found.rows[1:] for entry in other.entries)
    assert len({entry.place for entry in row.entries}) == len(row.entries) == 6
    r = found.relevance[0]
    assert r is not None
    for entry in found.rows[-1].entries:
        assert entry.got == float(r[entry.place])
    assert all(np.isnan(row.probable_ratio) for row in found.rows)  # in double precision, nobody needs it


def test_the_entry_that_is_furthest_off_is_among_them() -> None:
    expected = torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(0))
    got, bounds = expected.clone(), torch.full_like(expected, 1e-3)
    got[1, 2, 3] += 1
    got[2, 4, 6] = torch.nan
    found = {entry.place: entry for entry in entries([got], [expected], [bounds])}
    assert found[1, 2, 3].ratio > 999
    assert np.isnan(found[2, 4, 6].ratio)
    assert sum(entry.ratio == 0 for entry in found.values()) == 4
    assert all(np.isnan(entry.ratio) for entry in entries([got], [expected], None))


def nearly_cancelled() -> tuple[nn.Module, Tensor, Tensor]:
    """An output whose sign the worst case of rounding in single precision leaves open, and the probable does not."""
    generator = torch.Generator().manual_seed(0)
    model, x = nn.Linear(4096, 3), torch.randn(1, 4096, generator=generator)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4096, generator=generator) / 64)
        model.bias.zero_()
        model.bias[0] = 0.02 - model(x)[0, 0]
    return model.float(), x.float(), torch.tensor([[1.0, -0.5, 0.25]])


def test_the_probable_bound_decides_where_the_worst_case_cannot() -> None:
    model, x, R = nearly_cancelled()
    rules = {nn.Linear: Epsilon()}
    single = verify.audit(model, x, rules, target=R)
    assert single.held
    assert single.rows[0].decided_by == "probable"
    assert single.rows[0].probable_room < 1 <= single.rows[0].room
    assert 0 < single.rows[0].ratio < single.rows[0].probable_ratio < 1
    assert "decided 1 by the probable bound of rounding in single precision" in str(single)
    double = verify.audit(model.double(), x.double(), rules, target=R.double())
    assert (double.rows[0].decided_by, double.held) == ("worst case", True)
    plain = verify.audit(nn.Linear(4, 3).float(), x[:, :4], rules, target=R)
    assert plain.rows[0].decided_by == "worst case"
    assert 0 < plain.rows[0].ratio < plain.rows[0].probable_ratio < 1
    assert "decided 1 by the worst case bound" in str(plain)


def test_what_only_the_worst_case_explains_is_not_held() -> None:
    model, x, R = nearly_cancelled()
    wrong = verify.audit(
        model, x, {nn.Linear: Epsilon()}, target=R, pipeline=lambda m: attach(m, {nn.Linear: Epsilon(0.01)})
    )
    assert [row.verdict for row in wrong.rows] == ["not judged"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--pipeline", "attach", "--pipeline", "test_audited:wrong"], 1, "they part first at 7 Linear"),
        (["--pipeline", "attach", "--pipeline", "attach", "--all"], 0, "they part nowhere"),
        (["--pipeline", "attach"], 2, "--pipeline is given 1 times; expected two, A and B"),
        (["--pipeline", "attach", "--pipeline", "other"], 2, "--pipeline: the pipeline is 'other'; expected gradient"),
        (["--pipeline", "attach", "--pipeline", "nothing:at_all"], 2, "'nothing:at_all' cannot be imported"),
    ],
)
def test_the_command_that_compares(
    words: list[str], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_audited.py").write_text(f"from {__name__} import made, wrong\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare-pipelines", "test_audited:made", *words, "--json", "a.json"])
    assert result.exit_code == status, result.output
    assert said in result.output.replace("\n", " ") or said in result.output
    if status < 2:
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["same"] is (status == 0)

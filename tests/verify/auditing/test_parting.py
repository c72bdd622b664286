"""Two pipelines on one network: they part where one of them has a mistake, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import verify
from lrp_rules import Epsilon, ZPlus, attach, composites
from tests.lrp_rules.networks import IMAGE, NETWORKS, prepared, residual
from tests.lrp_rules.peer import load_zennit
from verify.auditing import parting
from verify.auditing.parting import Pair

PLUS = composites.EpsilonPlus()


def setting(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = NETWORKS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return prepared(make, constants=True), x


def other(rules: dict[str, Any]) -> Any:
    return lambda model: attach(model, composites.MixedComposite([composites.NameMapComposite(rules), PLUS]))


@pytest.mark.parametrize("name", ["residual", "gated", "decoder"])
def test_a_pipeline_and_itself_part_nowhere(name: str) -> None:
    found = verify.compare_pipelines(*setting(name), PLUS, None, lambda model: attach(model, PLUS))
    assert found.same
    assert found.first is None
    assert found.difference == 0
    assert str(found).endswith("they part nowhere")


def test_they_part_where_one_has_a_mistake_and_what_is_handed_on_is_none() -> None:
    found = verify.compare_pipelines(*setting("residual"), PLUS, None, other({"4.conv1": Epsilon()}))
    assert not found.same
    assert [(row.operation, row.module) for row in found.parting] == [("Conv2d + BatchNorm2d", "4.conv1")]
    first = found.first
    assert first is not None
    assert first.difference_in == 0
    assert first.difference_out > 0.1
    assert (first.verdict_a, first.verdict_b) == ("held", "deviates")
    assert first.note.startswith("attach follows ZPlus; <lambda>: this is what Epsilon gives, not ZPlus")
    below = found.rows[found.rows.index(first) + 1 :]
    assert any(row.difference_in > 1e-3 for row in below)
    assert found.difference > 1e-3
    lines = str(found).splitlines()
    assert sum(line.startswith("≠") for line in lines) == 1
    assert lines[-1] == "they part first at 4.conv1 Conv2d + BatchNorm2d"
    assert len(found.text(every=True).splitlines()) > len(found.rows)


def test_two_with_the_same_mistake_part_nowhere_but_neither_is_right() -> None:
    same = other({"4.conv1": Epsilon()})
    found = verify.compare_pipelines(*setting("residual"), PLUS, same, same)
    assert found.same
    assert "both: this is what Epsilon gives, not ZPlus" in [row.note for row in found.rows]
    two = verify.compare_pipelines(*setting("residual"), PLUS, same, other({"4.conv1": Epsilon(0.1)}))
    assert two.first is not None
    assert two.first.note.startswith("neither follows ZPlus; <lambda>: this is what Epsilon gives")


def test_both_scales_of_what_is_put_in() -> None:
    """Gradient times input puts in the output, attach puts in 1: exact rules without a stabilizer give the same."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), torch.randn(1, 5)
    rules = {nn.Linear: Epsilon(0.0)}
    found = verify.compare_pipelines(model, x, rules, None, "gradient*input")
    assert found.same, str(found)
    # an audit is in double precision
    assert found.b.put_in == float(model.double()(x.double()).detach().max())


def test_the_same_departure_by_two_names_is_none() -> None:
    """Epsilon without a stabilizer is gradient times input, also where ZPlus was meant."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(1, 5)
    exact: dict[Any, Any] = {nn.Linear: Epsilon(0.0)}
    found = verify.compare_pipelines(
        model, x, {nn.Linear: ZPlus()}, lambda model: attach(model, exact), "gradient*input"
    )
    assert [(row.verdict_a, row.verdict_b, row.parts) for row in found.rows] == [("deviates", "deviates", False)]
    assert all(row.note.startswith("neither follows ZPlus; ") for row in found.rows)


def test_a_canonizer_has_operations_of_its_own() -> None:
    load_zennit()
    canonizers: Any = pytest.importorskip("zennit.torchvision")
    zennit: Any = pytest.importorskip("zennit.composites")
    resnet: Any = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(0)
    model = prepared(lambda: nn.Sequential(resnet.BasicBlock(3, 3), nn.Flatten(), nn.Linear(192, 4)), constants=True)
    pipeline = zennit.EpsilonPlus(canonizers=[canonizers.ResNetBasicBlockCanonizer()]).context
    found = verify.compare_pipelines(model, torch.randn(IMAGE), PLUS, None, pipeline)
    rows = {(row.operation, row.module): row for row in found.rows}
    assert (rows["Tensor.add_", "0"].verdict_a, rows["Tensor.add_", "0"].verdict_b) == ("held", "held")
    assert rows["torch.stack", "0"].note.startswith("only under zennit.EpsilonPlus")
    assert {row.operation for row in found.parting} == {"Conv2d + BatchNorm2d"}


def test_its_table_and_json() -> None:
    model = prepared(residual, constants=True)
    found = verify.compare_pipelines(model, setting("residual")[1], PLUS, "gradient", None)
    assert list(found.table.columns) == [one.name for one in fields(Pair)]
    assert len(found.table) == len(found.rows)
    content = json.loads(found.to_json())
    schema = json.loads((Path(parting.__file__).parent / "lrp-pipelines-1.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    assert content["first"] == 0
    assert (content["a"], content["b"], content["same"]) == ("gradient", "attach", False)
    assert repr(found).startswith("<Comparison of gradient and attach, 15 operations, ")

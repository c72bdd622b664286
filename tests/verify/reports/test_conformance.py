"""The published table says what the runs say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from verify.model import SCHEMA
from verify.reports import conformance


def case(
    rule: str, layer: str, verdict: str, level: str = "must", ratio: Any = 0.25, check: str = "agreement"
) -> dict[str, Any]:
    id_ = f"{check}/{rule}/{layer.lower()}-1/default"
    told = {"rule": rule, "layer": layer, "verdict": verdict, "level": level, "ratio": ratio, "check": check}
    return {"id": id_, **told}


def run(*cases: dict[str, Any], interrupted: bool = False) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "subject": {"spec": "some.rules", "version": "1.2"},
        "environment": {"torch": "2.13.0", "date": "2026-11-23T01:02:03+00:00"},
        "summary": {"interrupted": interrupted},
        "diagnoses": [],
        "cases": list(cases),
    }


def row(page: str, rule: str, table: int = 1) -> list[str]:
    """Return the first row of a table: 0 is by question, 1 by layer."""
    section = page.split(f"## {rule}\n")[1].split("Agreement by layer:")[table].splitlines()
    line = [line for line in section if line.startswith("|")][2]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_cell_says_what_its_cases_say() -> None:
    page = conformance.render(
        [
            run(
                case("Gamma", "Linear", "pass", ratio=0.5),
                case("Gamma", "Linear", "pass"),
                case("Gamma", "Linear", "inconclusive", ratio=None),
                case("Gamma", "Conv1d", "fail"),
                case("Gamma", "Conv1d", "pass"),
                case("Gamma", "Conv2d", "fail", "should"),
                case("Gamma", "Conv3d", "not-offered", ratio=None),
                case("Gamma", "-", "crash", ratio=None),
            )
        ]
    )
    cells = row(page, "Gamma")
    assert cells[:5] == ["some.rules 1.2", "✓ 0.5", "✗ 1 of 2", "(✗) 1 of 1", ""]
    assert row(page, "Gamma", 0)[1] == "✗ 2 of 7"
    assert "| some.rules | 1.2 | 2.13.0 | 2026-11-23 | 8 | 3 | 1 | 2 | 0 | 1 | 1 |" in page


def diagnosed(*, published: bool = True, layers: Sequence[str] = ()) -> dict[str, Any]:
    variants = [{"name": "n", "sentence": "s", "seen": "", "published": published}]
    told = {"rule": "Gamma", "level": "must", "variants": variants, "layers": list(layers), "failing": 1, "passing": 0}
    return {**told, "sentence": "follows another published convention, `n`: s"}


def test_another_published_convention_is_not_merely_wrong() -> None:
    cases = [
        case("Gamma", "Linear", "fail", check="agreement"),
        case("Gamma", "Linear", "fail", check="conservation"),
        case("Gamma", "Linear", "pass", check="laws"),
        case("Gamma", "Conv1d", "fail"),
        case("Gamma", "Conv1d", "fail", check="laws"),
        case("Gamma", "Conv2d", "fail", "should"),
        case("Gamma", "Conv3d", "crash", ratio=None),
    ]
    page = conformance.render([run(*cases) | {"diagnoses": [diagnosed()]}])
    assert row(page, "Gamma")[1:5] == ["≠ 1 of 1", "≠ 1 of 1", "(✗) 1 of 1", "✗ 1 of 1"]
    assert row(page, "Gamma", 0)[1:4] == ["✗ 1 of 4", "≠ 1 of 1", "✗ 1 of 2"]
    assert "- some.rules 1.2 follows another published convention, `n`: s\n" in page
    assert "| 7 | 1 | 0 | 2 | 3 | 1 | 0 |" in page


@pytest.mark.parametrize(
    ("diagnosis", "cell"),
    [
        (diagnosed(published=False), "✗ 1 of 1"),
        (diagnosed(layers=["linear-1"]), "≠ 1 of 1"),
        (diagnosed(layers=["linear-2"]), "✗ 1 of 1"),
    ],
    ids=["a mistake", "on these layers", "on others"],
)
def test_what_is_no_published_convention_is_wrong(diagnosis: dict[str, Any], cell: str) -> None:
    page = conformance.render([run(case("Gamma", "Linear", "fail")) | {"diagnoses": [diagnosis]}])
    assert row(page, "Gamma")[1] == cell


def test_each_question_has_its_column() -> None:
    checks = ("agreement", "conservation", "laws", "second-order", "conduct", "errors", "api", "search", "network")
    page = conformance.render([run(*(case("Gamma", "Linear", "pass", check=check) for check in checks))])
    assert row(page, "Gamma", 0) == ["some.rules 1.2", *("✓ 0.25",) * 4, "✓", "✓"]
    assert sorted(check for asked in conformance.QUESTIONS.values() for check in asked) == sorted(checks)


def test_json_for_badges() -> None:
    cases = [
        case("Gamma", "Linear", "pass", ratio=0.5),
        case("Gamma", "Linear", "fail", check="conduct"),
        case("ZPlus", "Linear", "fail", ratio=3.0),
        case("ZPlus", "Linear", "pass"),
        case("Flat", "Linear", "not-offered", ratio=None),
    ]
    found = conformance.as_json([run(*cases)])
    schema = json.loads((Path(conformance.__file__).parent / "lrp-conformance-1.schema.json").read_text())
    jsonschema.validate(found, schema)
    (one,) = found["implementations"]
    assert (one["badge"]["message"], one["badge"]["color"]) == ("66% of 3 numbers right", "yellow")
    (none,) = conformance.as_json([run()])["implementations"]
    assert none["badge"]["message"] == "nothing offered"
    right = "is the number right?"
    assert one["rules"]["Gamma"][right] == {"cases": 1, "passed": 1, "ratio": 0.5}
    assert one["rules"]["Gamma"]["does it behave?"] == {"cases": 1, "failed": 1}
    assert one["rules"]["ZPlus"][right] == {"cases": 2, "failed": 1, "passed": 1, "ratio": 0.25}
    assert one["rules"]["Flat"] == {}


def test_the_page_says_how_it_was_made() -> None:
    page = conformance.render([run()])
    for subject in ("lrp_rules", "zennit.rules", "verify.subjects.captum", "verify.subjects.lxt"):
        assert f"\nlrp-verify --subject {subject} --json " in page
    assert "\npython -m verify.reports.conformance ours.json " in page
    assert "conformance.json" in page


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", json.dumps(run() | {"schema": "other/1"}), json.dumps(run(interrupted=True))],
    ids=["empty", "list", "object", "schema", "interrupted"],
)
def test_what_is_no_whole_run_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        conformance.load(path)


def test_a_run_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run(case("ZPlus", "Linear", "pass"))))
    assert row(conformance.render([conformance.load(path)]), "ZPlus")[1] == "✓ 0.25"

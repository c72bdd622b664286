"""Every rule has a card, and what a card generates is there."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from verify.model import NETWORK_RULES, RULES

DOCS = Path(__file__).parents[2] / "docs"


def loaded(name: str) -> ModuleType:
    sys.path.insert(0, str(DOCS / "_ext"))  # they lie in no package, and import each other
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS / "_ext"))


@pytest.fixture(scope="module")
def facts() -> ModuleType:
    return loaded("facts")


@pytest.fixture(scope="module")
def examples() -> ModuleType:
    return loaded("examples")


def card(rule: str) -> str:
    return (DOCS / f"rules/{rule.lower()}.md").read_text(encoding="utf-8")


def test_each_rule_is_known_to_the_cards(facts: ModuleType) -> None:
    assert set(facts.FUNCTIONS) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_card_is_listed_and_asks_for_every_part(facts: ModuleType, rule: str) -> None:
    assert re.search(rf"^{rule.lower()}$", (DOCS / "rules/index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"<<(\w+)>>", card(rule))) == {*facts.PARTS, "example"}
    assert card(rule).startswith(f"# {rule}\n")


@pytest.mark.parametrize("rule", RULES)
def test_card_includes_the_reference_function(facts: ModuleType, rule: str) -> None:
    assert f":pyobject: {facts.FUNCTIONS[rule]}\n" in facts.reference(rule)


@pytest.mark.parametrize("rule", [*RULES, *NETWORK_RULES])
def test_card_links_to_every_file_of_vectors(facts: ModuleType, rule: str) -> None:
    linked = set(re.findall(r"\]\(../../vectors/([^)]+)\)", facts.vectors(rule)))
    there = {path.name for path in (DOCS.parent / "vectors").glob(f"{rule.lower()}-*.json")}
    assert linked == there
    assert there


@pytest.mark.parametrize("rule", RULES)
def test_card_has_papers_with_links(facts: ModuleType, rule: str) -> None:
    lines = facts.papers(rule).splitlines()
    assert lines
    assert all(re.fullmatch(r"- \[.+ \d{4}\]\(https://\S+\)", line) for line in lines)


@pytest.mark.parametrize("rule", RULES)
def test_card_has_a_ratio_from_the_conformance_table(facts: ModuleType, rule: str) -> None:
    assert re.search(r"\| is the number right\? \| ✓ [0-9.e-]+ \|", facts.verified(rule))


@pytest.mark.parametrize("rule", RULES)
def test_card_says_how_others_differ(facts: ModuleType, rule: str) -> None:
    assert facts.deviations(rule)
    assert facts.conventions(rule)
    assert facts.differ(rule).count("\n- **[") >= 2


@pytest.mark.parametrize("rule", RULES)
def test_card_has_an_example_of_finite_numbers(examples: ModuleType, rule: str) -> None:
    text = examples.example(rule)
    assert re.search(r"\d", text)
    assert not re.search(r"\b(nan|inf)\b", text)


def test_example_of_epsilon_is_what_a_hand_computes(examples: ModuleType) -> None:
    # z = (2 - 1 - 1 + 0.5, -4 + 1 - 1) = (0.5, -4), S = (1, -4.5), s = (1, 4/9)
    assert "r = (0.2222222222, -0.5555555556, -1)" in examples.example("Epsilon")
    # 2 (1 - 8/9) = 2/9; -1 (1 - 4/9) = -5/9; 1 (-1) = -1


@pytest.mark.parametrize("rule", NETWORK_RULES)
def test_card_of_a_rule_for_networks(facts: ModuleType, examples: ModuleType, rule: str) -> None:
    assert re.search(rf"^{rule.lower()}$", (DOCS / "rules/index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"<<(\w+)>>", card(rule))) == {"reference", "example", "vectors", "differ", "papers"}
    assert card(rule).startswith(f"# {rule}\n")
    assert f":pyobject: {facts.NETWORKS[rule]}\n" in facts.reference(rule)
    assert all(re.fullmatch(r"- \[.+ \d{4}\]\(https://\S+\)", line) for line in facts.papers(rule).splitlines())
    assert facts.conventions(rule)
    assert re.search(r"r = \([-0-9., ]+\)", examples.example(rule))


def test_example_of_bilinear_is_what_a_hand_computes(examples: ModuleType) -> None:
    # s = 64 / (26 + 6) = 2: 1 * 3 * 2, 2 * 5 * 2, and the same for V; 12 go to the stabilizer
    assert "r = (6, 20, 6, 20)" in examples.example("Bilinear")
    assert "| stabilizer | 12 |" in examples.example("Bilinear")


def test_a_missing_table_is_an_error(facts: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "conformance.md").write_text("# Conformance\n")
    monkeypatch.setattr(facts, "DOCS", tmp_path)
    with pytest.raises(ValueError, match="no table for Gamma"):
        facts.verified("Gamma")


def test_measured_times_come_from_the_published_table(
    facts: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance/table.csv").write_text(
        "rule,subject,baseline,ratio,ratio_low,ratio_high,regime,axis,workload,batch,signs,device,dtype,passes_limit\n"
        "Epsilon,lrp_rules,gradient,1.04,1.01,1.07,compute,,linear-9,64,signed,cpu,float32,1\n"
        "Epsilon,zennit,gradient,3.5,3.4,3.6,compute,,linear-9,64,signed,cpu,float32,1\n"
    )
    monkeypatch.setattr(facts, "DOCS", tmp_path)
    assert "| linear-9, batch 64, signed, cpu float32 | Epsilon | 1.04 (1.01 to 1.07) | 1 |" in facts.speed("Epsilon")
    assert "3.5" not in facts.speed("Epsilon")
    assert not facts.measured("Gamma")

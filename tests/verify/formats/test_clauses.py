"""Cases and known deviations cite clauses of the specification; each of these exists."""

import re
import tomllib
from pathlib import Path

import pytest

from verify.checks import cases, protocol
from verify.checks.conduct.topics import TOPICS
from verify.explaining.deviations.reading import FOLDER
from verify.formats import clauses
from verify.model import RULES, Case

PAGE = (Path(__file__).parents[3] / "docs" / "specification.md").read_text(encoding="utf-8")
CLAUSES = dict(re.findall(r'^<a id="([\d.]+)"></a>\*\*[\d.]+\s*(\w*)', PAGE, re.MULTILINE))
NUMBERS = {*CLAUSES, *re.findall(r"^## (\d) ", PAGE, re.MULTILINE)}
CASES = tuple(cases.all_cases())


def of(case: Case) -> tuple[str, ...]:
    return clauses.clauses(case.id, case.check, case.rule, case.level)


def test_every_case_cites_clauses_that_exist() -> None:
    for case in CASES:
        assert of(case), case.id
        assert set(of(case)) <= NUMBERS, case.id


def test_the_protocol_has_a_page_of_its_own() -> None:
    assert not any(of(case) for case in protocol.all_cases() if case.check == "protocol")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_cited_by_its_own_clause(rule: str) -> None:
    agreement = next(case for case in CASES if (case.rule, case.check) == (rule, "agreement"))
    assert CLAUSES[of(agreement)[0]] == rule


def test_topics_that_are_cited_exist() -> None:
    assert set(clauses._OF_TOPIC) <= {topic.what for topic in TOPICS}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_known_deviations_cite_clauses_that_exist(path: Path) -> None:
    reasons = [entry["reason"] for entry in tomllib.loads(path.read_text(encoding="utf-8"))["deviation"]]
    named = [reason for reason in reasons if "specification" in reason.lower()]
    assert named
    for reason in named:
        cited = re.findall(r"[Ss]pecification (\d(?:\.\d+)?)", " ".join(reason.split()))
        assert cited, f"which clause? {reason}"
        assert set(cited) <= NUMBERS, reason

"""What the README says is what was published."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def table_of(report: str) -> str:
    """The table under "In short" of the first setting of a report."""
    found = re.search(r"### In short\n.*?(?P<table>^\|.*?)\n\n", report, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found["table"]


def test_the_headline_of_the_readme_is_that_of_the_published_report() -> None:
    published = table_of((ROOT / "docs/performance/report.md").read_text())
    assert published.count("\n") > 10
    assert published in (ROOT / "README.md").read_text()


def test_a_number_that_differs_is_noticed() -> None:
    report = "## 1\n### In short\n\nIn gradients.\n\n| rule |\n|--:|\n| 1.1 |\n\n### Goals\n| rule |\n"
    assert table_of(report) == "| rule |\n|--:|\n| 1.1 |"

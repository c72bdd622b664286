"""What the README says is what was published, and its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORT = (ROOT / "docs/performance/report.md").read_text(encoding="utf-8")


def table_of(report: str) -> str:
    """The table under "In short" of the first setting of a report."""
    found = re.search(r"### In short\n.*?(?P<table>^\|.*?)\n\n", report, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found["table"]


def test_the_times_of_the_readme_are_those_of_the_published_report() -> None:
    published = table_of(REPORT).splitlines()
    [head, line, *rows] = re.findall(r"^\|.*", README.partition("## Benchmark")[2].partition("\n## ")[0], re.MULTILINE)
    assert [head, line] == published[:2]
    assert len(rows) >= 4
    assert set(rows) <= set(published[2:])


def test_how_often_the_rules_were_faster_is_what_the_report_counts() -> None:
    section = REPORT.partition("### Compared with others")[2]
    for library in ("zennit", "captum"):
        counts = re.search(rf"^\| {library} \|.*\| (\d+) \| (\d+) \| \d+ \| \d+ \| \d+ \|$", section, re.MULTILINE)
        assert counts is not None
        assert re.search(rf"faster than\s+{library} in {counts[2]} of {counts[1]}\b", README), library


def test_a_number_that_differs_is_noticed() -> None:
    report = "## 1\n### In short\n\nIn gradient times.\n\n| rule |\n|--:|\n| 1.1 |\n\n### Others\n| rule |\n"
    assert table_of(report) == "| rule |\n|--:|\n| 1.1 |"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_the_readme_shows_what_the_tutorial_runs() -> None:
    page = (ROOT / "docs/tutorials/continuous-integration.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line for line in block.splitlines() if line.strip() != "..."]
    assert len(lines) == 4
    assert set(lines) <= set(page.splitlines())

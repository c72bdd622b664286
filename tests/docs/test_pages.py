"""Pages say what is so: their examples and commands are run, and their links lead somewhere."""

import doctest
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

yaml: Any = importlib.import_module("yaml")  # it has no types

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/**/README.md")])
PAGES = [page for page in PAGES if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def consoles() -> ModuleType:
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return importlib.import_module("consoles")
    finally:
        sys.path.remove(str(DOCS / "_ext"))


@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in page.read_text(encoding="utf-8")], ids=name_of)
def test_examples(page: Path) -> None:
    found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```console\n" in page.read_text(encoding="utf-8")], ids=name_of
)
def test_commands_print_what_the_page_says(consoles: ModuleType, page: Path) -> None:
    found = list(consoles.differences(page.read_text(encoding="utf-8")))
    assert not found, "\n".join(f"$ {command.words}\n{got}" for command, got in found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        assert (page.parent / link).resolve().exists(), link


def _blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        blocks = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found += [(f"{name_of(page)}-{number}", block) for number, block in enumerate(blocks)]
    return found


YAML = _blocks("yaml")


@pytest.mark.parametrize("block", [block for _, block in YAML], ids=[name for name, _ in YAML])
def test_yaml_can_be_read(block: str) -> None:
    assert yaml.safe_load(block)


def test_workers_of_a_cluster_may_start_processes() -> None:
    found = [block for name, block in YAML if name.startswith("docs/how-to/cluster.md")]
    dask, slurm, kubernetes = map(yaml.safe_load, found)
    assert dask["distributed"]["worker"]["daemon"] is False
    assert "export DASK_DISTRIBUTED__WORKER__DAEMON=False" in slurm["jobqueue"]["slurm"]["job-script-prologue"]
    (worker,) = kubernetes["spec"]["worker"]["spec"]["containers"]
    assert {"name": "DASK_DISTRIBUTED__WORKER__DAEMON", "value": "False"} in worker["env"]


def test_numbers_of_clauses_are_anchors_in_their_order() -> None:
    page = (DOCS / "specification.md").read_text(encoding="utf-8")
    clauses = re.findall(r'^<a id="([\d.]+)"></a>\*\*([\d.]+)\b', page, re.MULTILINE)
    numbers = [tuple(map(int, one.split("."))) for one, _ in clauses]
    assert len(numbers) > 30
    assert all(anchor == shown.rstrip(".") for anchor, shown in clauses)
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_clauses_that_are_linked_exist(page: Path) -> None:
    specification = (DOCS / "specification.md").read_text(encoding="utf-8")
    for clause in re.findall(r"specification\.md#([\d.]+)", page.read_text(encoding="utf-8")):
        assert f'<a id="{clause}">' in specification


class TestConsoles:
    PAGE = "<!-- file: a.txt -->\n```text\none\ntwo\n```\n\n```console\n$ cat a.txt\none\ntwo\n```\n"

    def test_what_is_so_is_not_different(self, consoles: ModuleType) -> None:
        assert not list(consoles.differences(self.PAGE))

    def test_another_output_is_noticed(self, consoles: ModuleType) -> None:
        [(command, got)] = consoles.differences(self.PAGE.replace("two\n```\n\n", "three\n```\n\n"))
        assert (command.words, command.expected, got) == ("cat a.txt", "one\ntwo\n", "one\nthree\n")

    def test_the_end_of_a_file_is_replaced(self, consoles: ModuleType) -> None:
        page = self.PAGE.replace("```console", "<!-- end of: a.txt -->\n```text\ntwo\n2\n```\n\n```console")
        assert [got for _, got in consoles.differences(page)] == ["one\ntwo\n2\n"]

    @pytest.mark.parametrize("expected", ["...\n", "one\n...\n", "...\ntwo\n"])
    def test_dots_stand_for_lines(self, consoles: ModuleType, expected: str) -> None:
        assert consoles.same(expected, "one\ntwo\n")
        assert not consoles.same("...\none\n", "one\ntwo\n")

    def test_times_may_differ_and_nothing_else(self, consoles: ModuleType) -> None:
        assert consoles.same("3 pass; 1.5 s\n", "3 pass; 12.25 s\n")
        assert not consoles.same("3 pass; 1.5 s\n", "4 pass; 1.5 s\n")

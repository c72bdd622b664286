"""The page on attacks lists those that are tests: `python tests/attacks/test_page.py` writes it."""

import runpy
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "explanation" / "attacks.md"
BEGIN = "## What was tried\n"
#: Those of `test_the_command.py`, with what comes of them.
ON_THE_COMMAND = {
    "raises system exit, with --workers 0": "exit status 1, and the report",
    "exits with 0, with --workers 0": "exit status 1, and the report",
    "calls sys.exit(0) when it is imported": "exit status 2, named",
    "calls os._exit(0) when it is imported": "exit status 2, named",
    "raises what is no Exception when it is imported": "exit status 2, named",
    "SIGTERM while it hangs": "the report of what there is, exit status 130",
    "SIGHUP while it hangs": "the report of what there is, exit status 130",
    "a terminal of ASCII and 20 columns": "the report, in ASCII",
    "a disk that is full": "exit status 2, named",
    "a version and messages with terminal escapes, markup and newlines": "plain text in every file",
}


def section() -> str:
    """What the page has to say."""
    names = runpy.run_path(str(HERE / "test_in_a_case.py"))
    rows = [(f"wrong numbers; {_words(name)}", verdict.word) for name, verdict in names["LIES"].items()]
    rows += [(_words(name), verdict.word) for name, (verdict, _) in names["BREAKS"].items()]
    rows += [(f"leaves changed: {name}", "failed, named; put back") for name in names["STATES"]]
    rows += ON_THE_COMMAND.items()
    lines = [f"| {what} | {came} |" for what, came in rows]
    return "\n".join(
        [
            BEGIN,
            f"Attacks tried: {len(rows)}, fooled: 0.",
            "",
            "Each is a test in `tests/attacks`. In a case it has the verdict of the table, and the next case is asked",
            "as if nothing had happened.",
            "",
            "| attack | what comes of it |",
            "|---|---|",
            *lines,
            "",
        ]
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def test_the_page_lists_what_was_tried() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(section()), f"run python {Path(__file__).name} to write it"


if __name__ == "__main__":
    kept = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0]
    PAGE.write_text(kept + section(), encoding="utf-8")

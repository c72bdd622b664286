"""The table of versions that were tested: a row of one run (`run.xml`), or all rows as a table (`--table ROW...`)."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

HEAD = "| Python | torch | NumPy | system | tests of lrp_rules and reference |\n|---|---|---|---|---|"


def row(path: str) -> str:
    """Return the row of a run of pytest on this machine, from its JUnit file."""
    suite = next(ET.parse(path).iter("testsuite"))  # noqa: S314  our own
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    said = f"{passed:,} passed, {counts['skipped']:,} skipped" + f", **{failed:,} failed**" * bool(failed)
    return (
        f"| {platform.python_version()} | {version('torch').partition('+')[0]} | {version('numpy')} "
        f"| {platform.system()} {platform.machine()} | {said} |"
    )


def main(words: list[str]) -> None:
    """Print what was asked for."""
    if words[0] == "--table":
        rows = sorted(Path(path).read_text(encoding="utf-8").strip() for path in words[1:])
        print("\n".join([HEAD, *rows]))
    else:
        print(row(words[0]))


if __name__ == "__main__":
    main(sys.argv[1:])

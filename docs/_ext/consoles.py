"""Run the commands that pages show, and compare what they print with what the page says.

`python docs/_ext/consoles.py [--write] PAGE...` runs the ``console`` blocks of pages in Markdown. The blocks of a page
run one after another in one folder, which has the repository's `ports` and `vectors`. A comment in front of a block:

    <!-- file: NAME -->      the block is a file of that folder
    <!-- end of: NAME -->    the block replaces the end of that file, from the line that begins as the block does
    <!-- not run: WHY -->    the block is only shown

In an expected output, a line ``...`` stands for any lines. Times, versions and ratios up to 1 may differ.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = re.compile(
    r"(?:^<!-- (?P<word>file|end of|not run): (?P<value>.*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = r"\d[\d.]*(e[+-]\d+)?"
#: Times, versions, and ratios of what passes: they are how the machine rounds.
_VARIES = (
    (rf"\b{_NUMBER} s\b", "N s"),
    (rf"^(ratio|probable ratio) +{_NUMBER} ", r"\1 N "),
    (r"torch \S+;", "torch N;"),
    (rf"✓ {_NUMBER} *", "✓ N"),
    (rf"^( \d+-\w+ +\w+ +){_NUMBER} +{_NUMBER}\b", r"\1N N"),
)
_ANY = "..."
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Command:
    """A command of a page, what the page says that it prints, and where that stands in the text."""

    words: str
    expected: str
    start: int
    end: int


def pieces(page: str) -> Iterator[tuple[str, str] | Command]:
    """Yield the files of a page, as name and content, and its commands, in their order."""
    files: dict[str, str] = {}
    for block in _BLOCK.finditer(page):
        if block["word"] == "file":
            files[block["value"]] = block["text"]
            yield block["value"], block["text"]
        elif block["word"] == "end of":
            kept, _, _ = files[block["value"]].partition(block["text"].partition("\n")[0])
            yield block["value"], kept + block["text"]
        elif block["language"] == "console" and block["word"] != "not run":
            starts = [found.start() for found in re.finditer(r"^\$ ", block["text"], re.MULTILINE)]
            for start, end in zip(starts, [*starts[1:], len(block["text"])], strict=True):
                line, _, expected = block["text"][start:end].partition("\n")
                place = block.start("text") + start + len(line) + 1
                yield Command(line[2:], expected, place, block.start("text") + end)


def run(command: str, folder: Path) -> str:
    """Return what a command prints, both streams as a terminal of 80 columns would show them."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(  # noqa: S602  the pages are ours
        command, shell=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False,
    )  # fmt: skip
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def same(expected: str, got: str) -> bool:
    """Whether an output is the expected one."""
    pattern = ""
    for line in expected.splitlines():
        pattern += r"(?:.*\n)*?" if line.strip() == _ANY else re.escape(_settled(line.rstrip())) + "\n"
    return re.fullmatch(pattern, "".join(f"{_settled(line)}\n" for line in got.splitlines())) is not None


def _settled(line: str) -> str:
    for varies, settled in _VARIES:
        line = re.sub(varies, settled, line)
    return line


def differences(page: str) -> Iterator[tuple[Command, str]]:
    """Run all of a page, and yield each command that prints something else than the page says, and what it prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for known in ("ports", "vectors"):
            (folder / known).symlink_to(ROOT / known)
        for piece in pieces(page):
            if isinstance(piece, tuple):
                (folder / piece[0]).parent.mkdir(parents=True, exist_ok=True)
                (folder / piece[0]).write_text(piece[1], encoding="utf-8")
            elif not same(piece.expected, got := run(piece.words, folder)):
                yield piece, got


def main() -> int:
    """Compare the pages that are named, or write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--write", action="store_true", help="write what is printed into the page")
    given = parser.parse_args()
    status = 0
    for path in given.pages:
        page = path.read_text(encoding="utf-8")
        for command, got in reversed(list(differences(page))):
            status = 1
            print(f"{path}: $ {command.words}\n{got}")  # noqa: T201
            if given.write and f"\n{_ANY}\n" not in f"\n{command.expected}":
                page = page[: command.start] + got + page[command.end :]
        if given.write:
            path.write_text(page, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())

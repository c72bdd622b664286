"""Which lines of lrp_rules the cases of lrp-verify run: what no case runs, no case can find wrong.

    tox -e verify-lines     # lrp-verify under coverage.py: a quarter of an hour of one core, then this
    python -m verify.selftests.lines coverage.json

Functions with lines that no case runs stand in ``unreached.toml``, each with a reason. One that does not stand there,
or stands there and is run whole, ends the command with 1. It prints the table of the docs.
"""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UNREACHED = Path(__file__).with_name("unreached.toml")


@dataclass(frozen=True)
class Function:
    """A function of lrp_rules, as ``file:qualified name``; how many statements it has, and how many no case runs."""

    name: str
    statements: int
    missing: int


@dataclass(frozen=True)
class Reason:
    """Why no case runs something."""

    what: str
    why: str
    where: tuple[str, ...]

    def covers(self, function: Function) -> bool:
        """Whether it is about a function."""
        return any(fnmatchcase(function.name, pattern) for pattern in self.where)


def functions(report: dict[str, Any]) -> Iterator[Function]:
    """Yield the functions of a report by ``coverage json``; what stands outside of any counts as one."""
    for path, file in report["files"].items():
        inside = path.replace("\\", "/").rpartition("lrp_rules/")[2]
        for name, found in file["functions"].items():
            count = found["summary"]["num_statements"]
            yield Function(f"{inside}:{name or '-'}", count, len(found["missing_lines"]))


def reasons(path: Path = UNREACHED) -> list[Reason]:
    """Read the list of reasons."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["reason"]
    return [Reason(one["what"], one["why"], tuple(one["where"])) for one in entries]


def faults(found: Sequence[Function], known: Sequence[Reason]) -> Iterator[str]:
    """Say what is run by no case for no reason, and which patterns are about nothing."""
    left = [function for function in found if function.missing]
    for function in left:
        if not any(reason.covers(function) for reason in known):
            yield f"{function.name}: {function.missing} of {function.statements} lines are run by no case"
    for reason in known:
        for pattern in reason.where:
            if not any(fnmatchcase(function.name, pattern) for function in left):
                yield f"unreached.toml: {pattern!r} is run whole, or is gone; delete it"


def table(found: Sequence[Function], known: Sequence[Reason]) -> str:
    """Return the table, in Markdown."""
    whole = sum(function.statements for function in found)
    counted: set[str] = set()
    rows = []
    for reason in known:
        own = [one for one in found if one.missing and one.name not in counted and reason.covers(one)]
        counted |= {one.name for one in own}
        rows.append(f"| {reason.what} | {sum(one.missing for one in own):,} | {reason.why} |")
    missing = sum(function.missing for function in found)
    head = f"| {whole - missing:,} of {whole:,} lines are run by cases. The others: | lines | why no case runs them |"
    return "\n".join([head, "|---|--:|---|", *rows])


def main() -> int:
    """Judge a report by ``coverage json``; return 2 if it is none."""
    try:
        (given,) = sys.argv[1:]
        found = list(functions(json.loads(Path(given).read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"
        print(f"expected one file that `coverage json` wrote, as tox -e verify-lines does: {said}", file=sys.stderr)  # noqa: T201
        return 2
    known = reasons()
    print(table(found, known))  # noqa: T201
    wrong = list(faults(found, known))
    for fault in wrong:
        print(fault, file=sys.stderr)  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

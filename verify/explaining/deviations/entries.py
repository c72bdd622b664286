"""An entry of a file of known deviations, and what its patterns match."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verify.model import Outcome, Verdict
    from verify.questions.fixed import Fixing


class DeviationError(Exception):
    """A file of deviations cannot be used; the message says which entry is wrong and what to do."""


@dataclass(frozen=True)
class Deviation:
    """Cases of which it is known that they do not pass, and why. ``place`` is the file and the number of the entry."""

    patterns: tuple[str, ...]
    verdict: Verdict
    reason: str
    link: str = ""
    says: str = "*"
    formula: str = ""
    sometimes: bool = False
    place: str = ""

    @cached_property
    def expressions(self) -> dict[str, re.Pattern[str]]:
        """A regular expression for each pattern, and for each of its alternatives in braces."""
        return {single: expression(single) for pattern in self.patterns for single in _alternatives(pattern)}

    @cached_property
    def _said(self) -> re.Pattern[str]:
        return expression(self.says)

    def explains(self, outcome: Outcome, *, seed: int = 0, device: str = "cpu", subject: Fixing | None = None) -> bool:
        """Whether an outcome, whose id matches, is what this entry says."""
        if outcome.verdict is not self.verdict or not self._said.fullmatch(outcome.reason):
            return False
        if not self.formula:
            return True
        from verify.explaining.deviations.formulas import gives  # noqa: PLC0415  imports torch

        return gives(self.formula, outcome, seed=seed, device=device, subject=subject)


@dataclass(frozen=True)
class Deviations:
    """The entries of one file, or of several ``files`` together."""

    name: str
    library: str
    versions: tuple[str, str]
    entries: tuple[Deviation, ...]
    files: tuple[Deviations, ...] = ()

    def doubts(self, version: str) -> tuple[str, ...]:
        """Return the remarks of all files."""
        return tuple(doubt for file in self.files or (self,) if (doubt := file.doubt(version)))

    def doubt(self, version: str) -> str | None:
        """Return a remark if the library's version is another than those that the entries were read from."""
        if numbers(self.versions[0]) <= numbers(version) <= numbers(self.versions[1]):
            return None
        known = " to ".join(dict.fromkeys(self.versions))
        return (
            f"Note: the known deviations in {self.name} were recorded with {self.library} {known}, "
            f"and this is version {version}"
        )


# --- patterns ---------------------------------------------------------------------------------------------------------

BRACES = re.compile(r"\{([^{}]*)\}")


def _alternatives(pattern: str) -> list[str]:
    """Write out what is in braces."""
    parts = BRACES.split(pattern)
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def expression(pattern: str) -> re.Pattern[str]:
    """Return what a pattern without braces matches."""
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def numbers(version: str) -> tuple[int, ...]:
    """Return the release's numbers: 0.5.1.dev3+local is (0, 5, 1)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()

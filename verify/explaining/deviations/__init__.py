"""Known deviations: where a library is known to do something else than the specification says, and why.

A file describes one library:

    library = "zennit"
    versions = ["0.5.1", "0.5.1"]             # the first and the last that the entries were read from

    [[deviation]]
    pattern = "errors/*/stabilizer-negative"  # ids of cases: one pattern, or a list of them
    verdict = "fail"                          # what becomes of these cases: fail, error, crash, timeout
    reason = "..."                            # what the library does, and what the specification says
    link = "https://..."                      # an issue or a pull request, where there is one
    says = "*is accepted*"                    # the outcome's reason, where a pattern would excuse too much
    formula = "unsigned-epsilon"              # what is computed instead, likewise; see `formulas`
    sometimes = true                          # rounding decides whether these cases deviate; they may all pass

In a pattern, ``*`` stands for anything, ``/`` included, and ``{a,b}`` for a or b. The first part, the check, has to be
named. An entry is to excuse what is known and nothing else: one of which no case deviates any more is stale. See
`baseline` for what writes a first file.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cache, cached_property
from heapq import nlargest
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.model import BAD, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from verify.questions.fixed import Fixing

__all__ = [
    "Deviation",
    "DeviationError",
    "Deviations",
    "Stale",
    "apply",
    "available",
    "explaining",
    "expression",
    "is_known",
    "load",
    "stale",
]

#: The detail of an outcome that a known deviation explains.
KNOWN = "known deviation"
FOLDER = Path(__file__).parent

_HEADER = frozenset({"library", "versions", "deviation"})
_ENTRY = frozenset({"pattern", "verdict", "reason", "link", "says", "formula", "sometimes"})
_NEEDED = ("pattern", "verdict", "reason")
_MINIMAL = """\
library = "my_package"
versions = ["1.0", "1.0"]

[[deviation]]
pattern = "errors/*/stabilizer-negative"
verdict = "fail"
reason = "A negative stabilizer is accepted."
"""
_NEAREST = 3  # ids that are named beside a pattern without any


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
    """The entries of one file."""

    name: str
    library: str
    versions: tuple[str, str]
    entries: tuple[Deviation, ...]

    def doubt(self, version: str) -> str | None:
        """Return a remark if the library's version is another than those that the entries were read from."""
        if _numbers(self.versions[0]) <= _numbers(version) <= _numbers(self.versions[1]):
            return None
        known = " to ".join(dict.fromkeys(self.versions))
        return (
            f"Note: the known deviations in {self.name} were recorded with {self.library} {known}, "
            f"and this is version {version}"
        )


@dataclass(frozen=True)
class Stale:
    """A pattern of an entry that excuses nothing."""

    entry: Deviation
    pattern: str
    why: str

    def __str__(self) -> str:
        return f"{self.entry.place}: {self.pattern} {self.why}"


def available() -> tuple[str, ...]:
    """Return the names of the files that come along."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load(name: str | Path) -> Deviations:
    """Read a file that comes along, by its name, or any other, by its path.

    Raises
    ------
    DeviationError
        If there is no such file, or if anything in it is not as described at the top.

    """
    path = FOLDER / f"{name}.toml" if str(name) in available() else Path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = (
            f"--deviations {str(name)!r} cannot be read: {error.strerror}; expected a file, or one of "
            f"{_list(available())}"
        )
        raise DeviationError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path.name} is not TOML: {error}"
        raise DeviationError(msg) from error
    _check_keys(path.name, content, _HEADER, ("library", "versions"))
    library, versions, entries = content["library"], content["versions"], content.get("deviation", [])
    if not isinstance(library, str) or not library:
        msg = f'{path.name}: library is {library!r}, expected its name, such as "my_package"'
        raise DeviationError(msg)
    if not _is_texts(versions) or len(versions) != 2 or not _numbers(versions[0]) <= _numbers(versions[1]):
        msg = f"{path.name}: versions is {versions!r}, expected the first and the last, such as ['0.5.1', '0.5.1']"
        raise DeviationError(msg)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        msg = f"{path.name}: deviation is {entries!r}, expected tables that begin with [[deviation]]"
        raise DeviationError(msg)
    found = tuple(_entry(f"{path.name}, deviation {number}", entry) for number, entry in enumerate(entries, 1))
    return Deviations(path.stem, library, (versions[0], versions[1]), found)


def apply(
    outcomes: Sequence[Outcome],
    deviations: Deviations,
    *,
    seed: int = 0,
    device: str = "cpu",
    ids: Collection[str] | None = None,
    subject: Fixing | None = None,
) -> tuple[tuple[Outcome, ...], tuple[Stale, ...]]:
    """Mark the outcomes that are known deviations, and return them all with the patterns that are stale.

    A pattern is stale if none of the cases that it matches deviates as its entry says. Where not all cases were asked,
    ``ids`` is all there are: a pattern is judged if every case that it matches was asked. Outcomes that an entry
    matches and does not explain stay what they are. ``seed``, ``device`` and ``subject`` are those of the run.
    """
    found = {
        outcome.id: explaining(outcome, deviations, seed=seed, device=device, subject=subject) for outcome in outcomes
    }
    entries = deviations.entries
    marked = tuple(_marked(o, entries[found[o.id][0]]) if found[o.id] else o for o in outcomes)
    return marked, stale({o.id: (o.verdict, found[o.id]) for o in outcomes}, deviations, ids=ids)


def explaining(
    outcome: Outcome, deviations: Deviations, *, seed: int = 0, device: str = "cpu", subject: Fixing | None = None
) -> tuple[int, ...]:
    """Return the numbers, from 0, of the entries that match an outcome and explain it."""
    return tuple(
        number
        for number, entry in enumerate(deviations.entries)
        if any(expression.fullmatch(outcome.id) for expression in entry.expressions.values())
        and entry.explains(outcome, seed=seed, device=device, subject=subject)
    )


def stale(
    asked: Mapping[str, tuple[Verdict, Collection[int]]], deviations: Deviations, *, ids: Collection[str] | None = None
) -> tuple[Stale, ...]:
    """Return the patterns that are stale, see `apply`; of each case asked, its verdict and what was `explaining` it."""
    left = [] if ids is None else [id_ for id_ in ids if id_ not in asked]
    all_ids = [*asked, *left]
    found = []
    for number, entry in enumerate(deviations.entries):
        for single, expression in entry.expressions.items():
            matched = [asked[id_] for id_ in asked if expression.fullmatch(id_)]
            # None stands for what the entry says
            counter = Counter(None if number in numbers else verdict for verdict, numbers in matched)
            borne_out = counter[None] or (entry.sometimes and matched)
            if not borne_out and not any(map(expression.fullmatch, left)):
                found.append(Stale(entry, single, _why(entry, single, counter, all_ids)))
    return tuple(found)


def is_known(outcome: Outcome) -> bool:
    """Whether `apply` has found a known deviation in this outcome."""
    return KNOWN in outcome.details


def _marked(outcome: Outcome, entry: Deviation) -> Outcome:
    known = {"reason": entry.reason, "link": entry.link, "entry": entry.place}
    return replace(outcome, details={**outcome.details, KNOWN: known})


def _why(entry: Deviation, pattern: str, verdicts: Counter[Verdict | None], ids: Sequence[str]) -> str:
    if not verdicts:
        near = _nearest(pattern, ids)
        hint = f"; the nearest ids are {_list(near)}" if near else ""
        return f"matches no case{hint}; correct it, or delete it"
    found = ", ".join(f"{verdicts[v]} {v.value}" for v in Verdict if verdicts[v])
    if verdicts[entry.verdict]:
        expected = f"{entry.verdict.value} with the `says` and `formula` of the entry"
        return f"matches {found}, expected {expected}: look at what has changed"
    return f"matches {found}, expected {entry.verdict.value}: delete this entry if the library was repaired"


def _nearest(pattern: str, ids: Iterable[str]) -> list[str]:
    """Return the ids that a pattern most likely means: alike part by part, where ``*`` is like anything."""
    parts = pattern.split("/")

    @cache
    def alike(part: str, of_id: str) -> float:
        return 1.0 if expression(part).fullmatch(of_id) else SequenceMatcher(None, part, of_id).ratio()

    def likeness(id_: str) -> float:
        return sum(map(alike, parts, id_.split("/")))

    # the first part alone, the check, is not enough to be near
    return nlargest(_NEAREST, (id_ for id_ in ids if likeness(id_) > 1), key=likeness)


# --- patterns and entries ---------------------------------------------------------------------------------------------

_BRACES = re.compile(r"\{([^{}]*)\}")


def _alternatives(pattern: str) -> list[str]:
    """Write out what is in braces."""
    parts = _BRACES.split(pattern)
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def expression(pattern: str) -> re.Pattern[str]:
    """Return what a pattern without braces matches."""
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def _entry(place: str, entry: dict[str, Any]) -> Deviation:
    _check_keys(place, entry, _ENTRY, _NEEDED)
    patterns = _patterns(place, entry["pattern"])
    if not isinstance(sometimes := entry.get("sometimes", False), bool):
        msg = f"{place}: sometimes is {sometimes!r}, expected true or false"
        raise DeviationError(msg)
    for key in set(entry) - {"pattern", "sometimes"}:
        if not isinstance(entry[key], str) or not entry[key].strip():
            msg = f"{place}: {key} is {entry[key]!r}, expected a text"
            raise DeviationError(msg)
    if entry["verdict"] not in BAD:
        msg = f"{place}: verdict is {entry['verdict']!r}, expected one of {_list(sorted(BAD))}"
        raise DeviationError(msg)
    if not entry.get("link", "https://").startswith("https://"):
        msg = f"{place}: link is {entry['link']!r}, expected an address that begins with https://"
        raise DeviationError(msg)
    if "formula" in entry:
        from verify.explaining.deviations.formulas import FORMULAS  # noqa: PLC0415  imports torch

        if entry["formula"] not in FORMULAS:
            msg = f"{place}: formula is {entry['formula']!r}, expected one of {_list(sorted(FORMULAS))}"
            raise DeviationError(msg)
    texts = {key: " ".join(entry[key].split()) for key in ("reason", "link", "says", "formula") if key in entry}
    return Deviation(patterns, Verdict(entry["verdict"]), **texts, sometimes=sometimes, place=place)


def _patterns(place: str, given: Any) -> tuple[str, ...]:
    patterns = [given] if isinstance(given, str) else given
    if not _is_texts(patterns) or not patterns:
        msg = f"{place}: pattern is {given!r}, expected a text, or a list of them"
        raise DeviationError(msg)
    for pattern in patterns:
        if "*" in pattern.split("/")[0] or "/" not in pattern or re.search(r"[{}]", _BRACES.sub("", pattern)):
            msg = f"{place}: pattern is {pattern!r}, expected the name of a check first, as in errors/ZBox/*"
            raise DeviationError(msg)
    return tuple(patterns)


def _check_keys(place: str, table: dict[str, Any], known: frozenset[str], needed: Iterable[str]) -> None:
    if unknown := sorted(set(table) - known):
        msg = f"{place}: {_list(unknown)} is unknown; expected {_list(sorted(known))}"
        raise DeviationError(msg)
    if missing := [key for key in needed if key not in table]:
        verb = "is" if len(missing) == 1 else "are"
        msg = f"{place}: {' and '.join(missing)} {verb} missing; the smallest file is\n\n{_MINIMAL}"
        raise DeviationError(msg)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release's numbers: 0.5.1.dev3+local is (0, 5, 1)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()

"""The files of known deviations: those that come along, and any other; what is wrong with one is named."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.explaining.deviations.entries import BRACES, Deviation, DeviationError, Deviations, numbers
from verify.model import BAD, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).parent
_SCHEMA = FOLDER / "lrp-deviations-1.schema.json"

_HEADER = frozenset({"library", "versions", "extends", "without", "deviation"})
_ENTRY = frozenset({"pattern", "verdict", "reason", "link", "says", "formula", "sometimes"})
_NEEDED = ("pattern", "verdict", "reason")
_MINIMAL = """\
library = "my_package"
versions = ["1.0", "1.0"]

[[deviation]]
pattern = "errors/*/stabilizer-negative"
verdict = "fail"
says = "*is accepted*"
reason = "A negative stabilizer is accepted."
"""


def available() -> tuple[str, ...]:
    """Return the names of the files that come along."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load(*names: str | Path, version: str = "") -> Deviations:
    """Read files that come along, by their names, or any others, by their paths, as one.

    ``version`` is that of the library: of files that come along for several of its versions, it picks one.

    Raises
    ------
    DeviationError
        If there is no such file, or if anything in it is not as described at the top of this package.

    """
    files = [_load(_path(name, version), str(name), version, ()) for name in names]
    if len(files) == 1:
        return files[0]
    entries = tuple(entry for file in files for entry in file.entries)
    return Deviations(
        ", ".join(file.name for file in files), files[0].library, files[0].versions, entries, tuple(files)
    )


def _path(name: str | Path, version: str) -> Path:
    """Return the file of that name; of several versions, that of this version, or the last before it."""
    found = {path: _versions(path) for path in FOLDER.glob("*.toml") if _is_of(path.stem, str(name))}
    exact = FOLDER / f"{name}.toml"
    if not found:
        return Path(name)
    number = numbers(version)
    if not number and exact in found:
        return exact
    within = [path for path, (first, last) in found.items() if first <= number <= last]
    before = [path for path, (first, _) in found.items() if first <= number]
    if not within and not before:
        return min(found, key=lambda path: found[path])
    return max(within or before, key=lambda path: found[path])


def _is_of(stem: str, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}(-\d[\d.]*)?", stem) is not None


def _versions(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first, last = tomllib.loads(path.read_text(encoding="utf-8"))["versions"]
    return numbers(first), numbers(last)


def _load(path: Path, name: str, version: str, before: tuple[Path, ...]) -> Deviations:
    content = _content(path, name)
    _check_keys(path.name, content, _HEADER, ("library", "versions"))
    library, versions, entries = content["library"], content["versions"], content.get("deviation", [])
    if not isinstance(library, str) or not library:
        msg = f'{path.name}: library is {library!r}, expected its name, such as "my_package"'
        raise DeviationError(msg)
    if not _is_texts(versions) or len(versions) != 2 or not numbers(versions[0]) <= numbers(versions[1]):
        msg = f"{path.name}: versions is {versions!r}, expected the first and the last, such as ['0.5.1', '0.5.1']"
        raise DeviationError(msg)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        msg = f"{path.name}: deviation is {entries!r}, expected tables that begin with [[deviation]]"
        raise DeviationError(msg)
    found = tuple(_entry(f"{path.name}, deviation {number}", entry) for number, entry in enumerate(entries, 1))
    return Deviations(
        path.stem, library, (versions[0], versions[1]), (*_extended(path, content, version, (*before, path)), *found)
    )


def _content(path: Path, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"--deviations {name!r} cannot be read: {error.strerror}; expected a file, or one of {_list(available())}"
        raise DeviationError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path.name} is not TOML: {error}"
        raise DeviationError(msg) from error


def _extended(path: Path, content: dict[str, Any], version: str, before: tuple[Path, ...]) -> tuple[Deviation, ...]:
    """Return the entries of the file that this one extends, but for the patterns that do not hold any more."""
    given, without = content.get("extends"), content.get("without", [])
    if not isinstance(without, list) or not all(isinstance(item, str) for item in without):
        msg = f"{path.name}: without is {without!r}, expected a list of patterns of the extended file"
        raise DeviationError(msg)
    if given is None:
        if without:
            msg = f"{path.name}: without needs extends, the file whose patterns do not hold"
            raise DeviationError(msg)
        return ()
    if not isinstance(given, str):
        msg = f'{path.name}: extends is {given!r}, expected the name of a file, such as "zennit"'
        raise DeviationError(msg)
    # among those that come along, each names one file; any other means the one of its version
    base = _path(given, "" if path.parent == FOLDER else version)
    base = base if base.is_absolute() else path.parent / base
    if base in before:
        msg = f"{path.name}: extends {given!r} leads back to {base.name}"
        raise DeviationError(msg)
    entries = _load(base, given, version, before).entries
    if unknown := set(without) - {pattern for entry in entries for pattern in entry.patterns}:
        msg = f"{path.name}: without has {_list(sorted(unknown))}, expected patterns of {base.name} as they stand there"
        raise DeviationError(msg)
    left = (
        replace(entry, patterns=tuple(pattern for pattern in entry.patterns if pattern not in without))
        for entry in entries
    )
    return tuple(entry for entry in left if entry.patterns)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a file, read as TOML."""
    found: dict[str, Any] = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return found


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
    if "says" not in entry and (entry["verdict"] == "error" or any(map(_may_refuse, patterns))):
        msg = (
            f'{place}: says is missing; an accepted error needs it, such as "*raises RuntimeError*", '
            "so that a wrong number in its place is news"
        )
        raise DeviationError(msg)
    texts = {key: " ".join(entry[key].split()) for key in ("reason", "link", "says", "formula") if key in entry}
    return Deviation(patterns, Verdict(entry["verdict"]), **texts, sometimes=sometimes, place=place)


def _patterns(place: str, given: Any) -> tuple[str, ...]:
    patterns = [given] if isinstance(given, str) else given
    if not _is_texts(patterns) or not patterns:
        msg = f"{place}: pattern is {given!r}, expected a text, or a list of them"
        raise DeviationError(msg)
    for pattern in patterns:
        if "*" in pattern.split("/")[0] or "/" not in pattern or re.search(r"[{}]", BRACES.sub("", pattern)):
            msg = f"{place}: pattern is {pattern!r}, expected the name of a check first, as in errors/ZBox/*"
            raise DeviationError(msg)
    return tuple(patterns)


def _may_refuse(pattern: str) -> bool:
    """Whether a pattern matches cases that pass with one error, and fail with another as with a wrong number."""
    return re.match(r"(errors|\{[^}]*\berrors\b[^}]*\})/", pattern) is not None


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

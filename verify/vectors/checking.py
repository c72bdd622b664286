"""`lrp-vectors check`: whether a folder holds the corpus that was released, whole, well formed and right.

Every mistake is named with its file and, where it is one case's, the case. One mistake may be seen by several checks;
all of them are reported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from verify.formats.tensor_json import TensorError, is_canonical
from verify.vectors import CORPUS_VERSION
from verify.vectors.corpus import SCHEMA_NAME, dump
from verify.vectors.reading import parse
from verify.vectors.recomputing import disagreements
from verify.vectors.released import FLOOR, MANIFEST, NAME, digests, manifest, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Json = dict[str, Any]

_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """What is wrong, in which file, and with which case, if it is one case's."""

    file: str
    case: str
    message: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.file}{f', case {self.case}' if self.case else ''}: {self.message}"


@dataclass
class _Folder:
    """A folder as far as it could be read: the bytes and the JSON of each file, by name."""

    path: Path
    contents: dict[str, bytes] = field(default_factory=dict)
    parsed: dict[str, Any] = field(default_factory=dict)

    def vectors(self) -> dict[str, Json]:
        """The files that hold groups of cases."""
        return {
            name: found
            for name, found in self.parsed.items()
            if name not in {MANIFEST, NAME} and not name.endswith(".schema.json")
        }


def check(folder: Path, floor: int = FLOOR) -> tuple[list[Problem], int]:
    """Return everything that is wrong with the corpus in a folder, and how many cases it holds.

    Fewer cases than `floor` are wrong too.
    """
    read = _Folder(folder)
    problems = list(_read(read))
    cases = 0
    ids: dict[str, str] = {}
    for name, document in read.vectors().items():
        wrong = list(_form(name, document))
        problems += wrong
        for _group, case in _cases(document):
            cases += 1
            id_ = str(case.get("id"))
            if id_ in ids:
                problems.append(
                    Problem(name, id_, f"the id is also that of a case in {ids[id_]}; an id names one case")
                )
            ids[id_] = name
        if not wrong:
            problems += _values(name, document)
    problems += _release(read, ids)
    problems += _counts(read, cases, floor)
    return list(dict.fromkeys(problems)), cases


def _read(read: _Folder) -> Iterator[Problem]:
    """Read every file, and compare it with what the manifest says of it."""
    listed = {MANIFEST: None, **_listed(read)}
    present = {path.name for path in read.path.glob("*.json")}
    if MANIFEST not in present:
        yield Problem(MANIFEST, "", f"is missing in {read.path}; `lrp-vectors generate` makes a corpus")
    for name in sorted(present - set(listed)):
        yield Problem(name, "", "is not in the manifest; generate the corpus, or remove the file")
    for name, entry in listed.items():
        path = read.path / name
        if not path.is_file():
            if name != MANIFEST:
                yield Problem(name, "", "is missing, though the manifest names it")
            continue
        content = read.contents[name] = path.read_bytes()
        if entry is not None and sha256(content) != entry.get("sha256"):
            yield Problem(
                name,
                "",
                f"its SHA-256 is {sha256(content)[:16]}..., in the manifest {str(entry.get('sha256'))[:16]}...",
            )
        try:
            read.parsed[name] = parse(content)
        except ValueError as error:
            yield Problem(name, "", f"is no JSON: {error}")
            continue
        if not name.endswith(".schema.json") and dump(read.parsed[name]).encode() != content:
            yield Problem(name, "", f"is not written in the canonical form{_where(content, read.parsed[name])}")


def _listed(read: _Folder) -> dict[str, Any]:
    try:
        files = parse((read.path / MANIFEST).read_bytes())["files"]
        return {name: entry if isinstance(entry, dict) else {} for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # what is wrong with it is said when it is read


def _where(content: bytes, found: Any) -> str:
    pairs = zip(content.decode().split("\n"), dump(found).split("\n"), strict=False)
    number = next((number for number, (there, own) in enumerate(pairs, 1) if there != own), None)
    return f", first in line {number}" if number else ""


# --- the form of a file -----------------------------------------------------------------------------------------------


@cache
def _validator() -> Any:
    schema = json.loads((Path(__file__).parent / "schema" / SCHEMA_NAME).read_text(encoding="utf-8"))
    # `decode` is stricter with tensors than a schema can be, and a hundred times as fast
    schema["$defs"]["tensor"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _form(name: str, document: Any) -> Iterator[Problem]:
    """Schema, version, number of cases, notes, and the form of each tensor."""
    for error in sorted(_validator().iter_errors(document), key=lambda error: str(error.json_path)):
        yield Problem(name, _case_at(document, list(error.absolute_path)), f"{error.json_path}: {_said(error)}")
    if not isinstance(document, dict):
        return
    if document.get("corpus_version") != CORPUS_VERSION:
        given = document.get("corpus_version")
        yield Problem(name, "", f"is of corpus version {given!r}, expected {CORPUS_VERSION}")
    held = [case for _, case in _cases(document)]
    if document.get("cases") != len(held):
        yield Problem(name, "", f"says that it has {document.get('cases')} cases, and has {len(held)}")
    for case in held:
        id_ = str(case.get("id"))
        unknown = [flag for flag in case.get("flags", ()) if flag not in document.get("notes", {})]
        yield from (Problem(name, id_, f"the flag {flag!r} is not in the notes") for flag in unknown)
        yield from (Problem(name, id_, message) for message in _malformed(case))


def _malformed(case: Json) -> Iterator[str]:
    """What is wrong with the form of a case's tensors."""
    for where, tensor in _tensors(case):
        try:
            if not is_canonical(tensor):
                yield f"{where} is not written in the canonical form"
        except TensorError as error:
            yield f"{where}: {error}"


def _said(error: Any) -> str:
    text = str(error.message)
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-97:]}"


def _cases(document: Any) -> Iterator[tuple[Json, Json]]:
    """Yield groups and cases, as far as they are objects."""
    groups = document.get("groups", ()) if isinstance(document, dict) else ()
    for group in groups if isinstance(groups, list) else ():
        cases = group.get("cases", ()) if isinstance(group, dict) else ()
        yield from ((group, case) for case in (cases if isinstance(cases, list) else ()) if isinstance(case, dict))


def _case_at(document: Any, path: list[str | int]) -> str:
    if path[:1] == ["groups"] and path[2:3] == ["cases"] and len(path) > 3:
        case = document["groups"][path[1]]["cases"][path[3]]
        return str(case.get("id", path[3])) if isinstance(case, dict) else str(path[3])
    return ""


def _tensors(case: Json) -> Iterator[tuple[str, object]]:
    tensors = case.get("tensors")
    yield from tensors.items() if isinstance(tensors, dict) else ()
    yield from ((name, case[name]) for name in ("relevance", "bound") if name in case)


# --- values -----------------------------------------------------------------------------------------------------------


def _values(name: str, document: Json) -> Iterator[Problem]:
    for group, case in _cases(document):
        try:
            found = list(disagreements(document["rule"], group, case))
        except (ValueError, LookupError) as error:
            found = [f"the reference cannot answer it: {error}"]
        yield from (Problem(name, case["id"], message) for message in found)


# --- what was released ------------------------------------------------------------------------------------------------


def _release(read: _Folder, ids: Mapping[str, str]) -> Iterator[Problem]:
    """Compare every case with the digests of what was released."""
    known = read.parsed.get(NAME)
    cases = known.get("cases") if isinstance(known, dict) else None
    if not isinstance(cases, dict):
        yield Problem(NAME, "", "is missing or has no cases; without it nobody knows what was released")
        return
    gone = [id_ for id_ in cases if id_ not in ids]
    for id_ in gone[:_SHOWN]:
        yield Problem(cases[id_].get("file", NAME), id_, "was released, and is gone")
    if len(gone) > _SHOWN:
        files = ", ".join(dict.fromkeys(cases[id_].get("file", NAME) for id_ in gone[_SHOWN:]))
        yield Problem(files, "", f"{len(gone) - _SHOWN} more cases were released, and are gone")
    for name, document in read.vectors().items():
        for group, case in _cases(document):
            id_ = str(case.get("id"))
            if id_ not in cases:
                yield Problem(name, id_, f"the id is not in {NAME}: it was never released")
                continue
            try:
                now = digests(document, group, case)
            except (LookupError, TypeError, ValueError):
                continue  # the schema has said what is missing
            for part, digest in now.items():
                if digest != cases[id_].get(part):
                    yield Problem(name, id_, f"its {part} is not the one that was released, says {NAME}")


def _counts(read: _Folder, cases: int, floor: int) -> Iterator[Problem]:
    """The manifest's counts, and the floor under them."""
    if cases < floor:
        yield Problem(MANIFEST, "", f"there are {cases} cases, expected at least {floor}: the corpus never shrinks")
    given = read.parsed.get(MANIFEST)
    if not isinstance(given, dict):
        return
    try:
        own = manifest(read.vectors(), {name: read.contents[name] for name in read.contents if name != MANIFEST})
    except (LookupError, TypeError, AttributeError):
        return  # the schema has said what is missing
    said, found = _flat(given), _flat(own)
    for part in dict.fromkeys([*said, *found]):
        if said.get(part) != found.get(part):
            yield Problem(MANIFEST, "", f"{part} is {said.get(part)!r}, and in the files {found.get(part)!r}")
    for name, entry in own["files"].items():
        listed = given.get("files", {}).get(name)
        for part in ("bytes", "cases"):  # of the digest it was said when the file was read
            if listed is not None and listed.get(part) != entry.get(part):
                yield Problem(name, "", f"has {entry.get(part)} {part}, in the manifest {listed.get(part)}")


def _flat(whole: Json, head: str = "") -> dict[str, Any]:
    """What a manifest says beside its files, by name: `counts.rule.Norm`."""
    found: dict[str, Any] = {}
    for name, value in whole.items():
        if isinstance(value, dict) and name != "files":
            found |= _flat(value, f"{head}{name}.")
        elif name != "files":
            found[f"{head}{name}"] = value
    return found

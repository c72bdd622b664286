"""The corpus as it lies in a folder, read without trust."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.runs.selection import UnusableError
from verify.vectors.released import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Json = dict[str, Any]
#: Where they may lie, the first that is there: here, as the wheel brings them, in a checkout.
_PLACES = (Path("vectors"), Path(__file__).parent / "frozen", Path(__file__).parents[2] / "vectors")


def here() -> Path:
    """Return the folder of test vectors that is meant where none is named."""
    return next((folder for folder in _PLACES if (folder / MANIFEST).is_file()), _PLACES[0])


def parse(content: bytes) -> Any:
    """Return what a file of JSON says. ValueError where it is none, or where an object has a key twice."""
    return json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_refuse)


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        message = f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object"
        raise ValueError(message)
    return found


def _refuse(word: str) -> None:
    message = f'{word} is not JSON; write it as the string "{word}"'
    raise ValueError(message)


def load(folder: Path) -> dict[str, Json]:
    """Return the files of vectors in a folder by name, for those who trust it: `check` is what looks for mistakes.

    UnusableError where there is no manifest, or a file is missing or no JSON.
    """
    manifest = _read(
        folder / MANIFEST,
        "expected a folder of test vectors; without a name, those of this installation are meant",
    )
    names = [name for name, entry in manifest.get("files", {}).items() if "cases" in entry]
    documents = {name: _read(folder / name, f"the manifest names it; `lrp-vectors check {folder}`") for name in names}
    if not documents:
        message = f"{folder / MANIFEST} names no file of test vectors; `lrp-vectors check {folder}` says more"
        raise UnusableError(message)
    return documents


def _read(path: Path, advice: str) -> Json:
    try:
        found = parse(path.read_bytes())
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}; {advice}"
        raise UnusableError(message) from error
    except ValueError as error:
        message = f"{path} is not JSON: {error}; {advice}"
        raise UnusableError(message) from error
    if not isinstance(found, dict):
        message = f"{path} is not a JSON object; {advice}"
        raise UnusableError(message)
    return found


def each(documents: Mapping[str, Json]) -> Iterator[tuple[Json, Json, Json]]:
    """Yield file, group and case of each case."""
    for document in documents.values():
        for group in document["groups"]:
            for case in group["cases"]:
                yield document, group, case


def find(documents: Mapping[str, Json], id_: str) -> tuple[Json, Json, Json]:
    """Return file, group and case of an id. UnusableError where no case has it; it names those that are close."""
    known = {case["id"]: (document, group, case) for document, group, case in each(documents)}
    if id_ in known:
        return known[id_]
    close = difflib.get_close_matches(id_, known, n=5, cutoff=0.5)
    hint = "; similar ids are:\n" + "\n".join(f"  {match}" for match in close) if close else ""
    message = f"no case has the id {id_!r}{hint}"
    raise UnusableError(message)

"""The corpus on disk: generated, compared with what lies there, written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verify.formats.files import write as write_file
from verify.vectors.corpus import documents, dump
from verify.vectors.released import MANIFEST, NAME, manifest, released

Json = dict[str, Any]

#: The schemas that lie beside the vectors.
SCHEMAS = tuple(sorted((Path(__file__).parent / "schema").glob("*.schema.json")))


def generate(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of the corpus by name; `folder` holds what was released so far, or nothing.

    ReleaseError where the version does not allow what changed; OSError or ValueError where `released.json` cannot be
    read.
    """
    made = documents()
    contents = {name: dump(document).encode() for name, document in made.items()}
    contents |= {path.name: path.read_bytes() for path in SCHEMAS}
    before = folder / NAME
    known = json.loads(before.read_text(encoding="utf-8")) if before.exists() else None
    contents[NAME] = dump(released(made, known)).encode()
    contents[MANIFEST] = dump(manifest(made, contents)).encode()
    return contents


def differences(folder: Path, contents: Mapping[str, bytes]) -> list[str]:
    """Return a line for each file in which the folder differs from what was generated."""
    lines = []
    for name, content in contents.items():
        path = folder / name
        if not path.is_file():
            lines.append(f"{name}: missing")
        elif path.read_bytes() != content:
            lines.append(f"{name}: differs{_first_difference(path.read_bytes(), content)}")
    return [*lines, *(f"{path.name}: is not generated" for path in stale(folder, contents))]


def _first_difference(there: bytes, made: bytes) -> str:
    pairs = zip(there.splitlines(), made.splitlines(), strict=False)
    number = next((number for number, (one, other) in enumerate(pairs, 1) if one != other), None)
    return " in length" if number is None else f", first in line {number}"


def stale(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Return the files of JSON in the folder that are no longer generated."""
    return [path for path in sorted(folder.glob("*.json")) if path.name not in contents]


def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write every file, the manifest last, and remove what is no longer generated."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in stale(folder, contents):
        path.unlink()
    for name, content in contents.items():
        write_file(folder / name, content)

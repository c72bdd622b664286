"""What keeps a released case what it is: a digest of every question and answer, and what a new version may change.

`released.json` names every id that was ever released. A question never changes: another question gets another id. An
answer may only be corrected, and a case only be withdrawn, by a new major version; its id is never used again. New
cases need a new version.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from verify.vectors import CORPUS_VERSION, SCHEMA_VERSION

Json = dict[str, Any]

NAME = "released.json"
MANIFEST = "MANIFEST.json"
#: How many cases there are at least; a corpus with fewer is not checked, but refused.
FLOOR = 1907

_SHOWN = 5


class ReleaseError(Exception):
    """A change that a release does not allow; the message names the cases and what to do."""


def sha256(content: bytes) -> str:
    """Return the digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _digest(content: object) -> str:
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def digests(document: Json, group: Json, case: Json) -> Json:
    """Return the digest of what a case asks, and that of what it expects; comments and flags may be worded better."""
    question = [document["rule"], group["parameters"], group["layer"], case["dtype"], case["tensors"]]
    answer = [case.get(name) for name in ("result", "relevance", "bound", "error", "advice", "ledger")]
    return {"question": _digest(question), "answer": _digest(answer)}


def cases(documents: Mapping[str, Json]) -> Iterator[tuple[str, Json, Json, Json]]:
    """Yield name of the file, file, group and case of each case."""
    for name, document in documents.items():
        for group in document["groups"]:
            for case in group["cases"]:
                yield name, document, group, case


def released(documents: Mapping[str, Json], before: Json | None = None) -> Json:
    """Return the new `released.json`; `before` is the one there was.

    ReleaseError where the version does not allow what changed.
    """
    now = {
        case["id"]: {"file": name, **digests(document, group, case)} for name, document, group, case in cases(documents)
    }
    withdrawn: list[str] = []
    if before is not None:
        withdrawn = sorted({*before["withdrawn"], *(set(before["cases"]) - set(now))})
        _refuse(before, now)
    return {"corpus_version": CORPUS_VERSION, "withdrawn": withdrawn, "cases": dict(sorted(now.items()))}


def _refuse(before: Json, now: Mapping[str, Json]) -> None:
    then: Mapping[str, Json] = before["cases"]
    old, new = _version(before["corpus_version"]), _version(CORPUS_VERSION)
    both = [id_ for id_ in then if id_ in now]
    asks = [id_ for id_ in both if now[id_]["question"] != then[id_]["question"]]
    again = [id_ for id_ in before["withdrawn"] if id_ in now]
    corrected = [id_ for id_ in both if now[id_]["answer"] != then[id_]["answer"]]
    gone = [id_ for id_ in then if id_ not in now]
    added = [id_ for id_ in now if id_ not in then]
    if asks:
        _raise("would ask something else than what was released", asks, "give the new question an id of its own")
    if again:
        _raise("were withdrawn, and would be used again", again, "give them other ids")
    if corrected and not new[0] > old[0]:
        _raise("would expect something else than what was released", corrected, _raise_version("major"))
    if gone and not new[0] > old[0]:
        _raise("would be gone", gone, _raise_version("major"))
    if added and not new > old:
        _raise("would be new", added, _raise_version("minor"))
    if new < old:
        message = f"the corpus version would go from {before['corpus_version']} back to {CORPUS_VERSION}; raise it"
        raise ReleaseError(message)


def _raise_version(part: str) -> str:
    return (
        f"if that is meant, raise the {part} part of CORPUS_VERSION in verify/vectors/__init__.py, "
        f"from {CORPUS_VERSION}, and say why in vectors/CHANGELOG.md"
    )


def _raise(what: str, ids: list[str], advice: str) -> None:
    named = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
    message = f"{len(ids)} cases {what}: {named}; {advice}"
    raise ReleaseError(message)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def manifest(documents: Mapping[str, Json], contents: Mapping[str, bytes]) -> Json:
    """Return `MANIFEST.json`: every file with its digest, and how many cases there are."""
    counts: Json = {"cases": 0, "result": {}, "rule": {}, "dtype": {}}
    for _, document, _, case in cases(documents):
        counts["cases"] += 1
        for name, value in (("result", case["result"]), ("rule", document["rule"]), ("dtype", case["dtype"])):
            counts[name][value] = counts[name].get(value, 0) + 1
    files: Json = {}
    for name, content in sorted(contents.items()):
        files[name] = {"sha256": sha256(content), "bytes": len(content)}
        if name in documents:
            files[name]["cases"] = documents[name]["cases"]
    return {"corpus_version": CORPUS_VERSION, "schema_version": SCHEMA_VERSION, "counts": counts, "files": files}

"""Mutants that change nothing there is to see: ``equivalents.toml``, reasons with the ids for which they hold."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

FILE = Path(__file__).parent / "equivalents.toml"
#: Under this stand survivors that nobody has looked at; as long as there are any, the run fails.
UNKNOWN = "?"
_HEADER = """\
# Mutants of lrp_rules that nothing kills, by the reason why there is nothing to see. An entry that is killed, or that
# is no mutant any more, fails the run. `python -m verify.selftests.mechanical --refresh` drops those, and adds new
# survivors under the reason "?", which is to be replaced by a true one, or by a case or test that kills them.
"""


class EquivalentsError(Exception):
    """The file cannot be used; the message says what is wrong."""


def load(path: Path = FILE) -> dict[str, str]:
    """Return the reason of each id.

    Raises
    ------
    EquivalentsError
        If an entry is not a reason and a list of ids, or if an id stands there twice.

    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        msg = f"{path} cannot be read: {error}"
        raise EquivalentsError(msg) from error
    reasons: dict[str, str] = {}
    for entry in entries:
        reason, ids = entry.get("reason"), entry.get("mutants")
        if set(entry) != {"reason", "mutants"} or not reason or not isinstance(reason, str) or not ids:
            msg = f"{path}: an entry has {sorted(entry)}; expected a reason and a list `mutants` of ids"
            raise EquivalentsError(msg)
        for id_ in ids:
            if id_ in reasons:
                msg = f"{path}: {id_!r} stands there twice; one mutant has one reason"
                raise EquivalentsError(msg)
            reasons[id_] = reason
    return reasons


def refresh(reasons: Mapping[str, str], stale: Collection[str], survivors: Collection[str], path: Path = FILE) -> None:
    """Write the reasons without what is stale and with what survives."""
    kept = {id_: reason for id_, reason in reasons.items() if id_ not in stale}
    by_reason: dict[str, list[str]] = {}
    for id_, reason in (kept | {id_: UNKNOWN for id_ in survivors if id_ not in kept}).items():
        by_reason.setdefault(reason, []).append(id_)
    parts = [_HEADER]
    for reason, ids in by_reason.items():
        lines = "".join(f"    {_quoted(id_)},\n" for id_ in ids)
        parts.append(f"[[equivalent]]\nreason = {_quoted(reason)}\nmutants = [\n{lines}]\n")
    path.write_text("\n".join(parts), encoding="utf-8")


def _quoted(text: str) -> str:
    return f"'{text}'" if "'" not in text else json.dumps(text, ensure_ascii=False)

"""What became of mutants, in a file of JSON lines, so that a run of hours can be interrupted and goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from verify.selftests.mechanical.trial import Fate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from verify.selftests.mechanical.mutator import Mutant

#: The cases are made here.
_CASES = Path(__file__).parents[2]


class RecordError(Exception):
    """The file is no record; the message says why."""


class Record:
    """The fates that a file knows of these mutants, and more of them as they become known.

    A fate holds for one source. One who survives has to be asked again once there are other cases or tests.
    """

    def __init__(self, path: Path | None, mutants: Sequence[Mutant], texts: Mapping[str, str], tests: Path) -> None:
        self._path = path
        self._asked = _digest(_texts([*_CASES.rglob("*.py"), *tests.rglob("*.py")]))
        self._sources = {m.id: _digest({**texts, m.file: m.source}.items()) for m in mutants}
        self.known: dict[str, Fate] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                entry = json.loads(line)
                id_, fate = entry["id"], Fate(**entry["fate"])
                holds = self._sources.get(id_) == entry["source"] and (bool(fate.by) or self._asked == entry["asked"])
            except (ValueError, TypeError, KeyError) as error:
                msg = f"line {number} of {path} is no fate of a mutant ({error!r}); give another file, or mend the line"
                raise RecordError(msg) from error
            if holds:
                self.known[id_] = fate

    def add(self, id_: str, fate: Fate) -> None:
        """Note a fate, at once."""
        if self._path is not None:
            line = json.dumps(
                {"id": id_, "source": self._sources[id_], "asked": self._asked, "fate": asdict(fate)},
                ensure_ascii=False,
            )
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def _texts(paths: Iterable[Path]) -> list[tuple[str, str]]:
    return [(path.name, path.read_text(encoding="utf-8")) for path in sorted(paths)]


def _digest(texts: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256("\0".join(part for pair in texts for part in pair).encode()).hexdigest()[:16]

"""``lrp_rules`` from texts in memory, so that one of them can be changed."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PACKAGE = "lrp_rules"
FOLDER = Path(__file__).parents[3] / PACKAGE


def read() -> dict[str, str]:
    """Return the texts of the package by file name, as they are now: an edit during the run must not reach it."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.py"))}


class Sources(SourceLoader, MetaPathFinder):  # type: ignore[misc]  # typeshed's own contradiction
    """Finds the modules of the package among texts, by file name."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def install(self) -> None:
        """Come before all other finders, in a process that has not imported the package."""
        if loaded := [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            msg = f"{loaded} are imported already; a mutant needs a process that has not imported {PACKAGE}"
            raise RuntimeError(msg)
        sys.meta_path.insert(0, self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  importlib gives it
        target: ModuleType | None = None,  # noqa: ARG002  the same
    ) -> ModuleSpec | None:
        """Find a module of the package, and no other."""
        package, _, rest = fullname.partition(".")
        if package != PACKAGE or f"{rest or '__init__'}.py" not in self._texts:
            return None
        folders = None if rest else [str(FOLDER)]
        return spec_from_file_location(
            fullname, self.get_filename(fullname), loader=self, submodule_search_locations=folders
        )

    def get_filename(self, fullname: str) -> str:
        """Return the file that the text was read from."""
        return str(FOLDER / f"{fullname.partition('.')[2] or '__init__'}.py")

    def get_data(self, path: str | bytes) -> bytes:
        """Return the text; compiled ones are not kept."""
        name = Path(str(path)).name
        if name not in self._texts:
            raise OSError(name)
        return self._texts[name].encode()

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
    """Return the texts of the package by file, as they are now: an edit during the run must not reach it."""
    paths = sorted(FOLDER.rglob("*.py"))
    return {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8") for path in paths}


class Sources(SourceLoader, MetaPathFinder):  # type: ignore[misc]  # typeshed's own contradiction
    """Finds the modules of the package among texts, by file."""

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
        file = self._file(fullname)
        if fullname.partition(".")[0] != PACKAGE or file not in self._texts:
            return None
        folders = [str((FOLDER / file).parent)] if file.endswith("__init__.py") else None
        return spec_from_file_location(
            fullname, self.get_filename(fullname), loader=self, submodule_search_locations=folders
        )

    def get_filename(self, fullname: str) -> str:
        """Return the file that the text was read from."""
        return str(FOLDER / self._file(fullname))

    def get_data(self, path: str | bytes) -> bytes:
        """Return the text; compiled ones are not kept."""
        file = Path(str(path))
        name = file.relative_to(FOLDER).as_posix() if file.is_relative_to(FOLDER) else ""
        if name not in self._texts:
            raise OSError(str(path))
        return self._texts[name].encode()

    def _file(self, fullname: str) -> str:
        """Return the file of a module: its own, or that of a folder."""
        path = "/".join(fullname.split(".")[1:])
        own = f"{path}.py"
        return own if own in self._texts else f"{path}/__init__.py".lstrip("/")

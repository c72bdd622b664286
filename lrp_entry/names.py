"""Makes `import verify` mean ours, where the user's own repository has something by that name."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

#: The packages of this project whose names others use too.
NAMES = ("bench", "reference", "verify")
_ROOT = Path(__file__).resolve().parents[1]


class _Finder(MetaPathFinder):
    """Finds the packages beside this one, wherever else something goes by their names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where one of the packages lies; None for all that has another name, or lies in a package."""
        ours = path is None and fullname in NAMES
        return PathFinder.find_spec(fullname, [str(_ROOT)], target) if ours else None


_FINDER = _Finder()
#: Our modules, from one call of `pinned` to the next, where others go by their names in between.
_ours: dict[str, ModuleType] = {}


def pin() -> None:
    """Make the names ours for the rest of this process, which is one of our own commands."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


@contextmanager
def pinned() -> Iterator[None]:
    """Make the names ours for a while, in a process of the user; what had them before has them again afterwards."""
    contested = any(not _is_ours(name) for name in NAMES)
    theirs = _taken(lambda name: not _is_ours(name))
    sys.modules.update(_ours)
    sys.meta_path.insert(0, _FINDER)
    try:
        yield
    finally:
        sys.meta_path.remove(_FINDER)
        if contested:
            _ours.update(_taken(lambda name: name in NAMES))
        sys.modules.update(theirs)


def _taken(meant: Callable[[str], bool]) -> dict[str, ModuleType]:
    """Take packages, with all below them, out of `sys.modules`."""
    found = {name for name in NAMES if name in sys.modules and meant(name)}
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in found}


def _is_ours(name: str) -> bool:
    """Return whether a name means our package: the one that was imported, or else the one that would be."""
    module = sys.modules.get(name)
    spec = PathFinder.find_spec(name) if module is None else module.__spec__
    origin = None if spec is None else spec.origin
    return origin is not None and Path(origin).resolve() == _ROOT / name / "__init__.py"

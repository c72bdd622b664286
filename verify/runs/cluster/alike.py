"""Whether a worker of the cluster would give the answers of this machine: versions, and the sources of both sides."""

from __future__ import annotations

import hashlib
import importlib.metadata
import multiprocessing
import platform
import shlex
import sys
from importlib.machinery import PathFinder, all_suffixes
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from verify.subjects.protocol import COMMAND, is_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TOP = Path(__file__).parents[3]
#: Our packages, as far as a verdict depends on them.
_PACKAGES = ("lrp_rules", "lrp_entry", "reference", "verify")
_SUFFIXES = {".json", ".py", ".safetensors", ".toml", ".txt", ".xz"}
#: In a checkout and not in the wheel, or the other way round.
_ELSEWHERE = ("verify/selftests/mechanical/", "verify/selftests/blind_sets/", "verify/vectors/frozen/")
#: What is said of a thing that is not there.
MISSING = "missing"
#: A worker of Dask that is a daemon may start no processes, and so isolate no case.
STARTS = "may start processes"
_NO = "no (set DASK_DISTRIBUTED__WORKER__DAEMON=False where the worker is started)"


def environment_for(spec: str) -> dict[str, str]:
    """Return what the answers on a subject depend on in this process, as plain data; nothing of it is imported."""
    package = "" if is_command(spec) else spec.partition(":")[0].partition(".")[0]
    found = {"Python": platform.python_version(), "machine": platform.machine()}
    found[STARTS] = _NO if multiprocessing.current_process().daemon else "yes"
    ours = importlib.metadata.packages_distributions().get(package, []) if package else []
    found |= _versions(["torch", "numpy", "distributed", "lrp-rules[verify]", *sorted(set(ours))])
    found |= {f"source of {name}": _hash(_TOP, _our_files(_TOP / name)) for name in _PACKAGES}
    if package and package not in _PACKAGES:
        found[f"source of {package}"] = _source(package)
    for word in shlex.split(spec.removeprefix(COMMAND)) if is_command(spec) else ():
        if Path(word).is_file():  # the program's own, as in `node main.js`
            found[f"file {word}"] = _hash(Path(word).parent, [Path(word)])
    return found


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Say in which things another process differs from this one, one line each; empty where it does not.

    >>> differences({"torch": "2.13.0", "numpy": "2.4.6"}, {"torch": "2.12.0", "numpy": "2.4.6"})
    ['torch: 2.12.0, here 2.13.0']

    """
    names = dict.fromkeys([*here, *there])
    pairs = {name: (there.get(name, MISSING), here.get(name, MISSING)) for name in names}
    return [f"{name}: {theirs}, here {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]


def _versions(roots: Iterable[str]) -> dict[str, str]:
    """Return the versions of some distributions and of all that they require, as far as that is installed."""
    waiting, found = [Requirement(root) for root in roots], dict[str, str]()
    asked = set()
    while waiting:
        one = waiting.pop()
        key = one.name.lower(), *sorted(one.extras)
        if key in asked:
            continue
        asked.add(key)
        try:
            distribution = importlib.metadata.distribution(one.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # then the other side has it, or not, by its own list
        found[one.name.lower()] = distribution.version
        for text in distribution.requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                waiting.append(inner)
    return dict(sorted(found.items()))


def _our_files(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES]
    return [path for path in files if not path.relative_to(_TOP).as_posix().startswith(_ELSEWHERE)]


def _source(package: str) -> str:
    """Return a hash of a package's files, which are found as `verify.subjects.loading` finds them."""
    spec = PathFinder.find_spec(package, [*sys.path, str(Path.cwd())])
    if spec is None:
        return MISSING
    if spec.submodule_search_locations is None:
        return _hash(Path(spec.origin).parent, [Path(spec.origin)]) if spec.origin else MISSING
    hashes = []
    for folder in map(Path, spec.submodule_search_locations):
        files = [path for path in sorted(folder.rglob("*")) if path.name.endswith(tuple(all_suffixes()))]
        hashes.append(_hash(folder, [path for path in files if path.suffix != ".pyc"]))
    return " ".join(hashes)


def _hash(top: Path, files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        found.update(f"{path.relative_to(top).as_posix()}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()[:12]

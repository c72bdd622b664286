"""What a call asks for: it is checked as a whole, and its cases are selected, before anything runs."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import signal
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from verify.formats.files import check_writable
from verify.runs import named
from verify.runs.outcomes import carried
from verify.runs.worker import Source
from verify.subjects.protocol import is_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from verify.model import Case

#: Where the cases come from; its module has DTYPES and DEFAULT_DTYPES beside the function.
CASES = "verify.checks.cases:all_cases"
#: The same for a command, which is asked more.
CASES_OF_COMMANDS = "verify.checks.protocol:all_cases"
#: The check that looks for new cases, beside those that it has found before.
SEARCH = "search"
#: The option, and its file, that writes down what is not yet known.
BASELINE = "write-deviations"


class UnusableError(Exception):
    """The call cannot be carried out; the message says why and what to do."""


@dataclass(frozen=True)
class Request:
    """The options of one call."""

    subject: str
    filters: Mapping[str, Sequence[str]]  # rule, layer, check, kind -> patterns
    dtypes: Sequence[str]
    ids: Sequence[str]
    device: str
    seed: int
    workers: int
    time_limit: float
    strict: bool
    quiet: bool
    json: str | None
    files: Mapping[str, Path]  # json, junit, markdown, figure, write-deviations
    shard: tuple[int, int] = (1, 1)  # number, of how many
    seconds: float | None = None  # of a search
    examples: int | None = None
    deviations: Sequence[str] = ()
    depth: int = 2  # how many options meet in a case
    exit_first: bool = False
    cluster: str | None = None

    @property
    def cases(self) -> str:
        """Where the cases come from."""
        return CASES_OF_COMMANDS if is_command(self.subject) else CASES

    @property
    def searching(self) -> bool:
        """Whether new cases are looked for."""
        return any(pattern.lower() == SEARCH for pattern in self.filters.get("check", ()))


def select(request: Request) -> tuple[Source, list[Case]]:
    """Return the source of the cases and those that are asked for; all of the call is checked here."""
    if not 0 < request.time_limit < float("inf"):
        msg = f"--time-limit is {request.time_limit:g}; expected a finite number of seconds above 0"
        raise UnusableError(msg)
    if request.ids and (any(request.filters.values()) or request.dtypes):
        msg = "--case names a whole case; leave out --rule, --layer, --check, --kind and --dtype"
        raise UnusableError(msg)
    _check_search(request)
    _check_command(request)
    _check_baseline(request)
    check_files(request.files)
    with _uninterrupted():
        module = importlib.import_module(request.cases.partition(":")[0])
    _check_device(request.device)
    known: tuple[str, ...] = module.DTYPES
    # a case that is named may be of any dtype
    given = _chosen("dtype", request.dtypes, known)
    dtypes = known if request.ids else given or module.DEFAULT_DTYPES
    source = Source(tuple(dtypes), request.seed, request.device, request.cases, request.depth)
    cases = source.cases()
    if request.ids:
        return source, [_named(id_, cases) for id_ in request.ids]
    # some checks keep to one dtype whatever is asked for, and some have none
    selected = [case for case in cases.values() if not given or case.dtype in given or case.dtype not in known]
    for name, patterns in request.filters.items():
        if name == "kind":
            selected = of_kinds(selected, patterns, cases.values())
            continue
        values = list(dict.fromkeys(getattr(case, name) for case in cases.values()))
        if name == "check" and SEARCH not in values:
            values.append(SEARCH)
        if name == "layer":
            selected = on_layers(selected, patterns, values, cases.values())
        elif chosen := _chosen(name, patterns, values):
            selected = [case for case in selected if getattr(case, name) in chosen]
    if not selected and not request.searching:
        options = [*request.filters.items(), ("dtype", request.dtypes)]
        words = " ".join(f"--{name} {','.join(patterns)}" for name, patterns in options if patterns)
        msg = f"no case fits {words} together; leave out one of these options, or see --list"
        raise UnusableError(msg)
    return source, selected


def all_ids(request: Request) -> tuple[str, ...]:
    """Return the ids of all cases there are, also of those that were not selected."""
    module = importlib.import_module(request.cases.partition(":")[0])
    return tuple(Source(tuple(module.DTYPES), request.seed, request.device, request.cases, request.depth).cases())


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold an interrupt back until the end: the import of torch would swallow it, or abort."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


def _chosen(name: str, patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return the known values that match a pattern, whatever their case; a pattern without a match is a mistake."""
    found = set()
    for pattern in patterns:
        matching = {value for value in known if fnmatchcase(value.lower(), pattern.lower())}
        if not matching:
            names = [value for value in known if value != "-"]
            msg = f"--{name} {pattern!r} is unknown{meant(pattern, names)}; expected one of {', '.join(names)}"
            raise UnusableError(msg)
        found |= matching
    return [value for value in known if value in found]


def on_layers(
    selected: list[Case], patterns: Sequence[str], families: Sequence[str], cases: Iterable[Case]
) -> list[Case]:
    """Return the selected cases on types of layers; or else on single ones, or on those with an attribute."""
    if not patterns:
        return selected
    everything = list(cases)
    types = {pattern: [one for one in families if fnmatchcase(one.lower(), pattern.lower())] for pattern in patterns}
    for pattern in patterns:
        if not types[pattern] and not named.on_layers(everything, (pattern,)):
            known = [one for one in families if one != "-"]
            msg = (
                f"--layer {pattern!r} is unknown{meant(pattern, known)}; expected one of {', '.join(known)}, "
                "or a single layer or attribute as ids name them, such as linear-5-4, nobias or circular"
            )
            raise UnusableError(msg)
    chosen = {one for found in types.values() for one in found}
    single = {case.id for case in named.on_layers(selected, [pattern for pattern in patterns if not types[pattern]])}
    return [case for case in selected if case.layer in chosen or case.id in single]


def of_kinds(selected: list[Case], patterns: Sequence[str], cases: Iterable[Case]) -> list[Case]:
    """Return the selected cases with these kinds of data, of those that ids name."""
    known = list(dict.fromkeys(filter(None, map(named.kind, cases))))
    chosen = _chosen("kind", patterns, known)
    return named.of_kinds(selected, chosen) if chosen else selected


def meant(given: str, known: Iterable[str]) -> str:
    """Return a guess at what a word that is unknown was meant for; empty where there is none."""
    by_lower = {value.lower(): value for value in known}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""


def _check_search(request: Request) -> None:
    given = [name for name in ("seconds", "examples") if getattr(request, name) is not None]
    if not request.searching:
        for name in given:
            msg = f"--{name} limits a search, and nothing is searched; add --check {SEARCH}"
            raise UnusableError(msg)
        return
    if len(given) == 2:
        msg = "--seconds and --examples both limit the search; expected one of them"
        raise UnusableError(msg)
    if request.seconds is not None and not 0 < request.seconds < float("inf"):
        msg = f"--seconds is {request.seconds:g}; expected a finite number above 0"
        raise UnusableError(msg)
    for name, unusable in (
        *((name, bool(request.filters.get(name))) for name in ("layer", "kind")),
        ("device", request.device != "cpu"),
        ("shard", request.shard != (1, 1)),
    ):
        if unusable:
            msg = f"--check {SEARCH} makes its own layers and runs in one piece on the CPU; leave out --{name}"
            raise UnusableError(msg)


def _check_command(request: Request) -> None:
    if not is_command(request.subject):
        return
    for name, unusable in (
        (f"--check {SEARCH}", request.searching),
        ("--device", request.device != "cpu"),
        ("--figure", "figure" in request.files),
    ):
        if unusable:
            msg = f"{name} needs an implementation in Python (--subject); a program (--command) only answers cases"
            raise UnusableError(msg)


def _check_baseline(request: Request) -> None:
    """What is written has to be all that failed, and what was passed over has to be known."""
    if BASELINE not in request.files:
        return
    for name, unusable in (
        ("deviations", bool(request.deviations)),
        ("shard", request.shard != (1, 1)),
        (f"check {SEARCH}", request.searching),
    ):
        if unusable:
            msg = f"--{BASELINE} writes a first file with all failures of a whole run; leave out --{name}"
            raise UnusableError(msg)


def searched(name: str, patterns: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return which rules or dtypes a search tries, of those that it can."""
    found = [value for value in known if any(fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns)]
    if patterns and not found:
        msg = f"--check {SEARCH} cannot search --{name} {','.join(patterns)}; expected some of {', '.join(known)}"
        raise UnusableError(msg)
    return found or list(known)


def _named(id_: str, cases: Mapping[str, Case]) -> Case:
    if id_ in cases:
        return cases[id_]
    if id_.startswith(f"{SEARCH}/"):
        try:
            return carried(id_)
        except ValueError as error:
            raise UnusableError(str(error)) from error
    if "*" in id_:
        msg = f"--case is {id_!r}; expected the id of one case; for several, use --rule, --layer, --check and --dtype"
        raise UnusableError(msg)
    close = difflib.get_close_matches(id_, cases, n=5, cutoff=0.5)
    hint = "; similar ids are:\n" + "\n".join(f"  {match}" for match in close) if close else "; --list prints all ids"
    msg = f"no case has the id {id_!r}{hint}"
    raise UnusableError(msg)


def _check_device(device: str) -> None:
    torch = importlib.import_module("torch")
    try:
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        msg = f"--device {device!r} cannot be used; expected {' or '.join(known)}"
        raise UnusableError(msg) from error


def check_files(files: Mapping[str, Path]) -> None:
    """Find out before a run whether its files can be written after it; raise UnusableError if not."""
    for name, path in files.items():
        if any(path.resolve() == other.resolve() for option, other in files.items() if option != name):
            msg = f"--{name} {path}: another option writes to the same file; expected a file for each"
            raise UnusableError(msg)
        if name == "figure" and path.suffix.lower() != ".png":
            msg = f"--figure {path}: expected a name that ends in .png"
            raise UnusableError(msg)
        if name == BASELINE and path.is_file() and path.read_bytes().strip():
            msg = (
                f"--{BASELINE} {path}: the file is not empty, and is never overwritten; name another file, or delete "
                "this one; nothing was run"
            )
            raise UnusableError(msg)
        try:
            check_writable(path)
        except OSError as error:
            msg = f"--{name} {path} cannot be written: {error.strerror or error}; nothing was run"
            raise UnusableError(msg) from error

"""What a process is asked: the grid that every subject is asked, and how it starts and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verify.checks import cases as grid
from verify.formats.layer_json import ELEMENTWISE
from verify.model import RULES, Case, Finding, Level, Verdict
from verify.subjects.protocol import STOP_LIMIT, messages
from verify.subjects.protocol.connection import StartError, begin
from verify.subjects.protocol.messages import MessageError
from verify.subjects.protocol.port import Port
from verify.subjects.protocol.process import Kind, Trouble, ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Subject
    from verify.subjects.protocol.process import Process

DTYPES = grid.DTYPES
DEFAULT_DTYPES = grid.DEFAULT_DTYPES

_WITH_SIZES = ("Conv", "ConvTranspose", "AvgPool", "AdaptiveAvgPool", "MaxPool")
_KNOWN = {
    "rules": RULES,
    "layers": (
        "Linear", "BatchNorm", "Softmax", "Elementwise",
        *(f"{kind}{d}d" for kind in _WITH_SIZES for d in (1, 2, 3)),
    ),
    "functions": tuple(ELEMENTWISE),
    "dtypes": grid.DTYPES,
}  # fmt: skip


def all_cases(
    *, seed: int = 0, dtypes: Sequence[str] = DEFAULT_DTYPES, device: str = "cpu", depth: int = 2
) -> tuple[Case, ...]:
    """Return the cases of the protocol and the whole grid, in the order of the report."""
    return (*_own(), *grid.all_cases(seed=seed, dtypes=dtypes, device=device, depth=depth))


def _own() -> Iterator[Case]:
    runs: tuple[tuple[str, Callable[[Port], Finding]], ...] = (
        ("start", _starts), ("stop", _stops), ("end-of-input", _ends),
    )  # fmt: skip
    for name, run in runs:

        def on_port(subject: Subject, run: Callable[[Port], Finding] = run) -> Finding:
            assert isinstance(subject, Port)
            try:
                return run(subject)
            except StartError as error:
                return error.finding

        yield Case(f"protocol/{name}", "-", "-", "protocol", "-", Level.MUST, on_port)


def _starts(port: Port) -> Finding:
    """Check that it answers `start`, and that it offers what there is."""
    process, started = begin(port.connection.command)
    process.kill()
    for what, known in _KNOWN.items():
        if unknown := [name for name in getattr(started, what) if name not in known]:
            reason = f"start: {what} has {', '.join(unknown)}; expected one of {', '.join(known)}"
            return Finding(Verdict.FAIL, reason=reason)
    if missing := [what for what in ("rules", "layers", "dtypes") if not getattr(started, what)]:
        return Finding(Verdict.FAIL, reason=f"start: {', '.join(missing)} is empty: nothing can be asked")
    return Finding(Verdict.PASS, details={"offers": {what: ", ".join(getattr(started, what)) for what in _KNOWN}})


def _stops(port: Port) -> Finding:
    """Check that it answers `stop`, says nothing more, and ends with status 0."""
    process, _ = begin(port.connection.command)
    try:
        messages.read_stop(process.ask(messages.stop(), STOP_LIMIT))
        found = _end(process, "stop")
    except Trouble as trouble:
        verdict = Verdict.TIMEOUT if trouble.kind is Kind.LATE else Verdict.FAIL
        found = Finding(verdict, reason=f"stop: {trouble}")
    except MessageError as error:
        found = Finding(Verdict.FAIL, reason=f"stop: the answer {error}")
    finally:
        process.kill()
    return found


def _ends(port: Port) -> Finding:
    """Check that it ends where its input ends: a verifier may be killed, and its ports should not stay behind."""
    process, _ = begin(port.connection.command)
    try:
        return _end(process, "the end of its input")
    finally:
        process.kill()


def _end(process: Process, after: str) -> Finding:
    process.end_input()
    status = process.wait(STOP_LIMIT)
    if status is None:
        return Finding(Verdict.TIMEOUT, reason=f"still runs {STOP_LIMIT:g} seconds after {after}")
    if more := process.unasked():
        return Finding(Verdict.FAIL, reason=f"after {after} it wrote {more}, expected nothing")
    if status:
        return Finding(Verdict.FAIL, reason=f"after {after}, {ended(status)}, expected 0")
    return Finding(Verdict.PASS)

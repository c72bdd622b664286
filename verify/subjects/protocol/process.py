"""A process that is asked line by line. Whatever it does, asking ends within its time, with an answer or a reason."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bytes of the longest line that is read.
LONGEST = 16 * 2**20
#: Bytes of standard error that are kept, the last ones.
KEPT = 4096
_CHUNK = 2**16


class Kind(Enum):
    """What became of a process that gave no line."""

    ENDED = auto()
    LATE = auto()
    RUBBISH = auto()


class Trouble(Exception):  # noqa: N818  it says what happened, which need not be an error
    """Why there is no line: the kind, and a sentence."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Process:
    """A command with pipes to its standard streams, in a session of its own, so that its children end with it.

    Raises OSError where it cannot be started. Needs POSIX: elsewhere pipes cannot be waited for.
    """

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._child: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603  the user's own command
            command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
        )
        self._unread = bytearray()
        self._errors = bytearray()
        self._streams = {name: getattr(self._child, name) for name in ("stdin", "stdout", "stderr")}
        self._selector = selectors.DefaultSelector()
        for name in ("stdout", "stderr"):
            self._watch(name, selectors.EVENT_READ)
        os.set_blocking(self._streams["stdin"].fileno(), False)

    def ask(self, line: bytes, seconds: float) -> bytes:
        """Write a line and return the next one that comes back, without its end.

        Raises
        ------
        Trouble
            If none comes within that time, the process ends, or a line is longer than ``LONGEST``.

        """
        deadline = time.monotonic() + seconds
        waiting = memoryview(line + b"\n")
        self._watch("stdin", selectors.EVENT_WRITE)
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Trouble(Kind.LATE, f"no answer within {seconds:.3g} seconds{self._unfinished()}")
            for name in self._ready(left):
                if name == "stdin":
                    waiting = self._write(waiting)
                elif name == "stdout" and not self._read():
                    raise Trouble(Kind.ENDED, self._how_it_ended(deadline))
        self._forget("stdin")
        if waiting:
            raise Trouble(Kind.RUBBISH, f"answered before it had read the whole line: {self.unasked()}")
        answer, _, rest = bytes(self._unread).partition(b"\n")
        self._unread = bytearray(rest)
        return answer

    def unasked(self) -> str:
        """Return what was written that nobody asked for, as far as it has arrived; nothing where it is quiet."""
        while any(name == "stdout" and self._read() for name in self._ready(0)):
            pass
        return _shown(bytes(self._unread)) if self._unread else ""

    def end_input(self) -> None:
        """Close its standard input: nothing more is asked."""
        self._forget("stdin")
        with contextlib.suppress(OSError):
            self._streams["stdin"].close()

    def wait(self, seconds: float) -> int | None:
        """Return its exit status, the negative number of a signal, or None where it has not ended by then."""
        deadline = time.monotonic() + seconds
        while self._child.poll() is None and (left := deadline - time.monotonic()) > 0:
            # what it writes is read all the while, or it might wait for us to read
            for name in self._ready(min(left, 0.02)):
                if name == "stdout":
                    self._read()
            if not self._selector.get_map():
                time.sleep(0.005)
        return self._child.poll()

    @property
    def errors(self) -> str:
        """The end of what it wrote to standard error."""
        self._ready(0)
        return self._errors.decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """End it now, and its children."""
        with contextlib.suppress(OSError):
            os.killpg(self._child.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._child.kill()
        self._child.wait()
        self._selector.close()
        for stream in self._streams.values():
            with contextlib.suppress(OSError):
                stream.close()

    def _watch(self, name: str, event: int) -> None:
        with contextlib.suppress(KeyError, ValueError):  # watched already, or closed
            self._selector.register(self._streams[name], event, name)

    def _forget(self, name: str) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._streams[name])

    def _ready(self, seconds: float) -> list[str]:
        """Wait for a stream that is ready; standard error is read here, so that it never fills up."""
        if not self._selector.get_map():
            return []
        names: list[Any] = [key.data for key, _ in self._selector.select(seconds)]
        if "stderr" in names:
            chunk = self._chunk("stderr")
            self._errors = (self._errors + chunk)[-KEPT:]
            if not chunk:
                self._forget("stderr")
        return [name for name in names if name != "stderr"]

    def _read(self) -> bool:
        """Read what standard output has; False at its end."""
        chunk = self._chunk("stdout")
        self._unread += chunk
        if not chunk:
            self._forget("stdout")
        if len(self._unread) > LONGEST and b"\n" not in self._unread:
            raise Trouble(Kind.RUBBISH, f"a line of more than {LONGEST // 2**20} MiB: {_shown(bytes(self._unread))}")
        return bool(chunk)

    def _chunk(self, name: str) -> bytes:
        try:
            return os.read(self._streams[name].fileno(), _CHUNK)
        except OSError:
            return b""

    def _write(self, waiting: memoryview) -> memoryview:
        try:
            waiting = waiting[os.write(self._streams["stdin"].fileno(), waiting[:_CHUNK]) :]
        except BlockingIOError:
            return waiting
        except OSError:  # it has closed its input: that it ends, or answers nothing, is found when reading
            waiting = waiting[len(waiting) :]
        if not waiting:
            self._forget("stdin")
        return waiting

    def _how_it_ended(self, deadline: float) -> str:
        self._forget("stdin")
        status = self.wait(min(STOP_WAIT, max(0.0, deadline - time.monotonic())))
        while self._selector.get_map() and self._selector.select(0):  # its last words
            self._ready(0)
        how = "closed its standard output" if status is None else ended(status)
        return f"{how} before it answered{self._unfinished()}"

    def _unfinished(self) -> str:
        if not self._unread:
            return ""
        return f"; it had written {len(self._unread)} bytes of a line without an end: {_shown(bytes(self._unread))}"


#: Seconds between the end of standard output and that of the process.
STOP_WAIT = 1.0


def ended(status: int) -> str:
    """Say how a process ended."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"the process was ended by {signal.Signals(-status).name}"
    return f"the process ended with exit status {status}"


def _shown(data: bytes) -> str:
    text = data[:200].decode("utf-8", "replace")
    return repr(text if len(text) <= 80 else text[:77] + "...")

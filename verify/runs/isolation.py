"""A process of its own for code that is not trusted. It is asked one thing at a time, and ended whatever it does.

A message is a line of JSON and bytes behind it; nothing that comes back is unpickled. On Linux the process is forked,
which takes milliseconds; elsewhere, and where an accelerator is in use, it is started anew. Needs POSIX.

What it leaves behind ends with it: it leads a process group of its own, and on Linux a worker that called `adopt`
inherits what left that group. It ends when the process that started it does.

Both sides stand in this file, which makes it long: each line of one answers a line of the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from verify.subjects.protocol.process import Kind, Trouble, ended

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Answers one request.
    Handler = Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]]

#: Bytes of the longest JSON, and of the longest data, that are read.
LONGEST, LARGEST = 2**24, 2**30
_LINUX = sys.platform == "linux"
_SIZES = struct.Struct("!QQ")
#: Seconds between two looks at whether the process, and the one that started this one, are still there.
_LOOK = 0.05
_CHUNK = 2**20
_adopting: list[bool] = []
#: The processes that this one asks.
_live: list[Isolated] = []


class Isolated:
    """The process in which ``make()`` is called and its result answers requests.

    ``make`` is pickled unless the process is forked. ``memory`` are the bytes of data that it may allocate, where the
    platform can limit them.
    """

    def __init__(self, make: Callable[[], Handler], *, fork: bool, memory: int | None = None) -> None:
        self._parent = os.getppid()
        self._seq = 0
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = _Forked(make, theirs, memory) if fork else _started(make, self._socket, theirs, memory)
        _live.append(self)
        # also where a worker is told to end: multiprocessing then runs what is registered with it
        Finalize(self, Isolated.end, args=(self,), exitpriority=10)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def quiet(self) -> bool:
        """Whether there is nothing that nobody asked for: it would be taken for the next answer."""
        self._socket.settimeout(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True
        return False

    def ask(self, request: dict[str, Any], seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and return the answer.

        Raises
        ------
        Trouble
            If there is none within that time, or it is none; the process has then been ended.

        """
        deadline = time.monotonic() + seconds
        self._seq += 1
        try:
            with contextlib.suppress(OSError):  # that it has ended is found when reading
                self._socket.settimeout(seconds)
                send(self._socket, request | {"seq": self._seq})
            first, second = _SIZES.unpack(self._read(_SIZES.size, deadline, seconds))
            _check(first, second)
            head, data = self._read(first, deadline, seconds), self._read(second, deadline, seconds)
            return _object(head, self._seq), data
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End the process now, and what it has left behind."""
        if self not in _live:
            return
        self._socket.close()
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(OSError):
                kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if _adopting:
            _end_children([one.pid for one in _live if one is not self])
        # last, since a signal may come between, see `end_all`
        if self in _live:
            _live.remove(self)

    def _read(self, count: int, deadline: float, seconds: float) -> bytes:
        found = bytearray()
        while len(found) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Trouble(Kind.LATE, f"no answer within {seconds:g} seconds")
            self._socket.settimeout(min(left, _LOOK))
            chunk: bytes | None
            try:
                chunk = self._socket.recv(min(count - len(found), _CHUNK))
            except TimeoutError:
                # a child of it may keep the socket open
                chunk = b"" if not self.alive else None
            except OSError:
                chunk = b""
            if chunk == b"":
                raise Trouble(Kind.ENDED, self._how_it_ended(deadline))
            if os.getppid() != self._parent:
                raise SystemExit(1)  # nobody waits for the answer
            found += chunk or b""
        return bytes(found)

    def _how_it_ended(self, deadline: float) -> str:
        while (status := self._process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return "the process closed its connection" if status is None else ended(status)


def end_all(*_: object) -> None:
    """End all processes that this one asks, also where one is being ended."""
    for one in _live:
        one.end()


def can_fork() -> bool:
    """Whether a process can be forked safely: elsewhere, libraries of the system do not allow it."""
    return _LINUX


def adopt() -> None:
    """Inherit what children of this process leave behind, so that it can be ended. This process has no other child."""
    if _LINUX and _prctl(36, 1):  # PR_SET_CHILD_SUBREAPER
        _adopting.append(True)


def send(to: socket.socket, message: dict[str, Any], data: bytes = b"") -> None:
    """Write one message."""
    head = json.dumps(message).encode()
    to.sendall(_SIZES.pack(len(head), len(data)) + head)
    if data:
        to.sendall(data)


def _check(first: int, second: int) -> None:
    if first > LONGEST or second > LARGEST:
        raise Trouble(Kind.RUBBISH, f"an answer of {first + second} bytes")


def _object(head: bytes, seq: int) -> dict[str, Any]:
    try:
        found = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise Trouble(Kind.RUBBISH, f"an answer that is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("seq") != seq:
        raise Trouble(Kind.RUBBISH, f"an answer that is not that to request {seq}")
    return found


# --- inside -----------------------------------------------------------------------------------------------------------


class _Forked:
    """A child of this process, with what `subprocess.Popen` knows of one."""

    def __init__(self, make: Callable[[], Handler], theirs: socket.socket, memory: int | None) -> None:
        self._status: int | None = None
        parent = os.getpid()
        with warnings.catch_warnings():
            # of threads of this process: it has none but idle ones of NumPy's, which knows of forks
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                _die_with(parent)
                _alone(theirs.fileno())
                _serve(make, theirs, memory)
            finally:
                _exit(1)

    def poll(self) -> int | None:
        """Return the exit status, the negative number of a signal, or None while it runs."""
        if self._status is None:
            self._look(os.WNOHANG)
        return self._status

    def wait(self) -> None:
        """Wait for its end."""
        if self._status is None:
            self._look(0)

    def _look(self, how: int) -> None:
        try:
            pid, status = os.waitpid(self.pid, how)
        except ChildProcessError:
            self._status = -signal.SIGKILL  # it was ended while somebody waited for it
            return
        if pid:
            self._status = os.waitstatus_to_exitcode(status)


#: The one way out of a forked process.
_exit = os._exit


def _started(
    make: Callable[[], Handler], ours: socket.socket, theirs: socket.socket, memory: int | None
) -> subprocess.Popen[bytes]:
    number = theirs.fileno()
    # `-c` would put the folder of the call in front of the path; it gets the path of this process in a moment
    words = [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {sys.path!r}; "]
    words[-1] += f"from verify.runs.isolation import started; started({number}, {os.getpid()})"
    process = subprocess.Popen(  # noqa: S603  this program
        words, pass_fds=(number,), start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    send(ours, {}, pickle.dumps((make, memory)))
    return process


def started(number: int, parent: int) -> NoReturn:
    """Serve, in a process that was started for it."""
    _die_with(parent)
    theirs = socket.socket(fileno=number)
    message = _receive(theirs)
    assert message is not None
    make, memory = pickle.loads(message[1])  # noqa: S301  from the process that started this one
    _serve(make, theirs, memory)


def _serve(make: Callable[[], Handler], theirs: socket.socket, memory: int | None) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _limit(memory)
    handle = make()
    while (message := _receive(theirs)) is not None:
        answer, data = handle(message[0])
        send(theirs, answer | {"seq": message[0]["seq"]}, data)
    # nobody asks any more
    os.killpg(0, signal.SIGKILL)
    _exit(1)


def _receive(theirs: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    def read(count: int) -> bytes:
        found = bytearray()
        while len(found) < count and (chunk := theirs.recv(min(count - len(found), _CHUNK))):
            found += chunk
        return bytes(found)

    sizes = read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return None
    first, second = _SIZES.unpack(sizes)
    return json.loads(read(first)), read(second)


def _alone(number: int) -> None:
    """Close what was open in the process that was forked: its pipes are none of a subject's business."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.closerange(3, number)
    os.closerange(number + 1, 65536)


def _die_with(parent: int) -> None:
    """End with the process that started this one, whatever this one does then."""
    if _LINUX:
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            _exit(1)


def _prctl(option: int, value: int) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    return False


def _limit(memory: int | None) -> None:
    import resource  # noqa: PLC0415  POSIX alone has it

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def memory_limit() -> int | None:
    """Return how many bytes this process may allocate; None where nothing limits it."""
    if os.name != "posix":
        return None
    import resource  # noqa: PLC0415  POSIX alone has it

    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def share_of_memory(workers: int) -> int | None:
    """Return how many bytes each of so many processes may allocate: the machine's, divided; None where unknown."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return max(2**31, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // max(workers, 1))
    return None


def _end_children(but: list[int]) -> None:
    """End all that has become a child of this process, and its children, which become ours."""
    for _ in range(1000):
        children = [pid for pid in _children() if pid not in but]
        if not children:
            return
        for pid in children:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    own, found = str(os.getpid()), []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the name, in parentheses, may hold anything
            if path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1] == own:
                found.append(int(path.parent.name))
    return found

"""`pytest --lrp-subject my_package.rules`: the cases of lrp-verify as items of pytest.

The items need no file, and stand behind those of the user's own tests. An item is ``lrp::CASE``, with the id of the
case as the command knows it, and has a mark for its check: ``-m lrp_agreement``. ``lrp::agreement/Gamma`` among the
arguments selects what begins so, and then the user's own tests are run only if they are named too; ``lrp::`` is all
cases.

Verdicts are those of the command, item by item:

    pass                    passed
    fail, error             failed; where it is only recommended: xfailed, unless --lrp-strict or --runxfail is given
    crash, timeout          failed: cases are asked in a process of their own, which is started again
    a known deviation       xfailed, with --lrp-deviations
    inconclusive            skipped, as nothing can be said; so are not-offered and skipped

and so is the verdict on the run: the session fails if a known deviation is stale, exits as an unusable call does if
nothing could be tested, and says what explains the failures of a rule.

The fixture ``lrp_audit`` is `lrp_rules.testing.assert_conserves`, for tests of one's own networks.

Nothing of the verifier is imported here: the user's tests may import packages of their own by the same names.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import queue
import re
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What stands where others have the path of a file.
PREFIX = "lrp"
#: How the process is started that is asked.
SERVER = [sys.executable, "-P", "-m", "lrp_entry.commands", "pytest --lrp-subject"]
#: Seconds until it has imported torch, the cases and the subject.
START_LIMIT = 300.0
_LISTS = {
    "check": "Only these checks. Several: repeat it, or use commas; * stands for anything.",
    "rule": "Only these rules.",
    "layer": "Only these types of layers, such as 'Conv*'.",
    "dtype": "Only these dtypes.",
}

Json = dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, which are those of the command."""
    group = parser.getgroup(
        "lrp-verify", "test an implementation of the rules of Layer-wise Relevance Propagation (LRP)"
    )
    group.addoption("--lrp-subject", metavar="MODULE[:ATTRIBUTE]", help="Implementation to test.")
    for name, text in _LISTS.items():
        group.addoption(f"--lrp-{name}", action="append", default=[], metavar="NAMES", help=text)
    group.addoption("--lrp-device", default="cpu", help="Device to compute on: cpu, cuda, cuda:1.")
    group.addoption("--lrp-seed", type=int, default=0, help="Random seed of the test data.")
    group.addoption(
        "--lrp-deviations",
        metavar="NAME_OR_FILE",
        help="Accept known deviations: zennit, captum, lxt, autolrp, or a file. Several: use commas.",
    )
    group.addoption("--lrp-strict", action="store_true", help="Let recommendations fail the run.")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the cases before anything runs, so that what is wrong with the call is told at once."""
    if config.getoption("lrp_subject"):
        config.pluginmanager.register(Cases(config), "lrp-cases")


@pytest.fixture(scope="session")
def lrp_audit() -> Any:
    """Assert that each operation of a network follows its rule: ``lrp_audit(model, x, rules)`` returns the audit.

    As `lrp_rules.testing.assert_conserves`.
    """
    return importlib.import_module("lrp_rules.testing").assert_conserves


class LostError(Exception):
    """The process ended, or did not answer in time."""

    def __init__(self, verdict: str, reason: str) -> None:
        super().__init__(reason)
        self.verdict, self.reason = verdict, reason


class Process:
    """The process that is asked (`verify.faces.serving`): a request and an answer a line, in JSON."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  our own program
            SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        stream = self._process.stdout
        for line in stream or ():
            self._answers.put(line)
        self._answers.put("")

    def ask(self, request: Json, limit: float | None) -> Json:
        """Return the answer; raise LostError if there is none within so many seconds."""
        stream: Any = self._process.stdin
        try:
            print(json.dumps(request), file=stream, flush=True)
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            verdict, reason = "timeout", f"no answer within {limit:g} seconds"
        except OSError:
            verdict, reason = "crash", self._ended()
        else:
            if line:
                answer: Json = json.loads(line)
                return answer
            verdict, reason = "crash", self._ended()
        self.end()
        raise LostError(verdict, reason)

    def _ended(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"the process was ended by {signal.Signals(-status).name}"
        return f"the process ended with exit status {status}"

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what could not be sent any more
                    stream.close()


class Cases:
    """The cases of one session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        wanted = [argument.removeprefix(f"{PREFIX}::") for argument in config.args if _names_cases(argument)]
        config.args[:] = [argument for argument in config.args if not _names_cases(argument)]
        option = config.getoption
        self._opening: Json = {name: option(f"lrp_{name}") for name in ("subject", "device", "seed", "strict")}
        self._opening |= {"do": "open", "path": sys.path, "deviations": option("lrp_deviations")}
        self._opening["lists"] = {
            name: list(filter(None, re.split(r"\s*,\s*", ",".join(option(f"lrp_{name}"))))) for name in _LISTS
        }
        self._open()
        self._selected = [(id_, check) for id_, check in self._opened["cases"] if not wanted or _begins(id_, wanted)]
        if not self._selected:
            self._process.end()
            names = ", ".join(f"{PREFIX}::{start}" for start in wanted)
            msg = f"no case begins with {names}; --collect-only prints all"
            raise pytest.UsageError(msg)
        for check in dict.fromkeys(check for _, check in self._selected):
            config.addinivalue_line("markers", f"{_mark(check)}: a case of the check {check} of lrp-verify")
        self._told: dict[str, dict[str, str]] = {}  # of each case that was asked, its properties

    def _open(self) -> None:
        """Start the process."""
        self._process = Process()
        try:
            self._opened = self._process.ask(self._opening, START_LIMIT)
        except LostError as error:
            msg = f"--lrp-subject {self._opening['subject']} cannot be tested: {error.reason} while it was loaded"
            raise pytest.UsageError(msg) from None
        if "limit" not in self._opened:
            self._process.end()
            raise pytest.UsageError(self._opened.get("unusable") or self._opened["broken"])

    def _ask(self, do: str, limit: float | None = None, **request: Any) -> Json:
        answer = self._process.ask({"do": do, **request}, limit)
        if "broken" in answer:
            raise RuntimeError(answer["broken"])
        return answer

    # --- collection ---------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)  # before those that deselect
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the cases."""
        parent = Collector.from_parent(session, name=PREFIX, path=session.config.rootpath / PREFIX, nodeid=PREFIX)
        parent.items = [Item.from_parent(parent, name=id_, check=check, cases=self) for id_, check in self._selected]
        # as pytest itself collects, so that others hear of it
        report = session.ihook.pytest_make_collect_report(collector=parent)
        session.ihook.pytest_collectreport(report=report)
        items.extend(parent.items)

    # --- one case -----------------------------------------------------------------------------------------------------

    def ask(self, item: Item) -> None:
        """Ask a case, and turn its verdict into what pytest knows."""
        try:
            told = self._ask("ask", self._opened["limit"], id=item.name)
        except LostError as error:
            self._open()
            told = self._ask("lost", id=item.name, verdict=error.verdict, reason=error.reason)
        item.user_properties += told["properties"].items()
        if told["called"] == "xfailed":
            pytest.xfail(told["reason"])
        if told["called"] == "failed":
            pytest.fail(told["reason"], pytrace=False)
        if told["called"] == "skipped":
            pytest.skip(told["reason"])

    # --- what all come to ---------------------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what was found of a case; with xdist, it comes from the workers."""
        known = {name: str(value) for name, value in report.user_properties}
        if report.when == "call" and "lrp_verdict" in known:
            self._told[report.nodeid.removeprefix(f"{PREFIX}::")] = known

    def _complaints(self) -> Iterator[tuple[int, str]]:
        found = self._ask("complain", told=self._told)
        for kind, status in (("nothing", pytest.ExitCode.USAGE_ERROR), ("stale", pytest.ExitCode.TESTS_FAILED)):
            for text in found[kind]:
                yield status, text

    def _remarks(self) -> list[str]:
        try:
            remarks: list[str] = self._ask("remark", told=self._told)["remarks"]
        except LostError as error:
            return [f"no diagnosis: {error.reason} while it was made"]
        return remarks

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Exit as the command would."""
        here = not hasattr(session.config, "workerinput")  # a worker of xdist has seen a part
        if here and session.exitstatus == pytest.ExitCode.OK and (complaint := next(self._complaints(), None)):
            session.exitstatus = complaint[0]

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        """Say why."""
        if exitstatus == pytest.ExitCode.INTERRUPTED:  # in the middle of a question
            return
        for _, text in self._complaints():
            terminalreporter.write_line(f"lrp-verify: {text}", red=True)
        for remark in self._remarks():
            terminalreporter.write_line(f"lrp-verify: {remark}", bold=True)

    def pytest_unconfigure(self) -> None:
        """End the process."""
        self._process.end()

    def pytest_report_header(self) -> str:
        """Say what is tried."""
        return f"lrp-verify: {self._opened['header']}; {len(self._selected)} cases"


class Collector(pytest.Collector):
    """What the items belong to; `Cases` makes them."""

    items: list[Item]

    def collect(self) -> list[Item]:
        """Return the items."""
        return self.items


class Item(pytest.Item):
    """One case."""

    def __init__(self, *, check: str, cases: Cases, **rest: Any) -> None:
        super().__init__(**rest)
        self._cases = cases
        self.add_marker(_mark(check))

    def runtest(self) -> None:
        """Ask it."""
        self._cases.ask(self)

    def reportinfo(self) -> tuple[Any, None, str]:
        """Return where it stands: in no file."""
        return self.path, None, self.name


def _names_cases(argument: str) -> bool:
    return argument.startswith(f"{PREFIX}::")


def _begins(id_: str, starts: list[str]) -> bool:
    return any(not start or f"{id_}/".startswith(f"{start.rstrip('/')}/") for start in starts)


def _mark(check: str) -> str:
    return f"lrp_{check.replace('-', '_')}"

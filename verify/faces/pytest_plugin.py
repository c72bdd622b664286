"""`pytest --lrp-subject my_package.rules`: the cases of lrp-verify as items of pytest.

The items need no file, and stand behind those of the user's own tests. An item is ``lrp::CASE``, with the id of the
case as the command knows it, and has a mark for its check: ``-m lrp_agreement``. ``lrp::agreement/Gamma`` among the
arguments selects what begins so, and then the user's own tests are run only if they are named too; ``lrp::`` is all
cases.

Verdicts are those of the command, item by item:

    pass                    passed
    fail, error             failed; where it is only recommended: xfailed, unless --lrp-strict or --runxfail is given
    a known deviation       xfailed, with --lrp-deviations
    inconclusive            skipped, as nothing can be said; so are not-offered and skipped
    crash, timeout          there is none: cases run in the process of pytest, where a crash is a crash

and so is the verdict on the run: the session fails if a known deviation is stale, exits as an unusable call does if
nothing could be tested, and says what explains the failures of a rule. Neither torch nor anything of the verifier is
imported without ``--lrp-subject``.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.explaining.deviations import Deviations
    from verify.model import Case, Outcome
    from verify.reports.report import Report

#: What stands where others have the path of a file.
PREFIX = "lrp"
_LISTS = {
    "check": "Only these checks. Several: repeat it, or use commas; * stands for anything.",
    "rule": "Only these rules.",
    "layer": "Only these types of layers, such as 'Conv*'.",
    "dtype": "Only these dtypes.",
}


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
        "--lrp-deviations", metavar="NAME_OR_FILE", help="Accept known deviations: zennit, captum, lxt, or a file."
    )
    group.addoption("--lrp-strict", action="store_true", help="Let recommendations fail the run.")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the cases before anything runs, so that what is wrong with the call is told at once."""
    if config.getoption("lrp_subject"):
        config.pluginmanager.register(Cases(config), "lrp-cases")


class Cases:
    """The cases of one session."""

    def __init__(self, config: pytest.Config) -> None:
        from verify.checks.comparator import ComparatorError, check_itself  # noqa: PLC0415
        from verify.explaining import deviations  # noqa: PLC0415  imported when wanted alone
        from verify.model import SubjectError  # noqa: PLC0415
        from verify.runs.selection import UnusableError, select  # noqa: PLC0415
        from verify.runs.worker import Worker  # noqa: PLC0415

        self._config = config
        self._spec = str(config.getoption("lrp_subject"))
        wanted = [argument.removeprefix(f"{PREFIX}::") for argument in config.args if _names_cases(argument)]
        config.args[:] = [argument for argument in config.args if not _names_cases(argument)]
        request = self._request()
        try:
            check_itself()
            source, selected = select(request)
            self._selected = [case for case in selected if not wanted or _begins(case, wanted)]
            given = config.getoption("lrp_deviations")
            self._known: Deviations | None = deviations.load(given) if given else None
            self._worker = Worker(source, [self._spec], here=True)
            self._report = self._empty_report(source.dtypes)
        except UnusableError as error:
            raise pytest.UsageError(_in_our_words(str(error))) from None
        except (SubjectError, ComparatorError, deviations.DeviationError) as error:
            raise pytest.UsageError(str(error)) from None
        if not self._selected:
            names = ", ".join(f"{PREFIX}::{start}" for start in wanted)
            msg = f"no case begins with {names}; --collect-only prints all"
            raise pytest.UsageError(msg)
        for check in dict.fromkeys(case.check for case in self._selected):
            config.addinivalue_line("markers", f"{_mark(check)}: a case of the check {check} of lrp-verify")
        self._source = source
        self._told: dict[str, dict[str, str]] = {}  # of each case that was asked, its properties

    def _request(self) -> Any:
        from verify.model import TIME_LIMIT  # noqa: PLC0415  imported when wanted alone
        from verify.runs.selection import Request  # noqa: PLC0415

        option = self._config.getoption
        lists = {name: tuple(filter(None, re.split(r"\s*,\s*", ",".join(option(f"lrp_{name}"))))) for name in _LISTS}
        device, seed, strict = option("lrp_device"), option("lrp_seed"), option("lrp_strict")
        dtypes = lists.pop("dtype")
        if "search" in lists["check"]:
            msg = "--lrp-check search: a search makes its cases as it goes; run lrp-verify --check search"
            raise pytest.UsageError(msg)
        return Request(self._spec, lists, dtypes, (), device, seed, 0, TIME_LIMIT, strict, False, None, {})  # noqa: FBT003

    def _empty_report(self, dtypes: tuple[str, ...]) -> Report:
        """Return the report without outcomes, for what it says of one."""
        from verify.reports.report import Call, Report  # noqa: PLC0415  imported when wanted alone

        option = self._config.getoption
        seed, device, strict = option("lrp_seed"), option("lrp_device"), option("lrp_strict")
        call = Call(len(self._selected), dtypes, seed, device, strict=strict)
        return Report(self._worker.describe(self._spec), call, ())

    # --- collection ---------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)  # before those that deselect
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the cases."""
        parent = Collector.from_parent(session, name=PREFIX, path=session.config.rootpath / PREFIX, nodeid=PREFIX)
        parent.items = [Item.from_parent(parent, name=case.id, case=case, cases=self) for case in self._selected]
        # as pytest itself collects, so that others hear of it
        report = session.ihook.pytest_make_collect_report(collector=parent)
        session.ihook.pytest_collectreport(report=report)
        items.extend(parent.items)

    # --- one case -----------------------------------------------------------------------------------------------------

    def ask(self, item: Item) -> None:
        """Run a case, and turn its verdict into what pytest knows."""
        from verify.model import BAD, Verdict  # noqa: PLC0415  imported when wanted alone
        from verify.reports.report import cited  # noqa: PLC0415

        with _own_state():
            outcome = self._worker.answer(self._spec, item.case.id)
            known = self._explaining(outcome)
        values = {name: getattr(outcome, name) for name in ("verdict", "ratio", "undecided")}
        values["known"] = "; ".join(known) or None
        item.user_properties += [(f"lrp_{name}", str(value)) for name, value in values.items() if value is not None]
        reason = f"{outcome.verdict.word}: {outcome.reason}".removesuffix(": ")
        if outcome.verdict in BAD:
            if known:
                pytest.xfail(f"known deviation, {reason}; {next(iter(known.values()))}")
            if not self._report.decides(outcome):
                pytest.xfail(f"only recommended, {reason}")
            lines = (reason, cited([outcome]), f"Reproduce: {self._reproduce(outcome)}")
            pytest.fail("\n".join(filter(None, lines)), pytrace=False)
        if outcome.verdict is not Verdict.PASS:
            pytest.skip(reason)

    def _explaining(self, outcome: Outcome) -> dict[str, str]:
        """Return the entries of known deviations that explain an outcome: from place to reason."""
        from verify.explaining.deviations import explaining  # noqa: PLC0415  imported when wanted alone

        if self._known is None:
            return {}
        call, entries = self._report.call, self._known.entries
        numbers = explaining(outcome, self._known, seed=call.seed, device=call.device)
        return {entries[number].place: entries[number].reason for number in numbers}

    def _reproduce(self, outcome: Outcome) -> str:
        return self._report.call.reproduce(self._report.subject, outcome)

    # --- what all come to ---------------------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what was found of a case; with xdist, it comes from the workers."""
        known = {name: str(value) for name, value in report.user_properties}
        if report.when == "call" and "lrp_verdict" in known:
            self._told[report.nodeid.removeprefix(f"{PREFIX}::")] = known

    def _complaints(self) -> Iterator[tuple[int, str]]:
        verdicts = [told["lrp_verdict"] for told in self._told.values()]
        if verdicts and not set(verdicts) - {"not-offered", "skipped"}:
            yield pytest.ExitCode.USAGE_ERROR, f"nothing was tested: {self._spec} offers none of the selected cases"
        for entry in self._stale():
            yield pytest.ExitCode.TESTS_FAILED, f"stale known deviation: {entry}"

    def _stale(self) -> list[str]:
        from verify.explaining.deviations import stale  # noqa: PLC0415  imported when wanted alone
        from verify.model import Verdict  # noqa: PLC0415

        if self._known is None:
            return []
        number = {entry.place: index for index, entry in enumerate(self._known.entries)}
        asked = {
            id_: (
                Verdict(told["lrp_verdict"]),
                [number[place] for place in filter(None, told.get("lrp_known", "").split("; "))],
            )
            for id_, told in self._told.items()
        }
        return [str(entry) for entry in stale(asked, self._known, ids=self._source.cases().keys())]

    def _remarks(self) -> Iterator[str]:
        """Yield what explains the failures of a rule, and a doubt about the known deviations."""
        from verify.explaining.diagnosis import asking, diagnose  # noqa: PLC0415  imported when wanted alone
        from verify.model import Finding, Verdict  # noqa: PLC0415
        from verify.runs.outcomes import outcome_of  # noqa: PLC0415
        from verify.subjects.loading import load  # noqa: PLC0415

        if self._known is not None and (doubt := self._known.doubt(self._report.subject.version)):
            yield doubt
        cases = {case.id: case for case in self._selected}
        outcomes = [
            outcome_of(cases[id_], Finding(Verdict(told["lrp_verdict"])), 0.0)
            for id_, told in self._told.items()
            if "lrp_known" not in told
        ]
        with _own_state():
            for one in diagnose(outcomes, cases, asking(load(self._spec))):
                yield f"Diagnosis: {one}"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Exit as the command would."""
        here = not hasattr(session.config, "workerinput")  # a worker of xdist has seen a part
        if here and session.exitstatus == pytest.ExitCode.OK and (complaint := next(self._complaints(), None)):
            session.exitstatus = complaint[0]

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        """Say why."""
        for _, text in self._complaints():
            terminalreporter.write_line(f"lrp-verify: {text}", red=True)
        if exitstatus != pytest.ExitCode.INTERRUPTED:
            for remark in self._remarks():
                terminalreporter.write_line(f"lrp-verify: {remark}", bold=True)

    def pytest_report_header(self) -> str:
        """Say what is tried."""
        from verify.formats.environment import torch_version  # noqa: PLC0415  imported when wanted alone
        from verify.reports.report import subject_line  # noqa: PLC0415

        what = subject_line(self._report.subject, self._report.call, torch_version())
        return f"lrp-verify: {what}; {len(self._selected)} cases"


class Collector(pytest.Collector):
    """What the items belong to; `Cases` makes them."""

    items: list[Item]

    def collect(self) -> list[Item]:
        """Return the items."""
        return self.items


class Item(pytest.Item):
    """One case."""

    def __init__(self, *, case: Case, cases: Cases, **rest: Any) -> None:
        super().__init__(**rest)
        self.case, self._cases = case, cases
        self.add_marker(_mark(case.check))

    def runtest(self) -> None:
        """Ask it."""
        self._cases.ask(self)

    def reportinfo(self) -> tuple[Any, None, str]:
        """Return where it stands: in no file."""
        return self.path, None, self.case.id


def _names_cases(argument: str) -> bool:
    return argument.startswith(f"{PREFIX}::")


def _begins(case: Case, starts: list[str]) -> bool:
    return any(not start or f"{case.id}/".startswith(f"{start.rstrip('/')}/") for start in starts)


def _mark(check: str) -> str:
    return f"lrp_{check.replace('-', '_')}"


def _in_our_words(message: str) -> str:
    """Name the options as they are called here."""
    message = re.sub(r"--(rule|layer|check|dtype|device|seed)\b", r"--lrp-\1", message)
    return message.replace("--list,", "--collect-only,")


@contextlib.contextmanager
def _own_state() -> Iterator[None]:
    """Give a case what it has in a worker of the command, and the user's tests what they had."""
    torch: Any = importlib.import_module("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums depends on it
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)

"""The process that the plugin of pytest asks: lines of JSON on the standard streams, an answer for each request.

The user's process of pytest imports nothing of ours (`lrp_entry.pytest_plugin`), so all that is known of cases and
verdicts is known here. A case that costs this process is answered by the next one, which is told how it was lost.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

from verify.model import BAD, TIME_LIMIT, Finding, SubjectError, Verdict
from verify.runs import selection
from verify.runs.selection import Request, UnusableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TextIO

    from verify.model import Outcome

Json = dict[str, Any]


class Server:
    """The cases of one session of pytest."""

    def answer(self, request: Json) -> Json:
        """Answer a request: `open` comes first."""
        answer: Json = getattr(self, f"do_{request.pop('do')}")(**request)
        return answer

    def do_open(self, *, path: list[str], strict: bool, deviations: str | None, **options: Any) -> Json:
        """Select the cases and load the subject; what is wrong with the call is the answer."""
        sys.path[:] = path
        from verify.checks.comparator import ComparatorError, check_itself  # noqa: PLC0415  torch
        from verify.explaining import deviations as deviating  # noqa: PLC0415
        from verify.formats.environment import torch_version  # noqa: PLC0415
        from verify.reports.report import Call, Report, subject_line  # noqa: PLC0415
        from verify.runs.worker import Worker  # noqa: PLC0415

        try:
            request = _request(strict=strict, **options)
            check_itself()
            self._source, selected = selection.select(request)
            self._cases = {case.id: case for case in selected}
            self._spec = request.subject
            self._worker = Worker(self._source, [self._spec])
            call = Call(len(selected), self._source.dtypes, request.seed, request.device, strict=strict)
            self._report = Report(self._worker.describe(self._spec), call, ())
            names, version = (deviations or "").split(","), self._report.subject.version
            self._known = deviating.load(*names, version=version) if deviations else None
        except UnusableError as error:
            return {"unusable": _in_our_words(str(error))}
        except (SubjectError, ComparatorError, deviating.DeviationError) as error:
            return {"unusable": str(error)}
        return {
            "header": subject_line(self._report.subject, call, torch_version()),
            "limit": TIME_LIMIT,
            "cases": [[case.id, case.check] for case in selected],
        }

    def do_ask(self, id: str) -> Json:  # noqa: A002  the key of the message
        """Ask a case."""
        return self._told(self._worker.answer(self._spec, id))

    def do_lost(self, id: str, verdict: str, reason: str) -> Json:  # noqa: A002
        """Say what comes of a case that cost an earlier process."""
        from verify.runs.outcomes import outcome_of  # noqa: PLC0415

        return self._told(outcome_of(self._cases[id], Finding(Verdict(verdict), reason=reason), 0.0))

    def _told(self, outcome: Outcome) -> Json:
        """Turn a verdict into what pytest knows."""
        from verify.reports.report import cited  # noqa: PLC0415

        known = self._explaining(outcome)
        values = {name: getattr(outcome, name) for name in ("verdict", "ratio", "undecided")}
        values["known"] = "; ".join(known) or None
        called, reason = "passed", f"{outcome.verdict.word}: {outcome.reason}".removesuffix(": ")
        if outcome.verdict in BAD:
            if known:
                called, reason = "xfailed", f"known deviation, {reason}; {next(iter(known.values()))}"
            elif not self._report.decides(outcome):
                called, reason = "xfailed", f"only recommended, {reason}"
            else:
                line = f"Reproduce: {self._report.call.reproduce(self._report.subject, outcome)}"
                called, reason = "failed", "\n".join(filter(None, (reason, cited([outcome]), line)))
        elif outcome.verdict is not Verdict.PASS:
            called = "skipped"
        told = {f"lrp_{name}": str(value) for name, value in values.items() if value is not None}
        return {"called": called, "reason": reason, "properties": told}

    def _explaining(self, outcome: Outcome) -> dict[str, str]:
        """Return the entries of known deviations that explain an outcome: from place to reason."""
        from verify.explaining.deviations import explaining  # noqa: PLC0415

        if self._known is None:
            return {}
        call, entries = self._report.call, self._known.entries
        numbers = explaining(outcome, self._known, seed=call.seed, device=call.device, subject=self._report.subject)
        return {entries[number].place: entries[number].reason for number in numbers}

    def do_complain(self, told: Mapping[str, Mapping[str, str]]) -> Json:
        """Say what fails the session besides its cases, by the properties of all that were asked."""
        verdicts = {one["lrp_verdict"] for one in told.values()}
        nothing = bool(verdicts) and not verdicts - {"not-offered", "skipped"}
        return {
            "nothing": [f"nothing was tested: {self._spec} offers none of the selected cases"] if nothing else [],
            "stale": [f"stale known deviation: {entry}" for entry in self._stale(told)],
        }

    def _stale(self, told: Mapping[str, Mapping[str, str]]) -> list[str]:
        from verify.explaining.deviations import stale  # noqa: PLC0415

        if self._known is None:
            return []
        number = {entry.place: index for index, entry in enumerate(self._known.entries)}
        asked = {
            id_: (
                Verdict(one["lrp_verdict"]),
                [number[place] for place in filter(None, one.get("lrp_known", "").split("; "))],
                "",
            )
            for id_, one in told.items()
        }
        return [str(entry) for entry in stale(asked, self._known, ids=self._source.cases().keys())]

    def do_remark(self, told: Mapping[str, Mapping[str, str]]) -> Json:
        """Say what explains the failures of a rule, and a doubt about the known deviations."""
        return {"remarks": list(self._remarks(told))}

    def _remarks(self, told: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
        from verify.explaining.asked import posed  # noqa: PLC0415
        from verify.explaining.diagnosis import asking, diagnose  # noqa: PLC0415
        from verify.runs.outcomes import outcome_of  # noqa: PLC0415
        from verify.subjects.loading import load  # noqa: PLC0415

        if self._known is not None:
            yield from self._known.doubts(self._report.subject.version)
        outcomes = [
            outcome_of(self._cases[id_], Finding(Verdict(one["lrp_verdict"])), 0.0)
            for id_, one in told.items()
            if "lrp_known" not in one
        ]
        subject = load(self._spec)
        cases = {id_: asked for id_, case in self._cases.items() if (asked := posed(case, subject))}
        found = diagnose(outcomes, cases, asking(subject))
        yield from (f"Diagnosis: {one}" for one in found.diagnoses)
        yield from found.hints


def _request(*, subject: str, lists: Mapping[str, list[str]], device: str, seed: int, strict: bool) -> Request:
    filters = {name: tuple(patterns) for name, patterns in lists.items()}
    dtypes = filters.pop("dtype")
    if selection.SEARCH in filters["check"]:
        msg = f"--check {selection.SEARCH}: a search makes its cases as it goes; run lrp-verify --check search"
        raise UnusableError(msg)
    return Request(subject, filters, dtypes, (), device, seed, 0, TIME_LIMIT, strict, False, None, {})  # noqa: FBT003


def _in_our_words(message: str) -> str:
    """Name the options as they are called here."""
    message = re.sub(r"(?<!lrp-verify )--(rule|layer|check|dtype|device|seed)\b", r"--lrp-\1", message)
    return message.replace("--list,", "--collect-only,")


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    server = Server()
    for line in requests:
        try:
            answer = server.answer(json.loads(line))
        except Exception:  # noqa: BLE001  a defect of ours, or of the subject while it is diagnosed: told, not swallowed
            answer = {"broken": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serve on the standard streams; what a subject prints goes to the standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pytest hears it, and ends this process
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch  # noqa: PLC0415  seconds

    torch.set_num_threads(1)  # as in a worker of the command: the order of sums depends on it
    serve(sys.stdin, answers)

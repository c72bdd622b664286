"""What happens in the process of a subject: it is loaded there, and asked the cases that the judge names."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from verify.formats.text import text_of
from verify.model import Finding, NotOfferedError, SubjectError, Verdict
from verify.runs import outcomes
from verify.runs.hosted import NUMBERS
from verify.subjects.answering import Recorder, recording

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from verify.model import Case, Subject
    from verify.runs.isolation import Handler


def handler(cases: Callable[[], Mapping[str, Case]], seed: int, spec: str, *, is_grid: bool) -> Handler:
    """Return what answers the requests of `verify.runs.hosted.Host`."""
    importlib.import_module("torch").set_num_threads(1)
    known = cases()
    subjects: list[Subject] = []

    def handle(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if request["do"] == "load":
            try:
                subjects.append(outcomes.loaded(spec))
                if is_grid:
                    outcomes.tried(subjects[0])
                outcomes.pin()
            except SubjectError as error:
                return {"error": text_of(error)}, b""
            except BaseException as error:  # noqa: BLE001  a subject may raise anything
                return {"error": f"{spec!r} cannot be loaded: {outcomes.reason_of(error, spec)}"}, b""
            return {"version": subjects[0].version, "parameters": subjects[0].parameters}, b""
        id_ = request["id"]
        case = known[id_] if id_ in known else outcomes.carried(id_)
        if request["numbers"]:
            return _numbers(case, subjects[0], seed)
        return _finding(case, subjects[0], seed)

    return handle


def _finding(case: Case, subject: Subject, seed: int) -> tuple[dict[str, Any], bytes]:
    outcome = vars(outcomes.ask(case, subject, seed, here=False))
    names = ("verdict", "ratio", "probable", "undecided", "reason", "details", "undecidable")
    return {"finding": {name: outcome[name] for name in names}, "whole": outcomes.whole()}, b""


def _numbers(case: Case, subject: Subject, seed: int) -> tuple[dict[str, Any], bytes]:
    recorder = Recorder(NUMBERS[case.check])
    after = None
    with outcomes.case_of_its_own(seed) as state:
        try:
            recording(recorder, lambda: case.run(subject))
        except NotOfferedError as error:
            after = Finding(Verdict.NOT_OFFERED, reason=text_of(error))
        except BaseException as error:  # noqa: BLE001  a subject may raise anything
            after = Finding(Verdict.ERROR, reason=outcomes.reason_of(error, subject.spec))
    left = state.restore()
    return {
        "answers": recorder.answers,
        "asked": recorder.asked,
        "after": None if after is None else asdict(after),
        "left": left,
        "whole": state.whole,
    }, b"".join(recorder.data)

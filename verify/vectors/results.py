"""`lrp-vectors verify`: what a port answered, judged case by case.

An answer is a line of JSON: {"id", "relevance": tensor}, {"id", "error": kind} or {"id", "skipped": reason}. A case
that nobody answered is an error: a runner that asks nothing must not pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar

import jsonschema
import numpy as np

from verify.checks.agreement import expected_within
from verify.checks.comparator import compare
from verify.formats.layer_json import family
from verify.formats.tensor_json import TensorError, decode, dtype_of, widen
from verify.model import Level, Outcome, Verdict
from verify.reports.report import Call, Report
from verify.runs.selection import UnusableError
from verify.runs.worker import SubjectInfo
from verify.vectors.reading import each, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Json = dict[str, Any]
Case = tuple[Json, Json, Json]  # file, group, case

SCHEMA = "results-1.schema.json"
_LONGEST = 200
#: Flags of cases in which the formula is fixed by us, and a port that differs is told, but does not fail.
_ADVISED = {"ConstantOfBatchNorm"}


@dataclass(frozen=True)
class VectorCall(Call):
    """A run on answers in a file."""

    reproduces: ClassVar[str] = "Show the case"

    def reproduce(self, subject: SubjectInfo, outcome: Outcome) -> str:  # noqa: ARG002  there is nothing to ask again
        """Return the line that shows the case."""
        return f"lrp-vectors show {outcome.id}"


@dataclass(frozen=True)
class _Found:
    verdict: Verdict
    reason: str = ""
    ratio: float | None = None
    undecided: float = 0.0


def judge(name: str, content: bytes, documents: Mapping[str, Json], wanted: Sequence[str], *, strict: bool) -> Report:
    """Return the report on the answers in `content` to the cases with the ids `wanted`.

    UnusableError where there is no answer, a line is no JSON, or it answers no case of these vectors.
    """
    cases = {one[2]["id"]: one for one in each(documents)}
    if not (given := read(content)):
        message = f"{name} has no answers; expected one JSON object a line, such as those of `lrp-vectors answer`"
        raise UnusableError(message)
    answers: dict[str, list[Json]] = {}
    for number, answer in given:
        id_ = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(id_, str) or id_ not in cases:
            message = (
                f"{name}, answer {number}: {_short(answer)} has no id of these test vectors; each answer needs the id "
                "of its case"
            )
            raise UnusableError(message)
        answers.setdefault(id_, []).append(answer)
    outcomes = tuple(_outcome(cases[id_], answers.get(id_, [])) for id_ in wanted)
    dtypes = tuple(dict.fromkeys(outcome.dtype for outcome in outcomes))
    call = VectorCall(len(outcomes), dtypes, strict=strict)
    places = {id_: place for place, id_ in enumerate(wanted)}
    return Report(SubjectInfo(name), call, outcomes, places=places)


def read(content: bytes) -> list[tuple[int, Any]]:
    """Return the answers in a file with their numbers: JSON Lines, or a list. UnusableError where it is neither."""
    try:
        if content.lstrip().startswith(b"["):
            return list(enumerate(parse(content), 1))
    except ValueError as error:
        message = f"the answers are not a list in JSON: {error}; expected one JSON object a line, or a list of them"
        raise UnusableError(message) from error
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            if line.strip():
                found.append((number, parse(line)))
        except ValueError as error:
            message = (
                f"line {number} of the answers is not JSON: {error}; expected one object a line, or a list of them"
            )
            raise UnusableError(message) from error
    return found


@cache
def _validator() -> Any:
    text = resources.files("verify.vectors").joinpath("schema", SCHEMA).read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _outcome(one: Case, answers: Sequence[Json]) -> Outcome:
    document, group, case = one
    found = _verdict(case, answers)
    return Outcome(
        id=case["id"],
        rule=document["rule"],
        layer=family(group["layer"]) if document["family"] != "arguments" else "-",
        check=document["family"],
        dtype=case["dtype"],
        level=Level.SHOULD if "advice" in case or _ADVISED & set(case["flags"]) else Level.MUST,
        verdict=found.verdict,
        ratio=found.ratio,
        undecided=found.undecided,
        reason=found.reason,
    )


def _verdict(case: Json, answers: Sequence[Json]) -> _Found:
    if not answers:
        return _Found(Verdict.ERROR, "no answer; to leave a case out, answer {id, skipped: reason}")
    if len(answers) > 1:
        return _Found(Verdict.ERROR, f"{len(answers)} answers, expected one")
    answer = answers[0]
    if not _validator().is_valid(answer):
        expected = "id and one of relevance, skipped and error"
        return _Found(Verdict.ERROR, f"the answer {_short(answer)} is not in the form of {SCHEMA}: {expected}")
    if "skipped" in answer:
        return _Found(Verdict.SKIPPED, ": ".join(filter(None, [answer["skipped"], answer.get("link")])))
    return _relevance(case, answer) if case["result"] == "valid" else _error(case, answer)


def _error(case: Json, answer: Json) -> _Found:
    kind = case.get("error", case.get("advice"))
    if kind is None:
        return _Found(Verdict.PASS)  # any answer will do
    if "error" not in answer:
        return _Found(Verdict.FAIL, f"was accepted, expected an error of kind {kind}")
    if kind not in {"any", answer["error"]}:
        said = f"{answer['error']}: {answer.get('message', '')}".removesuffix(": ")
        return _Found(Verdict.FAIL, f"raises an error of kind {said}; expected one of kind {kind}")
    return _Found(Verdict.PASS)


def _relevance(case: Json, answer: Json) -> _Found:
    if "error" in answer:
        said = f"{answer['error']}: {answer.get('message', '')}".removesuffix(": ")
        return _Found(Verdict.FAIL, f"raises an error of kind {said}; expected a relevance")
    try:
        got = decode(answer["relevance"])
    except TensorError as error:
        return _Found(Verdict.ERROR, str(error))
    expected, bound = widen(decode(case["relevance"])), widen(decode(case["bound"]))
    if got.shape != expected.shape or dtype_of(got) != case["dtype"]:
        given, wanted = (
            f"{dtype_of(got)} of shape {list(got.shape)}",
            f"{case['dtype']} of shape {list(expected.shape)}",
        )
        return _Found(Verdict.FAIL, f"relevance in {given}, expected {wanted}, as x")
    found = compare(widen(got), expected, bound)
    if found.refuted:
        place = [int(i) for i in np.unravel_index(found.index or 0, expected.shape)]
        at = tuple(place)
        within = expected_within(expected[at], bound[at], found.ratio)
        reason = f"entry {place}: got {widen(got)[at]:.9g}, {within}"
        return _Found(Verdict.FAIL, reason, found.ratio, found.undecided)
    if found.undecided == 1:
        return _Found(Verdict.INCONCLUSIVE, "for every value, rounding decides the sign of a denominator", None, 1.0)
    return _Found(Verdict.PASS, "", found.ratio, found.undecided)


def _short(answer: object) -> str:
    text = json.dumps(answer)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

"""The files of all shards of a run, put together: the report of one run."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from verify.explaining.diagnoses import Diagnosis, Known, merged
from verify.model import SCHEMA, Level, Outcome, Verdict
from verify.reports.report import Call, Report, Shard
from verify.runs.selection import UnusableError
from verify.runs.shards import corpus
from verify.runs.worker import SubjectInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def merge(paths: Sequence[Path]) -> Report:
    """Return the report that one run would have given.

    Raises
    ------
    UnusableError
        If the files are not all shards of one run, each once and whole.

    """
    files = [(path, _read(path)) for path in paths]
    first_path, first = files[0]
    for path, report in files:
        for what, value in _identity(report).items():
            if value != (expected := _identity(first)[what]):
                msg = f"{path} is of another run than {first_path}: its {what} is {value}, not {expected}"
                raise UnusableError(msg)
    by_number: dict[int, tuple[Path, Report]] = {}
    for path, report in files:
        number = report.shard.number
        if number in by_number:
            msg = f"{path} is shard {number}/{report.shard.of} again, as {by_number[number][0]}; expected each once"
            raise UnusableError(msg)
        by_number[number] = path, report
    if missing := sorted(set(range(1, first.shard.of + 1)) - by_number.keys()):
        names = ", ".join(f"{number}/{first.shard.of}" for number in missing)
        msg = f"the set of shards is incomplete: {names} missing"
        raise UnusableError(msg)
    reports = [by_number[number][1] for number in sorted(by_number)]
    places = {id_: place for report in reports for id_, place in report.places.items()}
    outcomes = sorted((o for report in reports for o in report.outcomes), key=lambda outcome: places[outcome.id])
    interrupted = any(report.interrupted for report in reports)
    whole = Shard(1, 1, first.shard.corpus, first.shard.total)
    if not interrupted and (len(outcomes), corpus(o.id for o in outcomes)) != (whole.total, whole.corpus):
        msg = "the shards do not add up to the cases of one run; a file was changed, or the run was made by other code"
        raise UnusableError(msg)
    call = Call(**{**vars(reports[0].call), "selected": whole.total})
    seconds = sum(report.seconds for report in reports)
    environment = reports[0].environment
    notes, stale = (tuple(dict.fromkeys(n for r in reports for n in getattr(r, name))) for name in ("notes", "stale"))
    return Report(
        reports[0].subject,
        call,
        tuple(outcomes),
        seconds,
        interrupted,
        environment,
        whole,
        places,
        notes,
        stale,
        _diagnoses(reports),
    )


def _diagnoses(reports: Sequence[Report]) -> tuple[Diagnosis, ...]:
    """Return what explains the failures of a rule in every shard that fails it."""
    parts: dict[tuple[str, Level], list[Diagnosis]] = {}
    for report in reports:
        for one in report.diagnoses:
            parts.setdefault((one.rule, one.level), []).append(one)
    failed = Counter(
        key for report in reports for key in {(o.rule, o.level) for o in report.unexplained if o.check == "agreement"}
    )
    found = [merged(part) for key, part in parts.items() if len(part) >= failed[key]]
    return tuple(one for one in found if one is not None)


def _identity(report: Report) -> Mapping[str, Any]:
    """Return what all shards of a run have in common, by the words of a message."""
    environment, call = report.environment, report.call
    return {
        "version of lrp-rules": environment["lrp-rules"],
        "version of torch": environment["torch"],
        "version of NumPy": environment["numpy"],
        "subject": report.subject.spec,
        "version of the subject": report.subject.version,
        "number of shards": report.shard.of,
        "seed": call.seed,
        "list of dtypes": ", ".join(call.dtypes),
        "device": call.device,
        "time limit": call.time_limit,
        "strictness": call.strict,
        "list of cases": report.shard.corpus,
    }


def _read(path: Path) -> Report:
    """Read a file that ``--json`` wrote."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise UnusableError(msg) from error
    except ValueError as error:
        msg = f"{path} is no JSON, or only the beginning of it: {error}"
        raise UnusableError(msg) from error
    schema = whole.get("schema") if isinstance(whole, dict) else None
    if schema != SCHEMA:
        msg = f"{path} has the schema {schema!r}; expected {SCHEMA!r}, as lrp-verify --json writes it"
        raise UnusableError(msg)
    try:
        report = _report(whole)
        # all that is asked of it later must be there
        _identity(report)
        whole_file = report.interrupted or len(report.outcomes) == report.call.selected
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"{path} is not as lrp-verify --json writes it: {type(error).__name__}: {error}"
        raise UnusableError(msg) from error
    if not whole_file:
        msg = f"{path} has {len(report.outcomes)} cases, expected {report.call.selected}; it was cut or changed"
        raise UnusableError(msg)
    return report


def _report(whole: dict[str, Any]) -> Report:
    call = Call(**{**whole["call"], "dtypes": tuple(whole["call"]["dtypes"])})
    environment = {name: value for name, value in whole["environment"].items() if name != "rounding"}
    return Report(
        SubjectInfo(**whole["subject"]),
        call,
        tuple(_outcome(case) for case in whole["cases"]),
        float(whole["summary"]["seconds"]),
        bool(whole["summary"]["interrupted"]),
        environment,
        Shard(**whole["shard"]),
        {str(case["id"]): int(case["place"]) for case in whole["cases"]},
        tuple(whole["notes"]),
        tuple(whole["stale"]),
        tuple(diagnosis_of(one) for one in whole["diagnoses"]),
    )


def diagnosis_of(one: dict[str, Any]) -> Diagnosis:
    """Return a diagnosis from its JSON."""
    fields = {name: value for name, value in one.items() if name != "sentence"}
    variants = tuple(Known(**known) for known in fields.pop("variants"))
    kinds = {"level": Level(fields["level"]), "layers": tuple(fields["layers"])}
    return Diagnosis(**fields | kinds, variants=variants)


def _outcome(case: dict[str, Any]) -> Outcome:
    fields = {name: value for name, value in case.items() if name not in {"decides", "place"}}
    numbers = {name: None if fields[name] is None else float(fields[name]) for name in ("ratio", "probable")}
    kinds = {"level": Level(fields["level"]), "verdict": Verdict(fields["verdict"])}
    return Outcome(**fields | kinds | numbers)

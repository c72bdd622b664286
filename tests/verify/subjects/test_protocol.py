"""The process protocol: whatever a port does is the verdict on that case, with a sentence that names it."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from verify.checks import protocol as protocol_cases
from verify.faces import cli
from verify.model import Case, NotOfferedError, Outcome, SubjectError, Verdict
from verify.runs.outcomes import ask
from verify.subjects.asking import relevance_of
from verify.subjects.protocol import connection, port, process
from verify.subjects.protocol.connection import GIVE_UP
from verify.subjects.protocol.port import Port

FAKE = Path(__file__).parents[1] / "fakes" / "port.py"


def command(*modes: str) -> str:
    return f"command:{sys.executable} {FAKE} {' '.join(modes)}"


@contextmanager
def started(*modes: str) -> Iterator[Port]:
    subject = port.load(command(*modes))
    try:
        yield subject
    finally:
        subject.connection.close()


@cache
def cases() -> dict[str, Case]:
    return {case.id: case for case in protocol_cases.all_cases()}


FIRST = "agreement/Pass/relu/default/signed/float64"
SECOND = "agreement/Pass/relu/default/signed/float32"


def asked(subject: Port, id_: str = FIRST, seconds: float = 10) -> Outcome:
    return ask(cases()[id_], subject, 0, here=False, time_limit=seconds)


MODES = {
    "behaves": (Verdict.PASS, ""),
    "floods-stderr": (Verdict.PASS, ""),
    "crashes": (
        Verdict.CRASH,
        "the process ended with exit status 3 before it answered; stderr: out of memory, say",
    ),
    "exits": (Verdict.CRASH, "the process ended with exit status 0 before it answered"),
    "segfaults": (Verdict.CRASH, "the process was ended by SIGSEGV before it answered"),
    "closes": (Verdict.CRASH, "closed its standard output before it answered"),
    "hangs": (Verdict.TIMEOUT, "no answer within 0.5 seconds"),
    "half": (
        Verdict.TIMEOUT,
        'no answer within 0.5 seconds; it had written 17 bytes of a line without an end: \'{"seq": 1, "relev\'',
    ),
    "half-dies": (
        Verdict.CRASH,
        "the process ended with exit status 4 before it answered; it had written 17 bytes of a line without an end: '{",
    ),
    "rubbish": (
        Verdict.ERROR,
        "the answer is no JSON (Expecting value: line 1 column 1 (char 0)): 'Loading model... done'",
    ),
    "binary": (Verdict.ERROR, "the answer is no JSON ('utf-8' codec can't decode byte 0xff"),
    "nan-token": (Verdict.ERROR, "the answer is no JSON (NaN is no number in JSON; hex carries it)"),
    "huge": (Verdict.ERROR, "a line of more than 16 MiB: 'xxx"),
    "twice": (Verdict.ERROR, 'more than one answer to case number 1: \'{"seq": 1, "relevance"'),
    "out-of-order": (
        Verdict.ERROR,
        "the answer answers case number 2, which was not asked yet: expected number 1, out of order",
    ),
    "old": (Verdict.ERROR, "the answer answers case number 0 again, or late: expected number 1, out of order"),
    "no-seq": (Verdict.ERROR, "the answer has seq None, expected 1, the number of the case"),
    "nothing": (Verdict.ERROR, "the answer has the keys ['seq'], expected seq and one of relevance, skipped, error"),
    "list": (Verdict.ERROR, "the answer is [], expected an object"),
    "more-keys": (
        Verdict.ERROR,
        "the answer has the keys ['confidence', 'relevance', 'seq'], expected ['relevance', 'seq']",
    ),
    "nan": (Verdict.FAIL, "sample 0, entry 0: got nan, expected "),
    "wrong-shape": (Verdict.FAIL, "relevance of shape (1, 3, 5), expected that of the input, (3, 5)"),
    "wrong-dtype": (Verdict.FAIL, "relevance of dtype float32, expected that of the input, float64"),
    "short-hex": (Verdict.ERROR, "the answer relevance: tensor: given 238 digits of hex, expected 240"),
    "skips": (Verdict.SKIPPED, "not yet https://example.org/issues/1"),
    "errs": (Verdict.ERROR, "the port answers error 'other': index 7 of 3"),
    "refuses": (Verdict.ERROR, "the port answers error 'value': I do not like R"),
}


@pytest.mark.parametrize("mode", MODES)
def test_verdict(mode: str) -> None:
    verdict, reason = MODES[mode]
    with started(mode) as subject:
        outcome = asked(subject, seconds=0.5 if mode in {"hangs", "half"} else 20)
    assert outcome.verdict is verdict
    assert outcome.reason.startswith(reason)
    assert bool(outcome.reason) == bool(reason)


@pytest.mark.parametrize("mode", ["crashes", "rubbish", "twice", "out-of-order"])
def test_the_next_case_gets_a_process_of_its_own(mode: str) -> None:
    with started(mode) as subject:
        for id_ in (FIRST, SECOND):
            assert asked(subject, id_).reason.startswith(MODES[mode][1])


@pytest.mark.parametrize("mode", ["skips", "errs", "refuses", "wrong-shape"])
def test_an_answer_that_is_one_leaves_the_process_alone(mode: str) -> None:
    with started(mode) as subject:
        before = subject.connection._process
        assert before is not None
        asked(subject)
        assert subject.connection._process is before


def test_what_a_port_says_beside_is_shown() -> None:
    with started("errs") as subject:
        assert asked(subject).details == {"context": "at port.py:1"}
    with started("crashes") as subject:
        assert asked(subject).details == {"stderr": "out of memory, say"}


def test_a_port_that_never_behaves_is_given_up() -> None:
    with started("exits") as subject:
        verdicts = [asked(subject).verdict for _ in range(GIVE_UP)]
        assert verdicts == [Verdict.CRASH] * GIVE_UP
        last = asked(subject)
    assert last.verdict is Verdict.SKIPPED
    assert last.reason == f"not asked: {GIVE_UP} cases in a row ended the process, the last one {FIRST}"


STARTS = {
    "wrong-version": (Verdict.ERROR, "start: the answer protocol is 2, expected 1: the version that start asked for"),
    "greets": (Verdict.ERROR, "start: the answer is no JSON"),
    "dies-at-start": (
        Verdict.CRASH,
        "start: the process ended with exit status 7 before it answered; stderr: cannot find the model",
    ),
    "never-starts": (Verdict.TIMEOUT, "start: no answer within 0.5 seconds"),
}


@pytest.mark.parametrize("mode", STARTS)
def test_a_port_that_does_not_start_fails_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "never-starts":
        monkeypatch.setattr(connection, "START_LIMIT", 0.5)
    verdict, reason = STARTS[mode]
    with started(mode) as subject:
        own, first, second = (asked(subject, id_) for id_ in ("protocol/start", FIRST, SECOND))
    for outcome in (own, first):
        assert outcome.verdict is verdict
        assert outcome.reason.startswith(reason)
    assert second.verdict is Verdict.SKIPPED
    assert second.reason.startswith(f"not asked: the port did not start: {reason}")


ENDS = {
    ("protocol/start", "unknown-rule"): (Verdict.FAIL, "start: rules has LRP; expected one of Epsilon"),
    ("protocol/start", "behaves"): (Verdict.PASS, ""),
    ("protocol/stop", "behaves"): (Verdict.PASS, ""),
    ("protocol/end-of-input", "behaves"): (Verdict.PASS, ""),
    ("protocol/stop", "rude"): (Verdict.FAIL, "stop: the answer is {'bye': True}, expected {\"stopped\": true}"),
    ("protocol/stop", "bad-exit"): (Verdict.FAIL, "after stop, the process ended with exit status 5, expected 0"),
    ("protocol/stop", "ignores-stop"): (Verdict.TIMEOUT, "stop: no answer within 0.5 seconds"),
    ("protocol/end-of-input", "outlives"): (Verdict.TIMEOUT, "still runs 0.5 seconds after the end of its input"),
}


@pytest.mark.parametrize(("id_", "mode"), ENDS)
def test_how_it_starts_and_ends(id_: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, reason = ENDS[id_, mode]
    if verdict is Verdict.TIMEOUT:
        monkeypatch.setattr(protocol_cases, "STOP_LIMIT", 0.5)
    with started(mode) as subject:
        outcome = asked(subject, id_)
    assert outcome.verdict is verdict
    assert outcome.reason.startswith(reason)


@pytest.mark.parametrize("check", ["conduct", "api", "network", "second-order"])
def test_what_a_process_cannot_be_asked_is_not_offered(check: str) -> None:
    id_ = next(case.id for case in cases().values() if case.check == check)
    with started() as subject:
        outcome = asked(subject, id_)
    assert outcome.verdict is Verdict.NOT_OFFERED
    assert outcome.reason == f"{check} is about modules and tensors of torch, of which a process has none"


def test_only_what_it_offers_is_asked() -> None:
    with started() as subject:
        reasons = [asked(subject, id_).reason for id_ in cases() if id_.startswith("agreement/") and "signed" in id_]
    assert sum(reason.endswith("has no Epsilon") for reason in reasons) > 100
    with started() as subject, pytest.raises(NotOfferedError, match="fake does not offer the layer Linear"):
        relevance_of(subject.get("Pass")(), nn.Linear(2, 1), torch.ones(1, 2), torch.ones(1, 1))
    with started() as subject, pytest.raises(NotOfferedError, match="fake does not offer the function sigmoid"):
        relevance_of(subject.get("Pass")(), nn.Sigmoid(), torch.ones(1, 2), torch.ones(1, 2))
    with started() as subject, pytest.raises(NotOfferedError, match="fake does not offer the dtype bfloat16"):
        relevance_of(subject.get("Pass")(), nn.ReLU(), torch.ones(1, 2).bfloat16(), torch.ones(1, 2).bfloat16())
    with started() as subject, pytest.raises(NotOfferedError, match="a callable as epsilon cannot be sent"):
        subject.get("Pass")(epsilon=torch.abs)


def test_a_kind_of_error_is_the_exception_of_the_api() -> None:
    with started("refuses") as subject, pytest.raises(ValueError, match="I do not like R"):
        relevance_of(subject.get("Pass")(), nn.ReLU(), torch.ones(1, 2), torch.ones(1, 2))


def test_a_line_longer_than_a_pipe_is_written_while_the_port_writes_too() -> None:
    x = torch.randn(64, 4096, dtype=torch.float64)
    with started("floods-stderr") as subject:
        assert torch.equal(relevance_of(subject.get("Pass")(), nn.ReLU(), x, x), x)


def test_its_children_end_with_it() -> None:
    waits = process.Process(["sh", "-c", "sleep 3600 & echo $!; wait"])
    child = int(waits.ask(b"", 10))
    waits.kill()
    for _ in range(100):  # until init has seen it end
        if not is_alive(child):
            return
        time.sleep(0.1)
    pytest.fail(f"{child} is alive")


@pytest.mark.parametrize("given", ["no-such-program", "", "'", "tests"])
def test_a_command_that_cannot_be_started_is_unusable(given: str) -> None:
    with pytest.raises(SubjectError, match="cannot be started"):
        port.load(f"command:{given}")


def is_alive(child: int) -> bool:
    try:
        return Path(f"/proc/{child}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


# --- the command line -------------------------------------------------------------------------------------------------

MISBEHAVIOURS = {
    "crashes": "the process ended with exit status 3",
    "hangs": "no answer within",
    "rubbish": "is no JSON",
    "twice": "more than one answer",
    "out-of-order": "which was not asked yet",
    "nan": "got nan",
    "wrong-shape": "relevance of shape",
}


def verified(*arguments: str) -> Any:
    selected = ["--rule", "Pass,-", "--check", "agreement,protocol", "--workers", "0", *arguments]
    return CliRunner().invoke(cli.app, selected, catch_exceptions=False)


def test_every_misbehaviour_is_named_and_the_run_ends(tmp_path: Path) -> None:
    line = command("behaves", *MISBEHAVIOURS).removeprefix("command:")
    result = verified("--command", line, "--time-limit", "0.5", "--json", str(tmp_path / "run.json"))
    assert result.exit_code == 1
    reasons = [case["reason"] for case in json.loads((tmp_path / "run.json").read_text())["cases"]]
    assert [mode for mode, said in MISBEHAVIOURS.items() if not any(said in reason for reason in reasons)] == []
    assert f"lrp-verify --command '{line}' --case agreement/Pass/" in result.output


def test_a_port_that_behaves_holds() -> None:
    result = verified("--command", command().removeprefix("command:"))
    assert result.exit_code == 0
    assert "PASSED: 173 cases in " in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            ["--command", "no-such-program"], "the command 'no-such-program' cannot be started", id="no program"
        ),
        pytest.param(["--command", "node", "--subject", "zennit.rules"], "both name an", id="two subjects"),
        pytest.param(["--command", "node", "--figure", "a.png"], "needs an implementation in Python", id="figure"),
        pytest.param(["--command", "node", "--check", "search"], "needs an implementation in Python", id="search"),
    ],
)
def test_an_unusable_call(arguments: list[str], said: str) -> None:
    result = verified(*arguments)
    assert result.exit_code == 2
    assert said in result.output + result.stderr

"""The runner: whatever a subject does, it is the verdict on that case and on no other."""

import math
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import torch

from verify.formats.environment import cpu_count
from verify.model import Case, Outcome, SubjectError, Verdict
from verify.runs.runner import Runner, run
from verify.runs.worker import RunnerError, Source

FAKES = Path(__file__).parents[1] / "fakes"
SOURCE = Source(("float64",), seed=3, function="behaving:all_cases")
#: What a subject may do to the process it runs in.
DEADLY = {"crashes", "exits", "segfaults", "hangs", "dies_later"}


@pytest.fixture(scope="module", autouse=True)
def fakes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAKES)
        yield


def _cases(*, without: Collection[str] = ()) -> list[Case]:
    return [case for case in SOURCE.cases().values() if case.check not in without]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    with Runner(SOURCE, workers=2, time_limit=4, subjects=["behaving"]) as runner:
        return {outcome.check: outcome for outcome in runner.run("behaving", _cases(without=["dies_later"]))}


@pytest.fixture(scope="module")
def outcomes_here() -> dict[str, Outcome]:
    return {outcome.check: outcome for outcome in run("behaving", _cases(without=DEADLY), SOURCE, workers=0)}


EXPECTED = {
    "passes": (Verdict.PASS, ""),
    "crashes": (Verdict.CRASH, "the process ended with exit status 3"),
    "exits": (Verdict.CRASH, "the process ended with exit status 0"),
    "segfaults": (Verdict.CRASH, "the process was ended by SIGSEGV"),
    "hangs": (Verdict.TIMEOUT, "no answer within 4 seconds"),
    "raises": (Verdict.ERROR, "ValueError: no\N{REPLACEMENT CHARACTER}[31m good at all (behaving.py:"),
    "raises_below": (Verdict.ERROR, "JSONDecodeError: Expecting property name enclosed in double quotes"),
    "says_nothing": (Verdict.ERROR, "SilentError: (its message cannot be printed) (behaving.py:"),
    "stops": (Verdict.ERROR, "SystemExit: 0 (behaving.py:"),
    "prints": (Verdict.PASS, ""),
    "returns_a_wrong_shape": (Verdict.FAIL, "relevance of shape (2, 3), expected (3, 2)"),
    "returns_no_finding": (
        Verdict.ERROR,
        "AttributeError: 'NoneType' object has no attribute 'verdict' (undecided.py:",
    ),
    "is_far_off": (Verdict.FAIL, "far off"),
    "is_advised": (Verdict.FAIL, "only advised"),
    "gives_arrays": (Verdict.PASS, ""),
    "disables_gradients": (
        Verdict.FAIL,
        "the process is left changed, for all that comes after: torch's grad mode (was True, is False)",
    ),
    "needs_gradients": (Verdict.PASS, ""),
    "draws": (Verdict.PASS, ""),
    "draws_again": (Verdict.PASS, ""),
    "particular": (Verdict.PASS, ""),
    "missing": (Verdict.NOT_OFFERED, "behaving has no Flat"),
}


def test_every_behaviour_is_expected() -> None:
    assert {case.check for case in _cases(without=["dies_later"])} == set(EXPECTED)


@pytest.mark.parametrize("check", EXPECTED)
def test_verdict_in_a_worker(check: str, outcomes: dict[str, Outcome]) -> None:
    verdict, reason = EXPECTED[check]
    assert outcomes[check].verdict is verdict
    assert outcomes[check].reason.startswith(reason)
    assert bool(outcomes[check].reason) == bool(reason)


@pytest.mark.parametrize("check", sorted(EXPECTED.keys() - DEADLY))
def test_verdict_in_this_process(check: str, outcomes_here: dict[str, Outcome]) -> None:
    verdict, reason = EXPECTED[check]
    assert outcomes_here[check].verdict is verdict
    assert outcomes_here[check].reason.startswith(reason)


def test_an_error_names_the_last_frame_in_the_subject(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["raises"].reason.endswith(" in raises)")
    assert outcomes["raises_below"].reason.endswith(" in raises_below)")


def test_the_traceback_is_kept_in_this_process(outcomes_here: dict[str, Outcome]) -> None:
    assert "ValueError" in outcomes_here["raises"].details["traceback"]


def test_numbers_come_through_as_they_are(outcomes: dict[str, Outcome]) -> None:
    far = outcomes["is_far_off"]
    assert far.ratio == math.inf
    assert far.probable is not None
    assert math.isnan(far.probable)
    assert far.undecided == 0.5


def test_details_are_plain_data(outcomes: dict[str, Outcome]) -> None:
    expected = {"array": [0.0, 1.0, 2.0], "tensor": [[1.0, 1.0]], "number": 0.5, "type": "<class 'int'>"}
    assert outcomes["gives_arrays"].details == expected
    assert type(outcomes["gives_arrays"].ratio) is float


def test_a_case_answers_the_same_wherever_it_is_asked(
    outcomes: dict[str, Outcome], outcomes_here: dict[str, Outcome]
) -> None:
    drawn = {found[check].details["drawn"] for found in (outcomes, outcomes_here) for check in ("draws", "draws_again")}
    assert len(drawn) == 1


def test_nothing_printed_in_a_worker_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = list(run("behaving", [SOURCE.cases()["prints/float64"]], SOURCE, workers=1))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.PASS]
    assert "LOUD" not in "".join(capfd.readouterr())


def test_a_print_in_this_process_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    list(run("behaving", [SOURCE.cases()["prints/float64"]], SOURCE, workers=0))
    captured = capsys.readouterr()
    assert "LOUD" not in captured.out
    assert "LOUD" in captured.err


def test_one_pool_serves_several_subjects() -> None:
    case = SOURCE.cases()["passes/float64"]
    with Runner(SOURCE, workers=1) as runner:
        for spec in ("behaving", "lrp_rules"):
            assert runner.describe(spec).spec == spec
        assert runner.describe("lrp_rules").ours
        assert not runner.describe("behaving").ours
        assert [outcome.verdict for outcome in runner.run("behaving", [case])] == [Verdict.PASS]
        # lrp_rules.Epsilon has no such method: an error of that subject, not of the run
        assert [outcome.verdict for outcome in runner.run("lrp_rules", [case])] == [Verdict.ERROR]
        assert [outcome.verdict for outcome in runner.run("behaving", [case])] == [Verdict.PASS]


@pytest.mark.parametrize("workers", [0, 1], ids=["here", "one worker"])
@pytest.mark.parametrize("spec", ["no_such_module", "math", ":Epsilon"])
def test_unusable_subject(spec: str, workers: int) -> None:
    with pytest.raises(SubjectError, match=f"'{spec}'"), Runner(SOURCE, workers=workers, subjects=[spec]) as runner:
        list(runner.run(spec, _cases()))


@pytest.mark.parametrize("subjects", [[], ["dying"]], ids=["with the first case", "with the worker"])
def test_subject_that_dies_when_it_is_loaded(subjects: list[str]) -> None:
    with pytest.raises(SubjectError, match="ends its process"), Runner(SOURCE, workers=1, subjects=subjects) as runner:
        list(runner.run("dying", _cases()))


def test_two_cases_of_one_id() -> None:
    with pytest.raises(RunnerError, match="two cases the id passes/float64"):
        Source(("float64",), function="behaving:twice").cases()


def test_a_source_that_differs_in_the_worker() -> None:
    source = Source(("float64",), function="behaving:unstable")
    with pytest.raises(RunnerError, match=f"does not know the case passes/{os.getpid()}"):
        list(run("behaving", source.cases().values(), source, workers=1))


def test_a_source_that_cannot_be_built_in_the_worker() -> None:
    source = Source(("float64",), function="behaving:nothing")
    with pytest.raises(RunnerError, match="a worker cannot start: AttributeError"):
        list(run("behaving", _cases(), source, workers=1))


def test_a_run_that_is_left_early_stops_its_workers() -> None:
    outcomes = run("behaving", [SOURCE.cases()[f"{name}/float64"] for name in ("passes", "hangs")], SOURCE, workers=1)
    assert next(outcomes).verdict is Verdict.PASS
    outcomes.close()


def test_a_worker_that_dies_between_two_runs_is_replaced() -> None:
    cases = SOURCE.cases()
    with Runner(SOURCE, workers=1) as runner:
        for id_ in ("dies_later/float64", "passes/float64"):
            assert [outcome.verdict for outcome in runner.run("behaving", [cases[id_]])] == [Verdict.PASS]
            time.sleep(1.5)  # in which the first worker dies, idle


def test_threads_of_this_process_are_restored() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Runner(SOURCE, workers=0):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("time_limit", [0.0, -1.0, math.inf, math.nan])
def test_time_limit_out_of_range(time_limit: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number of seconds above 0"):
        Runner(SOURCE, time_limit=time_limit)


def test_workers_out_of_range() -> None:
    with pytest.raises(ValueError, match="workers is -1"):
        Runner(SOURCE, workers=-1)


def test_workers_by_default() -> None:
    assert Runner(SOURCE).workers == cpu_count() >= 1


def test_outside_of_a_with_statement() -> None:
    with pytest.raises(RuntimeError, match="`with` statement"):
        Runner(SOURCE, workers=1).describe("behaving")

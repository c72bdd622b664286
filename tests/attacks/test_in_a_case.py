"""What an implementation may do while it is asked: none passes with wrong numbers, and none decides the next case."""

import importlib.util
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from verify.model import Outcome, Verdict
from verify.runs.host import handler
from verify.runs.hosted import Host
from verify.runs.runner import Runner
from verify.runs.worker import Source

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a subject has a process of its own on POSIX alone")

SOURCE = Source(("float64",), seed=3, function="questions:all_cases")
FAIL, ERROR, CRASH, TIMEOUT, PASS = Verdict.FAIL, Verdict.ERROR, Verdict.CRASH, Verdict.TIMEOUT, Verdict.PASS
LIES = {
    "patches_the_comparator": FAIL,
    "patches_the_verdict": FAIL,
    "patches_the_reference": FAIL,
    "patches_the_bound": FAIL,
    "patches_autograd": FAIL,
    "patches_what_is_written_down": FAIL,
    "writes_through_stack_frames": FAIL,
    "writes_to_all_that_gc_knows": FAIL,
    "writes_to_its_input": FAIL,
    "writes_to_the_relevance": FAIL,
    "writes_to_the_relevance_afterwards": FAIL,
    "returns_a_lying_tensor": ERROR,
    "forges_a_verdict": ERROR,
    "forges_a_verdict_after_its_answers": ERROR,
    "forges_endless_answers": ERROR,
    "forges_rubbish": ERROR,
    "raises_a_verdict": ERROR,
    "raises_what_ends_a_recording": ERROR,
}
BREAKS = {
    "raises_system_exit": (ERROR, "SystemExit: 0 (rules.py:"),
    "raises_generator_exit": (ERROR, "GeneratorExit (rules.py:"),
    "raises_base_exception": (ERROR, "BaseException: for all to see (rules.py:"),
    "raises_what_cannot_be_printed": (ERROR, "_Silent: (its message cannot be printed) (rules.py:"),
    "raises_megabytes": (ERROR, "ValueError: wrong wrong"),
    "recurses": (ERROR, "RecursionError: "),
    "exits_with_0": (CRASH, "the process ended with exit status 0"),
    "exits_with_0_by_the_c_library": (CRASH, "the process ended with exit status 0"),
    "segfaults": (CRASH, "the process was ended by SIGSEGV"),
    "hangs_with_the_lock_of_python": (TIMEOUT, "no answer within 4 seconds"),
    "ignores_signals_and_hangs": (TIMEOUT, "no answer within 4 seconds"),
    "allocates_all_memory": (ERROR, "out of memory, of which a worker may have 2 GiB: "),
    "closes_every_file": (CRASH, ""),
    "prints_megabytes": (PASS, ""),
    "leaves_children": (PASS, ""),
    "leaves_a_session_of_its_own": (PASS, ""),
}


@pytest.fixture(scope="module")
def runner(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTILE_NOTES", str(tmp_path_factory.mktemp("notes") / "pids"))
        patch.setattr("verify.runs.runner.share_of_memory", lambda _: 2 * 2**30)
        with Runner(SOURCE, workers=1, time_limit=4) as runner:
            yield runner


def ask(runner: Runner, name: str) -> tuple[Outcome, Outcome]:
    """Ask the attack, then the honest rule, in this order."""
    cases = list(SOURCE.cases().values())
    first, second = runner.run(f"rules:{name}", cases)
    assert [first.rule, second.rule] == ["Epsilon", "ZPlus"]
    return first, second


@pytest.mark.parametrize("name", LIES)
def test_wrong_numbers_do_not_pass(name: str, runner: Runner) -> None:
    attacked, next_ = ask(runner, name)
    assert attacked.verdict is LIES[name], attacked
    # what it has spoilt of its own process is its own affair
    assert next_.verdict is PASS or name.startswith(("patches", "forges")), next_
    # the judge has not been reached: an honest subject is still held right
    assert [outcome.verdict for outcome in runner.run("lrp_rules", SOURCE.cases().values())] == [PASS, PASS]


@pytest.mark.parametrize("name", BREAKS)
def test_it_is_the_verdict_on_that_case_and_the_next_one_is_asked(name: str, runner: Runner) -> None:
    verdict, reason = BREAKS[name]
    attacked, next_ = ask(runner, name)
    assert attacked.verdict is verdict, attacked
    assert attacked.reason.startswith(reason)
    assert len(attacked.reason) < 600
    assert next_.verdict is PASS, next_


def _states() -> list[str]:
    spec = importlib.util.spec_from_file_location("hostile_rules", Path(__file__).parent / "hostile" / "rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.STATE)


STATES = _states()


@pytest.mark.parametrize("number", range(len(STATES)), ids=STATES)
def test_changed_state_is_named_and_put_back(number: int, runner: Runner) -> None:
    attacked, next_ = ask(runner, f"changes_{number}")
    assert attacked.verdict is FAIL, attacked
    assert attacked.reason.startswith("the process is left changed, for all that comes after: ")
    assert STATES[number] in attacked.reason
    assert next_.verdict is PASS, next_


def test_nothing_outlives_the_run(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "pids"
    monkeypatch.setenv("HOSTILE_NOTES", str(notes))
    with Runner(SOURCE, workers=1, time_limit=5) as runner:
        for name in ("leaves_children", "leaves_a_session_of_its_own"):
            ask(runner, name)
        left = [int(pid) for pid in notes.read_text().split()]
        assert len(left) == 3
        assert all(map(_runs, left))
    deadline = time.monotonic() + 10
    while any(map(_runs, left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, left))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_where_processes_are_not_forked_they_are_started_anew(hostile: Path) -> None:
    host = Host(
        "rules:exits_with_0",
        partial(handler, SOURCE.cases, 3, "rules:exits_with_0", is_grid=False),
        fork=False,
        memory=2 * 2**30,
    )
    try:
        first, second = (host.ask(case, 30) for case in SOURCE.cases().values())
    finally:
        host.end()
    assert first.finding is not None
    assert first.finding.reason == "the process ended with exit status 0"
    assert [answer["dtype"] for (answer,) in second.answers] == ["float64"]
    assert len(second.data) == 3 * 5 * 8

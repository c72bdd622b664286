"""The report: the judgement over outcomes, and how it reads on terminals of all kinds."""

import io
import math
import re
import shlex
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from rich.console import Console

from verify.explaining.deviations import KNOWN
from verify.explaining.diagnoses import Diagnosis, Known
from verify.formats.text import percent
from verify.model import Level, Outcome, Verdict
from verify.reports import terminal
from verify.reports.report import Call, Report, grid, largest, markdown, subject_line, totals
from verify.runs.worker import SubjectInfo

THEIRS = SubjectInfo("their.rules", "1.2")
OURS = SubjectInfo("lrp_rules", "0.1", ours=True)
INF, NAN = math.inf, math.nan
_number = count()


def outcome(verdict: Verdict = Verdict.PASS, **fields: Any) -> Outcome:
    defaults = {"id": f"case-{next(_number)}", "rule": "Gamma", "layer": "Linear", "check": "agreement"}
    return Outcome(**(defaults | {"dtype": "float64", "level": Level.MUST, "verdict": verdict} | fields))


def report(*outcomes: Outcome, subject: SubjectInfo = THEIRS, **fields: Any) -> Report:
    call = Call(len(outcomes), ("float64", "float32"), workers=2, time_limit=20.0)
    return Report(subject, replace(call, **fields.pop("call", {})), outcomes, **fields)


def shown(given: Report, width: int = 100, **options: Any) -> str:
    target = io.StringIO()
    terminal.show(given, Console(file=target, width=width, highlight=False, markup=False, **options))
    return target.getvalue()


ADVISED = outcome(Verdict.FAIL, level=Level.SHOULD)


@pytest.mark.parametrize(
    ("passed", "given"),
    [
        pytest.param(True, report(outcome(ratio=0.5)), id="pass"),
        pytest.param(True, report(outcome(ratio=0.5), outcome(Verdict.NOT_OFFERED)), id="one not offered"),
        pytest.param(True, report(outcome(ratio=0.5), outcome(Verdict.SKIPPED)), id="one skipped"),
        pytest.param(True, report(outcome(ratio=0.5, probable=3.0)), id="beyond the probabilistic bound"),
        pytest.param(False, report(outcome(), outcome(Verdict.FAIL)), id="fail"),
        pytest.param(False, report(outcome(), outcome(Verdict.ERROR)), id="error"),
        pytest.param(False, report(outcome(), outcome(Verdict.CRASH)), id="crash"),
        pytest.param(False, report(outcome(), outcome(Verdict.TIMEOUT)), id="timeout"),
        pytest.param(False, report(outcome(Verdict.NOT_OFFERED), outcome(Verdict.SKIPPED)), id="nothing asked"),
        pytest.param(False, report(), id="no case"),
        pytest.param(False, report(outcome(), interrupted=True), id="interrupted"),
        pytest.param(True, report(outcome(), ADVISED), id="advice to others"),
        pytest.param(False, report(outcome(), ADVISED, subject=OURS), id="advice to ourselves"),
        pytest.param(False, report(outcome(), ADVISED, call={"strict": True}), id="advice, strict"),
        pytest.param(True, report(outcome(ratio=0.1, undecided=0.9, undecidable=0.9)), id="much undecided"),
        pytest.param(True, report(outcome(Verdict.INCONCLUSIVE, undecidable=1.0)), id="inconclusive"),
    ],
)
def test_judgement(passed: bool, given: Report) -> None:
    assert given.passed is passed


@pytest.mark.parametrize(
    ("share", "given"),
    [
        (0.1, [*[outcome(ratio=0.1)] * 9, outcome(Verdict.INCONCLUSIVE)]),
        (0.25, [outcome(ratio=0.1, undecided=0.5), outcome(ratio=0.1)]),
        (1.0, [*[outcome()] * 99, outcome(Verdict.INCONCLUSIVE)]),
        (0.0, [outcome()]),
    ],
    ids=["inconclusive", "a part", "cases that compare nothing do not dilute", "none"],
)
def test_the_share_of_undecided_entries_is_told(share: float, given: list[Outcome]) -> None:
    assert report(*given).undecided == share
    said = f"; {percent(share)} of the values inconclusive"
    assert (said in totals(report(*given))) is (share > 0)


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        (OURS, "Tested: lrp_rules 0.1, the rules of this project (--subject tests others); torch 9.9"),
        (THEIRS, "Tested: their.rules 1.2; torch 9.9; device cuda:1; seed 7"),
        (SubjectInfo("their.rules"), "Tested: their.rules unknown version; torch 9.9"),
        (SubjectInfo("command:node port.js", "3 (port)"), "Tested: the command node port.js, 3 (port); torch 9.9"),
    ],
    ids=["ours", "theirs", "without a version", "command"],
)
def test_what_is_tested(subject: SubjectInfo, says: str) -> None:
    assert subject_line(subject, Call(1, ("float64",), seed=7, device="cuda:1"), "9.9").startswith(says)


@pytest.mark.parametrize("probable", [1.0000001, INF, NAN])
def test_doubt(probable: float) -> None:
    doubtful = outcome(ratio=0.5, probable=probable)
    given = report(outcome(probable=1.0), doubtful, outcome(Verdict.FAIL, probable=probable))
    assert given.doubtful == (doubtful,)
    assert re.search(rf"Warning: 1 cases passed, but .*{doubtful.id}", shown(given))


@pytest.mark.parametrize(
    ("expected", "ratios"),
    [(2.0, [1.0, None, 2.0]), (INF, [1.0, INF]), (None, [None]), (None, []), (0.0, [0.0])],
    ids=["number", "infinity", "none", "empty", "zero"],
)
def test_largest(expected: float | None, ratios: list[float | None]) -> None:
    assert largest(ratios) == expected


@pytest.mark.parametrize("ratios", [[NAN, 1.0, INF], [1.0, NAN, INF], [INF, 1.0, NAN]], ids=["first", "middle", "last"])
def test_nan_is_the_largest(ratios: list[float]) -> None:
    found = largest(ratios)
    assert found is not None
    assert math.isnan(found)


def test_a_small_share_does_not_become_zero() -> None:
    assert [percent(share) for share in (0.0, 1e-9, 0.0123, 1.0)] == ["0%", "<0.1%", "1.23%", "100%"]


def test_totals_say_how_many_of_how_many() -> None:
    given = report(outcome(), interrupted=True, seconds=1.25, call={"selected": 7})
    assert totals(given) == "INTERRUPTED: 1 of 7 cases in 1.2 s; 1 passed"


def test_totals_count_each_case_once() -> None:
    known = outcome(Verdict.FAIL, details={KNOWN: {"reason": "because"}})
    rest = [outcome(), outcome(Verdict.FAIL), outcome(Verdict.NOT_OFFERED), outcome(Verdict.TIMEOUT)]
    said = "FAILED: 6 cases in 0.0 s; 1 failed, 1 timed out, 1 passed, 1 known deviation, 1 failed recommendation, "
    assert totals(report(known, ADVISED, *rest)) == f"{said}1 not offered"


# --- the table --------------------------------------------------------------------------------------------------------

FAMILIES = ["Linear", "Conv2d", "ConvTranspose3d", "AdaptiveAvgPool", "BatchNorm", "Activation", "-"]
WIDE = report(
    *(outcome(rule=rule, layer=layer, ratio=0.03) for rule in ("Epsilon", "ReLUGuidedBackprop") for layer in FAMILIES),
    outcome(Verdict.FAIL, rule="Epsilon", layer="Conv2d", ratio=3e7),
    outcome(Verdict.FAIL, rule="Epsilon", layer="Linear", level=Level.SHOULD),
    outcome(Verdict.INCONCLUSIVE, rule="Flat", layer="BatchNorm", undecided=1.0),
    outcome(Verdict.NOT_OFFERED, rule="ZBox", layer="Linear"),
    outcome(Verdict.PASS, rule="ZBox", layer="Conv2d", ratio=0.5, undecided=0.25),
    outcome(Verdict.SKIPPED, rule="ZBox", layer="Activation"),
    outcome(rule="Hook", layer="-"),
)


@pytest.mark.parametrize(
    ("rule", "family", "lines"),
    [
        ("Epsilon", "Conv2d", ["✗ 1/2"]),
        ("Epsilon", "Linear", ["! 1/2"]),
        ("Flat", "BatchNorm", ["?", "100% ?"]),
        ("ZBox", "Linear", ["-"]),
        ("ZBox", "Conv2d", ["✓ 0.5", "25% ?"]),
        ("ZBox", "Activation", ["s"]),
        ("Hook", "no layer", ["✓"]),
    ],
)
def test_cell(rule: str, family: str, lines: list[str]) -> None:
    assert grid(WIDE).cells[rule, family].lines() == lines


def test_a_rule_of_which_nothing_is_offered_has_no_row() -> None:
    missing = [outcome(Verdict.NOT_OFFERED, rule="Norm", layer=layer) for layer in ("Linear", "Sum")]
    some = grid(report(outcome(rule="Epsilon", layer="Linear"), *missing))
    assert (some.rules, some.families, some.missing) == (["Epsilon"], ["Linear"], ("Norm",))
    assert "\n- Not offered: Norm\n" in markdown(report(outcome(rule="Epsilon", layer="Linear"), *missing))
    assert (grid(report(*missing)).rules, grid(report(*missing)).missing) == (["Norm"], ())


CONVENTION = Diagnosis("Gamma", Level.MUST, (Known("other", "another formula", published=True),), 1, 1)


@pytest.mark.parametrize(
    ("mark", "diagnosis", "fields"),
    [
        ("≠", CONVENTION, {}),
        ("✗", replace(CONVENTION, variants=(Known("mistake", "a mistake"),)), {}),
        ("✗", replace(CONVENTION, rule="ZPlus"), {}),
        ("✗", CONVENTION, {"check": "laws"}),
        ("✗", CONVENTION, {"verdict": Verdict.ERROR}),
        ("✗", replace(CONVENTION, default=True), {"id": "agreement/Gamma/linear/gamma=1/signed/float64"}),
        ("≠", replace(CONVENTION, default=True), {"id": "agreement/Gamma/linear/default/signed/float64"}),
    ],
    ids=[
        "published",
        "a mistake",
        "another rule",
        "another check",
        "an error",
        "other parameters",
        "default parameters",
    ],
)
def test_another_published_convention_is_not_marked_as_a_mistake(
    mark: str, diagnosis: Diagnosis, fields: dict[str, Any]
) -> None:
    given = report(outcome(), outcome(**({"verdict": Verdict.FAIL} | fields)), diagnoses=(diagnosis,))
    assert grid(given).cells["Gamma", "Linear"].lines() == [f"{mark} 1/2"]
    assert not given.passed


def test_what_needs_no_layer_comes_last() -> None:
    assert grid(WIDE).families == [*FAMILIES[:-1], "no layer"]
    assert grid(WIDE).rules[-1] == "Hook"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_column_is_shown_within_the_width(width: int) -> None:
    text = shown(WIDE, width)
    table = text[: text.index("Failures")].splitlines()
    assert max(map(len, table)) <= width
    # a head is broken where a capital follows; its parts are all there
    words = set(" ".join(table).split())
    assert {
        part for family in grid(WIDE).families for part in re.sub("([a-z])([A-Z])", r"\1 \2", family).split()
    } <= words
    assert "…" not in "".join(table)


def test_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured.search(shown(WIDE, force_terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(shown(WIDE, force_terminal=True))


def test_without_unicode() -> None:
    target = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal.show(WIDE, Console(file=target, width=80))
    target.seek(0)
    assert "X 1/2" in target.read()


def test_markdown() -> None:
    title, _, *rows, _, legend = markdown(WIDE).splitlines()
    assert title.startswith("**their.rules 1.2**: FAILED: ")
    assert {row.count("|") for row in rows} == {len(FAMILIES) + 2}
    assert rows[2] == "| Epsilon | ! 1/2 | ✗ 1/2 | ✓ 0.03 | ✓ 0.03 | ✓ 0.03 | ✓ 0.03 | ✓ 0.03 |"
    assert legend.startswith("✗ failed; ! only recommended cases failed; ✓ passed; ")


# --- failures ---------------------------------------------------------------------------------------------------------


def test_failures_are_grouped_and_each_group_is_reproduced_by_one_line() -> None:
    gamma = [outcome(Verdict.FAIL, reason=f"reason {i}", ratio=float(i + 2), dtype="float32") for i in range(5)]
    errors = [outcome(Verdict.ERROR, rule="Flat", check="errors", reason="ValueError: no [red]markup[/red]", layer="-")]
    text = shown(report(outcome(), *gamma, *errors, call={"seed": 3, "device": "cuda"}), 60)
    assert "  Gamma, agreement: 5 of 6 cases failed (specification 3.5; Linear; float32; largest ratio 6)\n" in text
    assert [f"reason {i}" in text for i in range(5)] == [True, True, True, False, False]
    assert "    and 2 more\n" in text
    assert f"    {errors[0].id}: raised an error: ValueError: no [red]markup[/red]\n" in text
    lines = [shlex.split(line)[1:] for line in text.splitlines() if line.strip().startswith("Reproduce: lrp-verify")]
    same = ["lrp-verify", "--subject", "their.rules", "--seed", "3", "--device", "cuda", "--case"]
    assert lines == [[*same, gamma[4].id], [*same, errors[0].id]]


def test_the_clearest_failure_of_a_group_is_reproduced() -> None:
    ratios = [(7.0, "float32"), (3.0, "float64"), (5.0, "float64"), (None, "float64"), (9.0, "float32")]
    failures = [outcome(Verdict.FAIL, ratio=ratio, dtype=dtype) for ratio, dtype in ratios]
    assert f"Reproduce: lrp-verify --subject their.rules --case {failures[2].id}\n" in shown(report(*failures))
    worst = outcome(Verdict.FAIL, ratio=NAN)
    assert f"--case {worst.id}\n" in shown(report(*failures, worst))


def test_an_id_is_quoted_for_the_shell() -> None:
    awkward = outcome(Verdict.FAIL, id="it's a $(case)")
    line = next(line for line in shown(report(awkward)).splitlines() if "lrp-verify" in line)
    assert shlex.split(line)[-1] == awkward.id


def test_advice_stands_apart() -> None:
    text = shown(report(outcome(), ADVISED))
    assert "Failures" not in text
    assert text.index("Failed recommendations") < text.index(ADVISED.id) < text.index("PASSED")
    assert "Failed recommendations" not in shown(report(outcome(), ADVISED, subject=OURS))


def test_one_case() -> None:
    details = {
        "model": "float32",
        "worst entry": {"entry": 3, "got": 1.25, "expected": 1 / 3},
        "ledger": [{"inputs": 1.0, "bias": NAN}, {"inputs": 2.0, "zero branch": 4.0}],
        "shape": [2, 3],
        "traceback": "Traceback:\n  \x1b[31mred\n",
    }
    target = io.StringIO()
    failed = outcome(Verdict.FAIL, ratio=7.5, reason="far [bold]off[/bold]", level=Level.SHOULD, details=details)
    terminal.show_case(report(failed), failed, Console(file=target, width=80))
    text = target.getvalue()
    for expected in (
        "failed: far [bold]off[/bold]\n",
        "should (recommended); does not fail the run",
        "0.333333333",
        "2, 3",
        "zero branch",
    ):
        assert expected in text
    assert re.search(r"ratio +7.5\b", text)
    assert re.search(r"\n +1 +nan +\n +2 +4\n", text)
    assert "  \N{REPLACEMENT CHARACTER}[31mred" in text

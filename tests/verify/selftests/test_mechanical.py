"""Mutants made by changing one thing in a source: every operator, their ids, and what becomes of them."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import pytest

from verify.selftests.mechanical import mutator, processes, running, sources, trial
from verify.selftests.mechanical.mutator import Mutant
from verify.selftests.mechanical.record import Record, RecordError
from verify.selftests.mechanical.trial import Fate, Seen, Step, Tests

if TYPE_CHECKING:
    from pathlib import Path


def changed(statement: str) -> set[str]:
    """Return what becomes of a statement in a function, each with the change alone."""
    text = f"from torch import nn\n\ndef f(x, y, z, positive, negative, *names):\n    {statement}\n"
    return {mutant.id.removeprefix("a.py:f: ") for mutant in mutator.mutants("a.py", text)}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("return x + y", {"x + y -> x - y", "x + y -> x", "x + y -> y"}),
        ("return x * y", {"x * y -> x / y", "x * y -> x", "x * y -> y"}),
        ("return x @ y", {"x @ y -> y"}),
        ("return -x", {"-x -> x"}),
        ("return x < y", {"x < y -> x <= y", "x < y -> x >= y"}),
        ("return x >= y", {"x >= y -> x > y", "x >= y -> x < y"}),
        ("return x == y", {"x == y -> x != y"}),
        ("return x is None", {"x is None -> x is not None"}),
        ("return x in y", {"x in y -> x not in y"}),
        ("return x and y", {"x and y -> x or y", "x and y -> x", "x and y -> y"}),
        ("return not x", {"not x -> x"}),
        ("return x if y else z", {"x if y else z -> x", "x if y else z -> z"}),
        ("return 0", {"return 0 -> return 1"}),
        ("return 1", {"return 1 -> return 0"}),
        ("return 2", {"return 2 -> return 3"}),
        ("return 1e-6", {"return 1e-06 -> return 0.001"}),
        ("return True", {"return True -> return False"}),
        ("return None", {"return None -> return 0"}),
        ("return positive", {"return positive -> return negative"}),
        ("return x.amin", {"return x.amin -> return x.amax"}),
        ("return x.T", {"return x.T -> return x"}),
        ("return x[0]", {"x[0] -> x[1]"}),
        ("return x[:y]", {"x[:y] -> x"}),
        ("return x.sign()", {"x.sign() -> x"}),
        ("return y(x)", {"y(x) -> x"}),
        ("return tuple(x)", set()),
        ("return nn.Linear(x)", {"nn.Linear(x) -> x"}),
        ("return nn.Linear()", set()),
        ("return self.f()", set()),
        ("return x.f(y, z, k=z)", {"x.f(y, z, k=z) -> x.f(y, z)"}),
        (
            "return x.clamp(min=y)",
            {"x.clamp(min=y) -> x.clamp()", "x.clamp(min=y) -> x", "x.clamp(min=y) -> x.clamp(max=y)"},
        ),
        ("return zip(x, y, strict=True)", set()),
        ("return [n for n in names if n]", {"[n for n in names if n] -> [n for n in names]"}),
        ("x = y", {"x = y -> (deleted)"}),
        ("x += y", {"x += y -> (deleted)"}),
        ("x(y, z)", {"x(y, z) -> (deleted)"}),
        ("for n in names: x(n, y)", {"for n in names -> (deleted)", "x(n, y) -> (deleted)"}),
        ("if x: x(y, z)", {"if x -> if True", "if x -> if False", "x(y, z) -> (deleted)"}),
        ("with x: x(y, z)", {"with x -> if True", "x(y, z) -> (deleted)"}),
        ("msg = x + y", set()),
        ("assert x < y", set()),
        ("a = y", set()),
        ("raise ValueError(f'{x + y}')", set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operator(statement: str, expected: set[str]) -> None:
    assert changed(statement) == expected


LEFT_ALONE = '''\
"""Documentation: 1 + 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from a import b

    Limits = tuple[0, 1]

__version__ = "1"


class Rule:
    """Documentation."""

    @property
    def relevance(self, x: tuple[0, 1]) -> tuple[1, 0]:
        """Documentation."""
        return x
'''


def test_documentation_annotations_and_imports_are_left_alone() -> None:
    assert list(mutator.mutants("a.py", LEFT_ALONE)) == []


TEXT = """\
LIMIT = 2


class Rule:
    level = 1

    def relevance(self, x, eps=1e-6):
        if x > 0:
            return x * x
        return x + 0 + x * x


def other(y):
    return y - 1
"""


def test_a_mutant_is_the_source_with_one_change() -> None:
    for mutant in mutator.mutants("a.py", TEXT):
        assert mutant.source != ast.unparse(ast.parse(TEXT)), mutant.id
        compile(mutant.source, "a.py", "exec")
    by_id = {mutant.id: mutant for mutant in mutator.mutants("a.py", TEXT)}
    assert "    return y + 1" in by_id["a.py:other: y - 1 -> y + 1"].source
    assert "eps=0.001" in by_id["a.py:Rule.relevance: eps=1e-06 -> eps=0.001"].source


def test_ids_are_unique_and_say_where_and_what() -> None:
    ids = [mutant.id for mutant in mutator.mutants("a.py", TEXT)]
    assert len(set(ids)) == len(ids)
    assert {
        "a.py:<module>: LIMIT = 2 -> LIMIT = 3",
        "a.py:Rule: level = 1 -> (deleted)",
        "a.py:Rule.relevance: x * x -> x / x",
        "a.py:Rule.relevance: x * x -> x / x #2",
        "a.py:other: y - 1 -> y - 0",
    } <= set(ids)


def test_ids_do_not_move_with_edits_elsewhere() -> None:
    edited = "import math\n\n# a comment\n" + TEXT.replace("return y - 1", "y = y * 2\n    return math.exp(y)")
    here, there = ({m.id for m in mutator.mutants("a.py", text) if "other" not in m.id} for text in (TEXT, edited))
    assert here == there


def test_long_ids_show_what_differs() -> None:
    text = f"def f(x):\n    return g({', '.join(f'argument_{k}' for k in range(30))}, name=x + 1, last=x)\n"
    ids = [mutant.id for mutant in mutator.mutants("a.py", text)]
    assert (
        "a.py:f: ...27, argument_28, argument_29, name=x + 1, last=x) -> ...27, argument_28, argument_29, last=x)"
        in ids
    )
    assert all(len(id_) < 300 for id_ in ids)


def test_blocks_that_run_are_noted_under_the_names_that_mutants_know() -> None:
    ran: list[str] = []
    namespace: dict[str, Any] = {mutator.NOTE: ran.append}
    exec(compile(mutator.noted("a.py", TEXT), "a.py", "exec"), namespace)  # noqa: S102  what is executed stands above
    assert ran == []
    by_id = {mutant.id: mutant.block for mutant in mutator.mutants("a.py", TEXT)}
    namespace["Rule"]().relevance(-1)
    assert by_id["a.py:Rule.relevance: x + 0 + x * x -> x + 0"] in ran
    assert by_id["a.py:Rule.relevance: eps=1e-06 -> eps=0.001"] in ran
    assert by_id["a.py:Rule.relevance: x * x -> x / x"] not in ran
    namespace["Rule"]().relevance(1)
    assert by_id["a.py:Rule.relevance: x * x -> x / x"] in ran
    assert by_id["a.py:Rule: level = 1 -> (deleted)"] == ""


# What becomes of a mutant of lrp_rules

TEXTS = sources.read()
CASES = tuple(id_ for id_ in trial.cases() if id_.startswith("agreement/Epsilon/linear-5-4/default/"))[:4]
TEST = """
import time
import lrp_rules

def test_epsilon():
    assert lrp_rules.Stabilizer().epsilon == 1e-6

def test_version():
    assert lrp_rules.__version__
"""


def of_rules(text: str) -> Mutant:
    """Return lrp_rules with other rules."""
    return Mutant("rules.py:<module>: as it is -> " + text.splitlines()[-1], "rules.py", "<module>", "", text)


AS_IT_IS = of_rules(TEXTS["rules.py"])


def judged(mutant: Mutant, cases: tuple[str, ...] = (), tests: tuple[Tests, ...] = (), limit: float = 120) -> Any:
    """Return the answer of a process."""
    steps = [Step(cases), *(Step(tests=part) for part in tests)]
    task = processes.Task(mutant.id, trial.judge, ({**TEXTS, mutant.file: mutant.source}, steps))
    ((id_, answer),) = processes.run([task], 1, limit, running.WARM)
    assert id_ == mutant.id
    return answer


def test_a_mutant_is_killed_by_a_case() -> None:
    wrong = of_rules(TEXTS["rules.py"] + "\nEpsilon.relevances = lambda self, layer, R: layer.inputs\n")
    fate = judged(wrong, CASES)
    assert (fate.by, fate.what) == ("verify", CASES[0])
    assert fate.reason


def test_a_mutant_that_cannot_be_imported_is_killed() -> None:
    fate = judged(of_rules("import nothing_of_that_name"), CASES)
    assert (fate.by, fate.what) == ("verify", "import lrp_rules")


def test_a_mutant_that_hangs_or_ends_the_process_is_killed() -> None:
    hanging = of_rules("import time\ntime.sleep(60)")
    assert judged(hanging, limit=1) == "no answer in 1 s"
    ending = of_rules("import os\nos._exit(3)")
    assert judged(ending) == "the process ended with exit status 3"


def test_a_mistake_of_the_run_is_no_kill() -> None:
    assert judged(AS_IT_IS, ("agreement/of-nothing",)) == trial.Trouble("KeyError: 'agreement/of-nothing'")


def test_what_is_right_survives() -> None:
    assert judged(AS_IT_IS, CASES) == Fate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_one.py").write_text(TEST, encoding="utf-8")
    return tmp_path


def test_a_mutant_is_killed_by_a_test(folder: Path) -> None:
    text = TEXTS["stabilizer.py"].replace("epsilon: float = 1e-6", "epsilon: float = 1e-3")
    mutant = Mutant("stabilizer.py:Stabilizer: epsilon", "stabilizer.py", "Stabilizer", "", text)
    tests = (Tests((str(folder / "test_one.py"),)),)
    fate = judged(mutant, (), tests)
    assert fate.by == "tests"
    assert fate.what.endswith("::test_epsilon")
    assert judged(AS_IT_IS, (), tests) == Fate()


def test_only_chosen_tests_are_run(folder: Path) -> None:
    broken = of_rules(TEXTS["rules.py"])
    tests = Tests((str(folder / "test_one.py"),), frozenset({"test_one.py::test_nothing"}))
    assert judged(broken, (), (tests,)) == Fate()


def test_what_lrp_rules_itself_does(folder: Path) -> None:
    task = processes.Task(0, trial.look, (TEXTS, CASES, Tests((str(folder / "test_one.py"),))))
    ((_, seen),) = processes.run([task], 1, 120.0, running.WARM)
    assert set(CASES) < set(seen)
    assert len(seen) == len(CASES) + 2
    assert not any(one.failed for one in seen.values())
    files = {block.partition(":")[0] for block in seen[CASES[0]].blocks}
    assert {"rules.py", "layers/known.py", "stabilizer.py", "hooks/registration.py"} <= files
    assert "layers/convolution.py" not in files


def test_a_process_that_knows_lrp_rules_cannot_try_a_mutant() -> None:
    import lrp_rules  # noqa: F401, PLC0415

    with pytest.raises(RuntimeError, match="has not imported lrp_rules"):
        sources.Sources(TEXTS).install()


# Which cases and tests a mutant is asked


def test_those_that_run_the_changed_block_are_asked() -> None:
    seen = {
        "agreement/Gamma/a": Seen(False, frozenset({"x"})),
        "agreement/Epsilon/a": Seen(False, frozenset({"x", "y"})),
        "agreement/Epsilon/b": Seen(True, frozenset({"x"})),
        "laws/Epsilon/c": Seen(False, frozenset()),
        "api/signature/Epsilon": Seen(False, frozenset()),
        "t/test_a.py::test[1]": Seen(False, frozenset({"x"})),
        "t/test_a.py::test[2]": Seen(False, frozenset({"y"})),
        "t/test_b.py::test": Seen(True, frozenset({"x"})),
    }
    choice = running._Choice(seen, [id_ for id_ in seen if "::" not in id_])
    changed = Mutant("rules.py:Epsilon.f: a -> b", "rules.py", "Epsilon.f", "x", "")
    steps = choice.steps(changed, everything=False)
    assert steps[0] == Step(("agreement/Epsilon/a", "agreement/Gamma/a", "api/signature/Epsilon"))
    assert steps[1] == Step(tests=Tests(("t/test_a.py",), frozenset({"t/test_a.py::test[1]"})))
    anywhere = Mutant("rules.py:<module>: a -> b", "rules.py", "<module>", "", "")
    assert choice.steps(anywhere, everything=False)[0].cases == (
        "agreement/Gamma/a",
        "agreement/Epsilon/a",
        "laws/Epsilon/c",
        "api/signature/Epsilon",
    )
    assert choice.runs("y")
    assert not choice.runs("z")


def test_who_is_not_listed_is_asked_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "CASES", 1)
    monkeypatch.setattr(running, "TESTS", (1, 2))
    tests = [f"t/test_a.py::test_{k}" for k in range(4)]
    seen = {id_: Seen(False, frozenset({"x"})) for id_ in ("a/Gamma/1", "a/Gamma/2", *tests)}
    choice = running._Choice(seen, ["a/Gamma/1", "a/Gamma/2"])
    changed = Mutant("rules.py:Gamma.f: a -> b", "rules.py", "Gamma.f", "x", "")
    some, all_ = (choice.steps(changed, everything=everything) for everything in (False, True))
    assert [step.cases for step in all_] == [("a/Gamma/1",), (), (), ("a/Gamma/2",)]
    assert [sorted(step.tests.ids or ()) for step in all_ if step.tests] == [tests[:1], tests[1:2], tests[2:]]
    assert some == all_[:3]


def test_a_part_is_the_same_whatever_else_there_is() -> None:
    mutants = list(mutator.mutants("a.py", TEXT))
    part = running.chosen(mutants, 3)
    assert 0 < len(part) < len(mutants)
    assert running.chosen(mutants[::2], 3) == [mutant for mutant in mutants[::2] if mutant in part]
    assert running.chosen(mutants, 1) == mutants


def test_without_tests_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(running.UnusableError, match="there are no tests in"):
        running.run([], TEXTS, tests=tmp_path)


@pytest.fixture
def two_mutants() -> list[Mutant]:
    return list(mutator.mutants("a.py", "def f(x, y):\n    return x + y\n"))[:2]


def test_a_recorded_fate_is_not_asked_again(tmp_path: Path, two_mutants: list[Mutant]) -> None:
    texts, tests = {"a.py": "def f(x, y):\n    return x + y\n"}, tmp_path / "tests"
    tests.mkdir()
    (tests / "test_a.py").write_text("")
    killed, survivor = two_mutants
    first = Record(tmp_path / "fates", two_mutants, texts, tests)
    first.add(killed.id, Fate("tests", "a", "why"))
    first.add(survivor.id, Fate())
    again = Record(tmp_path / "fates", two_mutants, texts, tests)
    assert again.known == {killed.id: Fate("tests", "a", "why"), survivor.id: Fate()}
    # a test more may kill the survivor, and an edit elsewhere in the package anyone
    (tests / "test_b.py").write_text("")
    assert list(Record(tmp_path / "fates", two_mutants, texts, tests).known) == [killed.id]
    assert not Record(tmp_path / "fates", two_mutants, {**texts, "b.py": ""}, tests).known


def test_what_is_no_record_is_refused(tmp_path: Path, two_mutants: list[Mutant]) -> None:
    (tmp_path / "fates").write_text('{"id": "a"}\n')
    with pytest.raises(RecordError, match="line 1 of"):
        Record(tmp_path / "fates", two_mutants, {}, tmp_path)


def test_who_is_known_is_not_asked(monkeypatch: pytest.MonkeyPatch, two_mutants: list[Mutant]) -> None:
    def all_killed(tasks: Any, *_: Any) -> Any:
        return ((task.key, Fate("verify", task.key)) for task in tasks)

    monkeypatch.setattr(running, "_seen", lambda *_: {})
    monkeypatch.setattr(running, "_pool", lambda _: [])
    monkeypatch.setattr(processes, "run", all_killed)
    told: list[str] = []
    known, other = two_mutants
    fates, _, _ = running.run(two_mutants, {}, known={known.id: Fate("tests")}, told=lambda id_, _: told.append(id_))
    assert told == [other.id]
    assert fates == {known.id: Fate("tests"), other.id: Fate("verify", other.id)}

"""Parameters that a subject cannot change: its values stand in place of the defaults, on both sides of a comparison."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lrp_rules
from verify.checks import agreement, laws, laws_room
from verify.faces import cli
from verify.model import Case, NotOfferedError, Subject, SubjectError, Verdict
from verify.questions.drawing import draw
from verify.questions.fixed import DEFAULTS, as_fixed, checked
from verify.questions.grid import named
from verify.questions.variants import VARIANTS, variant
from verify.runs.outcomes import ask
from verify.subjects.asking import smoke
from verify.subjects.loading import load
from verify.subjects.protocol import messages

(LINEAR,) = named("linear-5-4")
PROBLEM = partial(draw, LINEAR, "signed", "float64")


def _subject(parameters: dict[str, dict[str, Any]], **rules: Any) -> Subject:
    return Subject("fake", SimpleNamespace(**rules), "1", parameters=checked("fake", parameters))


def _case(id_: str) -> Case:
    dtypes = [id_.rpartition("/")[2]]
    return next(case for case in laws.cases(draw, [LINEAR], dtypes) if case.id == id_)


def _agrees(subject: Subject, rule: str, name: str = "default") -> Verdict:
    return agreement.agrees(PROBLEM, LINEAR, variant(rule, name), "cpu", subject).verdict


FIXED = [
    ("Epsilon", {"epsilon": 0.1}),
    ("Epsilon", {"zero_params": "bias"}),
    ("Norm", {"stabilizer": 0.1}),
    ("ZPlus", {"stabilizer": 0.1}),
    ("AlphaBeta", {"alpha": 1.5, "beta": 0.5}),
    ("Gamma", {"gamma": 0.5, "zero_params": ["bias"]}),
    ("ZBox", {"low": -1.0, "high": 1.5}),
    ("WSquare", {"stabilizer": 0.1}),
    ("Flat", {"stabilizer": 0.1}),
]


@pytest.mark.parametrize(("rule", "values"), FIXED, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_a_rule_with_fixed_values_is_right_by_these_and_wrong_by_the_defaults(
    rule: str, values: dict[str, Any]
) -> None:
    right = _subject({rule: values}, **{rule: partial(getattr(lrp_rules, rule), **values)})
    defaults = {name: DEFAULTS[rule][name] for name in values}
    wrong = _subject({rule: values}, **{rule: partial(getattr(lrp_rules, rule), **defaults)})
    assert _agrees(right, rule) is Verdict.PASS
    assert _agrees(wrong, rule) is Verdict.FAIL
    assert agreement.conserves(PROBLEM, LINEAR, variant(rule), "cpu", right).verdict is Verdict.PASS


def test_fixed_values_are_not_given_to_the_rule_and_others_are_not_offered() -> None:
    given = []

    def epsilon(**arguments: Any) -> Any:
        given.append(arguments)
        return lrp_rules.Epsilon(0.3, **arguments)

    subject = _subject({"Epsilon": {"epsilon": 0.3}}, Epsilon=epsilon)
    for name in ("default", "epsilon=0.3", "zero_params=bias"):
        assert _agrees(subject, "Epsilon", name) is Verdict.PASS
    assert given == [{}, {}, {"zero_params": "bias"}]
    for name in ("epsilon=0", "epsilon=callable"):
        with pytest.raises(NotOfferedError, match=r"fake has Epsilon with epsilon=0\.3 alone, not with "):
            _agrees(subject, "Epsilon", name)
    with pytest.raises(NotOfferedError, match="not with -1"):
        subject.get("Epsilon")(epsilon=-1)


def test_names_that_can_be_read_once() -> None:
    of = replace(variant("Epsilon"), arguments=lambda _shape, _dtype: {"zero_params": iter(["bias"])})
    with pytest.raises(NotOfferedError, match=r"zero_params=\[\] alone, not with zero_params=\['bias'\]"):
        as_fixed(of, _subject({"Epsilon": {"zero_params": None}}))


def test_gradient_rule() -> None:
    (relu,) = named("relu")
    asked = partial(agreement.gradient_agrees, partial(draw, relu, "signed", "float64"), relu, "ReLUBetaSmooth")
    smooth = _subject(
        {"ReLUBetaSmooth": {"beta_smooth": 2}}, ReLUBetaSmooth=partial(lrp_rules.ReLUBetaSmooth, beta_smooth=2.0)
    )
    assert asked({}, "cpu", smooth).verdict is Verdict.PASS
    assert asked({}, "cpu", _subject({}, ReLUBetaSmooth=smooth.get("ReLUBetaSmooth"))).verdict is Verdict.FAIL
    with pytest.raises(NotOfferedError, match=r"beta_smooth=2\.0 alone"):
        asked({"beta_smooth": 0.5}, "cpu", smooth)


def test_a_law_of_two_rules_needs_one_stabilizer() -> None:
    rules = {"Norm": lrp_rules.Norm, "Epsilon": partial(lrp_rules.Epsilon, 0.1)}
    subject = _subject({"Epsilon": {"epsilon": 0.1}}, **rules)
    case = _case("laws/Norm/norm-is-epsilon/linear-5-4/float64")
    outcome = ask(case, subject, 0, here=True)
    assert (outcome.verdict, "another stabilizer" in outcome.reason) == (Verdict.NOT_OFFERED, True)
    assert ask(case, _subject({}, **rules), 0, here=True).verdict is Verdict.INCONCLUSIVE  # Epsilon is off, not Norm


def test_every_variant_can_be_asked_with_every_parameter_fixed_to_its_default() -> None:
    for of in VARIANTS:
        fixing = _subject({of.rule: dict(DEFAULTS[of.rule])})
        if set(of.arguments((2, 3), torch.float64)) <= ({"low", "high"} if of.name == "default" else set()):
            as_fixed(of, fixing)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (3, "`parameters` of fake is 3; expected a dictionary such as"),
        ({"Epsilonn": {}}, "has the key 'Epsilonn'; expected a rule with parameters: Epsilon, Norm"),
        ({"Pass": {}}, "has the key 'Pass'"),
        ({"Epsilon": 0.1}, "has 0.1 for Epsilon; expected a dictionary of epsilon, zero_params"),
        ({"Epsilon": {"eps": 0.1}}, "has the key 'eps' for Epsilon; expected some of epsilon, zero_params"),
        ({"Epsilon": {"epsilon": "small"}}, "has 'small' as epsilon of Epsilon; expected a finite number"),
        ({"Epsilon": {"epsilon": float("nan")}}, "expected a finite number"),
        ({"Epsilon": {"zero_params": 3}}, "expected names of parameters, or None"),
        ({"AlphaBeta": {"alpha": 1}}, "fixes AlphaBeta without beta; expected both values or none"),
    ],
)
def test_what_is_no_declaration_is_refused(parameters: Any, message: str) -> None:
    with pytest.raises(SubjectError) as refused:
        checked("fake", parameters)
    assert message in str(refused.value)


@pytest.mark.parametrize(("given", "usable"), [("lambda: 3", True), ("torch.nn", True), ("[1]", False), ("{}", True)])
def test_a_function_or_module_of_that_name_is_no_declaration(
    given: str, usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"subject_{usable}_{len(given)}"
    (tmp_path / f"{name}.py").write_text(f"import torch\nfrom lrp_rules import Epsilon\nparameters = {given}\n")
    monkeypatch.syspath_prepend(tmp_path)
    if usable:
        assert load(name).parameters == {}
    else:
        with pytest.raises(SubjectError, match=r"is \[1\]; expected a dictionary"):
            load(name)


def test_not_offered_alone_makes_no_subject_unusable() -> None:
    def refuse() -> None:
        msg = "convolutions alone"
        raise NotOfferedError(msg)

    def broken() -> None:
        msg = "no"
        raise RuntimeError(msg)

    assert smoke(_subject({}, Epsilon=refuse)) is None
    assert "Epsilon: RuntimeError: no" in str(smoke(_subject({}, Epsilon=broken)))


def test_a_process_declares_them_when_it_starts() -> None:
    line = (
        b'{"protocol": 1, "name": "n", "version": "1", "language": "C", "rules": ["Epsilon"], "layers": [],'
        b' "dtypes": [], "parameters": {"Epsilon": {"epsilon": %s}}}'
    )
    assert messages.read_start(line % b"0.1").parameters == {"Epsilon": {"epsilon": 0.1}}
    with pytest.raises(messages.MessageError, match="expected a finite number"):
        messages.read_start(line % b'"x"')


# --- laws where another formula is computed ---------------------------------------------------------------------------


class _Larger(lrp_rules.Epsilon):
    """Epsilon with a smaller denominator: the relevance is larger, and with it what rounding does."""

    def __init__(self) -> None:
        super().__init__(lambda d: d * 0.01)


def test_a_law_takes_the_room_of_what_the_subject_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = _subject({}, Epsilon=_Larger)
    case = _case("laws/Epsilon/permuted-inputs/linear-5-4/float32")
    assert ask(case, subject, 0, here=True).verdict is Verdict.PASS
    monkeypatch.setattr(laws_room, "_own", lambda _room, _runs: 0.0)
    assert ask(case, subject, 0, here=True).verdict is Verdict.FAIL  # by the bounds of the specification's formula


class _Batched(lrp_rules.Epsilon):
    """Another stabilizer, that of the largest denominator of the batch: no rounding explains that."""

    def __init__(self, last: float = 0.25) -> None:
        super().__init__(lambda d: d + last * d.abs().max())


def test_a_law_is_not_blind_where_another_formula_is_computed() -> None:
    asked = partial(laws._samples_alone, PROBLEM, LINEAR, variant("Epsilon"))
    assert asked(_subject({}, Epsilon=_Batched)).verdict is Verdict.FAIL


class _WrongInTheLast(lrp_rules.Epsilon):
    """Right for all samples of a batch but the last, which is another's."""

    def register(self, module: torch.nn.Module) -> Any:
        """Put the relevance of the first sample in the last one's place."""
        handle = super().register(module)
        hook = module.register_full_backward_hook(_first_for_last)

        def remove() -> None:
            hook.remove()
            handle.remove()

        return SimpleNamespace(remove=remove)


def _first_for_last(_module: torch.nn.Module, given: Any, _outputs: Any) -> Any:
    (r,) = given
    return (torch.cat([r[:-1], r[:1]]) if len(r) > 1 else r,)


def test_sample_alone_asks_every_sample() -> None:
    asked = partial(laws._samples_alone, PROBLEM, LINEAR, variant("Epsilon"))
    assert asked(_subject({}, Epsilon=lrp_rules.Epsilon)).verdict is Verdict.PASS
    found = asked(_subject({}, Epsilon=_WrongInTheLast))
    assert (found.verdict, found.reason.startswith("sample 2,")) == (Verdict.FAIL, True)


# --- whole runs -------------------------------------------------------------------------------------------------------

ADAPTER = """
import lrp_rules
parameters = {"Epsilon": {"epsilon": 0.1, "zero_params": None}}
def Epsilon():
    return lrp_rules.Epsilon(0.1)
"""


def test_a_run_says_with_which_values_it_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fixing.py").write_text(ADAPTER)
    monkeypatch.chdir(tmp_path)
    words = ["--subject", "fixing", "--workers", "0", "--json", "run.json"]
    for name in ("default", "epsilon=0.3"):
        words += ["--case", f"agreement/Epsilon/linear-5-4/{name}/signed/float64"]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["subject"]["parameters"] == {"Epsilon": {"epsilon": 0.1, "zero_params": []}}
    assert run["notes"] == ["Fixed parameters, in place of the defaults: Epsilon with epsilon=0.1, zero_params=None"]
    assert [case["verdict"] for case in run["cases"]] == ["pass", "not-offered"]
    assert "parameters  epsilon=0.1" in result.stdout

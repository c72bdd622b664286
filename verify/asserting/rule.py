"""`assert_rule`: for whoever writes one rule and has its formula, in NumPy, as the expectation."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from verify.asserting.cases import DTYPES, NAME, Asked, Patterns, cases_of
from verify.checks.comparator import check_itself
from verify.model import BAD, Case, Outcome, Subject, share_left
from verify.runs.outcomes import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from verify.asserting.cases import Formula

_SHOWN = 8


def assert_rule(
    rule: Callable[[], Any],
    formula: Formula,
    *,
    layers: Sequence[str] = ("*",),
    kinds: Sequence[str] = ("*",),
    dtypes: Sequence[str] = DTYPES,
    laws: Sequence[str] = ("*",),
    conduct: Sequence[str] = ("*",),
    seed: int = 0,
    only: str | None = None,
) -> None:
    """Assert that a rule computes its formula, obeys the laws that hold for rules, and conducts itself.

    There is no tolerance to choose: the formula is evaluated on numbers that know how far rounding may have taken them
    (``verify.asserting.tracked``), in float64 and in float32.

        def epsilon(A, x, b, R):
            z = A @ x + b
            return x * (A.T @ (R / (z + 1e-6 * np.where(z < 0, -1, 1))))

        assert_rule(MyEpsilon, epsilon)

    Parameters
    ----------
    rule
        Called without arguments, it returns an object whose ``register(module)`` makes the gradient of the module's
        input the relevance, and returns an object with ``remove()``: a class, or ``lambda: MyRule(gamma=0.5)``.
    formula
        Takes one sample of a layer z = A x + b: the matrix A (m, n), input x (n,), constant b (m,) and relevance R (m,)
        of the output; returns the relevance of the input (n,). ``A.of(f)`` is the matrix of the changed parameter,
        such as ``A.of(lambda w: np.maximum(w, 0))``, which is not ``np.maximum(A, 0)`` where padding is circular.
        It may use + - * / ** @, abs, comparisons, np.where, maximum, minimum, clip, sign, sqrt, and what moves numbers
        around.
    layers
        Patterns of types of layers, or of names, for a rule that does not take all: ``["Linear", "Conv*"]``.
    kinds
        Patterns of kinds of data (signed, nonnegative, nonpositive, zeros, single, ...), for a formula that is not
        finite on all: without a stabilizer, ``["signed"]``.
    laws, conduct
        Patterns of laws (additive, sample-alone, permuted-outputs, permuted-inputs) and of topics of conduct, for a
        rule that is not meant to obey all; an empty list leaves them out.
    seed
        Random seed of the test data.
    only
        The id of one case, as the message of a failure names it.

    Raises
    ------
    AssertionError
        If a case fails: which cases, what the rule gave, what the formula gives, and how to run one again.
    ValueError
        If no case is selected, the formula does not return one number for every input, or it is finite in no case that
        compares a relevance with it: that would be a test that cannot fail.

    """
    __tracebackhide__ = True  # in pytest, the account is all there is to see
    name = getattr(rule, "__name__", type(rule).__name__)
    asked = Asked(rule, formula, seed)
    cases = [*cases_of(asked, Patterns(layers, kinds, laws, conduct), dtypes)]
    selected = [case for case in cases if only in {None, case.id}]
    if not selected:
        msg = f"no case fits only={only!r}, layers={layers!r}, dtypes={dtypes!r}; the cases are " + ", ".join(
            case.id for case in cases
        )
        raise ValueError(msg)
    check_itself()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        asked.try_formula()
        outcomes = _answers(rule, selected, seed)
    failures = [outcome for outcome in outcomes if outcome.verdict in BAD]
    if failures:
        raise AssertionError(_account(name, outcomes, failures, seed))
    compared = [outcome for outcome in outcomes if outcome.check == "agreement"]
    if compared and all(share_left(outcome) == 1 for outcome in compared):
        msg = (
            f"{name} was not tested: in {', '.join(outcome.id for outcome in compared[:_SHOWN])} the formula is not "
            "finite, or rounding decides its comparisons; name data kinds that it is defined for, such as "
            'kinds=["signed", "nonnegative"]'
        )
        raise ValueError(msg)


def _account(name: str, outcomes: Sequence[Outcome], failures: Sequence[Outcome], seed: int) -> str:
    """Say what is wrong, where, and how to ask again."""
    lines = [f"{name} failed {len(failures)} of {len(outcomes)} cases"]
    asked = Counter(outcome.check for outcome in outcomes)
    for check, count in Counter(outcome.check for outcome in failures).items():
        where = dict.fromkeys(o.layer for o in failures if o.check == check and o.layer != "-")
        lines.append(f"  {check}: {count} of {asked[check]}  {', '.join(where)}".rstrip())
    lines += [f"    {o.id}: {o.verdict.word}: {o.reason}" for o in failures[:_SHOWN]]
    lines += [f"    and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
    drawn = f", seed={seed}" if seed else ""
    lines.append(f'Reproduce: assert_rule({name}, formula, only="{failures[0].id}"{drawn})')
    return "\n".join(lines)


def _answers(rule: Callable[[], Any], cases: Sequence[Case], seed: int) -> list[Outcome]:
    subject = Subject("rule", SimpleNamespace(**{NAME: _Maker(rule)}), "")
    return [ask(case, subject, seed, here=True) for case in cases]


class _Maker:
    """Makes the rule, whatever arguments a topic would have given a rule that it knows."""

    def __init__(self, rule: Callable[[], Any]) -> None:
        self._rule = rule

    def __call__(self, **_: Any) -> Any:
        return self._rule()

"""The verdict on one call: what came and went, what its rule gives, and what explains the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import lrp_rules as lrp
from verify.auditing import notes
from verify.auditing.account import DEVIATES, HELD, NOT_JUDGED, UNEXPLAINED, Row
from verify.auditing.calls import key_of
from verify.auditing.comparing import merged, places, size, total, within
from verify.auditing.formulas import NoFormulaError, gamma
from verify.auditing.question import Question

if TYPE_CHECKING:
    from verify.auditing.calls import Call
    from verify.auditing.meaning import Meaning

_U64 = 2.0**-53


class Sums(NamedTuple):
    """What came to a call and left it."""

    relevance_in: float
    relevance_out: float
    gross_in: float
    gross_out: float


class Found(NamedTuple):
    """What the rule makes of the difference, and the verdict."""

    bias: float
    stabilizer: float
    dead: float
    constants: float
    unexplained: float
    deviation: float
    room: float
    verdict: str
    note: str


class Judge:
    """Holds each call to the rule that is meant for it."""

    def __init__(self, meaning: Meaning) -> None:
        self.meaning = meaning

    def row(self, call: Call, calls: int) -> Row:
        """Return the row of a call."""
        came, went = list(call.R.values()), list(call.r.values())
        sums = Sums(total(came), total(went), total([v.abs() for v in came]), total([v.abs() for v in went]))
        layer = call if call.folded is None else call.folded
        rule = self._rule_of(call)
        name = call.operation if call.folded is None else f"{layer.operation} + {call.operation}"

        def row(found: Found) -> Row:
            shown = "" if rule is None else type(rule).__name__
            return Row(name, layer.path, call.where, shown, calls, **sums._asdict(), **found._asdict())

        if call.cut:
            return row(Found(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, DEVIATES, notes.cut(call)))
        try:
            found = self._verdict(call, sums)
            if call.changed is not None:
                told = "; ".join(filter(None, (notes.changed(*call.changed), found.note)))
                found = found._replace(verdict=DEVIATES, note=told)
            return row(found)
        except NoFormulaError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  whatever a function does when it is called again
            reason = f"it could not be computed again: {type(error).__name__}: {error}"
        lost = sums.relevance_out - sums.relevance_in
        dtype = came[0].dtype if came else torch.float64
        room = gamma(size(came) + size(went), torch.finfo(dtype).eps) * (sums.gross_in + sums.gross_out)
        unexplained = 0.0 if abs(lost) <= room else lost
        return row(Found(0.0, 0.0, 0.0, 0.0, unexplained, float("nan"), float("nan"), NOT_JUDGED, reason))

    def _rule_of(self, call: Call) -> Any:
        return self.meaning.resolved(call if call.folded is None else call.folded)

    def _verdict(self, call: Call, sums: Sums) -> Found:
        problem = notes.not_to_be_judged(call)
        if problem:
            raise NoFormulaError(problem)
        rule = self._rule_of(call)
        own = call if call.folded is None else call.folded
        own.settle(call.r)
        u = torch.finfo(own.inputs[0].dtype).eps / 2
        device = own.inputs[0].device
        Rs = [
            call.R[end] if end is not None and end in call.R else torch.zeros(shape, dtype=dtype, device=device)
            for end, (shape, dtype) in zip(call.outs, call.shapes, strict=True)
        ]
        question = Question(call, rule, Rs, u)
        got = self._got(call, own)
        question.look_for_a_canonizer(got)
        answer = question.answer()
        expected, bounds = merged(answer, own)
        constants = total([r for r, place in zip(answer.r, places(own), strict=True) if not own.reached[place]])
        constants += answer.constants
        if isinstance(rule, lrp.Stop) or question.routes():
            constants += sums.relevance_in - total(answer.r)
        known = answer.bias + answer.stabilizer + answer.dead + constants
        unexplained = sums.relevance_out - sums.relevance_in + known
        most = total([v.abs() for v in expected])
        off = [g - e for g, e in zip(got, expected, strict=True)]
        deviation = total([v.abs() for v in off])
        gross = sums.gross_in + most + abs(answer.bias) + abs(answer.stabilizer) + abs(answer.dead) + abs(constants)
        whole = gamma(4 * (size(Rs) + size(expected) + 8), u)
        share = deviation / most if most else float(deviation > 0)
        room = (whole * gross if bounds is None else total(bounds)) / most if most else 0.0
        numbers = (answer.bias, answer.stabilizer, answer.dead, constants, unexplained, share, room)
        if not room < 1:
            msg = "rounding could explain any value: use double precision, model.double()"
            raise NoFormulaError(msg)
        if not within(off, bounds, whole * gross):
            return Found(*numbers, DEVIATES, notes.deviation(question, got, own))
        # the formula is exact in float64, whatever the dtype of the model
        by_rule = total(expected) - sums.relevance_in + known
        exact = gamma(4 * (size(Rs) + size(expected) + 8), _U64) * gross
        if not self.meaning.gradient and not abs(by_rule) <= exact:
            return Found(*numbers, UNEXPLAINED, notes.leak(question, sums.relevance_in, sums.relevance_out))
        if not abs(unexplained - by_rule) <= (whole * gross if bounds is None else total(bounds)) + exact:
            return Found(*numbers, UNEXPLAINED, notes.ELSEWHERE)
        return Found(*numbers, HELD, notes.held(question))

    @staticmethod
    def _got(call: Call, own: Call) -> list[Tensor]:
        """Return what each end that the model's input reaches got; an end that is used twice is one."""
        by_key = {key_of(end): r for end, r in call.r.items()}
        found: dict[tuple[int, int], Tensor] = {}
        for end, x, reached in zip(own.ends, own.inputs, own.reached, strict=True):
            if reached:
                r = by_key.get(key_of(end))
                found[key_of(end)] = torch.zeros_like(x).double() if r is None else r.double().reshape(x.shape)
        return list(found.values())

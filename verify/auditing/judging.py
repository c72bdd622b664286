"""The verdict on one call: what came and went, what its rule gives, and what explains the difference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import lrp_rules as lrp
from lrp_rules.networks.written_out import WRITTEN_OUT
from verify.auditing import notes
from verify.auditing.account import DEVIATES, HELD, PROBABLE, UNEXPLAINED, WORST, Entry, Row
from verify.auditing.calls import key_of
from verify.auditing.comparing import excess, merged, places, size, total
from verify.auditing.formulas import NoFormulaError
from verify.auditing.question import Question
from verify.auditing.rounding import Likely, gamma

if TYPE_CHECKING:
    from collections.abc import Sequence

    from verify.auditing.calls import Call
    from verify.auditing.formulas import Answer
    from verify.auditing.meaning import Meaning

_U64 = 2.0**-53
#: How many entries of an input a row shows: those that are furthest off, and as many others.
_SHOWN = 3


class Evidence(NamedTuple):
    """What a verdict rests on: relevance of the outputs, what each input got, and got - expected with its bound."""

    Rs: list[Tensor]
    got: list[Tensor]
    off: list[Tensor]
    #: None: the whole may differ by `room`.
    bounds: list[Tensor] | None
    room: float


class Judge:
    """Holds each call to the rule that is meant for it."""

    def __init__(self, meaning: Meaning, *, times_input: bool = False) -> None:
        self.meaning, self.times_input = meaning, times_input
        #: What the last verdict rests on; None, if there was none.
        self.evidence: Evidence | None = None

    def row(self, call: Call, calls: int) -> Row:
        """Return the row of a call."""
        self.evidence = None
        came, went = list(call.R.values()), list(call.r.values())
        layer = call if call.folded is None else call.folded
        rule = self._rule_of(call)
        name = call.operation if call.folded is None else f"{layer.operation} + {call.operation}"
        row = Row(
            name, layer.path, call.where, "" if rule is None else type(rule).__name__, calls, total(came), total(went),
            total([v.abs() for v in came]), total([v.abs() for v in went]),
        )  # fmt: skip
        if call.cut and call.is_query and isinstance(self.meaning.functions.get("softmax"), lrp.Stop):
            return replace(row, verdict=HELD, note=notes.QUERY)
        if call.cut:
            return replace(row, verdict=DEVIATES, note=notes.cut(call))
        try:
            found = self._judged(call, row)
        except NoFormulaError as error:
            return self._not_judged(row, call, str(error))
        except Exception as error:  # noqa: BLE001  whatever a function does when it is called again
            return self._not_judged(row, call, f"it could not be computed again: {type(error).__name__}: {error}")
        if call.changed is not None:
            told = "; ".join(filter(None, (notes.changed(*call.changed), found.note)))
            return replace(found, verdict=DEVIATES, note=told)
        return found

    def _not_judged(self, row: Row, call: Call, reason: str) -> Row:
        values = [*call.R.values(), *call.r.values()]
        dtype = values[0].dtype if values else torch.float64
        lost = row.relevance_out - row.relevance_in
        room = gamma(size(values), torch.finfo(dtype).eps) * (row.gross_in + row.gross_out)
        unknown = float("nan")
        return replace(
            row, unexplained=0.0 if abs(lost) <= room else lost, deviation=unknown, room=unknown, ratio=unknown,
            probable_room=unknown, probable_ratio=unknown, note=reason,
        )  # fmt: skip

    def _rule_of(self, call: Call) -> Any:
        return self.meaning.resolved(call if call.folded is None else call.folded)

    def _judged(self, call: Call, row: Row) -> Row:
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
        question = Question(call, rule, Rs, u, times_input=self.times_input)
        got = self._got(call, own)
        question.look_for_a_canonizer(got)
        answer = question.answer()
        expected, bounds = merged(answer, own)
        constants = total([r for r, place in zip(answer.r, places(own), strict=True) if not own.reached[place]])
        constants += answer.constants
        if isinstance(rule, lrp.Stop) or question.routes():
            constants += row.relevance_in - total(answer.r)
        known = answer.bias + answer.stabilizer + answer.dead + constants
        most = total([v.abs() for v in expected])
        off = [g - e for g, e in zip(got, expected, strict=True)]
        deviation = total([v.abs() for v in off])
        gross = row.gross_in + most + abs(answer.bias) + abs(answer.stabilizer) + abs(answer.dead) + abs(constants)
        whole = gamma(4 * (size(Rs) + size(expected) + 8), u) * gross
        reach = whole if bounds is None else total(bounds)
        row = replace(
            row, bias=answer.bias, stabilizer=answer.stabilizer, dead=answer.dead, constants=constants,
            unexplained=row.relevance_out - row.relevance_in + known,
            deviation=deviation / most if most else float(deviation > 0), room=reach / most if most else 0.0,
            ratio=excess(off, bounds, whole), probable_room=float("nan"), probable_ratio=float("nan"), decided_by=WORST,
            entries=entries(got, expected, bounds),
        )  # fmt: skip
        self.evidence = Evidence(Rs, got, off, bounds, whole)
        if u > _U64:
            row = self._probably(row, question, answer, got, expected, most)
        if not row.room < 1 and row.decided_by != PROBABLE:
            msg = "rounding could explain any value: use double precision, model.double()"
            raise NoFormulaError(msg)
        if not row.ratio <= 1:
            if rule is None and question.operation in WRITTEN_OUT:
                msg = "fused attention, in one piece: there is no formula for it. attach writes it out"
                raise NoFormulaError(msg)
            return replace(row, verdict=DEVIATES, note=notes.deviation(question, got, own))
        # the formula is exact in float64, whatever the dtype of the model
        by_rule = total(expected) - row.relevance_in + known
        exact = gamma(4 * (size(Rs) + size(expected) + 8), _U64) * gross
        if not self.meaning.gradient and not abs(by_rule) <= exact:
            return replace(row, verdict=UNEXPLAINED, note=notes.leak(question, row.relevance_in, row.relevance_out))
        if not abs(row.unexplained - by_rule) <= reach + exact:
            return replace(row, verdict=UNEXPLAINED, note=notes.ELSEWHERE)
        return replace(row, verdict=HELD, note=notes.held(question, row.probable_ratio))

    @staticmethod
    def _probably(
        row: Row, question: Question, answer: Answer, got: list[Tensor], expected: list[Tensor], most: float
    ) -> Row:
        """Add what the probable bound says; it decides where the worst case could explain any value."""
        u = Likely(question.u)
        off = [g - e for g, e in zip(got, expected, strict=True)]
        _, bounds = merged(question.answer(u=u), question.own)
        ledger = sum(map(abs, (answer.bias, answer.stabilizer, answer.dead, row.constants)))
        whole = gamma(4 * (size(question.Rs) + size(expected) + 8), u) * (row.gross_in + most + ledger)
        room = (whole if bounds is None else total(bounds)) / most if most else 0.0
        row = replace(row, probable_room=room, probable_ratio=excess(off, bounds, whole))
        if row.room < 1 or not (room < 1 and row.probable_ratio <= 1):
            return row
        return replace(row, decided_by=PROBABLE, entries=entries(got, expected, bounds))

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


def entries(got: Sequence[Tensor], expected: Sequence[Tensor], bounds: Sequence[Tensor] | None) -> tuple[Entry, ...]:
    """Return some entries of each input: those that are furthest off, and others at even distances."""
    found = []
    for number, (g, e) in enumerate(zip(got, expected, strict=True)):
        if not g.numel():
            continue
        off = (g - e).abs().flatten()
        ratio = off if bounds is None else off / (bounds[number].flatten() + 2.0**-1000)
        count = min(_SHOWN, len(off))
        worst = ratio.nan_to_num(torch.inf).topk(count).indices.tolist()
        others = torch.linspace(0, len(off) - 1, 2 * count).long().tolist()
        for place in list(dict.fromkeys([*worst, *others]))[: 2 * count]:
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), g.shape))
            known = float("nan") if bounds is None else float(ratio[place])
            found.append(Entry(number, index, float(g.flatten()[place]), float(e.flatten()[place]), known))
    return tuple(found)

"""Two pipelines on one network, operation by operation: where they part, and which of them follows its rule."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from verify.auditing.account import HELD, NOT_JUDGED, finite
from verify.auditing.audit import explained, in_dtype
from verify.auditing.comparing import total
from verify.auditing.text import columns, shown_where

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    import torch
    from torch import Tensor, nn

    from lrp_rules import Composite
    from lrp_rules.hooks.hook import Hook
    from verify.auditing.account import Row
    from verify.auditing.audit import Audit, Explains
    from verify.auditing.judging import Evidence


@dataclass(frozen=True)
class Pair:
    """One operation under both pipelines. The fields are the columns of `Comparison.table`."""

    operation: str
    module: str
    where: str
    rule: str
    difference_in: float
    difference_out: float
    verdict_a: str
    verdict_b: str
    parts: bool
    note: str


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What two pipelines make of one input; ``print`` it for the operations at which they part."""

    a: Audit
    b: Audit
    rows: tuple[Pair, ...]

    def __repr__(self) -> str:
        count = len(self.parting)
        return f"<Comparison of {self.a.pipeline} and {self.b.pipeline}, {len(self.rows)} operations, {count} part>"

    @property
    def parting(self) -> tuple[Pair, ...]:
        """The operations at which they part, from the output down: given the same, they give something else."""
        return tuple(row for row in self.rows if row.parts)

    @property
    def first(self) -> Pair | None:
        """The operation at which they part first."""
        return next(iter(self.parting), None)

    @property
    def same(self) -> bool:
        """Whether they part nowhere, and every operation of both could be judged."""
        return not self.parting and not any(NOT_JUDGED in {row.verdict_a, row.verdict_b} for row in self.rows)

    @property
    def table(self) -> pd.DataFrame:
        """One row for each operation, from the output down.

        =============================== =============================================================================
        operation, module, where, rule  as in `Audit.table`
        difference_in, difference_out   of the relevance of its outputs and inputs: sum of abs(A - B), by the larger
                                        of sum abs(A) and sum abs(B), after division by what was put in; NaN where
                                        it is not known
        verdict_a, verdict_b            empty where a pipeline does not have this operation
        parts                           whether more than rounding tells apart how far each is off the rule
        note                            which follows its rule, and what the other does
        =============================== =============================================================================
        """
        import pandas as pd  # noqa: PLC0415  it takes a second

        return pd.DataFrame([asdict(row) for row in self.rows], columns=[one.name for one in fields(Pair)])

    @property
    def difference(self) -> float:
        """How far the relevance of the inputs differs, as in the table."""
        found = [[r for r in one.relevance if r is not None] for one in (self.a, self.b)]
        return _difference(found[0], found[1], (self.a.gross, self.b.gross))

    def to_json(self) -> str:
        """Return all rows as JSON."""
        first = None if self.first is None else self.rows.index(self.first)
        content = {
            "schema": "lrp-pipelines/1", "model": self.a.model, "a": self.a.pipeline, "b": self.b.pipeline,
            "difference": self.difference, "same": self.same, "first": first,
            "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip
        return json.dumps(finite(content), indent=1)

    def __str__(self) -> str:
        return self.text()

    def text(self, *, every: bool = False) -> str:
        """Return the operations at which they part or something is to be said; all, where ``every`` is given."""
        shown = [row for row in self.rows if every or row.parts or row.note]
        lines = [("operation", "where", "rule", "R in", "R out", "A", "B")]
        lines += [
            (
                f"{'≠' if row.parts else ' '} {row.module}  {row.operation}", shown_where(row.where), row.rule or "-",
                _percent(row.difference_in), _percent(row.difference_out), row.verdict_a or "-", row.verdict_b or "-",
            )
            for row in shown
        ]  # fmt: skip
        told = [row.note for row in shown]
        out = [f"A: {self.a.pipeline}, B: {self.b.pipeline}, on {self.a.model}: {len(self.rows)} operations"]
        if shown:
            for line, note in zip(columns(lines, right={3, 4}), ["", *told], strict=True):
                out += [line, *([f"      {note}"] if note else [])]
        return "\n".join([*out, "", *self._summary()])

    def _summary(self) -> Iterator[str]:
        yield f"the relevance of the input differs by {_percent(self.difference) or '0'}"
        if self.first is None:
            yield "they part nowhere" if self.same else "they part nowhere that can be judged"
            return
        above = self.rows[: self.rows.index(self.first)]
        if any(NOT_JUDGED in {row.verdict_a, row.verdict_b} for row in above):
            yield "what could not be judged lies above the first of these"
        more = len(self.parting) - 1
        others = f", and at {more} more" if more else ""
        yield f"they part first at {self.first.module or '(model)'} {self.first.operation}{others}"


def compare_pipelines(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    rules: Mapping[Any, Hook] | Composite,
    a: Explains,
    b: Explains,
    *,
    target: int | Tensor | None = None,
    expected: Mapping[Any, Hook] | Composite | None = None,
    dtype: torch.dtype | None = None,
) -> Comparison:
    """Explain one input by two pipelines, and find where they part.

    Each operation is judged under both, with the relevance that came to it there: a difference that is only handed on
    is not one of this operation. Two that follow the rule do not part.

    Parameters
    ----------
    model, x, rules, target, expected, dtype
        As for :func:`audit`.
    a, b
        The pipelines, as ``pipeline`` for :func:`audit`; None is ``attach(model, rules)``.

    Returns
    -------
    Comparison
        ``print`` it, or look at its ``first`` and its ``table``.

    """
    model, x = in_dtype(model, x, dtype)
    proofs: list[list[Evidence | None]] = [[], []]
    found = [
        explained(model, x, rules, target=target, pipeline=pipeline, expected=expected, keep=keep)
        for pipeline, keep in zip((a, b), proofs, strict=True)
    ]
    return Comparison(found[0], found[1], tuple(_pairs(found, proofs)))


def _pairs(audits: Sequence[Audit], proofs: Sequence[Sequence[Evidence | None]]) -> Iterator[Pair]:
    keys = [[_key(row) for row in one.rows] for one in audits]
    scales = (audits[0].gross, audits[1].gross)
    for _, i, i_end, j, j_end in SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_opcodes():
        both = i_end - i == j_end - j and keys[0][i:i_end] == keys[1][j:j_end]
        if both:
            for k, m in zip(range(i, i_end), range(j, j_end), strict=True):
                rows = (audits[0].rows[k], audits[1].rows[m])
                yield _pair(rows, (proofs[0][k], proofs[1][m]), scales, audits)
            continue
        for side, places in ((0, range(i, i_end)), (1, range(j, j_end))):
            for place in places:
                yield _alone(audits[side].rows[place], side, audits[side].pipeline)


def _key(row: Row) -> tuple[str, str]:
    """Return what an operation is known by under any pipeline: canonizers have modules of their own for sums."""
    if row.operation == "Sum" and row.module.endswith("canonizer_sum"):
        return "add", row.module.rpartition(".")[0]
    return row.operation.rpartition(".")[2].strip("_"), row.module


def _alone(row: Row, side: int, pipeline: str) -> Pair:
    verdicts = ("", row.verdict) if side else (row.verdict, "")
    told = "; ".join(filter(None, (f"only under {pipeline}", row.note)))
    unknown = float("nan")
    parts = row.verdict not in {HELD, NOT_JUDGED}
    return Pair(row.operation, row.module, row.where, row.rule, unknown, unknown, *verdicts, parts, told)


def _pair(
    rows: tuple[Row, Row],
    proofs: tuple[Evidence | None, Evidence | None],
    scales: tuple[float, float],
    audits: Sequence[Audit],
) -> Pair:
    first, second = rows
    came = went = float("nan")
    one, other = proofs
    if one is not None and other is not None:
        came, went = _difference(one.Rs, other.Rs, scales), _difference(one.got, other.got, scales)
    parts = _parts(rows, proofs, scales)
    return Pair(
        first.operation, first.module, first.where, first.rule, came, went, first.verdict, second.verdict, parts,
        _told(rows, (audits[0].pipeline, audits[1].pipeline)),
    )  # fmt: skip


def _parts(rows: tuple[Row, Row], proofs: tuple[Evidence | None, Evidence | None], scales: tuple[float, float]) -> bool:
    first, second = rows
    if NOT_JUDGED in {first.verdict, second.verdict} or (first.verdict, first.note) == (second.verdict, second.note):
        return False
    if first.verdict != second.verdict and first.ratio <= 1 and second.ratio <= 1:
        return True  # both do what the rule says, and one of them something besides
    one, other = proofs
    if one is None or other is None or [v.shape for v in one.off] != [v.shape for v in other.off]:
        return first.verdict != second.verdict
    a, b = scales
    if one.bounds is None or other.bounds is None:
        room = one.room / a + other.room / b
        return not total([(v / a - w / b).abs() for v, w in zip(one.off, other.off, strict=True)]) <= room
    off = zip(one.off, one.bounds, other.off, other.bounds, strict=True)
    return not all(bool(((v / a - w / b).abs() <= p / a + q / b).all()) for v, p, w, q in off)


def _told(rows: tuple[Row, Row], names: tuple[str, str]) -> str:
    first, second = rows
    rule = first.rule or "the gradient"
    held = [name for name, row in zip(names, rows, strict=True) if row.verdict == HELD]
    if first.note == second.note:
        return first.note and f"both: {first.note}"
    notes = [f"{name}: {row.note}" for name, row in zip(names, rows, strict=True) if row.note]
    if len(held) == 2:
        return "; ".join(notes)
    return "; ".join([f"{held[0]} follows {rule}" if held else f"neither follows {rule}", *notes])


def _difference(one: Sequence[Tensor], other: Sequence[Tensor], scales: tuple[float, float]) -> float:
    if [v.shape for v in one] != [v.shape for v in other] or not all(scales):
        return float("nan")
    a, b = scales
    off = total([(v.double() / a - w.double() / b).abs() for v, w in zip(one, other, strict=True)])
    most = max(total([v.abs() for v in one]) / a, total([w.abs() for w in other]) / b)
    return off / most if most else 0.0


def _percent(value: float) -> str:
    """Nothing where it is rounding."""
    return "?" if value != value else "" if value < 1e-9 else f"{100 * value:.3g} %"  # noqa: PLR0124  NaN

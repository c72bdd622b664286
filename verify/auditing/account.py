"""The account of an audit: one row for each operation, and what they sum up to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from lrp_entry.extras import require

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

HELD, DEVIATES, UNEXPLAINED, NOT_JUDGED = "held", "deviates", "unexplained", "not judged"


#: Which bound a verdict rests on.
WORST, PROBABLE = "worst case", "probable"


class Entry(NamedTuple):
    """One entry of the relevance of an input, beside what the rule gives; ratio: by the bound of the verdict."""

    input: int
    place: tuple[int, ...]
    got: float
    expected: float
    ratio: float


@dataclass(frozen=True)
class Row:
    """One call. The fields, but for the entries, are the columns of `Audit.table`."""

    operation: str
    module: str
    where: str
    rule: str
    calls: int
    relevance_in: float
    relevance_out: float
    gross_in: float
    gross_out: float
    bias: float = 0.0
    stabilizer: float = 0.0
    dead: float = 0.0
    constants: float = 0.0
    unexplained: float = 0.0
    deviation: float = 0.0
    room: float = 0.0
    probable_room: float = 0.0
    ratio: float = 0.0
    probable_ratio: float = 0.0
    decided_by: str = ""
    verdict: str = NOT_JUDGED
    note: str = ""
    entries: tuple[Entry, ...] = ()


#: The columns of the table.
COLUMNS = tuple(one.name for one in fields(Row) if one.name != "entries")


@dataclass(frozen=True, eq=False, repr=False)
class Account:
    """What became of the relevance in one explanation of a network."""

    model: str
    pipeline: str
    rows: tuple[Row, ...]
    #: The sum of the relevance that was put in at the output, and of its magnitudes.
    put_in: float
    gross: float
    #: The relevance of each input, as the pipeline gives it.
    relevance: tuple[Tensor | None, ...]
    output: Tensor
    #: Names of modules that have a rule and were not called.
    never_called: tuple[str, ...] = ()

    def __repr__(self) -> str:
        verdict = "held" if self.held else f"did not hold: {len(self.faults)}"
        return f"<{type(self).__name__} of {self.model} by {self.pipeline}, {len(self.rows)} operations, {verdict}>"

    @property
    def table(self) -> pd.DataFrame:
        """One row for each call of a module or function, from the output down.

        ========================== ==================================================================================
        operation, module, where   what was called: a type of module or a function; in which module; at which line
        rule                       the rule that was meant; empty: its gradient
        calls                      how often this operation was called at this place
        relevance_in, _out         sums of the relevance of its outputs and of its inputs
        gross_in, gross_out        sums of the magnitudes
        bias, stabilizer, dead     what these take by the rule; dead: outputs to which nothing contributed
        constants                  what the rule gives to learned constants, such as a position embedding
        unexplained                relevance_out - relevance_in, and all that is named: 0 but for rounding
        deviation                  sum of abs(got - expected) over all inputs, by that of abs(expected)
        room                       how large rounding can make the deviation: below it, nothing is told apart
        probable_room              the same by the probable bound; in float64, where it is not needed, NaN
        ratio                      the largest abs(got - expected) / bound of an entry: above 1 it deviates
        probable_ratio             the same by the probable bound
        decided_by                 worst case, or probable where in float32 the worst case could explain any value
        verdict                    held, deviates, unexplained, not judged
        note                       why, and what to do
        ========================== ==================================================================================
        """
        require("bench", "the table of an audit as a data frame")
        import pandas as pd  # noqa: PLC0415  it takes a second

        return pd.DataFrame([[getattr(row, name) for name in COLUMNS] for row in self.rows], columns=list(COLUMNS))

    @property
    def arrived(self) -> float:
        """The sum of the relevance at the inputs."""
        return sum(float(r.double().sum()) for r in self.relevance if r is not None)

    @property
    def unexplained(self) -> float:
        """Sum over all operations of the relevance that has no explanation, in units of what was put in."""
        return sum(abs(row.unexplained) for row in self.rows) / self.gross if self.gross else 0.0

    @property
    def held(self) -> bool:
        """Whether every operation follows the rule that was meant, and all relevance is explained."""
        return bool(self.rows) and not self.faults and not self.never_called

    @property
    def faults(self) -> tuple[Row, ...]:
        """The rows that did not hold."""
        return tuple(row for row in self.rows if row.verdict != HELD)

    def to_json(self) -> str:
        """Return the numbers and all rows as JSON, in the form of lrp-audit-1.schema.json."""
        content = {
            "schema": "lrp-audit/1", "model": self.model, "pipeline": self.pipeline, "put_in": self.put_in,
            "arrived": self.arrived, "unexplained": self.unexplained, "held": self.held,
            "never_called": self.never_called,
            "rows": [{**asdict(row), "entries": [one._asdict() for one in row.entries]} for row in self.rows],
        }  # fmt: skip
        return json.dumps(finite(content), indent=1)


def finite(value: Any) -> Any:
    """Return numbers that JSON does not know as strings: "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value

"""An audit as text for a terminal: one line for each block, and below it what did not hold."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from verify.auditing.account import HELD, PROBABLE, WORST, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from verify.auditing.account import Account

HEAD = (
    "block / operation", "where", "rule", "R in", "R out", "bias", "stabil.", "dead", "const.", "unexpl.", "off rule",
    "verdict",
)  # fmt: skip


#: From here on, what a row held to is worth a word.
_COARSE = 1e-3


def blocks(rows: Iterable[Row], depth: int = 1) -> list[tuple[str, list[Row]]]:
    """Group rows by the block that they lie in: as they follow each other, by the first parts of their names."""
    found: list[tuple[str, list[Row]]] = []
    for row in rows:
        name = ".".join(row.module.split(".")[:depth]) or "(model)"
        if not found or found[-1][0] != name:
            found.append((name, []))
        found[-1][1].append(row)
    return found


def text(audit: Account, *, depth: int = 1, every: bool = False) -> str:
    """Return the account; with all rows, where ``every`` is given."""
    lines: list[tuple[str, ...]] = [HEAD]
    notes: dict[int, str] = {}
    for name, rows in blocks(audit.rows, depth):
        counts = Counter(row.verdict for row in rows)
        verdict = ", ".join(f"{count} {what}" for what, count in sorted(counts.items(), key=lambda kv: kv[0] != HELD))
        came = rows[0].relevance_in
        # shortcuts leave it, too
        went = came + sum(row.relevance_out - row.relevance_in for row in rows)
        sums = [
            sum(getattr(row, column) for row in rows)
            for column in ("bias", "stabilizer", "dead", "constants", "unexplained")
        ]
        scale = max(row.gross_in for row in rows)
        lines.append((name, "", "", f"{came:.4g}", f"{went:.4g}",
                      *(_number(v, scale) for v in sums), "", verdict))  # fmt: skip
        for row in rows:
            if every or row.verdict != HELD or row.note:
                lines.append(_line(row))
                if row.note:
                    notes[len(lines)] = row.note
    out = [f"Audit of {audit.model} by {audit.pipeline}: {len(audit.rows)} operations"]
    for number, line in enumerate(columns(lines, right=set(range(3, 11))), 1):
        out.append(line)
        if number in notes:
            out.append(f"      {notes[number]}")
    return "\n".join([*out, "", *summary(audit)])


def columns(lines: Sequence[Sequence[str]], *, right: set[int]) -> list[str]:
    """Return lines whose cells stand below each other; ``right`` are columns of numbers."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            v.rjust(w) if c in right else v.ljust(w) for c, (v, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def summary(audit: Account) -> list[str]:
    """Return the last lines."""
    counts = Counter(row.verdict for row in audit.rows)
    total = ", ".join(f"{count} {what}" for what, count in counts.items())
    unexplained = f"unexplained {audit.unexplained:.3g} of what was put in"
    out = [
        f"put in {audit.put_in:.6g}, arrived {audit.arrived:.6g}; {unexplained}",
        f"{'held' if audit.held else 'did not hold'}: {total}",
    ]
    held = [row for row in audit.rows if row.verdict == HELD]
    room = max((row.room for row in held), default=0.0)
    if room > _COARSE:
        probable = max((row.probable_room for row in held if row.probable_room == row.probable_room), default=None)
        told = f"rounding could hide a deviation of {room:.1g} in a row"
        told += "" if probable is None else f" at worst, and of {probable:.1g} probably"
        out.append(f"{told} (columns room): model.double() tells formulas apart")
    counts = Counter(
        row.decided_by for row in audit.rows if row.probable_ratio == row.probable_ratio and row.decided_by
    )
    if counts:
        told = ", ".join(f"{counts[what]} by the {what}" for what in (WORST, PROBABLE) if counts[what])
        out.append(f"decided {told} bound of rounding in single precision")
    if audit.never_called:
        out.append(f"never called, though a rule was meant for them: {', '.join(audit.never_called)}")
    return out


def shown_where(where: str) -> str:
    """Return a line of a file without the folders above it."""
    return where.rpartition("/")[2]


def _line(row: Row) -> tuple[str, ...]:
    scale = max(row.gross_in, row.gross_out)
    named = f"  {row.module}  {row.operation}" if row.module else f"  {row.operation}"
    numbers = (row.bias, row.stabilizer, row.dead, row.constants, row.unexplained)
    off = "" if row.deviation < 1e-9 else "?" if row.deviation != row.deviation else f"{row.deviation:.2g}"
    return (named, shown_where(row.where), row.rule or "-", f"{row.relevance_in:.4g}", f"{row.relevance_out:.4g}",
            *(_number(v, scale) for v in numbers), off, row.verdict)  # fmt: skip


def _number(value: float, scale: float) -> str:
    """Nothing where it would be rounding, or too little to be seen."""
    return "" if abs(value) <= 1e-6 * scale else f"{value:.3g}"


def markdown(audit: Account) -> str:
    """Return the rows that did not hold, and the totals, in Markdown."""
    columns: Sequence[str] = (
        "operation",
        "module",
        "where",
        "rule",
        "relevance in",
        "relevance out",
        "unexplained",
        "verdict",
        "note",
    )
    lines = [f"**Audit of {audit.model} by {audit.pipeline}**", "", *(f"{line}  " for line in summary(audit)), ""]
    if audit.faults:
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in audit.faults:
        cells = (row.operation, row.module, shown_where(row.where), row.rule or "-", f"{row.relevance_in:.4g}",
                 f"{row.relevance_out:.4g}", f"{row.unexplained:.3g}", row.verdict, row.note)  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"

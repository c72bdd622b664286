"""The pages of a report: the HTML page that needs nothing else, and the same in Markdown."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from bench.report_charts import Chart, Panel, memory_chart, model_chart, panels, peer_chart, plain
from bench.report_data import GRADIENT, problems, strips, unique
from bench.report_text import MARKS, MISSING, interval, number, percent, plural, ratio, seconds, size
from bench.report_views import REGIMES, Headline, Heat, HeatCell, Peer, headline, heats, peers
from bench.table import COLUMNS, ROW

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.report_data import Row, Setting

TEMPLATES = Path(__file__).parent / "templates"

#: What of a row is not in the JSON of the page: the same for all rows of a setting, or said otherwise.
_ELSEWHERE = {"schema_version", "run_id", "started", "machine"}


@dataclass(frozen=True)
class View:
    """All that the page says of one setting."""

    setting: Setting
    headline: Headline | None
    peers: list[Peer]
    peer_charts: dict[str, Chart]
    heats: dict[str, list[Heat]]
    models: Chart
    panels: list[Panel]
    memory: Chart
    problems: list[tuple[Row, list[Row]]]

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        """How many rows of each subject have no time, by status."""
        found: dict[str, dict[str, int]] = {}
        for first, rows in self.problems:
            counts = found.setdefault(first["subject"], {})
            counts[first["status"]] = counts.get(first["status"], 0) + len(rows)
        return found


def view(setting: Setting) -> View:
    """Return what there is to say of a setting."""
    rows = setting.rows
    beside = peers(rows)
    maps = {subject: heats(rows, subject) for subject in setting.subjects}
    return View(
        setting,
        headline(rows, setting.own),
        beside,
        {peer.baseline: peer_chart(rows, peer.baseline) for peer in beside},
        {subject: found for subject, found in maps.items() if found},
        model_chart(rows),
        panels(rows, setting.own),
        memory_chart(rows),
        problems(rows),
    )


@dataclass(frozen=True)
class Card:
    """The facts of a run: what decides about its numbers, and the rest."""

    name: str
    facts: list[tuple[str, str]]
    more: list[tuple[str, str]]
    command: str


def card(number_: int, setting: Setting) -> Card:
    """Return the card of a setting's run."""
    run = setting.run
    flat = dict(_flat(run.facts))
    left_out = run.facts.get("left_out") or []
    commit = str(run.facts.get("commit") or MISSING)
    versions = ", ".join(f"{name} {version}" for name, version in (run.facts.get("versions") or {}).items())
    floors = ", ".join(f"{name} {percent(value)}" for name, value in run.facts["floor"].items())
    first = {
        "started": str(run.facts["started"]).replace("T", " ").replace("+00:00", " UTC"),
        "commit": f"{commit[:12]}{', with changes' if commit.endswith('+') else ''}",
        "versions": versions or MISSING,
        "settings": "; ".join(
            unique(
                f"{row['device']}, {row['dtype']}, {plural(row['threads'], 'thread')}" for row in _records(run.table)
            )
        ),
        "noise floor": f"{floors} (the gradient measured against itself, in this run)"
        if floors
        else f"{MISSING} not measured",
        "not measured": f"{plural(len(left_out), 'measurement')}: the run ended before them" if left_out else "",
        "GPU": ", driver ".join(flat[name] for name in ("facts.cuda.card", "facts.cuda.driver_version") if name in flat)
        or MISSING,
    }
    said = {"started", "commit", "machine", "command", "schema_version"}
    more = [
        (name.removeprefix("facts."), text)
        for name, text in flat.items()
        if name not in said and not name.startswith(("versions.", "floor.", "plan."))
    ]
    shown = [(name, text) for name, text in first.items() if text]
    return Card(f"{number_}. {run.facts['machine']}", shown, more, str(run.facts["command"]))


def _records(table: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table[["device", "dtype", "threads"]].drop_duplicates().to_dict("records")
    return found


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        return [(name, "; ".join(str(item) for item in value) or "none")]
    if name.endswith("_bytes") and isinstance(value, int | float):
        return [(name.removesuffix("_bytes"), size(value))]
    return [(name, MISSING if value is None else str(value))]


#: Headings of what is no layer, by kind.
_MODELS = {"model": "whole models", "classifier": "all classes of a classifier"}


@dataclass(frozen=True)
class Overview:
    """What each run is about, in all settings: under each heading lines of a label, and a cell a setting."""

    subject: str
    groups: dict[str, list[tuple[str, list[HeatCell]]]]


def overview(settings: Sequence[Setting]) -> Overview:
    """Return the settings side by side."""
    found: dict[tuple[Any, Any], list[list[Row]]] = {}
    for place, setting in enumerate(settings):
        for row in setting.rows:
            if (row["subject"], row["baseline"]) == (setting.own, GRADIENT) and row["kind"] != "scaling":
                heading = _MODELS.get(row["kind"], REGIMES.get(row["regime"], row["regime"]))
                label = f"{row['rule']}, {row['signs']}" if row["kind"] == "layer" else f"{row['layer']}, {row['rule']}"
                found.setdefault((heading, label), [[] for _ in settings])[place].append(row)
    groups: dict[str, list[tuple[str, list[HeatCell]]]] = {}
    for heading in (*_MODELS.values(), *REGIMES.values(), *(heading for heading, _ in found)):
        lines = [
            (label, [HeatCell(rows) for rows in line]) for (place, label), line in found.items() if place == heading
        ]
        if lines:
            groups[heading] = lines
    return Overview(", ".join(unique(setting.own for setting in settings)), groups)


# --- all cells --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the table of all cells; ``wide``: left out on a narrow screen."""

    name: str
    label: str
    css: str = ""


_CELLS = (
    Column("rule", "rule"),
    Column("workload", "workload"),
    Column("signs", "input", "wide"),
    Column("batch", "batch", "wide num"),
    Column("regime", "regime", "wide"),
    Column("subject", "subject"),
    Column("baseline", "compared with", "wide"),
    Column("seconds", "time", "num wide"),
    Column("ratio", "ratio", "num"),
    Column("ratio_low", "95 %", "num wide"),
    Column("verdict", "verdict"),
)


#: The columns with a menu to filter by.
_MENUS = ("rule", "layer", "subject", "baseline", "verdict")


@dataclass(frozen=True)
class Cells:
    """The table of all rows as it is written, and as data for its filter, its sorting, and its details."""

    columns: tuple[Column, ...]
    rows: list[tuple[bool, list[str]]]  # whether it stands beside a peer; its texts
    data: dict[str, Any]


def cells(settings: Sequence[Setting]) -> Cells:
    """Return the table of all rows."""
    columns = (*((Column("setting", "run", "wide"),) if len(settings) > 1 else ()), *_CELLS)
    docs = {name: doc for name, (_, doc) in COLUMNS.items() if name not in _ELSEWHERE}
    docs["refused"] = "who has no time, and because of whom there is no ratio"
    pool: dict[str, int] = {}  # code and commands repeat: each is written once
    rows, data = [], []
    for setting in settings:
        strip = strips(setting)
        for row in setting.rows:
            rows.append((row["baseline"] != GRADIENT, [_cell(column.name, setting, row) for column in columns]))
            values = [
                pool.setdefault(value, len(pool)) if name in {"code", "command", "reason"} else _short(value)
                for name, value in ((name, row[name]) for name in docs)
            ]
            sides = {
                side: [_short(value) for value in found]
                for side, found in strip.get(tuple(row[name] for name in ROW), {}).items()
            }
            data.append([setting.slug, values, sides])
    return Cells(columns, rows, {"names": list(docs), "docs": docs, "texts": list(pool), "rows": data})


def _short(value: Any) -> Any:
    """Return a number with as many digits as the page needs; one that JSON has none for, as its name."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


def _cell(name: str, setting: Setting, row: Row) -> str:
    others = row["refused"] not in {"", row["subject"]}
    texts: dict[str, Callable[[Any], str]] = {
        "setting": lambda _: setting.slug,
        "seconds": seconds,
        "ratio": ratio,
        "ratio_low": lambda low: interval(low, row["ratio_high"]),
        "verdict": lambda verdict: (
            " ".join((row["refused"], row["status"])) if others else str(verdict or row["status"])
        ),
    }
    return texts.get(name, str)(row.get(name))


# --- the pages --------------------------------------------------------------------------------------------------------


def context(settings: Sequence[Setting], command: Sequence[str | Path]) -> dict[str, Any]:
    """Return what both templates are filled with."""
    cards = {setting.run_number: setting for setting in reversed(settings)}
    return {
        "title": "How fast are the LRP rules?",
        "settings": settings,
        "cards": [card(number, cards[number]) for number in sorted(cards)],
        "views": [view(setting) for setting in settings],
        "overview": overview(settings),
        "command": shlex.join(map(str, command)),
        "regimes": REGIMES,
        "marks": MARKS,
        "missing": MISSING,
        "GRADIENT": GRADIENT,
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (interval, number, percent, plain, plural, ratio, seconds, size)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}  # browsers read no NaN
    environment.globals |= {function.__name__: function for function in functions}
    environment.filters |= {"text": _text, "code": _code}
    return environment


def _text(value: object) -> str:
    """Return text that Markdown shows as it is, within a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(str(value).split()))


def _code(value: object) -> str:
    """Return text as code in Markdown, fenced by one backtick more than it holds in a row."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def html(settings: Sequence[Setting], filled: Mapping[str, Any]) -> str:
    """Return the page. It asks for nothing from anywhere, and says so in its security policy."""
    columns = ("setting", *_MENUS) if len(settings) > 1 else _MENUS
    choices = {name: name.replace("setting", "run").replace("baseline", "compared with") for name in columns}
    return _environment().get_template("report.html.j2").render(**filled, cells=cells(settings), choices=choices)


def markdown(filled: Mapping[str, Any], plots: Mapping[str, Sequence[Path]] | None = None) -> str:
    """Return the same in Markdown; ``plots`` are the pictures of each setting, relative to the file."""
    return _environment().get_template("report.md.j2").render(**filled, plots=plots or {})

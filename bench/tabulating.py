"""From the finished cells of a run to its table: every number follows from the samples."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import statistics
from bench.limits import goal, passes_limit
from bench.measuring import OK, Standing
from bench.models import MODELS
from bench.pairing import ORDER
from bench.subjects import GRADIENT, SPECS
from bench.table import SCHEMA_VERSION, frame, sample_frame
from bench.workloads import CLASSIFIER, HIGH, LAYERS, LOW, NONNEGATIVE, Cell, multiply_adds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from bench.session import Plan, Result


def tabulated(
    results: list[Result], plan: Plan, facts: Mapping[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Return the table, the samples, and the noise floor of each regime."""
    floors = _floors(results, plan.seed)
    rows = [row for result in results for row in _rows(result, plan, facts, floors)]
    _fit(rows)
    return frame(rows), sample_frame(_samples(results, facts)), floors


def _floors(results: Iterable[Result], seed: int) -> dict[str, float]:
    """Return how far the gradient was from itself, in each regime."""
    return {
        result.cell.regime: statistics.floor([statistics.estimate(_arrays(quads), seed)])
        for result in results
        if result.cell.rule == GRADIENT
        for quads in result.quads.values()
    }


def _arrays(processes: list[list[list[float]]]) -> list[statistics.Array]:
    return [np.array(quads) for quads in processes]


def _rows(
    result: Result, plan: Plan, facts: Mapping[str, Any], floors: Mapping[str, float]
) -> Iterable[dict[str, Any]]:
    cell = result.cell
    known = {
        "schema_version": SCHEMA_VERSION, "run_id": facts["run_id"], "started": facts["started"],
        "machine": facts["machine"], "device": cell.device, "dtype": cell.dtype, "threads": cell.threads,
        "workload": cell.workload, "kind": cell.kind, "layer": cell.family, "rule": cell.rule, "signs": cell.signs,
        "batch": cell.batch, "regime": cell.regime, "passes_limit": passes_limit(cell), "axis": cell.axis,
        "size": {"batch": float(cell.batch), "size": multiply_adds(cell) if cell.axis else None}.get(cell.axis),
        "floor": floors.get(cell.regime),
    }  # fmt: skip
    for subject, baseline in plan.comparisons(cell):
        own, other = (result.standings.get(name, Standing()) for name in (subject, baseline))
        refused = own if own.status != OK else other
        row = known | {
            "subject": subject, "subject_version": own.version, "baseline": baseline,
            "status": refused.status, "reason": refused.reason, "agreement_ratio": own.agreement_ratio,
            "agreement_entries": own.agreement_entries, "peak_bytes": own.peak_bytes,
            "baseline_peak_bytes": other.peak_bytes, "graph_seconds": own.graph_seconds,
            "goal": goal(cell, subject, baseline), "code": code(cell, subject),
            "command": command(cell, plan),
        }  # fmt: skip
        quads = result.quads.get((subject, baseline))
        yield row | (_times(_arrays(quads), floors.get(cell.regime, 0.0), row["goal"], plan.seed) if quads else {})


def _times(processes: list[statistics.Array], floor: float, wanted: float | None, seed: int) -> dict[str, Any]:
    """Return what the quads of one comparison say."""
    found = statistics.estimate(processes, seed)
    quads = np.concatenate(processes)
    sides = {side: [position for position, one in enumerate(ORDER) if one == side] for side in "AB"}
    outliers = [statistics.outliers(process[:, sides["A"]].ravel()) for process in processes]
    return {
        "seconds": float(np.median(quads[:, sides["A"]])),
        "baseline_seconds": float(np.median(quads[:, sides["B"]])),
        "ratio": found.ratio, "ratio_low": found.low, "ratio_high": found.high,
        "verdict": str(statistics.verdict(found, floor)),
        "pairs": 2 * len(quads), "processes": len(processes),
        "outliers_mild": sum(mild for mild, _ in outliers), "outliers_severe": sum(severe for _, severe in outliers),
        "goal_met": None if wanted is None else found.ratio <= wanted,
    }  # fmt: skip


def _fit(rows: list[dict[str, Any]]) -> None:
    """Fit seconds = a + c size^k to each scaling, and write a and k into its rows."""
    series: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["axis"] and "seconds" in row:
            along = row["workload"] if row["axis"] == "batch" else row["batch"]
            key = ("device", "dtype", "threads", "rule", "signs", "axis", "subject", "baseline")
            series.setdefault((along, *(row[name] for name in key)), []).append(row)
    for members in series.values():
        sizes, seconds = (np.array([row[name] for row in members]) for name in ("size", "seconds"))
        found = statistics.growth(sizes, seconds)
        for row in members:
            row |= {"overhead_seconds": found.overhead, "exponent": found.exponent}


def _samples(results: Iterable[Result], facts: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for result in results:
        cell = result.cell
        known = {
            "run_id": facts["run_id"], "device": cell.device, "dtype": cell.dtype, "threads": cell.threads,
            "workload": cell.workload, "kind": cell.kind, "rule": cell.rule, "signs": cell.signs,
            "batch": cell.batch, "axis": cell.axis,
        }  # fmt: skip
        for (subject, baseline), processes in result.quads.items():
            for process, quads in enumerate(processes):
                for quad, times in enumerate(quads):
                    for position, seconds in enumerate(times):
                        yield known | {
                            "subject": subject, "baseline": baseline, "process": process, "quad": quad,
                            "position": position, "side": ORDER[position], "seconds": seconds,
                        }  # fmt: skip


def command(cell: Cell, plan: Plan) -> str:
    """Return the command that measures a cell again."""
    options = ["lrp-bench", "run", "--cell", cell.id, "--threads", str(cell.threads), "--device", cell.device]
    if plan.against:
        options += ["--against", ",".join(plan.against)]
    return shlex.join([*options, "--out", "again"])


def code(cell: Cell, subject: str) -> str:
    """Return Python that makes a cell: the call that is timed, for a subject."""
    batched = ", is_grads_batched=True" if cell.kind == CLASSIFIER else ""
    if cell.is_model:
        lines = [
            "from bench.models import MODELS, attached",
            f'model = MODELS["{cell.workload}"].build().eval()',
            f"x = torch.randn({cell.batch}, *{MODELS[cell.workload].shape}).clamp({LOW}, {HIGH}).requires_grad_()",
            "R = torch.diag_embed(model(x).detach()).transpose(0, 1)"
            if batched
            else "R = torch.nn.functional.one_hot(model(x).argmax(1), model(x).shape[1]).float()",
        ]
        call = f"(relevance,) = torch.autograd.grad(model(x), x, R{batched})"
    else:
        workload = LAYERS[cell.workload]
        shape = ", ".join(map(str, (cell.batch, *workload.shape)))
        signs = ".relu()" if cell.signs == NONNEGATIVE else ""
        lines = [
            "from torch import nn",
            f"layer = {workload.code}.to(torch.{cell.dtype})",
            f"x = torch.randn({shape}).clamp({LOW}, {HIGH}){signs}.to(torch.{cell.dtype}).requires_grad_()",
            "R = torch.randn_like(layer(x))",
        ]
        call = "(relevance,) = torch.autograd.grad(layer(x), x, R)"
    if GRADIENT in {subject, cell.rule}:
        return "\n".join(["import torch", *lines, call, ""])
    spec = SPECS.get(subject, subject)
    if cell.is_model:
        load = f'from verify.subjects.loading import load\nwith attached(model, "{cell.rule}", load("{spec}")):'
        return "\n".join(["import torch", *lines, load, f"    {call}", ""])
    name = cell.rule.partition("(")[0]
    rule = f"rule = {cell.rule}.register(layer)"
    return "\n".join(["import torch", f"from {spec} import {name}", *lines, rule, call, ""])

"""Which cells of the suite a run measures, from what was asked on the command line."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from bench.cuda import full_precision
from bench.session import FULL, QUICK, Plan
from bench.workloads import Cell, all_cells, quick_cells
from verify.runs.selection import meant

if TYPE_CHECKING:
    from collections.abc import Sequence


#: What there is a clock for.
DEVICES = ("cpu", "cuda")


class UnusableError(Exception):
    """The call cannot be carried out; the message says why and what to do."""


def select(
    *,
    subject: str,
    against: Sequence[str] = (),
    rules: Sequence[str] = (),
    layers: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    ids: Sequence[str] = (),
    device: str = "cpu",
    threads: Sequence[int] = (),
    seed: int = 0,
    quick: bool = False,
) -> Plan:
    """Return the plan of a run.

    Raises
    ------
    UnusableError
        If a pattern matches nothing, or the device is not there.

    """
    _check_device(device)
    full_precision()  # in this process for the record alone: it is the workers that measure
    cells = quick_cells() if quick and not ids else all_cells()
    if not ids and not dtypes and quick:
        dtypes = ("float32",)
    for name, patterns, values in (
        ("--cell", ids, lambda cell: (cell.id,)),
        ("--rule", rules, lambda cell: (cell.rule, cell.rule.partition("(")[0])),
        ("--layer", layers, lambda cell: (cell.family, cell.workload)),
        ("--dtype", dtypes, lambda cell: (cell.dtype,)),
    ):
        if name == "--cell" and ids:
            cells = _by_id(cells, ids, device, threads)
            continue
        for pattern in patterns:
            if not any(_matches(value, [pattern]) for cell in cells for value in values(cell)):
                known = list(dict.fromkeys(value for cell in cells for value in values(cell)))
                msg = f"{name} {pattern!r} is unknown{meant(pattern, known)}; expected one of {', '.join(known)}"
                raise UnusableError(msg)
        if patterns:
            cells = [cell for cell in cells if any(_matches(value, patterns) for value in values(cell))]
    if not ids:
        counts = tuple(threads) or (torch.get_num_threads(),)
        cells = [replace(cell, device=device, threads=count) for count in counts for cell in cells]
    return Plan(tuple(cells), subject, tuple(against), QUICK if quick else FULL, seed, quick)


def _check_device(device: str) -> None:
    """Refuse a device that cannot be timed, before anything starts: a card other than the current one has no clock."""
    if device not in DEVICES:
        msg = f"--device is {device!r}; expected {' or '.join(DEVICES)}; CUDA_VISIBLE_DEVICES picks the card"
        raise UnusableError(msg)
    if device == "cuda" and not torch.cuda.is_available():
        msg = f"torch sees no CUDA device for --device {device}; use --device cpu, or a machine and a torch with one"
        raise UnusableError(msg)
    try:
        torch.zeros((), device=device).item()
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        msg = f"--device {device} cannot be used: {first}; use --device cpu, or a machine on which torch runs on it"
        raise UnusableError(msg) from error


def _matches(value: str, patterns: Sequence[str]) -> bool:
    return any(value == pattern or fnmatchcase(value, pattern) for pattern in patterns)


def _by_id(cells: Sequence[Cell], ids: Sequence[str], device: str, threads: Sequence[int]) -> list[Cell]:
    """Return the cells of these ids, which name device and threads too."""
    counts = tuple(threads) or (torch.get_num_threads(),)
    known = {
        cell.id: cell for count in counts for one in cells for cell in [replace(one, device=device, threads=count)]
    }
    if unknown := [id_ for id_ in ids if id_ not in known]:
        msg = (
            f"no measurement has the id {unknown[0]}; expected one that `lrp-bench run --list` prints with this "
            "--device and --threads"
        )
        raise UnusableError(msg)
    return [known[id_] for id_ in ids]

"""Whose calls are timed: the plain gradient, our rules, those of peers. What is a call, and what is outside of it.

A call is forward and backward: ``torch.autograd.grad(module(x), x, R)``. A rule is put on the module beforehand. All
subjects share the module's parameters, the input and the relevance. Of a classifier, the relevances of all classes are
one call, with ``is_grads_batched=True``; a subject that goes through them one by one is a subject of its own.
"""

from __future__ import annotations

import copy
import gc
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from bench.agreement import Agreement, Reference, joined, layer_parts, module_part
from bench.models import COMPOSITES, attached
from bench.workloads import CLASSIFIER, RULES
from verify.subjects.loading import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from bench.workloads import Cell
    from verify.model import Problem, Subject

    Call = Callable[[], Tensor]

GRADIENT = "gradient"
OURS = "lrp_rules"
#: What stands behind the name of a subject that takes the classes of a classifier one by one.
CLASS_BY_CLASS = "-class-by-class"
#: Names of the table, and the modules that they stand for.
SPECS = {"zennit": "zennit.rules", "captum": "verify.subjects.captum", "lxt": "verify.subjects.lxt"}


@dataclass(frozen=True)
class Contender:
    """A subject by the name that it has in the table; the gradient has no rules."""

    name: str
    subject: Subject | None
    class_by_class: bool = False

    @property
    def version(self) -> str:
        """Its version; the gradient is torch's."""
        return str(torch.__version__) if self.subject is None else self.subject.version

    @contextmanager
    def on(self, cell: Cell, problem: Problem) -> Iterator[tuple[Call, nn.Module]]:
        """Put the rule of a cell on a module of its own, which shares the parameters, and give the call.

        Raises
        ------
        NotOfferedError
            If the subject does not have the rule.

        """
        module, x, R = _sharing(problem.module), problem.x, problem.relevance

        def call() -> Tensor:
            if cell.kind != CLASSIFIER:
                return torch.autograd.grad(module(x), x, R)[0]
            logits = module(x)
            if not self.class_by_class:
                return torch.autograd.grad(logits, x, R, is_grads_batched=True)[0]
            return torch.stack([torch.autograd.grad(logits, x, one, retain_graph=True)[0] for one in R])

        if self.subject is None:
            yield call, module
        elif cell.is_model:
            with attached(module, cell.rule, self.subject):
                yield call, module
        else:
            name, arguments = RULES[cell.rule]
            rule = self.subject.get(name)(**arguments)
            if hasattr(rule, "explain"):  # an adapter: its library is called as its users call it
                yield lambda: rule.explain(module, module.forward, (x,), R)[0], module
                return
            handle = rule.register(module)
            try:
                yield call, module
            finally:
                handle.remove()


@cache
def contender(name: str) -> Contender:
    """Return a subject by name, or by MODULE[:ATTRIBUTE]; raise SubjectError if it cannot be imported."""
    own = name.removesuffix(CLASS_BY_CLASS)
    found = Contender(name, None if own == GRADIENT else load(SPECS.get(own, own)), class_by_class=own != name)
    gc.collect()
    gc.freeze()  # what was imported stays: the collections between cells need not look at it again
    return found


def _sharing(module: nn.Module) -> nn.Module:
    """Return a copy with the same Parameter objects."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


class Gate:
    """Asks whether a contender is right on the data of a cell; what the reference says is kept for the next one."""

    def __init__(self, cell: Cell, problem: Problem) -> None:
        self._cell, self._problem = cell, problem
        self._layer: Reference | None = None
        self._inputs: dict[str, Tensor] = {}

    def judge(self, call: Call, module: nn.Module) -> Agreement:
        """Compare with the reference."""
        if self._cell.is_model:
            return self._model(module)
        if self._layer is None:
            name, arguments = RULES[self._cell.rule]
            self._layer = Reference(layer_parts(self._problem), name, arguments, self._cell.device)
        return self._layer.judge(call().detach())

    def _model(self, module: nn.Module) -> Agreement:
        if not self._inputs:
            self._inputs = _inputs(self._problem)
        composite = COMPOSITES[self._cell.rule]
        names = {part: name for name, part in module.named_modules()}
        found = []
        for index, (part, (rule, arguments)) in enumerate(composite.rules(module).items()):
            x = self._inputs[names[part]]
            draw = torch.Generator().manual_seed(index)
            batched = self._cell.kind == CLASSIFIER
            Rs, pieces = zip(*(module_part(part, x, draw) for _ in range(1 + batched)), strict=True)
            x = x[:1].clone().requires_grad_()
            R = torch.stack(Rs) if batched else Rs[0]
            (r,) = torch.autograd.grad(part(x), x, R, is_grads_batched=batched)
            for piece, one in zip(pieces, r if batched else (r,), strict=True):
                agreement = Reference([piece], rule, arguments, self._cell.device).judge(one)
                # what no entry speaks for is not right by the others' leave
                ratio = agreement.ratio if agreement.entries else float("nan")
                found.append(replace(agreement, ratio=ratio, reason=f"{names[part]}, {rule}: {agreement.reason}"))
        worst = joined(found)
        return worst if not worst.holds else replace(worst, reason="")


def _inputs(problem: Problem) -> dict[str, Tensor]:
    """Return the input of each module in the forward pass without rules, by name."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: found.update({name: given[0].detach()}))
        for name, module in problem.module.named_modules()
    ]
    try:
        with torch.no_grad():
            problem.module(problem.x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def versions(contenders: list[Contender]) -> dict[str, Any]:
    """Return the version of each contender, by name."""
    return {one.name: one.version for one in contenders}

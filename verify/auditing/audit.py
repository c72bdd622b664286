"""`audit`: one explanation of a network, held operation by operation to the rules that were meant."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.auditing.account import Account
from verify.auditing.figure import draw
from verify.auditing.flow import Flow
from verify.auditing.judging import Judge
from verify.auditing.meaning import Meaning
from verify.auditing.page import write_page
from verify.auditing.pipelines import pipeline_of
from verify.auditing.text import text
from verify.auditing.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from lrp_rules import Composite
    from lrp_rules.hooks.hook import Hook
    from verify.auditing.account import Row
    from verify.auditing.judging import Evidence
    from verify.auditing.pipelines import Pipeline

    Explains = str | Pipeline | Callable[[nn.Module], AbstractContextManager[Any]] | None


class Audit(Account):
    """What became of the relevance in one explanation of a network.

    ``print`` it for the account by blocks.
    """

    def __str__(self) -> str:
        return text(self)

    def html(self, path: str | Path) -> None:
        """Write one self-contained page: the flow down the network, and a table that filters and sorts."""
        write_page(self, path)

    def figure(self, path: str | Path) -> None:
        """Write the flow down the network as a picture: ``.png``, ``.svg`` or ``.pdf``."""
        draw(self, path)


def audit(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    rules: Mapping[Any, Hook] | Composite,
    *,
    target: int | Tensor | None = None,
    pipeline: Explains = None,
    expected: Mapping[Any, Hook] | Composite | None = None,
    dtype: torch.dtype | None = None,
) -> Audit:
    """Explain one input, and hold every operation of the network to the rule that was meant for it.

    The pipeline is only watched: the model, its output, and the relevance are what they are without. Each operation is
    judged by itself, with the relevance that came to it, so that a mistake is found where it is made.

    Parameters
    ----------
    model
        Any module, in eval mode; best in double precision (``model.double()``): single precision cannot tell a wrong
        formula from rounding in large layers.
    x
        Its input, floating point, samples first; or a tuple of several.
    rules
        Rules for types and names of modules and for functions, as for :func:`lrp_rules.attach`; or a composite.
    target
        Which output is explained, for all samples; or the relevance R of the output itself. None: the largest output
        of each sample. With a number or None, the relevance that is put in is 1 a sample.
    pipeline
        What explains. None: ``attach(model, rules)``; else what is called with the model and returns a context
        manager to call the model in, such as ``zennit_composite.context``; or by name: "gradient", "gradient*input",
        "zennit:EpsilonPlus+ResNetCanonizer", "autolrp:composite", "lxt:torchvision.models.vision_transformer".
    expected
        What operations are held to, where that is not ``rules``.
    dtype
        Audit a copy of the model in this dtype, such as ``torch.float64``, and not the model itself.

    Returns
    -------
    Audit
        ``print`` it, or look at its ``table``.

    Raises
    ------
    TypeError, ValueError
        If x is not of floating point, nothing of the output depends on it, or the model is compiled. Exceptions of the
        pipeline pass through.

    """
    model, x = in_dtype(model, x, dtype)
    return explained(model, x, rules, target=target, pipeline=pipeline, expected=expected)


def in_dtype(model: nn.Module, x: Any, dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    """Return a copy of a model in a dtype, and its input in it; both as they are, where that is None."""
    if dtype is None:
        return model, x
    given = x if isinstance(x, tuple) else (x,)
    cast = tuple(one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one for one in given)
    return copy.deepcopy(model).to(dtype), cast


def explained(
    model: nn.Module, x: Any, rules: Any, *, target: Any, pipeline: Any, expected: Any, keep: list[Any] | None = None
) -> Audit:
    """Audit, and put into ``keep`` what the verdict of each row rests on."""
    given = x if isinstance(x, tuple) else (x,)
    for one in given:
        if not isinstance(one, Tensor) or not one.is_floating_point():
            what = str(one.dtype) if isinstance(one, Tensor) else type(one).__name__
            msg = (
                f"x has {what}; expected tensors of floating point, which relevance can reach. Audit token models from "
                "their embeddings on"
            )
            raise TypeError(msg)
    for one in model.modules():
        if one._compiled_call_impl is not None or "_orig_mod" in one._modules:
            msg = "the model is compiled, and what it calls cannot be seen; expected the model before torch.compile"
            raise TypeError(msg)
    known = pipeline_of(pipeline, rules)
    inputs = [known.wrapped(one.detach().clone()).requires_grad_() for one in given]
    with known.context(model) as yielded:
        seen = yielded if isinstance(yielded, nn.Module) else model
        meaning = Meaning(seen, rules if expected is None else expected)
        watch = Watch(seen, inputs, meaning, keeps_outputs=known.times_input)
        with watch.forward(), torch.enable_grad():
            output = seen(*inputs)
        if not isinstance(output, Tensor):
            msg = f"the model gave {type(output).__name__}; expected one tensor. Wrap it in a module that returns it"
            raise TypeError(msg)
        if output.grad_fn is None:
            msg = "the output of the model does not depend on x through autograd; expected a differentiable model"
            raise ValueError(msg)
        with known.backward(output), torch._C.DisableTorchFunctionSubclass():
            R = _relevance(output, target)
            flow = Flow(output, inputs, watch.calls)
            for norm, layer, alone in meaning.folds(watch.calls):
                flow.fold(norm, layer, alone=alone)
            relevance = flow.backward(output, R)
            if known.times_input:
                R, relevance = flow.times_values(output, R, relevance)
            rows = _judged(watch, Judge(meaning, times_input=known.times_input), keep)
            idle = meaning.idle(seen, watch.modules_called, watch.parameters_used)
            total, gross = float(R.double().sum()), float(R.double().abs().sum())
            return Audit(type(model).__name__, known.name, rows, total, gross, tuple(relevance), output.detach(), idle)


def _judged(watch: Watch, judge: Judge, keep: list[Evidence | None] | None) -> tuple[Row, ...]:
    counts, rows = Counter(call.key for call in watch.calls), []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for call in sorted(watch.calls, key=lambda call: -call.end):
            rows.append(judge.row(call, counts[call.key]))
            if keep is not None:
                keep.append(judge.evidence)
    return tuple(rows)


def _relevance(output: Tensor, target: int | Tensor | None) -> Tensor:
    if isinstance(target, Tensor):
        if target.shape != output.shape:
            msg = f"target has shape {tuple(target.shape)}; expected that of the output, {tuple(output.shape)}"
            raise ValueError(msg)
        return target.detach().to(output)
    flat = output.detach().reshape(len(output), -1) if output.ndim else output.detach().reshape(1, 1)
    if target is not None and not -flat.shape[1] <= target < flat.shape[1]:
        msg = f"target is {target}; the model has {flat.shape[1]} outputs"
        raise ValueError(msg)
    place = flat.argmax(1) if target is None else torch.full((len(flat),), target % flat.shape[1], device=flat.device)
    return torch.zeros_like(flat).scatter_(1, place[:, None], 1.0).reshape(output.shape)


def assert_conserves(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    rules: Mapping[Any, Hook] | Composite,
    *,
    target: int | Tensor | None = None,
    pipeline: Explains = None,
    expected: Mapping[Any, Hook] | Composite | None = None,
    dtype: torch.dtype | None = None,
) -> Audit:
    """Assert that every operation of a network follows its rule, and that all relevance is explained.

    For a test of one's own. Arguments as for :func:`audit`, which is returned.

    Raises
    ------
    AssertionError
        If not: with the account.

    """
    __tracebackhide__ = True
    found = audit(model, x, rules, target=target, pipeline=pipeline, expected=expected, dtype=dtype)
    if not found.held:
        raise AssertionError(str(found))
    return found

"""Watches one backward pass: what relevance came to each call, and left it, by hooks on the nodes of autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from verify.auditing.calls import TRANSPARENT, Call, end_of, key_of
from verify.auditing.rounding import gamma

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from verify.auditing.calls import End


class Flow:
    """What relevance came to each call, and left it, in one backward pass."""

    def __init__(self, output: Tensor, inputs: Sequence[Tensor], calls: list[Call]) -> None:
        self.inputs, self.calls = inputs, calls
        self._of: dict[Any, Call] = {}
        by_size = sorted((c for c in calls if not c.cut), key=lambda c: c.end - c.start)
        todo, seen = [output.grad_fn], set()
        while todo:
            node: Any = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            todo += [below for below, _ in node.next_functions]
            if not hasattr(node, "variable"):
                number = node._sequence_nr()
                call = next((c for c in by_size if c.start <= number < c.end), None)
                if call is None:
                    call = Call(node.name(), "?", "", number, number + 1)
                    calls.append(call)
                    by_size.insert(0, call)
                self._of[node] = call
                call.nodes.add(node)
        self._leading = self._lead(seen)

    def _lead(self, nodes: set[Any]) -> set[Any]:
        """Return the nodes below which a model's input is: what goes to others is that of constants."""
        above: dict[Any, list[Any]] = {}
        for node in nodes:
            for below, _ in node.next_functions:
                above.setdefault(below, []).append(node)
        todo = [node for node in nodes if any(getattr(node, "variable", None) is x for x in self.inputs)]
        found = set(todo)
        while todo:
            for node in above.get(todo.pop(), []):
                if node not in found:
                    found.add(node)
                    todo.append(node)
        return found

    def backward(self, output: Tensor, R: Tensor) -> list[Tensor | None]:
        """Return the relevance of the model's inputs, and note that of each call."""
        hooks = [node.register_hook(self._seen(node, call)) for node, call in self._of.items()]
        try:
            found: list[Tensor | None] = list(torch.autograd.grad(output, self.inputs, R, allow_unused=True))
        finally:
            for hook in hooks:
                hook.remove()
        self._compare(end_of(output), R)
        self.calls[:] = [c for c in self.calls if (c.R or c.cut) and not _hands_on(c)]
        return found

    def times_values(
        self, output: Tensor, R: Tensor, relevance: list[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Turn what a pipeline carries that hands on R / z into relevance: at each end, by the value there."""
        values = {key_of(end_of(output)): output.detach(), **{key_of((x, 0)): x.detach() for x in self.inputs}}
        for call in self.calls:
            values |= {key_of(end): x for end, x in zip(call.ends, call.inputs, strict=True)}
            values |= {key_of(end): y for end, y in zip(call.outs, call.outputs, strict=True) if end is not None}
        for call in self.calls:
            for side in (call.R, call.r):
                for end, one in side.items():
                    value = values.get(key_of(end))
                    # what nobody has seen has no value, and its relevance is not known
                    side[end] = one * (float("nan") if value is None else value.reshape(one.shape))
        found = [None if r is None else r * x.detach() for r, x in zip(relevance, self.inputs, strict=True)]
        return R * output.detach(), found

    def _compare(self, output: End, R: Tensor) -> None:
        """Note where what comes to a call is not what others gave: a hook on a tensor has changed it."""
        given: dict[End, list[Tensor]] = {output: [R.detach()]}
        for call in self.calls:
            for end, r in call.r.items():
                given.setdefault(end, []).append(r)
        for call in self.calls:
            for end, came in call.R.items():
                parts = given.get(end, [])
                if end not in call.outs or any(part.shape != came.shape for part in parts):
                    continue
                if len(parts) == 1 and _is_one(parts[0], came):
                    continue
                whole = parts[0] if parts else torch.zeros_like(came)
                for part in parts[1:]:
                    whole = whole + part
                if torch.equal(whole, came):
                    continue
                room = gamma(len(parts) + 2, torch.finfo(came.dtype).eps) * sum(p.abs() for p in parts)
                if not bool(((came - whole).abs() <= room).all()):
                    call.changed = (float(came.sum()), float(whole.sum()))

    def fold(self, norm: Call, layer: Call, *, alone: bool) -> None:
        """Make one operation of a batch norm and the layer before it; of what else uses the layer, the layer itself."""
        norm.folded = layer
        if not alone:
            return
        for node in layer.nodes:
            self._of[node] = norm
        norm.nodes |= layer.nodes
        self.calls.remove(layer)

    def _seen(self, node: Any, call: Call) -> Callable[[Any, Any], None]:
        outs = {key_of(end) for end in call.outs if end is not None}

        def hook(grad_inputs: Any, grad_outputs: Any) -> None:
            for number, R in enumerate(grad_outputs):
                if R is not None and ((id(node), number) in outs or not outs):
                    call.R[node, number] = R.detach()
            for (below, number), r in zip(node.next_functions, grad_inputs, strict=False):
                if r is None or below not in self._leading or self._of.get(below) is call:
                    continue
                leaf = getattr(below, "variable", None)
                # a tensor has no hash of its value
                end = (below, number) if leaf is None else (leaf, 0)
                before = call.r.get(end)
                call.r[end] = r.detach() if before is None else before + r.detach()

        return hook


def _is_one(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one and the same memory, as where autograd hands on what it was given."""
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and a.dtype == b.dtype


def _hands_on(call: Call) -> bool:
    """Whether it is a node that is there for other reasons than an operation, and did nothing."""
    if call.path != "?" or call.operation not in TRANSPARENT:
        return False
    came, went = sum(float(R.sum()) for R in call.R.values()), sum(float(r.sum()) for r in call.r.values())
    return came == went

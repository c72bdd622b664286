"""Tell whether a pass of autograd propagates relevance or computes a derivative. Rules do not act in a derivative."""

from __future__ import annotations

import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lrp_rules.layers.blocks import interpreters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class _Within(threading.local):
    """State of a thread: in no derivative, in one by inputs only, or in one by parameters, too."""

    by_parameters: bool | None = None


class Derivative(torch.autograd.Function):
    """Autograd node of a relevance that may be differentiated.

    One pass of autograd is either a propagation of relevance or a derivative of one: it is a derivative if one of these
    nodes is among those that it will execute. The autograd engine is asked once in each pass. The order of execution
    would not tell: it depends on threads, on devices, and on when each node was created.
    """

    alive: ClassVar[set[weakref.ref[Any]]] = set()
    passes: ClassVar[dict[int, bool]] = {}
    within: ClassVar[_Within] = _Within()
    #: Nodes of the outputs of modules that are being linearised. Their passes may run on threads of several devices.
    linearised: ClassVar[list[Any]] = []

    @staticmethod
    def forward(ctx: Any, r: Tensor, *_of_the_call: Tensor) -> Tensor:
        Derivative.alive.add(weakref.ref(ctx, Derivative.alive.discard))
        return r.view_as(r)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (gradient, *[None] * (len(ctx.needs_input_grad) - 1))

    @staticmethod
    def behind(r: Tensor, of_the_call: Sequence[Tensor] = ()) -> Tensor:
        """Return a relevance, or a derivative of one, so that differentiating it is noticed.

        ``of_the_call`` are the inputs and parameters of the call it belongs to. The engine leaves out what does not
        lead to where a gradient is wanted, and not every relevance depends on its input, so that it has to be told.
        """
        kind = Derivative if interpreters() is None else _OfTorchFunc
        noticed: Tensor = kind.apply(r, *of_the_call)  # type: ignore[no-untyped-call]
        # a pass that ends at r does not differentiate r, although its node would count as executed
        return noticed.view_as(noticed)

    @staticmethod
    @contextmanager
    def inside(*, by_parameters: bool = True) -> Iterator[None]:
        """Treat each pass that begins inside, on this thread, as a derivative, or as part of the one it is in.

        ``by_parameters`` says whether it is one by parameters, too, or by inputs alone.
        """
        if Derivative.within.by_parameters is not None:
            yield
            return
        Derivative.within.by_parameters = by_parameters
        try:
            yield
        finally:
            Derivative.within.by_parameters = None

    @staticmethod
    def under_way() -> bool:
        """Whether this pass is a derivative: of a relevance, or of a module that a rule linearises as a whole."""
        if Derivative.within.by_parameters is not None:
            return True
        if not Derivative.alive and not Derivative.linearised:
            return False
        number = torch._C._current_graph_task_id()
        if number < 0:
            return False
        found = Derivative.passes.get(number)
        if found is None:
            nodes = [node for node in [ref() for ref in tuple(Derivative.alive)] if node is not None]
            nodes += Derivative.linearised
            found = any(map(torch._C._will_engine_execute_node, nodes))
            torch.autograd.Variable._execution_engine.queue_callback(_Pass(number, found))
        return found

    @staticmethod
    def by_parameters() -> bool:
        """Whether this is ``inside`` a derivative by parameters."""
        return bool(Derivative.within.by_parameters)

    @staticmethod
    @contextmanager
    def linearising(outputs: Sequence[Tensor]) -> Iterator[None]:
        """Treat a pass that begins at these outputs as the Jacobian of a module, on any thread."""
        nodes = [output.grad_fn for output in outputs if output.grad_fn is not None]
        Derivative.linearised.extend(nodes)
        try:
            with Derivative.inside(by_parameters=False):
                yield
        finally:
            for node in nodes:
                Derivative.linearised.remove(node)


class _OfTorchFunc(Derivative):
    """The same in the form that torch.func requires, which is slower."""

    @staticmethod
    def forward(r: Tensor, *_of_the_call: Tensor) -> Tensor:  # type: ignore[override]
        return r.view_as(r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        Derivative.alive.add(weakref.ref(ctx, Derivative.alive.discard))

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int | None]:
        behind: Tensor = Derivative.behind(tensors[0], tensors[1:])
        return behind, in_dims[0]


class _Pass:
    """Holds what is known about a pass until the pass ends.

    Autograd calls it at the end of a pass that succeeds, and releases it after one that fails.
    """

    def __init__(self, number: int, found: bool) -> None:
        self._number = number
        Derivative.passes[number] = found

    def __call__(self) -> None:
        Derivative.passes.pop(self._number, None)

    def __del__(self) -> None:
        Derivative.passes.pop(self._number, None)


class _Ends(torch.autograd.Function):
    """One node at which a derivative of a call ends.

    Autograd visits everything above the deepest end. Parameters are leaves, the deepest of all: without this node, each
    call would walk through the whole graph below it.
    """

    @staticmethod
    def forward(_ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def ends(tensors: Sequence[Tensor], *, create_graph: bool) -> tuple[Tensor, ...]:
    """Return tensors to differentiate by, none of which depends on another.

    Inputs may depend on the parameters, if a module is called twice, and several inputs may be one tensor.
    """
    wanted = [t for t in tensors if t.requires_grad]
    if not create_graph:
        made = iter([t.detach().requires_grad_() for t in wanted])
    else:
        made = iter(_Ends.apply(*wanted) if wanted else ())  # type: ignore[no-untyped-call]
    return tuple(next(made) if t.requires_grad else t for t in tensors)

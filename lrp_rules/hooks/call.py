"""One call of a module, and what is asked of a hook about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lrp_rules.errors import see
from lrp_rules.hooks.rerun import Rerun

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from lrp_rules.hooks.calls import Running
    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


class HookInterface(ABC):
    """What registrations and nodes ask of a hook. People subclass :class:`~lrp_rules.hooks.hook.Hook`."""

    #: Whether modules that take or return several tensors are allowed; others are refused with a TypeError.
    allows_several: ClassVar[bool] = True
    #: Whether tensors that need no gradient are inputs, too, or part of what the module is.
    sees_constants: ClassVar[bool] = True
    #: Whether the rule may run the module again, and so has to know the random state that the call started from.
    may_rerun: ClassVar[bool] = False
    #: Whether no relevance goes on, so that what comes out is a constant for all that follows.
    is_constant: ClassVar[bool] = False
    #: Whether it says how much relevance each parameter has.
    divides_parameters: bool = False
    #: Names of the parameters that the rule changes, none of them for all; None where it changes none.
    changed_parameters: frozenset[str] | None = None

    @property
    @abstractmethod
    def uses_inputs(self) -> bool:
        """Whether the inputs of the module are to be kept for the backward pass."""

    @property
    @abstractmethod
    def needs_graph(self) -> bool:
        """Whether the rule asks how the outputs depend on the inputs, of a module that is not known."""

    @abstractmethod
    def _record(self, call: Call, inputs: Tensors, outputs: Tensors) -> tuple[Tensors, Tensors, bool]:
        """Return the tensors that the call will need, its parameters, and whether to keep the output's values."""

    @abstractmethod
    def _again(self, call: Call, inputs: Tensors, outputs: Tensors) -> Tensors:
        """Return what the module itself gives, once more."""

    @abstractmethod
    def _propagate(self, call: Call, inputs: Tensors, saved: Tensors, relevance: Tensors) -> Sequence[Tensor | None]:
        """Return the relevance of each input."""

    def _divide(
        self, call: Call, inputs: Tensors, saved: Tensors, relevance: Tensors, names: Sequence[str]
    ) -> Sequence[Tensor]:
        """Return the relevance of parameters; only rules with ``divides_parameters`` are asked."""
        msg = f"{type(self).__name__} says that it divides relevance among parameters; expected its own _divide"
        raise TypeError(msg)

    @abstractmethod
    def _differentiate(
        self, call: Call, inputs: Tensors, saved: Tensors, gradients: Tensors, edges: Sequence[tuple[Any, int]]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of the call's inputs, and of the parameters it was recorded with."""


class Watched:
    """The values of a tensor, until somebody overwrites them."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    @property
    def value(self) -> Tensor | None:
        return self._tensor if self._tensor._version == self._version else None


@dataclass
class Call:
    """What is known of one call of a module besides its tensors."""

    hook: HookInterface
    module: nn.Module
    kind: type[Layer]
    shapes: list[torch.Size]
    rerun: Rerun | None = None
    in_torch_func: bool = False
    #: Whether it was made inside a derivative, as by a reentrant checkpoint: then its backward pass is a part of it.
    in_derivative: bool = False
    #: The call of a model with rules that it was made in, for as long as that is under way.
    within: weakref.ref[Running] | None = None
    #: What was compared already of the numbers of this module, and found right.
    known_right: set[str] = field(default_factory=set)
    #: Parameters as the call used them, where the module does not have them under their names any more.
    used: Mapping[str, Tensor] | None = None
    names: tuple[str, ...] = ()
    #: Parameters of known layers that are None.
    absent: Mapping[str, None] = field(default_factory=dict)
    #: Where the data of the parameters lies: what is replaced through ``.data`` leaves no other trace.
    places: Sequence[int] | None = None
    kept: tuple[str, ...] = ()
    #: Of the output, when the call had made it.
    version: int = 0
    output: Watched | None = None
    #: How many parameters the node has as inputs, behind the call's own.
    parameters: int = 0
    #: What these get, if not nothing: torch calls the hooks of a parameter in any case, and they expect a tensor.
    to_parameters: Sequence[Tensor | None] = ()
    #: Where fetching saved tensors may repeat a part of the model, as under a checkpoint: fetches them with the rules.
    around: Callable[[Callable[[], Any]], Any] | None = None
    #: Names of the parameters whose relevance is asked for: behind all else, the node has an input for each.
    asked: tuple[str, ...] = ()
    #: The graph of the call itself, for each output, where the hook cannot repeat it.
    graph: Sequence[torch.autograd.graph.GradientEdge | None] = ()

    def run(self, parameters: Mapping[str, Tensor | None], *inputs: Tensor, below: Sequence[Tensor] = ()) -> Tensors:
        """Repeat the call with other parameters or inputs."""
        self.check_repeatable()
        # what is known as a matrix does not depend on train or eval mode, or is in eval mode
        rerun = Rerun(self.module, modes={self.module: False}) if self.rerun is None else self.rerun
        return rerun(parameters, *inputs, below=below)

    def check_repeatable(self) -> None:
        """Refuse to repeat the call where torch cannot."""
        if self.in_torch_func:
            msg = (
                f"{type(self.hook).__name__} on {self.module} has to run the module once more, which torch.func "
                "cannot do in a backward pass; expected a rule or module that needs no second run. Use "
                f"torch.autograd.grad, with is_grads_batched=True for several relevances{see('torch-func')}"
            )
            raise RuntimeError(msg)

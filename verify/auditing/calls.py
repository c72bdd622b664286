"""What a forward pass called: one `Call` for each leaf module and each function between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Where a tensor is in the graph: its node and which of the node's outputs it is. A leaf stands for itself.
End = tuple[Any, int]

#: Nodes of autograd that are there for other reasons than an operation, and hand relevance on.
TRANSPARENT = {"BackwardHookFunctionBackward", "CheckpointFunctionBackward", "CopySlices", "AsStridedBackward0"}


@dataclass(eq=False)
class Call:
    """One call of a module, of a function, or a node of autograd that no call is known for."""

    operation: str
    path: str
    where: str
    #: It has made the nodes of autograd with numbers from start to end.
    start: int
    end: int = 0
    module: nn.Module | None = None
    function: Any = None
    arguments: Any = None
    #: The id of the weight that a function was called with.
    weight: int = 0
    #: Operations that the forward of a module of torch calls.
    inner: list[Any] = field(default_factory=list)
    #: Floating-point tensors among the arguments that require a gradient, and whether the model's input reaches them.
    inputs: list[Tensor] = field(default_factory=list)
    originals: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    reached: list[bool] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    #: The model's input reaches it with no layer between that has a rule for first layers.
    raw: bool = False
    gates: list[bool] = field(default_factory=list)
    outs: list[End | None] = field(default_factory=list)
    shapes: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)
    #: The outputs, where relevance is what arrives times the value.
    outputs: list[Tensor] = field(default_factory=list)
    #: Relevance that was changed on its way here, by a hook on a tensor: came by gave.
    changed: tuple[float, float] | None = None
    #: It ends where relevance could go on: what it returned is detached.
    cut: bool = False
    #: It is cut, and goes into fused attention as a query or key.
    is_query: bool = False
    #: The layer before a batch norm that is one operation with it.
    folded: Call | None = None
    nodes: set[Any] = field(default_factory=set)
    #: Relevance that came to each output, and that went to each end.
    R: dict[End, Tensor] = field(default_factory=dict)
    r: dict[End, Tensor] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What calls of the same operation at the same place have in common."""
        return (self.operation, self.path, self.where)

    def settle(self, r: dict[End, Tensor]) -> None:
        """Count what is constant through Stop as reached where relevance went there all the same."""
        went = {key_of(end) for end, one in r.items() if bool((one != 0).any())}
        for place, (end, value) in enumerate(zip(self.ends, self.known, strict=True)):
            self.reached[place] = value > 0 or (value < 0 and key_of(end) in went)

    def was_overwritten(self) -> bool:
        """Whether its inputs are no longer what they were."""
        return any(t._version != version for t, version in zip(self.inputs, self.versions, strict=True))


def end_of(tensor: Tensor) -> End:
    """Return where a tensor is in the graph."""
    return (tensor, 0) if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def key_of(end: End) -> tuple[int, int]:
    """Return what ends can be compared by: tensors have no equality."""
    return (id(end[0]), end[1])


def floats(values: Any) -> list[Tensor]:
    """Return the floating-point tensors among arguments or results."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

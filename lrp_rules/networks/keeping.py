"""Relevance elsewhere than at the input: at the outputs of modules, and of weights and biases, asked for by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from lrp_rules.errors import see
from lrp_rules.hooks.calls import drop_hooks
from lrp_rules.layers.convolution import ConvLayer, ConvTransposeLayer
from lrp_rules.layers.known import LinearLayer, layer_type

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from lrp_rules.hooks.hook import Hook

LAYERS = (LinearLayer, ConvLayer, ConvTransposeLayer)


class Keeper:
    """Notes where the relevance of a module's last output can be had."""

    handles: Sequence[Any] = ()

    def __init__(self, kept: dict[str, Any], name: str) -> None:
        self._kept, self._name = kept, name

    def note(self, module: nn.Module, _args: Any, output: Any) -> None:
        if not self.handles:  # a copy
            drop_hooks(module, lambda owner: owner is self)
            return
        # not the tensor itself: the next module may write into that
        tensors = [tensor for tensor in tree_leaves(output) if isinstance(tensor, Tensor) and tensor.requires_grad]
        edges = tuple(get_gradient_edge(tensor) for tensor in tensors)
        self._kept[self._name] = edges[0] if isinstance(output, Tensor) and edges else edges

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = ()

    def __deepcopy__(self, memo: Any) -> Keeper:
        return Keeper({}, self._name)

    def __reduce__(self) -> tuple[Callable[[dict[str, Any], str], Keeper], tuple[Any, ...]]:
        return Keeper, ({}, self._name)


def parameters(model: nn.Module, names: Iterable[object]) -> dict[str, nn.Parameter]:
    """Return the parameters that are named; other names are those of modules."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return {name: known[name] for name in names if isinstance(name, str) and name in known}


def ends_for(
    wanted: Mapping[str, nn.Parameter],
    model: nn.Module,
    rules_of: Mapping[nn.Module, Collection[Hook]],
    of_linear: Hook | None,
) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    """Return the tensors at which autograd is asked for the relevance of parameters: by their ids, and by name.

    They are not the parameters: relevance would get into their ``grad``, with whatever else that is used for.
    ``rules_of`` are the rules in force, and ``of_linear`` that of the function.

    Raises
    ------
    ValueError
        If a module that holds a parameter, or a rule there, does not say how much relevance it has.

    """
    asked: dict[int, Tensor] = {}
    for name, value in wanted.items():
        _check(name, value, model, rules_of, of_linear)
        if id(value) not in asked:
            zeros = torch.zeros((), dtype=value.dtype, device=value.device)
            asked[id(value)] = zeros.expand(value.shape).requires_grad_()
    return asked, {name: asked[id(value)] for name, value in wanted.items()}


def _check(
    name: str,
    parameter: nn.Parameter,
    model: nn.Module,
    rules_of: Mapping[nn.Module, Collection[Hook]],
    of_linear: Hook | None,
) -> None:
    for owner in model.modules():
        if not any(value is parameter for value in owner._parameters.values()):
            continue
        rules = rules_of.get(owner, ())
        is_written_out = isinstance(owner, (nn.RNNBase, nn.RNNCellBase)) and not rules and of_linear is not None
        if of_linear is not None and is_written_out:  # in linear layers
            rules = (of_linear,)
        others = [type(rule).__name__ for rule in rules if not rule.divides_parameters]
        if layer_type(owner) not in LAYERS and not is_written_out:
            why = f"it belongs to a {type(owner).__name__}"
        elif not rules:
            why = f"{owner} has no rule"
        elif others:
            why = f"its rule, {others[0]}, does not say how much of it passes through a parameter"
        else:
            continue
        msg = (
            f"keep names {name!r}, a parameter whose relevance is not defined: {why}; expected the weight or bias of a "
            "linear layer, convolution or recurrent layer with the rule Epsilon, ZPlus, AlphaBeta, Gamma, ZBox, "
            f"WSquare or Flat. Name one, or a module, for the relevance at its output{see('relevance-of-parameters')}"
        )
        raise ValueError(msg)

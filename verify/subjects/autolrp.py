"""The rules of autoLRP 0.2: ``epsilon``, ``zplus``, ``alpha_beta``, ``gamma``, ``zbox``, and those for attention.

autoLRP explains a number of the output: it puts hooks on the nodes of torch's graph and takes the gradient. So the
input is wrapped by ``autolrp.tensor``, the module is called, and what is explained is a score whose gradient by the
module's output is R. Behind that, all is autoLRP's own ``graph_lrp``, with one entry of ``LRPConfig.rule`` changed.

What is asked of autoLRP. Its rules belong to nodes of the graph. Those for products run in Linear, convolutions and
matrix products; these modules are asked. A pool, a batch normalisation and the like have no node with a choice of rule:
relevance passes by the gradient there, whatever the configuration says, and none of the API's rules is offered.
``stabilizer`` is ``LRPConfig.eps``, a number. No parameter can be set to zero, and the bounds of ``zbox`` are numbers.
``Bilinear`` is ``epsilon`` on a product of two inputs, ``Softmax`` the rule ``jacobian``, ``Pass`` ``passthrough``.
What autoLRP has for layer normalisation splits the mean off by magnitudes, and is another rule than ``LayerNormRule``.
``copy`` is this adapter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from verify.formats.operands import MatMul
from verify.model import NotOfferedError
from verify.subjects.adapting import Rule, Score, number

try:
    import autolrp
except ImportError as error:
    msg = f"autoLRP is needed to try its rules ({error}); `pip install autolrp` installs it"
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["AlphaBeta", "Bilinear", "Epsilon", "Gamma", "Pass", "Softmax", "ZBox", "ZPlus"]
__version__: str = autolrp.__version__

_ZERO = {"zero_params": None}
#: autoLRP sets no parameter to zero.
parameters = dict.fromkeys(("Epsilon", "ZPlus", "AlphaBeta", "Gamma", "ZBox"), _ZERO)

_LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_ACTIVATIONS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU)


# the score is this adapter's, and hands on what it is given: autoLRP would warn of a node that it does not know
autolrp.register_installer(f"{Score.__name__}Backward", lambda _node, _config: None)


class _Rule(Rule):
    """A rule of autoLRP, by its name in ``LRPConfig.rule``, on the nodes of ``nodes``."""

    library = "autoLRP"
    name = ""
    nodes: tuple[str, ...] = autolrp.PRODUCT_NODES
    modules: tuple[type[nn.Module], ...] = _LINEAR

    def __init__(self, stabilizer: Any = 1e-6, **arguments: Any) -> None:
        super().__init__(stabilizer=stabilizer, **arguments)
        entry = (self.name, arguments) if arguments else self.name
        rule = {**autolrp.BASE, **autolrp.on(self.nodes, entry)}
        self._config = autolrp.LRPConfig(rule=rule, eps=number("stabilizer", stabilizer, self.library))

    def register(self, module: nn.Module) -> Any:
        """Let autoLRP explain every call of the module, if it has nodes of this rule."""
        if not isinstance(module, self.modules):
            msg = f"{self.library} has no rule {self.name!r} for {type(module).__name__}"
            raise NotOfferedError(msg)
        return super().register(module)

    def explain(
        self, module: nn.Module, own: Callable[..., Any], inputs: tuple[Tensor, ...], R: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what ``graph_lrp`` makes of a score whose gradient by the output is R."""
        del module
        wrapped = [autolrp.tensor(x) if x.requires_grad else x for x in inputs]
        with torch.enable_grad():
            score = Score.apply(own(*wrapped), R)  # type: ignore[no-untyped-call]
            autolrp.graph_lrp(score, config=self._config)
        found = [getattr(x, "relevance", None) for x in wrapped]
        return tuple(torch.zeros_like(x) if r is None else r for x, r in zip(inputs, found, strict=True))


class Epsilon(_Rule):
    """``epsilon``, with ``eps``."""

    name = "epsilon"

    def __init__(self, epsilon: Any = 1e-6) -> None:
        super().__init__(number("epsilon", epsilon, self.library))
        self._arguments = {"epsilon": epsilon}


class ZPlus(_Rule):
    """``zplus``."""

    name = "zplus"


class AlphaBeta(_Rule):
    """``alpha_beta``."""

    name = "alpha_beta"

    def __init__(self, alpha: Any = 2.0, beta: Any = 1.0, stabilizer: Any = 1e-6) -> None:
        super().__init__(stabilizer, alpha=alpha, beta=beta)


class Gamma(_Rule):
    """``gamma``, which splits inputs by sign; ``gamma_montavon`` does not."""

    name = "gamma"

    def __init__(self, gamma: Any = 0.25, stabilizer: Any = 1e-6) -> None:
        super().__init__(stabilizer, gamma=gamma)


class ZBox(_Rule):
    """``zbox``, with bounds that are numbers."""

    name = "zbox"

    def __init__(self, low: Any, high: Any, stabilizer: Any = 1e-6) -> None:
        if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor):
            msg = "autoLRP takes numbers as low and high, not tensors"
            raise NotOfferedError(msg)
        super().__init__(stabilizer, low=low, high=high)


class Pass(_Rule):
    """``passthrough``."""

    name = "passthrough"
    nodes = (*autolrp.ELEMENTWISE_NODES, *autolrp.SOFTMAX_NODES)
    modules = (*_ACTIVATIONS, nn.Softmax)

    def __init__(self) -> None:
        super().__init__()
        self._arguments = {}


class Bilinear(_Rule):
    """``epsilon`` on a product of two inputs, each of which gets its half."""

    name = "epsilon"
    modules = (MatMul,)


class Softmax(_Rule):
    """``jacobian``."""

    name = "jacobian"
    nodes = autolrp.SOFTMAX_NODES
    modules = (nn.Softmax,)

    def __init__(self, dim: int | None = None) -> None:
        if dim is not None:
            msg = "autoLRP takes the dimension of the node, and no other"
            raise NotOfferedError(msg)
        super().__init__()
        self._arguments = {}

"""The rules of captum: ``EpsilonRule``, ``GammaRule``, ``Alpha1_Beta0_Rule``, ``IdentityRule`` in ``captum.attr.LRP``.

How a relevance R comes to the output. ``LRP.attribute`` explains a score of a model: it runs the model to change the
weights, runs it again with hooks on inputs and outputs, takes the gradient of the score, which the hooks turn into
relevance, and multiplies by the score. So the model here is the module and one step behind it, whose score is 1 and
whose gradient by the module's output is R. The hook at the output then gets R, as from a layer above, and at last
everything is multiplied by 1, which is exact. All between is captum's: a whole ``LRP.attribute`` each backward pass,
with the rule where captum looks for it, in ``module.rule``. Nothing that it leaves on the module is cleaned up here.

What is asked of captum, and what is not. ``stabilizer`` is captum's ``STABILITY_FACTOR``, an attribute of every rule
that ``EpsilonRule`` has as a parameter; it has to be a number. ``zero_params="bias"`` is ``set_bias_to_zero``, which
all but ``EpsilonRule`` have. captum keeps no graph of a relevance, so there is no second derivative to ask for. Each
call of a module is explained on its own, so captum's refusal of modules that are called twice is not seen here;
``copy`` is this adapter's.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from verify.model import NotOfferedError
from verify.subjects.adapting import Rule, Score, bias_is_zeroed, number

try:
    import captum
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule
except ImportError as error:
    msg = f"captum is needed to try its rules ({error}); `pip install captum` installs it"
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

__all__ = ["AlphaBeta", "Epsilon", "Gamma", "Pass", "ZPlus"]
__version__: str = captum.__version__

_explained = threading.local()


@contextmanager
def _explaining(module: nn.Module) -> Iterator[None]:
    """Mark the module as one that captum itself calls: then no rule of this adapter takes part."""
    modules: list[nn.Module] = vars(_explained).setdefault("modules", [])
    modules.append(module)
    try:
        yield
    finally:
        modules.pop()


class _Model(nn.Module):
    """The module, and the score behind it."""

    def __init__(self, module: nn.Module, R: Tensor) -> None:
        super().__init__()
        self.module, self.R = module, R

    def forward(self, *inputs: Tensor) -> Any:
        # a module within a network does not get leaves, and may write to its input
        return Score.apply(self.module(*(x.clone() for x in inputs)), self.R)  # type: ignore[no-untyped-call]


def _explain(make: Callable[[], Any], module: Any, inputs: tuple[Tensor, ...], R: Tensor) -> tuple[Tensor, ...]:
    """Return what one ``LRP.attribute`` makes of the relevance R of the module's output."""
    module.rule = make()
    try:
        with _explaining(module), torch.enable_grad():
            relevance: tuple[Tensor, ...] = LRP(_Model(module, R)).attribute(inputs)
    finally:
        vars(module).pop("rule", None)
    return relevance


class _Rule(Rule):
    """A rule of captum, made anew for each backward pass: ``LRP.attribute`` deletes it afterwards."""

    library = "captum"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._make()  # what captum refuses, it refuses here

    def _make(self) -> Any:
        raise NotImplementedError

    def takes(self, module: nn.Module) -> bool:
        """Whether it is not captum itself that calls the module."""
        return not any(module is other for other in vars(_explained).get("modules", ()))

    def explain(
        self, module: nn.Module, own: Callable[..., Any], inputs: tuple[Tensor, ...], R: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the relevance of the inputs by captum alone, which calls the module itself."""
        del own
        return _explain(self._make, module, inputs, R)


class Epsilon(_Rule):
    """``EpsilonRule(epsilon)``; it can set no parameter to zero."""

    def __init__(self, epsilon: Any = 1e-6, zero_params: str | Sequence[str] | None = None) -> None:
        if zero_params:
            msg = f"captum's EpsilonRule sets no parameter to zero, as zero_params={zero_params!r} would"
            raise NotOfferedError(msg)
        super().__init__(epsilon=number("epsilon", epsilon, "captum"))

    def _make(self) -> Any:
        return EpsilonRule(**self._arguments)


class _Stabilized(_Rule):
    """A rule whose stability factor is an attribute, and which can set the bias to zero."""

    def __init__(self, stabilizer: Any, zero_params: str | Sequence[str] | None, **arguments: Any) -> None:
        self._stabilizer = number("stabilizer", stabilizer, "captum")
        self._set_bias_to_zero = bias_is_zeroed(zero_params, "captum")
        super().__init__(stabilizer=stabilizer, zero_params=zero_params, **arguments)

    def _stabilized(self, rule: Any) -> Any:
        rule.STABILITY_FACTOR = self._stabilizer
        return rule


class Gamma(_Stabilized):
    """``GammaRule(gamma, set_bias_to_zero)``."""

    def __init__(
        self, gamma: Any = 0.25, stabilizer: Any = 1e-6, zero_params: str | Sequence[str] | None = None
    ) -> None:
        self._gamma = gamma
        super().__init__(stabilizer, zero_params, gamma=gamma)

    def _make(self) -> Any:
        return self._stabilized(GammaRule(self._gamma, set_bias_to_zero=self._set_bias_to_zero))


class ZPlus(_Stabilized):
    """``Alpha1_Beta0_Rule(set_bias_to_zero)``: AlphaBeta with alpha 1 and beta 0, which is ZPlus."""

    def __init__(self, stabilizer: Any = 1e-6, zero_params: str | Sequence[str] | None = None) -> None:
        super().__init__(stabilizer, zero_params)

    def _make(self) -> Any:
        return self._stabilized(Alpha1_Beta0_Rule(set_bias_to_zero=self._set_bias_to_zero))


class AlphaBeta(_Stabilized):
    """``Alpha1_Beta0_Rule(set_bias_to_zero)``, for alpha 1 and beta 0; captum has no other."""

    def __init__(
        self,
        alpha: Any = 2.0,
        beta: Any = 1.0,
        stabilizer: Any = 1e-6,
        zero_params: str | Sequence[str] | None = None,
    ) -> None:
        if (alpha, beta) != (1, 0):
            msg = f"captum has AlphaBeta for alpha=1 and beta=0 alone, not for alpha={alpha} and beta={beta}"
            raise NotOfferedError(msg)
        super().__init__(stabilizer, zero_params, alpha=alpha, beta=beta)

    def _make(self) -> Any:
        return self._stabilized(Alpha1_Beta0_Rule(set_bias_to_zero=self._set_bias_to_zero))


class Pass(_Rule):
    """``IdentityRule()``."""

    def __init__(self) -> None:
        super().__init__()

    def _make(self) -> Any:
        return IdentityRule()

"""Which passes of autograd are derivatives: Epsilon on a linear layer as it would be written at first."""
# ruff: noqa: D102  a mutant says what is wrong with it once, in the docstring of its class
# ruff: noqa: SLF001  torch has no public way to know one pass from another

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lrp_rules import Epsilon, WSquare
from verify.selftests.mutants.circumstances import Both
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class _Marks(torch.autograd.Function):
    """Stands behind a relevance, and notes the pass in which this is differentiated."""

    passes: ClassVar[set[int]] = set()

    @staticmethod
    def forward(_ctx: Any, r: Tensor) -> Tensor:
        return r.view_as(r)

    @staticmethod
    def backward(_ctx: Any, *gradient: Tensor) -> Tensor:
        number = torch._C._current_graph_task_id()
        _Marks.passes.add(number)
        torch.autograd.Variable._execution_engine.queue_callback(lambda: _Marks.passes.discard(number))
        return gradient[0]


class _Linear(torch.autograd.Function):
    """y = W x + b, whose backward pass is a rule, but in a pass that has been noted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, answer: Answer) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.answer = answer
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        (R,), (x, weight, bias) = given, ctx.saved_tensors
        if torch._C._current_graph_task_id() in _Marks.passes:
            return R @ weight, R.mT @ x, R.sum(0), None, None
        return ctx.answer(x, weight, bias, R), None, None, None, None


class _Hook:
    """Comes after that of a right rule, so that all that this one refuses is refused."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def __deepcopy__(self, memo: Any) -> Any:
        return _nothing

    def __reduce__(self) -> Any:
        return _nothing_at_all, ()

    def __call__(self, module: Any, args: Any, y: Tensor) -> Any:
        x = args[0]
        if not torch.is_grad_enabled() or not x.requires_grad or x.dim() != 2 or module.bias is None:
            return None
        if x.dtype != module.weight.dtype or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return None
        return _Linear.apply(x, module.weight, module.bias, y.detach(), self.answer)  # type: ignore[no-untyped-call]


def _nothing(_module: nn.Module, _args: Any, _output: Any) -> None: ...


def _nothing_at_all() -> Callable[..., None]:
    return _nothing


def _put(handle: Any, module: nn.Module, answer: Answer) -> Any:
    return Both(handle, module.register_forward_hook(_Hook(answer)))


def _by_epsilon(stabilizer: Callable[[Tensor], Tensor]) -> Answer:
    def answer(x: Tensor, weight: Tensor, bias: Tensor, R: Tensor) -> Tensor:
        r: Tensor = x * (R / stabilizer(nn.functional.linear(x, weight, bias)) @ weight)
        return r

    return answer


def _marked(answer: Answer) -> Answer:
    def marking(x: Tensor, weight: Tensor, bias: Tensor, R: Tensor) -> Tensor:
        r: Tensor = _Marks.apply(answer(x, weight, bias, R))  # type: ignore[no-untyped-call]
        return r

    return marking


def _is_plain(module: nn.Module, zero_params: Any) -> bool:
    return type(module) is nn.Linear and not zero_params


@mutant()
class EpsilonDerivativeByOrder(Epsilon):
    """A pass is taken for a derivative from the first relevance on that it comes by; layers before have their rule."""

    def register(self, module: nn.Module) -> Any:
        if not _is_plain(module, self.zero_params):
            return super().register(module)
        return _put(super().register(module), module, _marked(_by_epsilon(self.stabilizer)))


@mutant()
class EpsilonDerivativeIsRelevance(Epsilon):
    """Every pass is a propagation of relevance, also that of a loss in which a relevance is beside the output."""

    def register(self, module: nn.Module) -> Any:
        if not _is_plain(module, self.zero_params):
            return super().register(module)
        return _put(super().register(module), module, _by_epsilon(self.stabilizer))


@mutant()
class WSquareDerivativeIsRelevance(WSquare):
    """As its relevance does not depend on the input, every pass is taken for a propagation."""

    def register(self, module: nn.Module) -> Any:
        if not _is_plain(module, self.zero_params):
            return super().register(module)

        def answer(x: Tensor, weight: Tensor, bias: Tensor, R: Tensor) -> Tensor:
            d = nn.functional.linear(torch.ones_like(x), weight.square(), bias.square())
            r: Tensor = R / self.stabilizer(d) @ weight.square()
            return r

        return _put(super().register(module), module, answer)

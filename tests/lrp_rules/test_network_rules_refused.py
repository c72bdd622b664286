"""What the rules for products, attention and normalisations cannot be right for, and which arguments mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import Bilinear, Hook, LayerNormRule, SignalTakesAll, Softmax, Uniform
from tests.lrp_rules.test_network_rules import Call, tensors

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("rule", "module", "inputs", "error", "message"),
    [
        (Uniform(), torch.matmul, ((2, 3), (3, 2)), ValueError, "elementwise product.*Use Bilinear on matrix products"),
        (Uniform(), torch.sum, ((2, 3),), ValueError, r"shapes \[\(2, 3\)\] and outputs of \[\(\)\]"),
        (SignalTakesAll(0), torch.matmul, ((2, 3), (3, 2)), ValueError, "Use Bilinear on matrix products"),
        (SignalTakesAll(), torch.mul, ((2, 3), (2, 3)), ValueError, "expected one signal.*SignalTakesAll.signal=0"),
        (SignalTakesAll(), torch.mul, ((2, 1), (1, 3)), ValueError, "expected one signal, as large as the output"),
        (SignalTakesAll(2), torch.mul, ((2, 3), (2, 3)), ValueError, "expected one at position 2"),
        (Bilinear(), torch.add, ((2, 3), (2, 3)), ValueError, "not linear in input 0 of 2.*Norm on sums"),
        (Bilinear(), torch.square, ((2, 3),), ValueError, "not linear in input 0 of 1"),
        (Bilinear(), lambda x: x.chunk(2), ((2, 3),), TypeError, "gave 2 tensors; expected one product"),
        (Softmax(), torch.exp, ((2, 3),), ValueError, r"no attribute `dim`.*Use Softmax\(dim=-1\)"),
        (Softmax(-1), torch.exp, ((2, 3),), ValueError, "not the softmax of its input, of shape.*over dimension -1"),
        (Softmax(0), lambda x: x.softmax(1), ((2, 3),), ValueError, "over dimension 0"),
        (Softmax(2), lambda x: x.softmax(1), ((2, 3),), ValueError, "over dimension 2"),
        (LayerNormRule(), torch.exp, ((2, 3),), TypeError, "expected nn.LayerNorm, nn.RMSNorm"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(
    rule: Hook, module: Any, inputs: tuple[tuple[int, ...], ...], error: type[Exception], message: str
) -> None:
    made = tensors(*inputs)

    def explain() -> None:
        outputs = layer(*made)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(outputs, made, [torch.ones_like(z) for z in outputs])

    with rule.register(layer := Call(module)), pytest.raises(error, match=message):
        explain()


def test_a_norm_with_a_forward_of_its_own_is_refused() -> None:
    class ChannelsLast(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    (x,) = tensors((2, 3, 4))
    with LayerNormRule().register(module := ChannelsLast(3)), pytest.raises(TypeError, match="torch's own forward"):
        module(x)


def test_a_norm_whose_forward_was_replaced_is_refused() -> None:
    module = nn.LayerNorm(3)
    module.forward = lambda x: x.exp()  # type: ignore[method-assign, assignment]
    (x,) = tensors((2, 3))
    with LayerNormRule().register(module), pytest.raises(TypeError, match="torch's own forward"):
        module(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SignalTakesAll("a"), TypeError, "signal is 'a', a str; expected None, or the position"),  # type: ignore[arg-type]
        (lambda: SignalTakesAll(True), TypeError, "signal is True"),
        (lambda: SignalTakesAll(-1), ValueError, "signal is -1; expected None, or the position.*from 0"),
        (lambda: Softmax(1.0), TypeError, "dim is 1.0, a float"),  # type: ignore[arg-type]
        (lambda: Bilinear(-1), ValueError, "epsilon is -1"),
        (lambda: LayerNormRule(None), TypeError, "stabilizer is None"),  # type: ignore[arg-type]
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    make: Callable[[], Hook], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()

"""Recurrent layers written out: what they compute is torch's, and what their rules give is Arras et al. 2017."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_flatten

from lrp_rules import Norm, attach
from lrp_rules.layers.numbers import agree
from lrp_rules.recurrent import Gate, Linear, Sum, rules, written_out

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {}),
    "LSTM-projected": (nn.LSTM, {"proj_size": 2}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {}),
    "RNN-relu": (nn.RNN, {"nonlinearity": "relu"}),
}
LENGTHS = (2, 5, 3, 3)


def layer(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    kind, own = KINDS[name]
    return kind(3, 4, **own, **options)


def initial(module: Any, *batch: int) -> Any:
    count = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(count, *batch, getattr(module, "proj_size", 0) or 4)
    return (h, torch.randn(count, *batch, 4)) if isinstance(module, nn.LSTM) else h


def tensors(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(found)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected[0], PackedSequence):
        assert torch.equal(found[0].batch_sizes, expected[0].batch_sizes)
        assert found[0].unsorted_indices.tolist() == expected[0].unsorted_indices.tolist()  # type: ignore[union-attr]
        found, expected = (found[0].data, found[1]), (expected[0].data, expected[1])
    pairs = zip(tensors(found), tensors(expected), strict=True)
    return all(a.shape == b.shape and agree(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("layers", "both", "first"), list(product((1, 2), (False, True), (False, True))))
def test_it_computes_what_torch_does(name: str, layers: int, both: bool, first: bool) -> None:
    module = layer(name, num_layers=layers, bidirectional=both, batch_first=first, bias=not first)
    written, x = written_out(module), torch.randn(2, 5, 3)
    packed = pack_sequence([torch.randn(length, 3) for length in LENGTHS], enforce_sorted=False)
    for given, batch in ((x, (2,) if first else (5,)), (packed, (4,)), (x[0], ())):
        assert same(written(given), module(given))
        hx = initial(module, *batch)
        assert same(written(given, hx), module(given, hx))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: Any) -> None:
    torch.manual_seed(0)
    module, x = kind(3, 4), torch.randn(2, 3)
    written = written_out(module)
    assert same((written(x),), (module(x),))
    state = module(x)
    assert same((written(x, state),), (module(x, state),))
    assert same((written(x[0]),), (module(x[0]),))


def test_dropout_is_between_layers_and_in_training_alone() -> None:
    module = layer("LSTM", num_layers=2, dropout=0.5)
    written, x = written_out(module), torch.randn(5, 2, 3)
    assert not torch.equal(written(x)[0], written(x)[0])
    assert same(written.eval()(x), module.eval()(x))


def test_the_parameters_are_shared() -> None:
    module = layer("GRU")
    assert {id(p) for p in written_out(module).parameters()} == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("name", KINDS)
def test_without_bias_relevance_is_conserved(name: str) -> None:
    module = layer(name, num_layers=2, bidirectional=True, bias=False)
    written, x = written_out(module), torch.randn(5, 2, 3).requires_grad_()
    with attach(written, rules(1e-30)):
        output, _ = written(x)
    R = torch.randn_like(output)
    (r,) = torch.autograd.grad(output, x, R)
    # a few hundred operations on each way, on numbers that cancel: a mistake is of the order of R
    assert abs(r.sum() - R.sum()) < 1e-8 * r.abs().sum()


def test_one_step_of_an_lstm_by_its_formulas() -> None:
    torch.manual_seed(0)
    module, x = nn.LSTMCell(3, 2), torch.randn(1, 3).requires_grad_()
    h, c = torch.randn(1, 2).requires_grad_(), torch.randn(1, 2).requires_grad_()
    written = written_out(module)
    with attach(written, rules(0.5)):
        new_h, _ = written(x, (h, c))
    R = torch.randn(1, 2)
    r_x, r_h, r_c = torch.autograd.grad(new_h, (x, h, c), R)

    def S(d: Tensor) -> Tensor:  # noqa: N802  as the formulas call it
        return d + 0.5 * torch.where(d < 0, -1.0, 1.0)

    with torch.no_grad():
        a, b = x @ module.weight_ih.T + module.bias_ih, h @ module.weight_hh.T + module.bias_hh
        i, f, g, _o = (a + b).chunk(4, -1)
        of_c, of_g = c * f.sigmoid(), g.tanh() * i.sigmoid()
        s = R / S(of_c + of_g)  # through o and tanh
        assert agree(r_c, of_c * s)
        through = of_g * s / S(g)  # through i and tanh, then the sum of a and b
        for found, values, weight, linear in ((r_x, x, module.weight_ih, a), (r_h, h, module.weight_hh, b)):
            part = linear[:, 4:6]
            assert agree(found, values * ((part * through / S(part)) @ weight[4:6]))


def test_parts_can_have_other_rules_and_be_part_of_a_model() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = written_out(layer("LSTM", batch_first=True)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.lstm(x)[0][:, -1])
            return found

    model, x = Tagger(), torch.randn(2, 5, 3).requires_grad_()
    with attach(model, {"head": Norm(0.25), **rules()}):
        output = model(x)
    (r,) = torch.autograd.grad(output, x, torch.ones_like(output))
    assert r.abs().sum() > 0
    assert {type(part) for part in model.modules()} >= {Linear, Sum, Gate}


def test_what_is_not_recurrent_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no recurrent layer that is known; expected nn\.LSTM"):
        written_out(nn.Linear(2, 2))

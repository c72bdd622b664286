"""Recurrent layers written out, so that their sums, products and linear layers can have rules.

torch computes nn.LSTM in one function, in which no rule can act. Written out it is made of modules:

>>> import torch
>>> from lrp_rules import attach
>>> lstm, x = torch.nn.LSTM(3, 2, batch_first=True), torch.randn(1, 4, 3, requires_grad=True)
>>> written = written_out(lstm)
>>> with attach(written, rules()):
...     output, _ = written(x)
>>> (relevance,) = torch.autograd.grad(output[:, -1].sum(), x)
>>> relevance.shape
torch.Size([1, 4, 3])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lrp_rules.network_rules import SignalTakesAll
from lrp_rules.rules import Epsilon, Norm, Pass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lrp_rules.formula import Stabilizing
    from lrp_rules.hooks.hook import Hook

    #: What a cell hands to its next step: h, and for an LSTM c.
    State = tuple[Tensor, ...]


def rules(stabilizer: Stabilizing = 1e-6) -> dict[type[nn.Module], Hook]:
    """Return the rules of Arras et al. 2017 for the parts of a recurrent layer that is written out, for ``attach``.

    They may be put on a whole model whose recurrent layers are written out, with others beside them.

    Epsilon on linear layers and sums; at a product all relevance goes to the signal, and none to its gate; activations
    pass it on.

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`.

    """
    return {
        Linear: Epsilon(stabilizer),
        Sum: Norm(stabilizer),
        Gate: SignalTakesAll(0),
        Complement: Pass(),
        nn.Tanh: Pass(),
        nn.Sigmoid: Pass(),
        nn.ReLU: Pass(),
    }


class Gate(nn.Module):
    """A signal times its gate."""

    def forward(self, signal: Tensor, gate: Tensor) -> Tensor:
        return signal * gate


class Complement(nn.Module):
    """1 - z: a gate that is open where z is closed."""

    def forward(self, gate: Tensor) -> Tensor:
        return 1 - gate


class Sum(nn.Module):
    """Two signals, added up."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class Linear(nn.Linear):
    """A linear layer that shares the parameters of a recurrent one."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias = weight, bias  # type: ignore[assignment]


class _Cell(nn.Module, ABC):
    """One step of one layer in one direction: ``forward(x, state)`` gives the next state, of which h is the output."""

    #: How many tensors a state has.
    states = 1

    def __init__(self, given: Sequence[nn.Parameter | None]) -> None:
        super().__init__()
        weight_ih, weight_hh, bias_ih, bias_hh = given[:4]
        assert weight_ih is not None
        assert weight_hh is not None
        self.of_input, self.of_state = Linear(weight_ih, bias_ih), Linear(weight_hh, bias_hh)
        self.sum = Sum()

    @abstractmethod
    def forward(self, x: Tensor, state: State) -> State: ...


class _Gated(_Cell):
    """A cell with gates."""

    def __init__(self, given: Sequence[nn.Parameter | None]) -> None:
        super().__init__(given)
        self.gate, self.sigmoid, self.tanh = Gate(), nn.Sigmoid(), nn.Tanh()


class _LSTM(_Gated):
    """c' = f * c + i * g and h' = o * tanh(c'), where h' may be projected."""

    states = 2

    def __init__(self, given: Sequence[nn.Parameter | None]) -> None:
        super().__init__(given)
        projection = given[4] if len(given) > 4 else None
        self.projection = None if projection is None else Linear(projection, None)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = self.sum(self.of_input(x), self.of_state(h)).chunk(4, -1)
        i, f, g, o = self.sigmoid(i), self.sigmoid(f), self.tanh(g), self.sigmoid(o)
        c = self.sum(self.gate(c, f), self.gate(g, i))
        h = self.gate(self.tanh(c), o)
        return h if self.projection is None else self.projection(h), c


class _GRU(_Gated):
    """n = tanh(W x + r * (U h)) and h' = (1 - z) * n + z * h."""

    def __init__(self, given: Sequence[nn.Parameter | None]) -> None:
        super().__init__(given)
        self.complement = Complement()

    def forward(self, x: Tensor, state: State) -> State:
        (h,) = state
        (of_r, of_z, of_n), (r, z, n) = self.of_input(x).chunk(3, -1), self.of_state(h).chunk(3, -1)
        r, z = self.sigmoid(self.sum(of_r, r)), self.sigmoid(self.sum(of_z, z))
        n = self.tanh(self.sum(of_n, self.gate(n, r)))
        return (self.sum(self.gate(n, self.complement(z)), self.gate(h, z)),)


class _RNN(_Cell):
    """h' = tanh(W x + U h), or a ReLU of it."""

    def __init__(self, given: Sequence[nn.Parameter | None], nonlinearity: str) -> None:
        super().__init__(given)
        self.activation = nn.ReLU() if nonlinearity == "relu" else nn.Tanh()

    def forward(self, x: Tensor, state: State) -> State:
        return (self.activation(self.sum(self.of_input(x), self.of_state(state[0]))),)


def written_out(module: nn.Module) -> nn.Module:
    """Return a module that computes what a recurrent one does, of parts that rules can be put on.

    It shares the parameters of ``module`` and is called like it: with several layers, in both directions, batches
    first, without a batch, packed sequences, projections, and dropout between layers.

    Parameters
    ----------
    module
        nn.LSTM, nn.GRU or nn.RNN, or nn.LSTMCell, nn.GRUCell or nn.RNNCell.

    Raises
    ------
    TypeError
        If it is another module.

    """
    if type(module) in {nn.LSTMCell, nn.GRUCell, nn.RNNCell}:
        return _OneCell(module)
    if type(module) in {nn.LSTM, nn.GRU, nn.RNN}:
        return _Layers(module)
    msg = (
        f"{module}, a {type(module).__name__}, is no recurrent layer that is known; expected nn.LSTM, nn.GRU, nn.RNN "
        "or a cell of these. Put rules on its parts"
    )
    raise TypeError(msg)


def _cell(module: Any, given: Sequence[nn.Parameter | None]) -> _Cell:
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return _LSTM(given)
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        return _GRU(given)
    return _RNN(given, module.nonlinearity)


class _OneCell(nn.Module):
    """A cell, called as torch's."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.cell = _cell(module, [module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh])
        self.hidden_size = module.hidden_size

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        if hx is None:
            hx = (input.new_zeros(*input.shape[:-1], self.hidden_size),) * self.cell.states
        found = self.cell(input, (hx,) if isinstance(hx, Tensor) else tuple(hx))
        return found if self.cell.states > 1 else found[0]


class _Layers(nn.Module):
    """Layers of cells, called as torch's."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.directions = 2 if module.bidirectional else 1
        self.batch_first, self.num_layers = module.batch_first, module.num_layers
        self.hidden_size = module.hidden_size
        self.output_size = getattr(module, "proj_size", 0) or module.hidden_size
        cells = []
        for layer in range(module.num_layers):
            for suffix in ("", "_reverse")[: self.directions]:
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
                given = [getattr(module, f"{name}_l{layer}{suffix}", None) for name in names]
                cells.append(_cell(module, given))
        self.cells, self.dropout = nn.ModuleList(cells), nn.Dropout(module.dropout)
        self.train(module.training)

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        if isinstance(input, PackedSequence):
            sizes, order = input.batch_sizes.tolist(), input.sorted_indices
            data, states = self._run(input.data.split(sizes), self._initial(input.data, sizes[0], hx, order))
            output: Any = PackedSequence(torch.cat(data), input.batch_sizes, order, input.unsorted_indices)
            return output, self._final(states, input.unsorted_indices)
        batched = input.ndim == 3
        steps = input if batched else input.unsqueeze(1)
        steps = steps.transpose(0, 1) if batched and self.batch_first else steps
        if hx is not None and not batched:
            hx = hx.unsqueeze(1) if isinstance(hx, Tensor) else tuple(state.unsqueeze(1) for state in hx)
        data, states = self._run(steps.unbind(0), self._initial(steps, steps.shape[1], hx, None))
        output = torch.stack(data)
        if not batched:
            states = tuple(state.squeeze(1) for state in states)
            return output.squeeze(1), self._final(states, None)
        return output.transpose(0, 1) if self.batch_first else output, self._final(states, None)

    def _initial(self, like: Tensor, batch: int, hx: Any, order: Tensor | None) -> State:
        """Return h, and for an LSTM c, for all layers and directions."""
        if hx is None:
            sizes = (self.output_size, self.hidden_size)[: self.cells[0].states]  # type: ignore[index]
            return tuple(like.new_zeros(len(self.cells), batch, size) for size in sizes)
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        return states if order is None else tuple(state.index_select(1, order) for state in states)

    def _final(self, states: State, order: Tensor | None) -> Any:
        states = states if order is None else tuple(state.index_select(1, order) for state in states)
        return states if len(states) > 1 else states[0]

    def _run(self, steps: Sequence[Tensor], initial: State) -> tuple[list[Tensor], State]:
        """Return the outputs of the last layer at each step, and the last states of all."""
        last: list[State] = []
        found = list(steps)
        for layer in range(self.num_layers):
            if layer:
                found = [self.dropout(x) for x in found]
            ways = []
            for direction in range(self.directions):
                number = layer * self.directions + direction
                outputs, state = _through(
                    self.cells[number], found, tuple(s[number] for s in initial), backwards=direction == 1
                )
                ways.append(outputs)
                last.append(state)
            found = ways[0] if len(ways) == 1 else [torch.cat(pair, -1) for pair in zip(*ways, strict=True)]
        return found, tuple(torch.stack(states) for states in zip(*last, strict=True))


def _through(
    cell: nn.Module, steps: Sequence[Tensor], initial: State, *, backwards: bool
) -> tuple[list[Tensor], State]:
    """Return the outputs of one cell at each step, and the state at the end of each sequence.

    Sequences are sorted by their length: at a step there are those that are long enough.
    """
    state, outputs = tuple(s[:0] for s in initial) if backwards else initial, list[Tensor]()
    ended: list[State] = []
    for x in reversed(steps) if backwards else steps:
        size = len(x)
        if backwards and size > len(state[0]):  # some end here, and so begin
            state = tuple(torch.cat([s, first[len(s) : size]]) for s, first in zip(state, initial, strict=True))
        elif size < len(state[0]):
            ended.append(tuple(s[size:] for s in state))
            state = tuple(s[:size] for s in state)
        state = cell(x, state)
        outputs.append(state[0])
    ended.append(state)
    return outputs[::-1] if backwards else outputs, tuple(torch.cat(parts[::-1]) for parts in zip(*ended, strict=True))

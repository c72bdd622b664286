"""The reference on some entries of layers that are too large for whole matrices.

r_i needs only the rows of A that touch i: their denominators, and their entries in column i. Formulas and bounds are
used as they are; only the layer is cut, to the outputs that an input position reaches and to the inputs that those
read.

>>> import numpy as np
>>> from reference import layers, rules
>>> from reference.precision import FLOAT64
>>> layer = layers.Conv((1, 9), np.ones((1, 1, 3)), None, (1,), (0,), (1,))
>>> cut = at(layer, 4)
>>> cut.rows, cut.columns
(array([2, 3, 4]), array([2, 3, 4, 5, 6]))
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from reference.affine import Affine, affine
from reference.base import Weighted
from reference.layers import BatchNorm, Conv, ConvTranspose, Linear
from reference.precision import Model
from reference.rounding import CallableStabilizer, bound
from reference.rules import Part, Parts, Sizes, Stabilizer, relevance
from reference.windows import Array, Index, Shape, convolve

#: Makes the parts of a rule of a layer at an input.
Rule = Callable[[Affine], Parts]
#: Rows of a dense layer that are made at a time, where it has more weights than these.
_BLOCK, _DENSE = 256, 2**22


@dataclass(frozen=True, eq=False)
class Cut(Weighted):
    """Some outputs of a layer, and the inputs that they read; ``here`` are the places of the position in question.

    rows, columns  flat places in the whole output and input
    build          the matrix of a weight of the whole layer
    """

    whole: Weighted
    rows: Index
    columns: Index
    here: Index
    build: Callable[[Array], Array]

    @property
    def output_shape(self) -> Shape:
        """Shape of the outputs that are left."""
        return (len(self.rows),)

    def matrix(self, weight: Array | None = None) -> Array:
        """Rows and columns of A(w)."""
        given = self.weight if weight is None else weight
        assert given is not None
        return self.build(given)

    def offset(self, bias: Array | None = None, weight: Array | None = None) -> Array:
        """Rows of the constant."""
        return self.whole.offset(bias, weight)[self.rows]

    def offset_size(self, bias: Array | None = None, weight: Array | None = None) -> Array:
        """Rows of its magnitudes."""
        return self.whole.offset_size(bias, weight)[self.rows]

    @property
    def gathers(self) -> bool:
        """As the whole layer."""
        return self.whole.gathers

    @property
    def roundings(self) -> int:
        """As the whole layer."""
        return self.whole.roundings


def at(layer: Weighted, place: int) -> Cut:
    """Return a layer cut to what a position of its input has to do with: a place on its spatial axes, flat.

    Raises TypeError for a layer that cannot be cut; a dense layer has one position for each of its leading axes.
    """
    match layer:
        case Conv():
            return _conv(layer, place)
        case ConvTranspose():
            return _transposed(layer, place)
        case BatchNorm():
            size = prod(layer.input_shape[1:])
            entries = np.arange(layer.input_shape[0]) * size + place
            # the scale of a channel is what the layer is at any of its positions
            alone = replace(layer, input_shape=(layer.input_shape[0],))
            return _cut(layer, entries, entries, np.arange(len(entries)), alone.matrix)
        case Linear():
            outs, ins = layer.weight.shape
            rows, columns = np.arange(outs) + place * outs, np.arange(ins) + place * ins
            return _cut(layer, rows, columns, np.arange(ins), lambda weight: np.array(weight, np.float64))
    message = f"at: given {type(layer).__name__}, expected Conv, ConvTranspose, BatchNorm or Linear"
    raise TypeError(message)


def _cut(layer: Weighted, rows: Index, columns: Index, here: Index, build: Callable[[Array], Array]) -> Cut:
    return Cut((len(columns),), layer.weight, layer.bias, layer, rows, columns, here, build)


def _flat(channels: int, places: Index, size: int) -> Index:
    return (np.arange(channels)[:, None] * size + places).ravel()


def _local(position: Index, known: Index) -> Index:
    """Places within ``known``, which is sorted; -1 for what is not among it."""
    found = np.searchsorted(known, position).clip(max=len(known) - 1)
    return np.where(known[found] == position, found, -1)


def _conv(layer: Conv, place: int) -> Cut:
    position = layer.position  # (outputs, taps)
    inputs, outputs = prod(layer.input_shape[1:]), len(position)
    outs = np.nonzero((position == place).any(1))[0]
    read = position[outs]
    ins = np.unique(np.append(read[read >= 0], place))
    local = _local(read, ins)
    here = np.arange(layer.input_shape[0]) * len(ins) + int(np.searchsorted(ins, place))
    return _cut(
        layer,
        _flat(layer.weight.shape[0], outs, outputs),
        _flat(layer.input_shape[0], ins, inputs),
        here,
        lambda weight: convolve(weight, layer.groups, local, len(ins)),
    )


def _transposed(layer: ConvTranspose, place: int) -> Cut:
    position = layer.position  # (inputs, taps): the outputs that each input is written to
    inputs, outputs = len(position), prod(layer.output_shape[1:])
    written = position[place]
    outs = np.unique(written[written >= 0])
    ins = np.unique(np.append(np.nonzero(np.isin(position, outs).any(1))[0], place))
    local = _local(position[ins], outs) if len(outs) else np.full(position[ins].shape, -1)
    here = np.arange(layer.input_shape[0]) * len(ins) + int(np.searchsorted(ins, place))
    return _cut(
        layer,
        _flat(layer.output_shape[0], outs, outputs),
        _flat(layer.input_shape[0], ins, inputs),
        here,
        lambda weight: convolve(weight, layer.groups, local, len(outs)).T,
    )


def position_at(
    layer: Weighted,
    place: int,
    rule: Rule,
    x: Array,
    R: Array,
    stabilize: Stabilizer | CallableStabilizer,
    model: Model,
    zero_params: tuple[str, ...] = (),
) -> tuple[Index, Array, Array]:
    """Return the places of the inputs at a position, what each gets, and how far rounding can take it.

    x, R  of one whole sample, flat
    """
    if isinstance(layer, Linear) and layer.weight.size > _DENSE:
        return _dense(layer, place, rule, x, R, stabilize, model, zero_params)
    cut = at(layer, place)
    parts = rule(affine(cut, x[cut.columns], zero_params))
    r, worst = relevance(parts, R[cut.rows], stabilize), bound(parts, R[cut.rows], stabilize, model).worst
    return cut.columns[cut.here], r[cut.here], worst[cut.here]


# A dense layer is made in blocks of rows, of which denominators, magnitudes and counts are kept whole, and of the
# matrices some columns.


def _dense(
    layer: Linear,
    place: int,
    rule: Rule,
    x: Array,
    R: Array,
    stabilize: Stabilizer | CallableStabilizer,
    model: Model,
    zero_params: tuple[str, ...],
) -> tuple[Index, Array, Array]:
    outs, ins = layer.weight.shape
    columns = np.unique(np.linspace(0, ins - 1, 64).astype(np.intp))
    own_x, own_R = x[place * ins : (place + 1) * ins], R[place * outs : (place + 1) * outs]
    blocks: list[Parts] = []
    for start in range(0, outs, _BLOCK):
        rows = slice(start, start + _BLOCK)
        bias = None if layer.bias is None else layer.bias[rows]
        part = Linear((ins,), layer.weight[rows], bias)
        blocks.append(tuple(_few(one, columns) for one in rule(affine(part, own_x, zero_params))))
    parts = tuple(_joined(same) for same in zip(*blocks, strict=True))
    r, worst = relevance(parts, own_R, stabilize), bound(parts, own_R, stabilize, model).worst
    return columns + place * ins, r, worst


#: What a part computes of all of its columns, and once.
_SUMS = ("contributions", "denominator", "magnitude", "products")


def _few(part: Part, columns: Index) -> Part:
    """A part with some of its columns, whose sums are those of all."""
    sizes = part.known_sizes
    gate = None if sizes.gate is None else _few(sizes.gate, columns)
    kept = replace(
        sizes,
        matrices=tuple(m[:, columns] for m in sizes.matrices),
        counts=tuple(c[:, columns] for c in sizes.counts),
        gate=gate,
    )
    cut = replace(part, terms=tuple((m[:, columns], v[columns]) for m, v in part.terms), sizes=lambda: kept)
    vars(cut).update({name: getattr(part, name) for name in _SUMS})
    return cut


def _joined(blocks: tuple[Part, ...]) -> Part:
    """The parts of blocks of rows as one part of all rows."""
    first, sizes = blocks[0], [block.known_sizes for block in blocks]
    gates = [one.gate for one in sizes]
    whole = Sizes(
        tuple(np.concatenate(same) for same in zip(*(one.matrices for one in sizes), strict=True)),
        tuple(np.concatenate(same) for same in zip(*(one.counts for one in sizes), strict=True)),
        np.concatenate([one.bias for one in sizes]),
        sizes[0].bias_terms,
        sizes[0].roundings,
        min(one.grain for one in sizes),
        None if gates[0] is None else _joined(tuple(gate for gate in gates if gate is not None)),
        sizes[0].scale,
    )
    matrices = zip(*([m for m, _ in block.terms] for block in blocks), strict=True)
    terms = tuple((np.concatenate(same), v) for same, (_, v) in zip(matrices, first.terms, strict=True))
    opened = [block.gate for block in blocks]
    gate = None if opened[0] is None else np.concatenate([one for one in opened if one is not None])
    joined = replace(first, terms=terms, bias=np.concatenate([b.bias for b in blocks]), gate=gate, sizes=lambda: whole)
    vars(joined).update({name: np.concatenate([getattr(block, name) for block in blocks]) for name in _SUMS})
    return joined


__all__ = ["Cut", "at", "position_at"]

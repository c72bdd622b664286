"""How much relevance each weight and each bias has: the sum of the messages that pass through it.

The message from output j to input i is the sum of  coefficient * A_t[j, i] v_t[i] s_j  over parts and terms, and the
relevance of a weight is the sum of those at the entries of A where it stands (Becking et al. 2022, arXiv:2109.04236).
What a bias has is  coefficient * bias_j s_j,  summed over the outputs j that it belongs to. So all weights have what
all inputs have, and all biases what the ledger's bias has.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reference.affine import Affine
from reference.base import Weighted
from reference.precision import FLOAT64
from reference.rules import Part, Parts, Stabilize, stabilizer
from reference.windows import Array


class OfParameters(NamedTuple):
    """Relevance of the entries of weight and bias (None where there is no bias), and how far rounding can move it.

    The bounds hold between two evaluations in float64; inf where the sign of a denominator or of a gate is undecided.
    """

    weight: Array
    bias: Array | None
    weight_bound: Array
    bias_bound: Array | None


def of_parameters(parts: Parts, layer: Affine, R: Array, stabilize: Stabilize = 1e-6) -> OfParameters:
    """Divide the relevance R (m,) of the outputs of one sample among the parameters of the layer.

    Raises
    ------
    ValueError
        If the layer has no weight, or an entry of its matrix is a sum of several weights, as where an input is padded
        by reflection.

    """
    weighted = layer.layer
    if not isinstance(weighted, Weighted) or weighted.weight is None:
        msg = f"of_parameters: given a {type(weighted).__name__}, expected a layer with a weight"
        raise ValueError(msg)
    weight, bias = weighted.weight, weighted.bias
    if (weighted.matrix(np.ones_like(weight)) > 1).any():
        msg = "of_parameters: an entry of the matrix is a sum of several weights; expected one at most"
        raise ValueError(msg)
    R = np.asarray(R, np.float64).ravel()
    # number k + 1 stands where weight k does, and 0 where there is none
    at = np.rint(weighted.matrix(np.arange(1.0, weight.size + 1).reshape(weight.shape))).astype(np.intp)
    messages, wrong = np.zeros((2, *at.shape))
    constants, off = np.zeros((2, len(R)))
    for part in parts:
        s, error = part.shares(R, stabilizer(stabilize)), _error(part, R, stabilize)
        with np.errstate(invalid="ignore"):
            for matrix, v in part.terms:
                sent = part.coefficient * matrix * v * s[:, None]
                messages = messages + sent
                wrong = wrong + np.where(sent != 0, np.abs(sent) * error[:, None], 0.0)
            taken = part.coefficient * s * part.bias
            constants = constants + taken
            off = off + np.where(taken != 0, np.abs(taken) * error, 0.0)
    # additions in any order, and at most eight roundings of a product
    growth = FLOAT64.gamma(at.size + 8)
    wrong, off = wrong + growth * np.abs(messages), off + growth * np.abs(constants)
    found, bound = (_added(at, values, weight.size).reshape(weight.shape) for values in (messages, wrong))
    if bias is None:
        return OfParameters(found, None, bound, None)
    of = np.rint(weighted.offset(np.arange(1.0, bias.size + 1))).astype(np.intp)
    return OfParameters(found, _added(of, constants, bias.size), bound, _added(of, off, bias.size))


def _added(at: npt.NDArray[np.intp], values: Array, count: int) -> Array:
    return np.asarray(np.bincount(at.ravel(), values.ravel(), count + 1)[1:], np.float64)


def _error(part: Part, R: Array, stabilize: Stabilize) -> Array:
    """Return by how much s of two evaluations can differ, relative to it (m,)."""
    S = np.abs(stabilizer(stabilize)(part.denominator))
    moved = 2 * FLOAT64.gamma(part.products + len(part.terms) + 8) * part.magnitude
    with np.errstate(divide="ignore", invalid="ignore"):
        error = moved / (S - moved)
    decided = (moved < S) & ((np.abs(part.denominator) > moved) | (part.magnitude == 0))
    opener = part.known_sizes.gate
    if opener is not None:
        decided &= np.abs(opener.denominator) > 2 * FLOAT64.gamma(opener.products + 8) * opener.magnitude
    return np.where(decided | (R == 0), np.where(R == 0, 0.0, error), np.inf)

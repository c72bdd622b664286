"""Where the relevance went: sum(R) - sum(r) has a name for every part of it.

With s_j = R_j / S(d_j), every R_j of a part splits exactly into what the inputs get, what the bias takes and what the
stabilizer takes,

    R_j = s_j * contributions_j  +  s_j * bias_j  +  s_j * (S(d_j) - d_j),     d_j = contributions_j + bias_j

and a rule's ledger is the sum over its parts, each times its coefficient: alpha - beta = 1 for AlphaBeta. Where every
gate is closed (Gamma, z = 0) all of R_j is in the zero branch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reference.precision import FLOAT64
from reference.rounding import Bound
from reference.rules import Parts, Stabilize, stabilizer
from reference.windows import Array


class Shares(NamedTuple):
    """One number for each sink."""

    inputs: float
    bias: float
    stabilizer: float
    zero_branch: float


@dataclass(frozen=True, eq=False)
class Ledger:
    """The sinks of every output's relevance (m,), and how far rounding can keep them from balancing.

    inputs, bias, stabilizer, zero_branch   the sinks
    relevance                               R, what is split
    balance                                 the most that |imbalance()| can be in float64
    transposition                           the most that sum(r) of `rules.relevance` and sum(inputs) can differ by
    """

    inputs: Array
    bias: Array
    stabilizer: Array
    zero_branch: Array
    relevance: Array
    balance: Array
    transposition: float

    def total(self) -> Shares:
        """Each sink, summed over the outputs."""
        sinks = (self.inputs, self.bias, self.stabilizer, self.zero_branch)
        return Shares(*(float(sink.sum()) for sink in sinks))

    def imbalance(self) -> Array:
        """R minus all sinks (m,): zero but for rounding, at most `balance`; NaN where a denominator is zero."""
        return self.relevance - (self.inputs + self.bias + self.stabilizer + self.zero_branch)

    def inputs_bound(self, bound: Bound, got: Array) -> float:
        """Return the most that sum(got) and the inputs' share can differ by, if every entry of got is within its bound.

        The entries' bounds, this ledger's own rounding, and that of adding up n entries in float64; inf where an entry
        is inconclusive.
        """
        adding = float(FLOAT64.gamma(np.size(got)) * np.abs(got).sum())
        return float(bound.worst.sum()) + self.transposition + adding


def ledger(parts: Parts, R: Array, stabilize: Stabilize = 1e-6) -> Ledger:
    """Split the relevance R (m,) of a rule's outputs into its sinks.

    The balance. d is rounded once from contributions + bias, s once from R / S. A sink is a product with s, for the
    stabilizer of a rounded difference, times the coefficient: at most 3 roundings; then the parts are added, the sinks,
    and R: parts - 1 + 4 more. The contributions' own rounding does not enter, for d is made of the very same numbers.
    So a part leaves at most gamma(8 parts) (|s| (|contributions| + |bias| + |d| + |S|) + |R|).

    The transposition. sum_i v_i (A^T s)_i and sum_j s_j (A v)_j are the same products, added up in another order: m
    additions and two products on one side, n and two on the other, then the sums over m and n entries. A product that
    underflows loses at most tiny: w v times s on one side, w s times v on the other; what comes after, once an entry.
    """
    R = np.asarray(R, np.float64).ravel()
    sinks = np.zeros((3, len(R)))
    balance, transposition, closed = np.zeros(len(R)), 0.0, np.ones(len(R), np.bool_)
    roundings = FLOAT64.gamma(8 * len(parts))
    with np.errstate(invalid="ignore", over="ignore"):
        for part in parts:
            d, s = part.denominator, part.shares(R, stabilizer(stabilize))
            S = stabilizer(stabilize)(d)
            open_ = np.ones(len(R), np.bool_) if part.gate is None else part.gate
            shares = np.where(open_, np.stack([s * part.contributions, s * part.bias, s * (S - d)]), 0.0)
            sinks += part.coefficient * shares
            sizes = np.abs(s) * (np.abs(part.contributions) + np.abs(part.bias) + np.abs(d) + np.abs(S)) + np.abs(R)
            balance += abs(part.coefficient) * roundings * np.where(open_, sizes, 0.0)
            # an operation that underflows loses at most the smallest number, times what it is multiplied with
            balance += 8 * FLOAT64.tiny * (1 + abs(part.coefficient)) * (1 + np.abs(S))
            products = sum(np.abs(matrix) @ np.abs(v) for matrix, v in part.terms)
            length = 2 * (len(R) + sum(len(v) for _, v in part.terms)) + 8
            transposition += abs(part.coefficient) * float(FLOAT64.gamma(length) * (np.abs(s) * products).sum())
            lost = sum(float((np.abs(s) @ (A != 0)).sum() + ((A != 0) @ np.abs(v)).sum()) for A, v in part.terms)
            transposition += FLOAT64.tiny * (abs(part.coefficient) * lost + (1 + abs(part.coefficient)) * length)
            closed &= ~open_
    inputs, bias, stabilized = sinks
    return Ledger(inputs, bias, stabilized, np.where(closed, R, 0.0), R, balance, transposition)

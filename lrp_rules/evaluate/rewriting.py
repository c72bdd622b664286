"""What makes rules fast: rewritings, which compute the parts of a rule in other ways than they are declared.

Each rewriting is a function with a name. They are tried in order, and :func:`without_rewriting` switches them off. None
changes a result beyond rounding; the docstring of each says why.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from lrp_rules.bounds import Distance, Minus
from lrp_rules.evaluate.plan import Boxed, ByWeights, FromOutput, InTwoMaps, Plan, Signed, Together, takes_entries
from lrp_rules.parts import Increased, Part, gamma, negative, one, positive, same, squared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from lrp_rules.parts import Parts


class Facts(NamedTuple):
    """What a plan depends on, besides the parts."""

    additive: bool
    small: bool
    #: Names of the rewritings that are switched off.
    off: frozenset[str]


def plan(parts: Parts, stabilizer: Callable[[Tensor], Tensor], facts: Facts) -> Plan | None:
    """Return a plan to compute the parts; None if they can only be computed as declared."""
    found: Plan
    match parts:
        case (Part(terms=((_, vector),), coefficient=1.0, gate=0),) if vector is one:
            found = ByWeights(parts, stabilizer, rank_one=False, shared=False)
        case _ if all(_fits_a_grid(part) for part in parts):
            found = Together(parts, stabilizer)
        case _:
            return None
    for name, rewrite in REWRITINGS.items():
        if name not in facts.off:
            found = rewrite(found, facts)
    return found


def _fits_a_grid(part: Part) -> bool:
    """Whether each vector meets one matrix, and not all vectors are ones (then a layer is linearised at ones)."""
    vectors = [vector for _, vector in part.terms]
    if not all(isinstance(vector, Hashable) for vector in vectors):
        return False
    return len(set(vectors)) == len(vectors) and not all(vector is one for vector in vectors)


# Each rewriting compares all fields of the parts that it is for: a rule of the user may look almost the same.


def two_maps(now: Plan, facts: Facts) -> Plan:
    """Compute Gamma with two maps in place of four, if g is at most 1.

    This is accurate: nothing cancels in d, and in r only terms at most (1 + g) times as large as the result. A
    stabilizer that looks at several entries of d at a time must see the denominators of one sign together, so it gets
    the four maps.
    """
    match now.parts:
        case (Part(bias=Increased(g=g)), _) if g <= 1 and facts.additive and takes_entries(now.stabilizer):
            return InTwoMaps(now.parts, now.stabilizer, g) if now.parts == gamma(g) else now
    return now


def forward_output(now: Plan, facts: Facts) -> Plan:
    """Take the denominator A(w) x + b from the forward pass: the same numbers, and one map less."""
    match now.parts:
        case (Part(terms=((change, vector),), bias=bias, coefficient=1.0, gate=0),) if change is vector is bias is same:
            return FromOutput(now.parts, now.stabilizer)
        case (Part(terms=((up, Distance(low)), (down, Distance(high))), bias=None, coefficient=1.0, gate=0),):
            known = (up, down) == (positive, negative) and facts.additive and low.shared and high.shared
            # inside the box, d is as large as its terms; outside, the rounding bound of the formula is as wide as this
            return Boxed(now.parts, now.stabilizer, (low, high)) if known and not facts.small else now
    return now


def shifted_box(now: Plan, facts: Facts) -> Plan:
    """Shift ZBox by its bounds: A(w+) (x - l) + A(w-) (x - h), two maps in place of three.

    A(w) = A(w+) + A(w-). Inside the box, all terms of one matrix have the same sign, so nothing cancels.
    """
    match now.parts:
        case (Part(terms=((_, _), (_, Minus(low)), (_, Minus(high)))) as part,):
            box = ((same, same), (positive, Minus(low)), (negative, Minus(high)))
            if part.terms == box and facts.additive:
                terms = ((positive, Distance(low)), (negative, Distance(high)))
                return Together((part._replace(terms=terms),), now.stabilizer)
    return now


def signs(now: Plan, _facts: Facts) -> Plan:
    """Leave out the terms with x- if x >= 0, as after a ReLU: they are 0."""
    both = all({vector for _, vector in part.terms} == {positive, negative} for part in now.parts)
    known = type(now) is Together and now.columns == (positive, negative) and both
    return Signed(now.parts, now.stabilizer) if known else now


def shared_denominators(now: Plan, _facts: Facts) -> Plan:
    """If a denominator does not depend on x, compute it for one sample: it is the same for all."""
    if isinstance(now, ByWeights):
        return ByWeights(now.parts, now.stabilizer, rank_one=now.rank_one, shared=True)
    return now


def rank_one(now: Plan, _facts: Facts) -> Plan:
    """Where a matrix consists of ones, add up its inputs first: one channel in place of C_in * C_out."""
    if isinstance(now, ByWeights):
        return ByWeights(now.parts, now.stabilizer, rank_one=True, shared=now.shared)
    return now


def blocks(now: Plan, facts: Facts) -> Plan:
    """Compute a large layer in blocks of samples or outputs that stay in cache: the same sums in another order.

    Only for changes that are known to be elementwise: one of the user may look at a whole weight or batch.
    """
    # for a small layer, asking how to cut it would take as long as an operation
    now.in_blocks = takes_entries(now.stabilizer) and not facts.small and all(map(_by_entries, now.parts))
    return now


def _by_entries(part: Part) -> bool:
    changes = [part.bias or same, *(change for change, _ in part.terms)]
    changes = [change.part if isinstance(change, Increased) else change for change in changes]
    vectors = [vector for _, vector in part.terms]
    return all(change in _OURS for change in changes) and all(v in _OURS or type(v) in _BOUNDS for v in vectors)


_OURS = (same, positive, negative, squared, one)
_BOUNDS = (Minus, Distance)

REWRITINGS: dict[str, Callable[[Plan, Facts], Plan]] = {
    "two-maps": two_maps,
    "shifted-box": shifted_box,
    "forward-output": forward_output,
    "signs": signs,
    "shared-denominators": shared_denominators,
    "rank-one": rank_one,
    "blocks": blocks,
}


_VARIABLE = "LRP_RULES_WITHOUT"


def _listed(names: str, where: str = "") -> frozenset[str]:
    given = frozenset(names.replace(",", " ").split())
    if "all" in given:
        return frozenset(REWRITINGS)
    unknown = sorted(given - set(REWRITINGS))
    if unknown:
        msg = f"no rewriting is called {', '.join(unknown)}; expected 'all', or some of {', '.join(REWRITINGS)}{where}"
        raise ValueError(msg)
    return given


#: What is switched off, for all threads: a backward pass may run on another thread than the call that started it.
off: frozenset[str] = _listed(os.environ.get(_VARIABLE, ""), f" (in the environment variable {_VARIABLE})")


@contextmanager
def without_rewriting(*names: str) -> Iterator[None]:
    """Switch rewritings off, to find out whether one of them causes a wrong result.

    The backward pass must run inside the block. The environment variable LRP_RULES_WITHOUT does the same for a whole
    program.

    Parameters
    ----------
    names
        Rewritings to switch off. By default all, so that rules are computed exactly as declared.

    Raises
    ------
    ValueError
        If there is no rewriting of that name.

    Examples
    --------
    >>> import torch
    >>> layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3, requires_grad=True)
    >>> from lrp_rules import Gamma
    >>> with Gamma().register(layer), without_rewriting("two-maps"):
    ...     (relevance,) = torch.autograd.grad(layer(x), x, torch.ones(1, 2))

    """
    global off  # noqa: PLW0603  one switch for all threads
    before, off = off, off | _listed(" ".join(names) or "all")
    try:
        yield
    finally:
        off = before

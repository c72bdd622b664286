"""What makes rules fast: the ways in which parts may be computed that are not how they are declared.

Each is a function with a name, tried in order, and can be switched off by :func:`without_rewriting`. None changes what
comes out but for rounding; the reason stands with each.
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
    """What a plan depends on besides the parts."""

    additive: bool
    small: bool
    #: Names of the rewritings that are switched off.
    off: frozenset[str]


def plan(parts: Parts, stabilizer: Callable[[Tensor], Tensor], facts: Facts) -> Plan | None:
    """Return how to compute the parts; None where there is no way but as they are declared."""
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
    """Whether each vector meets one matrix, at x: where the input has no say, a layer is linearised at ones."""
    vectors = [vector for _, vector in part.terms]
    if not all(isinstance(vector, Hashable) for vector in vectors):
        return False
    return len(set(vectors)) == len(vectors) and not all(vector is one for vector in vectors)


# Each of these looks for parts that it knows, to the last of their fields: a rule of one's own may look alike.


def two_maps(now: Plan, facts: Facts) -> Plan:
    """Compute Gamma by two maps in place of four, for g up to 1.

    Accurate there: in d nothing cancels, and in r terms at most (1 + g) times as large as the result. A stabilizer that
    looks at several denominators is to see all of one sign's, and gets the four maps.
    """
    match now.parts:
        case (Part(bias=Increased(g=g)), _) if g <= 1 and facts.additive and takes_entries(now.stabilizer):
            return InTwoMaps(now.parts, now.stabilizer, g) if now.parts == gamma(g) else now
    return now


def forward_output(now: Plan, facts: Facts) -> Plan:
    """Take a denominator A(w) x + b from the forward pass, which has computed it: the same numbers, one map less."""
    match now.parts:
        case (Part(terms=((change, vector),), bias=bias, coefficient=1.0, gate=0),) if change is vector is bias is same:
            return FromOutput(now.parts, now.stabilizer)
        case (Part(terms=((up, Distance(low)), (down, Distance(high))), bias=None, coefficient=1.0, gate=0),):
            known = (up, down) == (positive, negative) and facts.additive and low.shared and high.shared
            # d is as large as its terms inside the box: where it is not, the bound of the formula itself is as wide
            return Boxed(now.parts, now.stabilizer, (low, high)) if known and not facts.small else now
    return now


def shifted_box(now: Plan, facts: Facts) -> Plan:
    """Shift ZBox by its bounds: A(w+) (x - l) + A(w-) (x - h), two maps in place of three.

    With A(w) = A(w+) + A(w-), all terms of a matrix together have one sign inside the box, and nothing cancels.
    """
    match now.parts:
        case (Part(terms=((_, _), (_, Minus(low)), (_, Minus(high)))) as part,):
            box = ((same, same), (positive, Minus(low)), (negative, Minus(high)))
            if part.terms == box and facts.additive:
                terms = ((positive, Distance(low)), (negative, Distance(high)))
                return Together((part._replace(terms=terms),), now.stabilizer)
    return now


def signs(now: Plan, _facts: Facts) -> Plan:
    """Leave out what meets x- where x >= 0, as after a ReLU: these terms are 0."""
    both = all({vector for _, vector in part.terms} == {positive, negative} for part in now.parts)
    known = type(now) is Together and now.columns == (positive, negative) and both
    return Signed(now.parts, now.stabilizer) if known else now


def shared_denominators(now: Plan, _facts: Facts) -> Plan:
    """Compute a denominator that does not depend on x for one sample: it is the same number for all."""
    if isinstance(now, ByWeights):
        return ByWeights(now.parts, now.stabilizer, rank_one=now.rank_one, shared=True)
    return now


def rank_one(now: Plan, _facts: Facts) -> Plan:
    """Add up what meets a matrix of ones before it does: one channel in place of C_in * C_out."""
    if isinstance(now, ByWeights):
        return ByWeights(now.parts, now.stabilizer, rank_one=True, shared=now.shared)
    return now


def blocks(now: Plan, facts: Facts) -> Plan:
    """Do a large layer in blocks of samples or outputs that stay in cache: the same sums, in another order.

    Only for changes that are known to take each entry by itself: one's own may look at a whole weight or batch.
    """
    # to ask a small one what is to be cut takes as long as an operation
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


#: What is switched off, for all threads: a backward pass may run on another one than where it was asked for.
off: frozenset[str] = _listed(os.environ.get(_VARIABLE, ""), f" (in the environment variable {_VARIABLE})")


@contextmanager
def without_rewriting(*names: str) -> Iterator[None]:
    """Compute rules without what makes them fast, to find out whether that is at fault.

    The backward pass has to run inside the block. The environment variable LRP_RULES_WITHOUT does the same for a whole
    program.

    Parameters
    ----------
    names
        Rewritings to leave out; all of them by default, so that rules are computed as they are declared.

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

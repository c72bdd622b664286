"""The search for the variant of one rule that agrees with all answers of a subject."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reference.affine import Affine
from reference.conventions import Together, of_rule, topic_of
from verify.explaining import composing, evidence
from verify.explaining.evidence import DIFFERS, NUMBER, Asked, differ, enough, refuses, speaks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from reference.conventions import Question
    from verify.model import Case

    Array = NDArray[np.float64]
    #: Gives the relevance of a case, one row a sample; None is an error in the place of an answer.
    Ask = Callable[[Case], Array | None]

#: How many cases that a rule fails, and as many that it passes, are asked again.
ENOUGH = 40
#: How many easy cases several variants at once are first tried on, and how many of those that raise an error are asked.
_EASY, _RAISING = 10, 12
#: Failing cases, of which fewer do not bear out several conventions at once.
_FEWEST = 3
#: More variants than these that cannot be told apart explain nothing.
_ALTERNATIVES = 4
#: A nearest variant explains at least this share of the failures, of which so many are looked at, and one of the first.
_NEAR, _LOOK, _FEW = 0.2, 16, 4


class Found(NamedTuple):
    """Variants that explain all cases, on how many; the layers, if on these alone."""

    variants: tuple[Together, ...]
    failing: int
    passing: int
    layers: tuple[str, ...]


class Nearest(NamedTuple):
    """The variant that explains most failures, and which it does and does not, of those that were asked."""

    variant: Together
    explained: list[Case]
    left: list[Case]


class Search:
    """Leaves out one variant of a rule after the other, by the answers of a subject."""

    def __init__(self, rule: str, ask: Ask, clock: Callable[[], float], end: float) -> None:
        self._rule, self._ask, self._clock, self._end = rule, ask, clock, end
        self._known: dict[str, Asked] = {}
        self._read: dict[str, list[Question]] = {}
        self._singles = [Together((one,)) for one in of_rule(rule)]
        self._somewhere: list[Together] = []
        self._against: dict[tuple[int, ...], str] = {}  # a case that speaks against a variant

    def late(self) -> bool:
        """Whether there is no time left."""
        return self._clock() > self._end

    def explaining(self, failing: Sequence[Case], passing: Sequence[Case], raising: Sequence[Case]) -> Found | None:
        """Return what explains all cases; or else the failing ones and the passing ones on the same layers.

        One variant is tried before several at once.
        """
        failed_on = tuple(sorted({_name(case) for case in failing}))
        raising = spread(_unforeseen(raising, [*failing, *passing]) or raising)[:_RAISING]
        failing, passing = spread(failing), spread(passing, failed_on)
        here = [case for case in passing if _name(case) in failed_on]
        elsewhere = [case for case in passing if _name(case) not in failed_on]
        if failing and not self._repeats(failing, passing):
            return None
        for several in (False, True) if len(failing) >= _FEWEST else (False,):
            tiers = self._several(failing, passing) if several else [self._singles]
            found = self._explained(tiers, failing, passing, raising)
            if found:
                return self._unless_many(found, failing, passing, ())
            if failing and elsewhere:
                tiers = self._several(failing, here) if several else [self._singles]
                found = self._explained(tiers, failing, here, raising)
                if found and self._told_by_layer(found, failing, elsewhere):
                    return self._unless_many(found, failing, here, failed_on)
        return None

    def _repeats(self, failing: Sequence[Case], passing: Sequence[Case]) -> bool:
        """Whether the subject answers as it did in the run: what an earlier call leaves behind is no formula."""
        if passing and not all(self._asked(passing[0]).as_right):
            return False
        first, again = self._asked(failing[0]).got, self._ask(failing[0])
        if first is None or again is None:
            return first is again
        return np.array_equal(first, again, equal_nan=True)

    def _unless_many(
        self, found: tuple[Together, ...], failing: Sequence[Case], passing: Sequence[Case], layers: tuple[str, ...]
    ) -> Found | None:
        if not 0 < len(found) <= _ALTERNATIVES:
            return None
        failed, passed = (sum(case.id in self._known for case in cases) for cases in (failing, passing))
        return Found(found, failed, passed, layers)

    def _several(self, failing: Sequence[Case], passing: Sequence[Case]) -> Iterable[list[Together]]:
        """Yield several variants at once, fewest first."""
        begun = composing.beginnings(self._rule, self._easy(failing), self._easy(passing), self.late)
        self._somewhere = self._somewhere or [
            one for tier in composing.variants(self._rule, begun.somewhere, 1) for one in tier
        ]
        return composing.variants(self._rule, begun.everywhere)

    def _easy(self, cases: Sequence[Case]) -> list[Asked]:
        """Ask the easiest cases that give numbers, with matrices of their own: those of all variants are too many."""
        found: list[Asked] = []
        for case in easiest(cases):
            if len(found) == _EASY or self.late():
                break
            got = self._asked(case).got
            if got is not None and got.size and np.isfinite(got).all():
                batch = self._questions(case)
                found.append(
                    Asked(got, [replace(q, layer=Affine(q.layer.layer, q.x, q.layer.zero_params)) for q in batch])
                )
        return found

    def _explained(
        self, tiers: Iterable[list[Together]], failing: Sequence[Case], passing: Sequence[Case], raising: Sequence[Case]
    ) -> tuple[Together, ...]:
        """The variants that agree with every case, and differ from the rule where the subject does."""
        for tier in tiers:
            if found := self._agreeing_with_all(tier, failing, passing, raising):
                return found
        return ()

    def _agreeing_with_all(
        self, left: list[Together], failing: Sequence[Case], passing: Sequence[Case], raising: Sequence[Case]
    ) -> tuple[Together, ...]:
        said: dict[int, set[str]] = defaultdict(set)
        asked = {case.id for case in (*failing[:ENOUGH], *passing[:ENOUGH])}
        left = [one for one in left if self._against.get(_key(one)) not in asked]
        for case in (*failing[:ENOUGH], *passing[:ENOUGH]):
            if not left or self.late():
                return ()
            left = self._agreeing(left, case, said)
        # what is left may differ in other cases
        for case in (*failing[ENOUGH:], *passing[ENOUGH:]):
            if len({one.name for one in left}) <= 1 or self.late():
                break
            if differ(left, self._questions(case)):
                left = self._agreeing(left, case, said)
        named: dict[str, Together] = {}
        for one in left:
            refused = {refuses(one, self._questions(case)) for case in raising}
            if enough(said[id(one)], refused):
                named.setdefault(one.name, one)  # the first form stands for all of a name
        return _without_weaker(tuple(named.values()))

    def _told_by_layer(self, found: Iterable[Together], failing: Sequence[Case], elsewhere: Sequence[Case]) -> bool:
        """Whether it is the layer that decides, and not the parameters or the data of the failing cases.

        On another layer, one of the same parameters and data has to pass although each of these variants differs.
        """
        alike = {_beside_layer(case) for case in failing}
        left = list(found)
        for case in [case for case in elsewhere if _beside_layer(case) in alike][:ENOUGH]:
            if not left or self.late():
                break
            asked = self._asked(case)
            left = [one for one in left if speaks(one, asked) is not None]
        return not left

    def _agreeing(self, variants: Sequence[Together], case: Case, found: dict[int, set[str]]) -> list[Together]:
        asked, kept = self._asked(case), []
        for variant in variants:
            said = speaks(variant, asked)
            if said is None:
                self._against[_key(variant)] = case.id
            else:
                kept.append(variant)
                found[id(variant)] |= said
        return kept

    def nearest(self, failing: Sequence[Case], passing: Sequence[Case]) -> Nearest | None:
        """Return the variant that explains most of the failing cases, and speaks against fewest that pass."""
        failed_on = {_name(case) for case in failing}
        shown, others = spread(failing)[:_LOOK], spread(passing, failed_on)[:_LOOK]
        explains: dict[Together, int] = {}
        for variant in (*self._singles, *self._somewhere):
            if topic_of(variant.conventions[-1]) == "relevance" or self.late():
                continue  # that one convention of relevance explains a part is not what anybody wrote
            few = sum(_explains(variant, self._asked(case)) for case in shown[:_FEW])
            explains[variant] = few and few + sum(_explains(variant, self._asked(case)) for case in shown[_FEW:])
        most = max(explains.values(), default=0)
        best = [one for one, count in explains.items() if count == most >= max(2, _NEAR * len(shown))]
        if not best:
            return None
        against = [
            sum(speaks(one, self._asked(case)) is None for case in others if not self.late()) for one in best[:_LOOK]
        ]
        variant = best[against.index(min(against))]
        asked = [case for case in failing if not self.late() or case.id in self._known]
        found = {case.id: _explains(variant, self._asked(case)) for case in asked}
        return Nearest(
            variant, [case for case in asked if found[case.id]], [case for case in asked if not found[case.id]]
        )

    def _questions(self, case: Case) -> list[Question]:
        if case.id not in self._read:
            self._read[case.id] = evidence.questions(case)
        return self._read[case.id]

    def _asked(self, case: Case) -> Asked:
        if case.id not in self._known:
            self._known[case.id] = Asked(self._ask(case), self._questions(case))
        return self._known[case.id]


def _key(variant: Together) -> tuple[int, ...]:
    return tuple(id(one) for one in variant.conventions)


def _explains(variant: Together, asked: Asked) -> bool:
    return {DIFFERS, NUMBER} <= (speaks(variant, asked) or set())


def _without_weaker(found: tuple[Together, ...]) -> tuple[Together, ...]:
    """Leave out that an argument is ignored where none was given: then the default alone is known."""
    names = {one.name for one in found}
    return tuple(
        one for one in found if one.name.replace("stabilizer-ignored", "stabilizer-default") not in names - {one.name}
    )


def _unforeseen(raising: Sequence[Case], answered: Sequence[Case]) -> list[Case]:
    """Return the errors that a formula may explain: not those on layers or of arguments that are never answered."""
    layers, arguments = {case.layer for case in answered}, {_arguments(case) for case in answered}
    return [case for case in raising if case.layer in layers and _arguments(case) in arguments]


def _arguments(case: Case) -> str:
    return case.id.split("/")[3]


def easiest(cases: Sequence[Case]) -> list[Case]:
    """Those in float64 and not of integers; the signed ones first, and those of no stabilizer of their own.

    There is one of each family of layers, then one of each layer, before there are two.
    """

    def rank(case: Case) -> tuple[bool, bool]:
        _, _, _, arguments, kind, *_ = [*case.id.split("/"), ""]
        return arguments.startswith(("stabilizer", "epsilon")), kind != "signed"

    left = sorted((case for case in cases if case.dtype == "float64" and "/zeros/" not in case.id), key=rank)
    families = dict.fromkeys(case.layer for case in left)
    firsts = [next(case for case in left if case.layer == family) for family in families]
    layers = [next(case for case in left if _name(case) == name) for name in dict.fromkeys(map(_name, left))]
    return list({case.id: case for case in (*firsts, *layers, *left)}.values())


def _name(case: Case) -> str:
    return case.id.split("/")[2]


def _beside_layer(case: Case) -> tuple[str, ...]:
    return tuple(case.id.split("/")[3:])


def spread(cases: Sequence[Case], first: Collection[str] = ()) -> list[Case]:
    """Return the cases so that the first of them differ in as much as possible, those in float64 first.

    First there is one of each parameter of the rule, then one of each layer, then of each pair of what an id names;
    among equals, those on the layers named in `first`, where a difference is most likely to be seen.
    """
    left = list(cases)
    random.Random(0).shuffle(left)
    left.sort(key=lambda case: (case.dtype != "float64", _name(case) not in first))
    found: list[Case] = []
    for tells in (lambda words: {words[3]}, lambda words: set(words[2:5]), lambda words: set(pairwise(words))):
        seen = {told for case in found for told in tells(case.id.split("/"))}
        waiting: list[Case] = []
        for case in left:
            told = tells(case.id.split("/"))
            (waiting if told <= seen else found).append(case)
            seen |= told
        left = waiting
    return found + left

"""Several mistakes at once: which variants of a rule to try together.

All pairs are held against a few easy cases, without bounds of rounding and without their last digits. What comes near
is then tried with every convention of epsilon, of the stabilizer and of the precision, which such a look cannot see.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reference.conventions import DETAILS, TOPICS, Changed, Convention, Together, topic_of
from verify.explaining.evidence import Asked, near, quick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from reference.conventions import Question

    Array = NDArray[np.float64]

#: Conventions in one variant, and how many ways to begin are followed.
_MOST, _FOLLOWED = 4, 12
#: Ways to begin that the details are tried on where none of them comes near in all cases.
_NEAREST = 3

#: What says of the bias what another convention would take back.
_OF_BIAS = frozenset({"inputs-and-bias-unsplit"})


class Beginnings(NamedTuple):
    """Conventions that come near what a subject gives in all of the easy cases, and in some that it fails."""

    everywhere: list[tuple[Convention, ...]]
    somewhere: list[tuple[Convention, ...]]


def beginnings(rule: str, failing: Sequence[Asked], passing: Sequence[Asked], late: Callable[[], bool]) -> Beginnings:
    """Return what comes near in all of these cases, and what comes near in most of the failing ones, most first.

    Two conventions are tried where no single one comes near in all cases. One of them is enough in none of the cases
    that are looked at first, or it would not take two.
    """
    topics = [[one for one in known if rule in one.rules] for name, known in TOPICS.items() if name not in DETAILS]
    alone: list[tuple[Convention, ...]] = [(), *((one,) for topic in topics for one in topic)]
    if not failing:  # only details are wrong
        return Beginnings([()], [])
    hits = {one: _hits(one, failing, passing) for one in alone if not late()}
    everywhere = [one for one, near_in in hits.items() if all(near_in)]
    if not everywhere:
        pairs = [pair for first, second in combinations(topics, 2) for pair in product(first, second) if _goes(pair)]
        found = _near_first(pairs, hits, [*failing, *passing], late)
        hits |= {pair: _hits(pair, failing, passing) for pair in found if not late()}
        everywhere = [pair for pair in found if all(hits.get(pair, (False,)))]
    most = sorted((one for one in hits if one), key=lambda one: -sum(hits[one][: len(failing)]))
    somewhere = [one for one in most[:_NEAREST] if any(hits[one][: len(failing)])]
    return Beginnings(_least(everywhere)[:_FOLLOWED], somewhere)


def _goes(pair: tuple[Convention, ...]) -> bool:
    """Whether two can be tried quickly: what changes no question costs a bound of rounding each time."""
    return _fits(pair) and all(isinstance(one.form, Changed) or topic_of(one) != "relevance" for one in pair)


def _near_first(
    pairs: Sequence[tuple[Convention, ...]],
    hits: Mapping[tuple[Convention, ...], Sequence[bool]],
    cases: Sequence[Asked],
    late: Callable[[], bool],
) -> list[tuple[Convention, ...]]:
    """Return the pairs that come near in the first case in which neither of the two comes near alone."""
    by_case: dict[int, list[tuple[Convention, ...]]] = {}
    for pair in pairs:
        alone = [hits.get((one,), (False,) * len(cases)) for one in pair]
        neither = [index for index in range(len(cases)) if not any(near_in[index] for near_in in alone)]
        by_case.setdefault(neither[0] if neither else 0, []).append(pair)
    return [pair for index, tried in by_case.items() for pair in _near_in(cases[index], tried, late)]


def _hits(conventions: tuple[Convention, ...], failing: Sequence[Asked], passing: Sequence[Asked]) -> list[bool]:
    cases = [*failing, *passing]
    if Together(conventions).last is not None and not _is_near(cases[0], conventions):  # it is slow
        return [False] * len(cases)
    return [_is_near(case, conventions) for case in cases]


def variants(
    rule: str, starts: Sequence[tuple[Convention, ...]], most_details: int = len(DETAILS)
) -> Iterator[list[Together]]:
    """Yield the beginnings with all details, those of fewest conventions first; none of a single one."""
    # a result of half precision has so few digits that it would agree with what is only near
    details = [[one for one in TOPICS[name] if rule in one.rules and one.name != "half-result"] for name in DETAILS]
    ends = [
        chosen
        for size in range(most_details + 1)
        for topics in combinations(details, size)
        for chosen in product(*topics)
        if size == 1 or all(isinstance(one.form, Changed) for one in chosen)  # all others are slow
    ]
    for size in range(2, _MOST + 1):
        together = ((*start, *end) for start in starts for end in ends if len(start) + len(end) == size)
        yield [Together(one) for one in together if _fits(one)]


def _fits(conventions: tuple[Convention, ...]) -> bool:
    """Whether some can be applied one after the other: two that answer for themselves cannot, nor two of the bias."""
    topics = [topic_of(one) for one in conventions] + ["bias" for one in conventions if one.name in _OF_BIAS]
    return sum(not isinstance(one.form, Changed) for one in conventions) <= 1 and len(set(topics)) == len(topics)


def _least(found: Sequence[tuple[Convention, ...]]) -> list[tuple[Convention, ...]]:
    """Return those of which no smaller part is found, too: the rest of them makes no difference."""
    known = {tuple(map(id, one)) for one in found}
    return [
        one
        for one in found
        if not any(tuple(map(id, part)) in known for size in range(len(one)) for part in combinations(one, size))
    ]


def _near_in(
    case: Asked, tried: Sequence[tuple[Convention, ...]], late: Callable[[], bool]
) -> Iterator[tuple[Convention, ...]]:
    """Yield those that come near in a case; what many begin with is computed once."""
    begun: dict[int, Asked] = {}
    for conventions in tried:
        if late():
            break
        first, *others = conventions or (None,)
        if first is None or not others or not isinstance(first.form, Changed):
            near_, rest = case, conventions
        else:
            if id(first) not in begun:
                begun[id(first)] = Asked(case.got, _through(first.form, case.batch))
            near_, rest = begun[id(first)], tuple(others)
        if _is_near(near_, rest):
            yield conventions


def _through(form: Changed, batch: Sequence[Question]) -> list[Question]:
    try:
        return [form.change(question) for question in batch]
    except ValueError:  # a refusal
        return []


def _is_near(case: Asked, conventions: tuple[Convention, ...]) -> bool:
    """Whether what these give of the first sample comes near what the subject gave."""
    if case.got is None or not len(case.got) or not case.batch:
        return False
    variant = Together(conventions)
    with np.errstate(all="ignore"):
        try:
            if variant.last is not None:
                return near(case.got[0], variant.form(case.batch)[0].relevance)
            question = case.batch[0]
            for one in variant.changes:
                question = one.change(question)
            return near(case.got[0], quick(question))
        except (ValueError, AssertionError, IndexError):  # two that do not go together
            return False

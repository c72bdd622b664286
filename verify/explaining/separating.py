"""What tells the cases that a rule fails from those that it passes: a padding, a dtype, a kind of data, an argument.

A few traits of cases, each of which decides: whatever has it fails, or holds, and nothing else does.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from verify.questions.covering.rows import Covered
from verify.questions.layers import LayerCase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from verify.model import Case

#: Fewer cases than these on a side tell nothing.
_FEWEST = 3
#: A longer list explains nothing.
_MOST = 5
_POSITIVE = ("nonnegative", "positive")


class Told(NamedTuple):
    """Cases of one kind, as a sentence names them, and by their ids."""

    words: str
    ids: frozenset[str]


def sentence(failing: Sequence[Case], passing: Sequence[Case], fails: str = "fails", holds: str = "holds") -> str:
    """Return what tells the ones from the others: "holds on all 200 cases without a bias; fails on all 96 others".

    Empty where nothing does, or where there are not two kinds to tell apart.
    """
    known, bad, good = _read(failing, passing)
    if min(len(bad), len(good)) < _FEWEST:
        return ""
    kinds = _kinds(known)
    covers = [(_cover(kinds, one), one is bad) for one in (bad, good)]
    found = [(cover, some) for cover, some in covers if cover]
    verbs = {True: fails, False: holds}
    if not found:
        return _one_sided(kinds, bad, good, verbs)
    cover, some = min(found, key=lambda pair: len(pair[0]))
    first, *more = cover
    words = [f"all {len(first.ids)} cases {first.words}", *(f"all {len(one.ids)} {one.words}" for one in more)]
    rest = len(good if some else bad)
    return f"{verbs[some]} on {_joined(words)}; {verbs[not some]} on all {rest} others"


def where(wanted: Sequence[Case], others: Sequence[Case]) -> str:
    """Return traits of which these have some, and the others none; empty where no few of them do."""
    known, ids, _ = _read(wanted, others)
    return ", or ".join(one.words for one in _cover(_kinds(known), ids)) if len(others) >= _FEWEST else ""


def _read(
    failing: Sequence[Case], passing: Sequence[Case]
) -> tuple[dict[str, tuple[str, ...]], frozenset[str], frozenset[str]]:
    """Return the traits of all cases, and the ids of those of either kind that have some."""
    known = {case.id: told for case in (*failing, *passing) if (told := traits(case)) is not None}
    bad, good = (frozenset(case.id for case in cases if case.id in known) for cases in (failing, passing))
    return known, bad, good


def _cover(kinds: Sequence[Told], wanted: frozenset[str]) -> list[Told]:
    """Return the fewest kinds that are all of what is wanted, and nothing else; empty where there are no such few."""
    left, found = set(wanted), list[Told]()
    within = [kind for kind in kinds if kind.ids <= wanted]
    while left and len(found) < _MOST:
        best = max(within, key=lambda kind: len(kind.ids & left), default=None)
        if best is None or not best.ids & left:
            break
        found.append(best)
        left -= best.ids
    return [] if left else found


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _one_sided(kinds: Sequence[Told], bad: frozenset[str], good: frozenset[str], verbs: Mapping[bool, str]) -> str:
    """Say of the smallest kind outside of which nothing fails, what share of it does."""
    total = len(bad) + len(good)
    found = [kind for kind in kinds if bad <= kind.ids and len(kind.ids) <= total / 2]
    if not found:
        return ""
    kind = min(found, key=lambda one: len(one.ids))
    return (
        f"{verbs[True]} on {len(bad)} of the {len(kind.ids)} cases {kind.words}; "
        f"{verbs[False]} on all {total - len(kind.ids)} others"
    )


def _kinds(known: Mapping[str, tuple[str, ...]]) -> list[Told]:
    """All kinds of these cases, the most general traits first; of kinds with the same cases, the first."""
    found: dict[str, set[str]] = {}
    place: dict[str, int] = {}
    for id_, told in known.items():
        for index, words in enumerate(told):
            if words:
                found.setdefault(words, set()).add(id_)
                place[words] = index
    kinds: dict[frozenset[str], str] = {}
    for words in sorted(found, key=lambda one: (place[one], one)):
        if _FEWEST <= len(found[words]) < len(known):
            kinds.setdefault(frozenset(found[words]), words)
    return [Told(words, ids) for ids, words in kinds.items()]


def traits(case: Case) -> tuple[str, ...] | None:
    """Return what a case is, in words, in one order for all cases; None for one that is about something else."""
    if not isinstance(case.run, partial) or len(case.run.args) < 2:
        return None
    layer = case.run.args[1]
    if not isinstance(layer, LayerCase) or isinstance(layer, Covered):
        return None
    _, _, _, arguments, kind, dtype, *_ = [*case.id.split("/"), "", "", ""]
    return (
        *_of_layer(layer),
        f"in {dtype}",
        "without an input below zero" if kind in _POSITIVE else "with inputs of both signs or below zero",
        f"with data kind {kind}",
        f"with data kind other than {kind}" if kind == "zeros" else "with data kind other than zeros",
        "with default parameters" if arguments == "default" else "with other than default parameters",
        f"with {arguments.split('=', maxsplit=1)[0]} given" if "=" in arguments else "",
        f"with {arguments}" if arguments != "default" else "",
        f"on {layer.family}",
        f"on {layer.name}",
    )


@cache
def _of_layer(layer: LayerCase) -> tuple[str, ...]:
    module: Any = layer.build()
    bias = getattr(module, "bias", None) is not None

    def more(name: str, base: int) -> bool:
        value = getattr(module, name, base)
        return any(one != base for one in (value if isinstance(value, tuple) else (value,)))

    mode = getattr(module, "padding_mode", "zeros")
    pads = isinstance(getattr(module, "padding", 0), str) or more("padding", 0)
    return (
        "with a bias" if bias else "without a bias",
        f"with padding mode {mode}" if mode != "zeros" else "",
        "with padding mode other than zeros" if mode != "zeros" else "with no padding or padding of zeros",
        "with padding" if pads else "without padding",
        _with("stride", held=more("stride", 1) and not layer.family.endswith("Pool")),
        _with("dilation", held=more("dilation", 1)),
        _with("groups", held=more("groups", 1)),
        _with("output_padding", held=more("output_padding", 0)),
        "with a batch" if layer.batched else "without a batch",
        "on layers with parameters" if layer.weighted else "on layers without parameters",
    )


def _with(name: str, *, held: bool) -> str:
    return f"with {name}" if held else f"without {name}"

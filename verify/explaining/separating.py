"""What tells the cases that a rule fails from those that it passes: a padding, a dtype, a kind of data, an argument.

A list of at most two questions about a case, each of which decides all that it is asked about.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from verify.questions.covering.rows import Covered
from verify.questions.layers import LayerCase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from verify.model import Case

#: Fewer cases than these on a side tell nothing.
_FEWEST = 3
_POSITIVE = ("nonnegative", "positive")


class Told(NamedTuple):
    """Cases of one kind, as a sentence names them, and by their ids."""

    words: str
    ids: frozenset[str]


def sentence(failing: Sequence[Case], passing: Sequence[Case], fails: str = "fails", holds: str = "holds") -> str:
    """Return what tells the ones from the others: "holds on all 200 cases without a bias, fails on all 96 others".

    Empty where nothing does, or where there are not two kinds to tell apart.
    """
    known = {case.id: told for case in (*failing, *passing) if (told := traits(case)) is not None}
    bad, good = (frozenset(case.id for case in cases if case.id in known) for cases in (failing, passing))
    if min(len(bad), len(good)) < _FEWEST:
        return ""
    kinds = _kinds(known)
    verbs = {True: fails, False: holds}
    for kind in kinds:
        if kind.ids in (bad, good):
            verb, rest = verbs[kind.ids == bad], len(known) - len(kind.ids)
            return f"{verb} on all {len(kind.ids)} cases {kind.words}, {verbs[kind.ids != bad]} on all {rest} others"
    return _of_two(kinds, bad, good, verbs) or _one_sided(kinds, bad, good, verbs)


def _of_two(kinds: Sequence[Told], bad: frozenset[str], good: frozenset[str], verbs: Mapping[bool, str]) -> str:
    pure = [kind for kind in kinds if kind.ids <= bad or kind.ids <= good]
    for first, second in product(pure, kinds):
        left_bad, left_good = bad - first.ids, good - first.ids
        if min(len(left_bad), len(left_good)) < _FEWEST:
            continue
        asked = second.ids - first.ids
        if asked in (left_bad, left_good):
            fails_first, fails = first.ids <= bad, asked == left_bad
            rest = len(left_good if fails else left_bad)
            return (
                f"{verbs[fails_first]} on all {len(first.ids)} cases {first.words}; of the others, {verbs[fails]} on "
                f"all {len(asked)} {second.words} and {verbs[not fails]} on all {rest} that are left"
            )
    return ""


def _one_sided(kinds: Sequence[Told], bad: frozenset[str], good: frozenset[str], verbs: Mapping[bool, str]) -> str:
    """Say of the smallest kind outside of which all is well, or nothing, what share of it is not."""
    total = len(bad) + len(good)
    found = [
        (len(kind.ids), some, one, kind)
        for kind in kinds
        for some, one in ((True, bad), (False, good))
        if one <= kind.ids and len(kind.ids) <= total / 2
    ]
    if not found:
        return ""
    _, some, one, kind = min(found, key=lambda pair: pair[0])
    rest = total - len(kind.ids)
    return (
        f"{verbs[some]} on {len(one)} of the {len(kind.ids)} cases {kind.words}, {verbs[not some]} on all {rest} others"
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

"""A first file of known deviations, made of what failed in one run: as few patterns as are right."""

from __future__ import annotations

import heapq
import json
import re
from collections import defaultdict
from itertools import product
from typing import TYPE_CHECKING

from verify.explaining.deviations import expression
from verify.formats.text import printable
from verify.model import BAD, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from verify.model import Outcome

    #: An id or a pattern, part by part.
    Parts = tuple[str, ...]

_HEAD = """\
# Known deviations, written by lrp-verify --write-deviations.
# Replace each reason by what the library does, and why. Delete an entry when its cases pass again.
library = {library}
versions = [{version}, {version}]
"""
_ENTRY = """
[[deviation]]
pattern = {pattern}
verdict = {verdict}
{says}reason = {reason}
"""
#: What of a message stays the same where its numbers differ.
_KINDS = ("expected it to name", "is accepted", r"raises \w+", r"^\w+(Error|Exception|Exit|Interrupt)\b")


def entries(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Return the failures, put together by check, rule, verdict and, for errors, what they say: one entry each."""
    groups: dict[tuple[str, str, Verdict, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.verdict in BAD:
            groups[outcome.check, outcome.rule, outcome.verdict, said(outcome)].append(outcome)
    return list(groups.values())


def said(outcome: Outcome) -> str:
    """Return the pattern of an error's message, or of the lack of one; nothing where numbers are compared."""
    if outcome.verdict is not Verdict.ERROR and outcome.check != "errors":
        return ""
    # else all up to the first number or name
    found = next((one for kind in _KINDS if (one := re.search(kind, outcome.reason))), None)
    words = found[0] if found else re.split(r"[\d'\"(\[]", outcome.reason)[0].strip()
    return f"*{words}*" if words else "*"


def baseline(library: str, version: str, outcomes: Sequence[Outcome], known: Iterable[str]) -> bytes:
    """Return the file. ``known`` are the ids of all cases there are.

    A pattern matches no case that was not asked, and none that ended otherwise than its entry says.
    """
    everything = {*known, *(outcome.id for outcome in outcomes)}
    pieces = [_HEAD.format(library=_text(library), version=_text(version))]
    for group in entries(outcomes):
        found = patterns([outcome.id for outcome in group], everything)
        pieces.append(
            _ENTRY.format(
                pattern=_listed(found),
                verdict=_text(group[0].verdict.value),
                says=f"says = {_text(says)}\n" if (says := said(group[0])) else "",
                reason=_text(_seen(group)),
            )
        )
    return "".join(pieces).encode()


def _seen(group: Sequence[Outcome]) -> str:
    """Return the placeholder for a reason: how many cases there were, and what the first said."""
    cases = "1 case" if len(group) == 1 else f"{len(group)} cases"
    return f"SAY WHY: {cases}; first {group[0].id}: {group[0].reason}".removesuffix(": ")


def _text(value: str) -> str:
    # a string of JSON is one of TOML, but for characters that are not printable
    return json.dumps(printable(value), ensure_ascii=False)


def _listed(found: Sequence[str]) -> str:
    if len(found) == 1:
        return _text(found[0])
    return "\n".join(["[", *(f"    {_text(pattern)}," for pattern in found), "]"])


# --- patterns ---------------------------------------------------------------------------------------------------------


def patterns(failing: Collection[str], everything: Iterable[str]) -> list[str]:
    """Return few patterns that match all of the failing ids, and no other of all ids."""
    return ["/".join(parts) for parts in _joined(_chosen(failing, everything))]


def _chosen(failing: Collection[str], everything: Iterable[str]) -> list[Parts]:
    """Return patterns without braces, greedily: what matches most of those that are left comes first."""
    heads = {_head(id_) for id_ in failing}
    # a pattern begins with a check and a rule, so that it cannot match what begins otherwise
    others = [id_ for id_ in {*everything} - {*failing} if _head(id_) in heads]
    forbidden = {form for id_ in others for form in _forms(id_)}
    members: dict[Parts, list[str]] = defaultdict(list)
    for id_ in dict.fromkeys(failing):
        for form in _forms(id_):
            if form not in forbidden:
                members[form].append(id_)
    # of two that match the same, the one that names less
    heap = [(-len(ids), -form.count("*"), form) for form, ids in members.items()]
    heapq.heapify(heap)
    left = set(failing)
    found: list[Parts] = []
    while left and heap:
        size, stars, form = heapq.heappop(heap)
        now = -sum(id_ in left for id_ in members[form])
        if now != size:
            if now:
                heapq.heappush(heap, (now, stars, form))
        elif (parts := _shortest(form, others)) is not None:
            found.append(parts)
            left.difference_update(members[form])
    return found


def _head(id_: str) -> Parts:
    return tuple(id_.split("/")[:2])


def _forms(id_: str) -> Iterator[Parts]:
    """Yield the id with ``*`` in place of any choice of its parts, the check and the rule excepted."""
    parts = id_.split("/")
    for rest in product(*((part, "*") for part in parts[2:])):
        yield (*parts[:2], *rest)


def _shortest(form: Parts, others: Sequence[str]) -> Parts | None:
    """Return the form, with one ``*`` for several in a row; None where it matches others all the same.

    It may match those that have more parts than itself.
    """
    short = tuple(part for part, before in zip(form, ("", *form), strict=False) if (part, before) != ("*", "*"))
    for parts in dict.fromkeys((short, form)):
        if not any(map(expression("/".join(parts)).fullmatch, others)):
            return parts
    return None


def _joined(found: Sequence[Parts]) -> list[Parts]:
    """Write those that differ in one part alone as one, with {a,b}. No id has a brace or a star in it.

    A part with a comma in it cannot stand in braces.
    """
    left = list(found)
    for place in range(1, max(map(len, left), default=0)):
        groups: dict[tuple[Parts, Parts, int], list[str]] = defaultdict(list)
        for parts in left:
            groups[parts[:place], parts[place + 1 :], len(parts)].extend(parts[place : place + 1])
        left = [(*before, *one, *after) for (before, after, _), names in groups.items() for one in _either(names)]
    return left


def _either(names: Sequence[str]) -> Iterator[Parts]:
    """Return what stands in one place: each name, or several in braces; nothing for those that end before."""
    plain = [name for name in names if "," not in name]
    yield from ((name,) for name in names if "," in name)
    if len(plain) > 1:
        yield (f"{{{','.join(plain)}}}",)
    elif plain or not names:
        yield tuple(plain)

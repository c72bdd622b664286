"""What an id says of a case besides its rule and check: the layer with its attributes, and the kind of data."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from verify.model import Case

#: Where the name of the layer stands in an id, by check; other checks name none.
_LAYER = {"agreement": 2, "conservation": 2, "second-order": 2, "laws": 3, "network": 1}
_KIND = {"agreement": 4, "conservation": 4}


def layer_names(case: Case) -> frozenset[str]:
    """Return the name of the layer and its attributes, such as conv2d-k3-nobias, conv2d, k3 and nobias."""
    name = _part(case, _LAYER)
    if not name:
        return frozenset()
    # where options meet, an attribute has its own name: mode=circular
    return frozenset({name, *name.split(","), *re.split(r"[-,=]", name)})


def kind(case: Case) -> str:
    """Return the kind of data, as in an id; nothing where there is none."""
    part = _part(case, _KIND)
    if "=" not in part:
        return "" if part == "base" else part
    # where options meet, the input is one of them
    return next((option.removeprefix("x=") for option in part.split(",") if option.startswith("x=")), "")


def _part(case: Case, places: dict[str, int]) -> str:
    parts, place = case.id.split("/"), places.get(case.check)
    return parts[place] if place is not None and place < len(parts) - 1 else ""


def on_layers(cases: Sequence[Case], patterns: Iterable[str]) -> list[Case]:
    """Return the cases on layers of these names or with these attributes."""
    wanted = [pattern.lower() for pattern in patterns]
    return [case for case in cases if any(_matches(name, wanted) for name in layer_names(case))]


def of_kinds(cases: Sequence[Case], patterns: Iterable[str]) -> list[Case]:
    """Return the cases with these kinds of data."""
    wanted = [pattern.lower() for pattern in patterns]
    return [case for case in cases if _matches(kind(case), wanted)]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)

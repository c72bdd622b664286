"""What explains the failures of a rule, as plain data; `verify.explaining.diagnosis` finds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from verify.model import Level, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN = 3
#: The fourth part of the ids of cases that give a rule no parameters.
DEFAULT = "default"
#: The checks in which another published convention gives other numbers.
_OF_CONVENTIONS = frozenset({"agreement", "conservation"})


@dataclass(frozen=True)
class Known:
    """A known variant of a rule: its name, what it does, where it was seen, and whether somebody chose it."""

    name: str
    sentence: str
    seen: str = ""
    published: bool = False

    def __str__(self) -> str:
        seen = f" ({self.seen})" if self.seen else ""
        return f"`{self.name}`{seen}: {self.sentence}"


@dataclass(frozen=True)
class Diagnosis:
    """The known variant that a rule follows; several if the cases at hand do not tell them apart.

    ``layers`` are the layers on which it does, where it does so on those alone on which it fails; else empty.
    ``default``: it explains the cases with default parameters; those with others fail for another reason as well.
    ``failing`` and ``passing`` say how many cases were asked again.
    """

    rule: str
    level: Level
    variants: tuple[Known, ...]
    failing: int
    passing: int
    layers: tuple[str, ...] = ()
    default: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the variants."""
        return tuple(variant.name for variant in self.variants)

    @property
    def published(self) -> bool:
        """Whether each of them is a convention that somebody chose, and not just a mistake."""
        return all(variant.published for variant in self.variants)

    @property
    def sentence(self) -> str:
        """What to print under the failures of the rule."""
        verb = "follows another published convention," if self.published else "matches"
        shown = ", ".join(self.layers[:_SHOWN]) + (
            f" and {len(self.layers) - _SHOWN} more" * (len(self.layers) > _SHOWN)
        )
        where = f", on {shown}" if self.layers else ""
        several = " (these cases do not tell them apart)" if len(self.variants) > 1 else ""
        alone = "; this explains the cases with default parameters, and not all of the others" if self.default else ""
        return f"{verb} {' or '.join(map(str, self.variants))}{where}{several}{alone}"

    def conventional(self, check: str, verdict: str) -> bool:
        """Whether cases of a check fail in this way because the rule follows another published convention."""
        return self.published and check in _OF_CONVENTIONS and verdict == Verdict.FAIL

    def covers(self, id_: str) -> bool:
        """Whether this is said of the case with this id, as far as its layer and its parameters go."""
        _, _, layer, parameters, *_ = [*id_.split("/"), "", "", ""]
        return (not self.layers or layer in self.layers) and (not self.default or parameters == DEFAULT)

    def __str__(self) -> str:
        return f"{self.rule} {self.sentence}"


def merged(parts: Sequence[Diagnosis]) -> Diagnosis | None:
    """Return what explains the failures of one rule in every part of a run; None if nothing explains all parts."""
    first, *others = parts
    kept = tuple(known for known in first.variants if all(known.name in other.names for other in others))
    if not kept:
        return None
    layers = {layer for part in parts for layer in part.layers}
    failing, passing = (sum(getattr(part, name) for part in parts) for name in ("failing", "passing"))
    default = any(part.default for part in parts)
    return replace(
        first, variants=kept, failing=failing, passing=passing, layers=tuple(sorted(layers)), default=default
    )

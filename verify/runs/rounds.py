"""A search in parts, each of which can be asked in another process."""

from __future__ import annotations

from dataclasses import dataclass

from verify.model import Finding, Level, Outcome


@dataclass(frozen=True)
class Round:
    """A part of a search, as plain data: so many examples of one rule."""

    rule: str
    dtypes: tuple[str, ...]
    seed: int
    count: int

    def outcome(self, finding: Finding) -> Outcome:
        """Return what there is to say of the round as a whole, where no example answers for it."""
        return Outcome(f"search/{self.rule}", self.rule, "-", "search", "-", Level.MUST, seconds=0.0, **vars(finding))

"""What is said of a model with rules: what got which, and what had none."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lrp_rules.errors import see

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lrp_rules.hooks.hook import Hook
    from lrp_rules.hooks.registration import Registration

#: How many places are listed.
LISTED = 8


class UnruledWarning(RuntimeWarning):
    """Relevance goes through a function by its plain gradient."""


class Place(NamedTuple):
    """Where an operation was called: in a module of torch, or at a line of a file."""

    operation: str
    where: str

    @property
    def shown(self) -> str:
        """Where it was, in short."""
        path, colon, line = self.where.rpartition(":")
        return f"{'/'.join(path.split('/')[-2:])}:{line}" if colon else self.where

    def __str__(self) -> str:
        return f"{self.operation} {'at' if ':' in self.where else 'in'} {self.shown}"


def unruled(places: Mapping[Place, int]) -> str:
    """Return what is to be said of operations without a rule."""
    listed = [f"{place} ({_times(count)})" for place, count in places.items()]
    more = f", and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return (
        f"no rule for {', '.join(listed[:LISTED])}{more}: relevance goes through by the plain gradient, which doubles "
        "it at a sum and loses it in most other functions. Give a rule, as in attach(model, {torch.add: Norm()}), use "
        "a composite of lrp_rules.composites, or name the function in ignore where its gradient is meant"
        f"{see('between-the-layers')}"
    )


def table(
    model: nn.Module, registrations: Sequence[Registration], calls_of: Mapping[Place, int],
    rules_of: Mapping[Place, Hook], unruled_calls: Mapping[Place, int],
) -> str:  # fmt: skip
    """Return a table of modules and functions, their rules and how often each was called."""
    names = {part: name for name, part in model.named_modules()}
    groups: dict[tuple[str, str], tuple[list[str], int]] = {}
    for one in registrations:
        key = (type(one.module).__name__, one.rule_name)
        modules, calls = groups.get(key, ([], 0))
        groups[key] = ([*modules, names.get(one.module, "?")], calls + one.calls)
    rows = [("operation", "rule", "calls", "where")]
    for (kind, rule), (modules, calls) in groups.items():
        where = modules[0] if len(modules) == 1 else f"{len(modules)} modules, from {modules[0]}"
        rows.append((kind, rule, str(calls), where))
    places: dict[tuple[str, str], tuple[list[str], int]] = {}
    for counts, rules in ((calls_of, rules_of), (unruled_calls, {})):
        for place, count in counts.items():
            rule = type(rules[place]).__name__ if place in rules else "none: its gradient"
            shown, calls = places.get((place.operation, rule), ([], 0))
            places[place.operation, rule] = ([*shown, place.shown], calls + count)
    for (operation, rule), (shown, calls) in places.items():
        where = shown[0] if len(shown) == 1 else f"{len(shown)} places, from {shown[0]}"
        rows.append((operation, rule, str(calls), where))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return f"Rules on {type(model).__name__}\n" + "\n".join(lines)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"

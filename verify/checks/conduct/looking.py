"""What can be seen of a module from outside but for its values, and what of that has changed, in the words of torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


class Look:
    """What can be seen of a module from outside but for values: hooks, attributes, classes; and torch's own state."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.seen = dict(_look(module))

    def changes(self, but: str = "") -> list[str]:
        """Return what is no longer the object that it was, with what is new and what is gone; ``but`` may change."""
        now = dict(_look(self.module))
        return sorted(
            _told(key, "is new" if key not in self.seen else "is gone" if key not in now else "was replaced")
            for key in self.seen | now
            if key != but
            if key not in self.seen or key not in now or self.seen[key] is not now[key]
        )


#: Where torch keeps what a module has, and what that is called.
_KEPT_IN = re.compile(r"(?P<part>.*?)_(?P<kind>parameters|buffers|modules|\w*hooks\w*)\[(?P<name>.+)\]")
_CALLED = {"parameters": "Parameter object", "buffers": "buffer", "modules": "module"}


def _told(place: str, change: str) -> str:
    """Say what was changed, for who knows modules and not the dictionaries of torch."""
    kept = _KEPT_IN.fullmatch(place)
    if kept is None or place.startswith("torch"):
        return f"{place} {change}"
    part, kind = kept["part"].rstrip("."), kept["kind"]
    if kind in _CALLED:
        name = ".".join(filter(None, (part, kept["name"].strip("'"))))
        return (
            f"the {_CALLED[kind]} of {name} {change}"
            if kind == "parameters"
            else f"the {_CALLED[kind]} {name} {change}"
        )
    where = f" of {part}" if part else ""
    return f"an entry in _{kind}{where} {change}"


def _look(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, part in module.named_modules():
        where = f"{path}." if path else ""
        yield f"type of {path or 'the module'}", type(part)
        for cls in type(part).__mro__[:-1]:
            for name, value in vars(cls).items():
                yield f"{cls.__module__}.{cls.__qualname__}.{name}", value
        for name, value in vars(part).items():
            # torch itself never resets this mark, which a full backward hook sets
            if name == "_is_full_backward_hook":
                continue
            yield f"{where}{name}", value
            if isinstance(value, dict):
                yield from ((f"{where}{name}[{key!r}]", entry) for key, entry in value.items())
    for name, value in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(value, dict):
            yield from ((f"torch's {name}[{key!r}]", entry) for key, entry in value.items())
    yield "torch's grad mode", torch.is_grad_enabled()
    yield "torch's default dtype", torch.get_default_dtype()
    yield "torch's autocast", torch.is_autocast_enabled("cpu")

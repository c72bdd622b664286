"""Formula, notation and papers of each rule, in words: read from `headers.toml`."""

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

_TEXTS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "headers.toml").read_text(encoding="utf-8"))


def header(rule: str) -> dict[str, Any]:
    """Return formula, notation and papers of a rule."""
    own = _TEXTS["rules"][rule]
    return {"formula": own["formula"], "notation": _TEXTS["notation"], "source": own["source"]}


def notes(flags: Collection[str]) -> dict[str, Any]:
    """Return what each of the flags says, and where to read about it."""
    return {flag: text for flag, text in _TEXTS["flags"].items() if flag in flags}

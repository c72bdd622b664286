"""The gallery: every network is trained, explained and drawn; what its page says of it is so."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"
NAMES = re.findall(r"^<<gallery:(.*)>>$", (DOCS / "gallery.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return importlib.import_module("gallery")
    finally:
        sys.path.remove(str(DOCS / "_ext"))


def test_the_page_has_all(gallery: ModuleType) -> None:
    assert sorted(NAMES) == sorted(gallery.ENTRIES)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry(gallery: ModuleType, name: str) -> None:
    found = gallery.found(name)
    assert found.audit.held, found.audit
    assert found.audit.unexplained < 1e-9
    assert found.accuracy > 0.9
    assert found.hit > 3 * found.where.mean()
    assert "| 1.000 | " in gallery.markdown(name)
    assert len(gallery.figure(name, "black").axes) == 2

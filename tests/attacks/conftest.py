"""What attacks share: a folder to import them from, and the cases that they are asked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

HOSTILE = Path(__file__).parent / "hostile"


@pytest.fixture(scope="module", autouse=True)
def hostile() -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOSTILE)
        yield HOSTILE

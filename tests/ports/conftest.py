"""Where the ports are, and what they run with."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def node() -> str:
    """Return the command of the JavaScript port."""
    if shutil.which("node") is None:
        pytest.skip("the port in JavaScript needs Node.js: there is no `node` on the path")
    return f"node {ROOT}/ports/javascript/main.js"

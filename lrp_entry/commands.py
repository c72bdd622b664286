"""The commands `lrp-verify`, `lrp-vectors` and `lrp-bench`, and the process that the plugin of pytest asks.

`python -P -m lrp_entry.commands lrp-verify ...` is `lrp-verify ...` of that Python, and so for the others.
"""

from __future__ import annotations

import importlib
import sys

from lrp_entry.extras import MissingExtraError, require
from lrp_entry.names import pin

# At import, and not in `main`: a process that multiprocessing starts imports the main module of its parent, which is
# the script of a command or this file (and would import no `__main__.py`).
pin()

#: Of each command: the extra that it needs, and the module whose function `main` it is.
COMMANDS = {
    "lrp-verify": ("verify", "verify.faces.cli"),
    "lrp-vectors": ("verify", "verify.vectors.cli"),
    "lrp-bench": ("bench", "bench.cli"),
    "pytest --lrp-subject": ("verify", "verify.faces.serving"),
    "badge": ("verify", "verify.reports.badge"),
}


def run(command: str) -> None:
    """Run a command; where what it needs is not installed, say so and exit as an unusable call does."""
    extra, module = COMMANDS[command]
    try:
        require(extra, command)
    except MissingExtraError as error:
        print(error, file=sys.stderr)  # noqa: T201  rich may be what is missing
        sys.exit(2)
    importlib.import_module(module).main()


def verify() -> None:
    """Run `lrp-verify`."""
    run("lrp-verify")


def vectors() -> None:
    """Run `lrp-vectors`."""
    run("lrp-vectors")


def bench() -> None:
    """Run `lrp-bench`."""
    run("lrp-bench")


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS:
        sys.exit(f"expected the name of a command: {', '.join(COMMANDS)}")
    run(sys.argv.pop(1))

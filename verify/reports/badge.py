"""`python -m lrp_entry.commands badge RUN.json BADGE.json`: a badge of a run, as shields.io reads it.

Prints ``passed``, ``failures`` and ``badge`` as lines of ``name=value``. A run that left no file has a badge too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from verify.formats.files import write

_LABEL = "LRP rules"


def badge(run: dict[str, Any] | None) -> dict[str, Any]:
    """Return the badge of what ``lrp-verify --json`` wrote; of None, that there is no verdict."""
    if run is None:
        message, color = "no result", "lightgrey"
    elif (summary := run["summary"])["passed"]:
        message, color = f"passed ({summary['verdicts']['pass']} cases)", "brightgreen"
    elif failures := summary["failures"]:
        message, color = f"{failures} failed", "red"
    elif stale := summary["stale"]:
        message, color = f"{stale} known deviations are stale", "red"
    else:
        message, color = "failed", "red"
    return {"schemaVersion": 1, "label": _LABEL, "message": message, "color": color}


def main() -> None:
    """Write the badge, and print the lines."""
    source, target = sys.argv[1:]
    try:
        run = json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = None
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write(Path(target), json.dumps(badge(run)).encode())
    summary = run["summary"] if run else {"passed": False, "failures": ""}
    lines = {"passed": str(summary["passed"]).lower(), "failures": summary["failures"], "badge": target}
    sys.stdout.write("".join(f"{name}={value}\n" for name, value in lines.items()))


if __name__ == "__main__":
    main()

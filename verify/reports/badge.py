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
    """Return the badge of what ``lrp-verify --json`` wrote, or its audit; of None, that there is no verdict."""
    if run is None:
        message, color = "no result", "lightgrey"
    elif "rows" in run:
        count, faults = len(run["rows"]), _faults(run)
        message = f"held ({count} operations)" if run["held"] else f"{faults} of {count} operations did not hold"
        color = "brightgreen" if run["held"] else "red"
    elif (summary := run["summary"])["passed"]:
        message, color = f"passed ({summary['verdicts']['pass']} cases)", "brightgreen"
    elif failures := summary["failures"]:
        message, color = f"{failures} failed", "red"
    elif stale := summary["stale"]:
        message, color = f"{stale} known deviations are stale", "red"
    else:
        message, color = "failed", "red"
    return {"schemaVersion": 1, "label": _LABEL, "message": message, "color": color}


def _faults(audit: dict[str, Any]) -> int:
    """Count what did not hold, and what was to be explained and was never called."""
    return len([row for row in audit["rows"] if row["verdict"] != "held"]) + len(audit["never_called"])


def main() -> None:
    """Write the badge, and print the lines."""
    source, target = sys.argv[1:]
    try:
        run = json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = None
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write(Path(target), json.dumps(badge(run)).encode())
    if run is None:
        summary: dict[str, Any] = {"passed": False, "failures": ""}
    else:
        summary = {"passed": run["held"], "failures": _faults(run)} if "rows" in run else run["summary"]
    lines = {"passed": str(summary["passed"]).lower(), "failures": summary["failures"], "badge": target}
    sys.stdout.write("".join(f"{name}={value}\n" for name, value in lines.items()))


if __name__ == "__main__":
    main()

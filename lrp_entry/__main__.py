"""`python -m lrp_entry lrp-verify ...` is `lrp-verify ...` of that Python, and so for the other commands."""

import sys

from lrp_entry.commands import COMMANDS, run

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS:
        sys.exit(f"expected the name of a command: {', '.join(COMMANDS)}")
    run(sys.argv.pop(1))

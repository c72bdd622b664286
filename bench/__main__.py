"""``python -m bench`` is ``lrp-bench``."""

from bench.cli import main

main()

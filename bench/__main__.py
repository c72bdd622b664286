"""``python -m bench`` is ``lrp-bench``."""

from lrp_entry.commands import bench

if __name__ == "__main__":
    bench()

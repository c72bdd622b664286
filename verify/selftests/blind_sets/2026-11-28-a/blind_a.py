"""A blind set: right implementations of the LRP rules in unusual form, and wrong ones with one mistake each."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from blind_a_kit import CORES, RIGHT, WRONG, SHOWS, Core, get  # noqa: E402
import blind_a_right  # noqa: E402,F401
import blind_a_whole, blind_a_cond  # noqa: E401,E402,F401


def __getattr__(name):
    return get(name)


RIGHT["plain"] = "The implementation on which all others are built."
CORES["plain"] = Core

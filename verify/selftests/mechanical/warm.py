"""Imported by the process that mutants are forked from: everything that they need and that knows no ``lrp_rules``."""

import contextlib

import pytest

# each process imports the main module again: then it costs nothing
from verify.selftests.mechanical import __main__ as command
from verify.selftests.mechanical.trial import cases
from verify.subjects.loading import load

cases()
with contextlib.suppress(Exception):  # a test that needs zennit says so itself
    load("zennit.rules")
__all__ = ["command", "pytest"]

"""Imported by the process that mutants are forked from: everything that they need and that knows no ``lrp_rules``."""

import contextlib

import pytest

from verify.mechanical.trial import cases
from verify.subjects import load

cases()
with contextlib.suppress(Exception):  # a test that needs zennit says so itself
    load("zennit.rules")
__all__ = ["pytest"]

"""`assert_rule`, and the numbers that know their error, which make a formula an expectation.

Imports checks and runs; nothing but the package itself imports it.
"""

from verify.asserting.rule import assert_rule

__all__ = ["assert_rule"]

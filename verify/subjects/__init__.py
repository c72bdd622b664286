"""Who is asked: a module of rule classes, a library behind an adapter, or a process that speaks the protocol.

Imports questions and formats, and no check.
"""

from verify.model import NotOfferedError

__all__ = ["NotOfferedError"]

"""Numbers and lines as people read them."""

from __future__ import annotations


def percent(share: float) -> str:
    """Return a share in percent; a small one does not become 0."""
    return "<0.1%" if 0 < share < 0.001 else f"{100 * share:.3g}%"


def printable(line: str) -> str:
    """Replace what would steer a terminal or break XML: a subject's message may hold anything."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)


#: Characters of what somebody else has to say.
_LONGEST = 400


def shortened(text: str) -> str:
    """Return a text on one line, as far as people read."""
    line = printable(" ".join(text[: 64 * _LONGEST].split()))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def text_of(error: BaseException) -> str:
    """Return the message of an exception, also of one that cannot be printed."""
    try:
        return str(error)
    except BaseException as other:
        if isinstance(other, KeyboardInterrupt):
            raise
        return "(its message cannot be printed)"

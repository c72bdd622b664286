"""A subject in any language: a process that answers cases in lines of JSON on its standard streams.

`process` starts it, writes and reads lines with a limit on time and length, and ends it; `messages` says what the lines
hold; `connection` starts it again after whatever it did, `port` makes a subject of it, `rules` gives that subject the
rule classes of the API; `verify.checks.protocol` adds what only a process can be asked. What may be said is in
`docs/protocol.md` and in `lrp-port-1.schema.json` beside this file.
"""

#: The version of the protocol.
PROTOCOL = 1
#: What a subject that is a command line begins with.
COMMAND = "command:"
#: Seconds for a process to start and to answer `start`; they do not count against a case.
START_LIMIT = 60.0
#: Seconds for it to end after `stop`, or after the end of its input.
STOP_LIMIT = 5.0


def is_command(subject: str) -> bool:
    """Whether a subject is a command line, and no module."""
    return subject.startswith(COMMAND)

"""Where messages point to."""


def see(section: str) -> str:
    """Return where a message is explained."""
    return f". See docs/what-can-go-wrong.md#{section}"

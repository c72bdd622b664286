"""Lets the environments of tox.ini share a folder: torch is big, and every check would install it anew.

tox notes in a folder for which environment it was made, and clears it for any other. Here the note is the same for all
that name the same `env_dir`; everything else about the folder (versions, extras, interpreter) is still compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tox.plugin import impl
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class SharedInfo(Info):
    """The note, without the name of the environment."""

    @contextmanager
    def compare(self, value: Any, section: str, sub_section: str | None = None) -> Iterator[tuple[bool, Any | None]]:
        """Compare with the note, and write it down where it differs."""
        if section == "ToxEnv":
            value = {**value, "name": "shared"}
        with super().compare(value, section, sub_section) as answer:
            yield answer


class SharedRunner(VirtualEnvRunner):
    """`runner = shared`."""

    @staticmethod
    def id() -> str:
        """Return the name used in tox.ini."""
        return "shared"

    @property
    def cache(self) -> SharedInfo:
        """The note in the folder."""
        return SharedInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Make the runner known."""
    register.add_run_env(SharedRunner)

"""On the command line, as anyone would call it: subjects whose numbers are right, and whose conduct is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from verify.faces import cli

Command = Callable[[str], Result]

#: Bodies of a ZPlus, and the check that has to name it.
SUBJECTS = {
    "clamps-and-leaves-it": (
        "conduct",
        """
    def relevance(self, layer, R):
        r = super().relevance(layer, R)
        layer.module.weight.data.clamp_(min=0)
        return r
""",
    ),
    "removes-nothing": (
        "conduct",
        """
    def register(self, module):
        super().register(module)
        return SimpleNamespace(remove=lambda: None)
""",
    ),
    "answers-as-the-first-time": (
        "conduct",
        """
    def relevance(self, layer, R):
        r = super().relevance(layer, R)
        first = vars(self).setdefault("first", r)
        return first if first.shape == r.shape else r
""",
    ),
    "cuts-the-second-derivative": (
        "second-order",
        """
    def relevance(self, layer, R):
        return super().relevance(layer, R).detach()
""",
    ),
}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Call the command in this process on a subject with this ZPlus."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(body: str) -> Result:
        name = f"misconduct_{abs(hash(body))}"
        source = "from types import SimpleNamespace\nimport lrp_rules\n\n\nclass ZPlus(lrp_rules.ZPlus):" + body
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        words = ["--subject", name, "--check", "conduct,second-order", "--rule", "ZPlus", "--layer", "-,Linear"]
        return CliRunner().invoke(cli.app, [*words, "--workers", "0"], catch_exceptions=False)

    return call


@pytest.mark.parametrize(("check", "body"), SUBJECTS.values(), ids=SUBJECTS)
def test_misconduct_is_named(check: str, body: str, command: Command) -> None:
    result = command(body)
    assert result.exit_code == 1
    assert f"ZPlus, {check}: " in result.stdout


def test_the_same_without_a_mistake_holds(command: Command) -> None:
    assert command("\n    pass\n").exit_code == 0

"""What the tests of conduct share: modules for every rule, and all that may be seen of a module from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from tests.lrp_rules.cases import (
    FORMULAS,
    RULES,
    TracedLinear,
    handles,
)

if TYPE_CHECKING:
    from collections.abc import Callable


each_rule = pytest.mark.parametrize("rule", RULES)
each_formula = pytest.mark.parametrize("rule", FORMULAS)

#: Modules whose output looks like their input, so that every rule may go there.
MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "traced-linear": lambda: TracedLinear(4, 4),
    "conv1d-circular": lambda: nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"),
    "batchnorm-eval": lambda: nn.BatchNorm1d(3).eval(),
    "batchnorm-train": lambda: nn.BatchNorm1d(3),
    "relu": nn.ReLU,
    "relu-in-place": lambda: nn.ReLU(inplace=True),
    "dropout-train": lambda: nn.Dropout(0.5),
    "block-train": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.Dropout(0.5)),
}
#: These run the module again, on an input without history, to which no module in place may write.
RUNS_AGAIN = ["WSquare", "Flat", "BasicHook"]
each_rule_in_place = pytest.mark.parametrize("rule", list(RULES))
#: These change parameters, and are refused where those are in a module's parts.
CHANGES_PARAMETERS = [rule for rule, make in RULES.items() if make().changed_parameters is not None]
PAIRS = [
    (rule, module)
    for rule in RULES
    for module in MODULES
    if not (rule in RUNS_AGAIN and module == "relu-in-place")
    and not (rule in CHANGES_PARAMETERS and module == "block-train")
]
each_pair = pytest.mark.parametrize(("rule", "module"), PAIRS)


def some_input() -> Tensor:
    return torch.randn(2, 3, 4, requires_grad=True)


class Snapshot:
    """All that may be seen of a module from outside: tensors and their bits, attributes, handles, random state."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = dict(module.named_modules())
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.bits = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.versions = {name: tensor._version for name, tensor in self.tensors.items()}
        self.attributes = {name: list(vars(part)) for name, part in self.parts.items()}
        self.handles = handles(module)
        self.training = {name: part.training for name, part in self.parts.items()}
        self.random = torch.get_rng_state()

    def assert_same(self, module: nn.Module) -> None:
        now = Snapshot(module)
        assert {name: id(part) for name, part in now.parts.items()} == {
            name: id(part) for name, part in self.parts.items()
        }
        assert {name: id(t) for name, t in now.tensors.items()} == {name: id(t) for name, t in self.tensors.items()}
        assert now.versions == self.versions
        assert all(torch.equal(now.bits[name], bits) for name, bits in self.bits.items())
        assert now.attributes == self.attributes
        assert now.handles == self.handles
        assert now.training == self.training
        assert torch.equal(now.random, self.random)
        assert all(tensor.grad is None for tensor in now.tensors.values())


def assert_as_it_was_or_refused(output: Tensor, x: Tensor, R: Tensor, expected: Tensor) -> None:
    """As of any graph: the relevance of the call as it was, or an error, but never that of a mixture of two states."""
    refused = None
    try:
        (got,) = torch.autograd.grad(output, x, R)
        assert torch.equal(got, expected)
    except RuntimeError as error:
        refused = str(error)
    assert refused is None or "modified by an inplace operation" in refused

"""Layers on which calls are tried, with exact data: one of each kind that a rule may treat in a way of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.conduct.probing import GRADIENT, Watched, leaf, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from verify.model import Subject


@dataclass(frozen=True)
class Setting:
    """A layer, two inputs and two relevances: all of them multiples of 1/2, so that arithmetic is exact."""

    build: Callable[[], nn.Module]
    module: nn.Module
    x: Tensor
    R: Tensor
    other: Tensor
    its_R: Tensor  # noqa: N815  what the papers call relevance

    def clean(self, module: nn.Module) -> nn.Module:
        """Return the layer with the weights of a module, as it would be built: without anything that a rule put there.

        It is no copy of the module: some rules make a module that cannot be copied.
        """
        new = self.build().double()
        new.load_state_dict(module.state_dict())
        return new.eval()

    def relevance(self, subject: Subject, rule: str) -> Tensor:
        """Return what a new rule makes of this, on a module without history."""
        return asked(subject, rule, self.module, self.x, self.R)

    def other_relevance(self, subject: Subject, rule: str) -> Tensor:
        """Return the same for the other input and relevance."""
        return asked(subject, rule, self.module, self.other, self.its_R)


def asked(subject: Subject, rule: str, module: nn.Module, x: Tensor, R: Tensor) -> Tensor:
    """Return the relevance by a rule that is there for this call alone."""
    handle = make(subject, rule).register(module)
    try:
        given = leaf(x)
        (r,) = torch.autograd.grad(module(given), given, R.clone())
    finally:
        handle.remove()
    return r.detach()


def halves(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Return multiples of 1/2 from -2 to 2, some of them zero."""
    return torch.randint(-4, 5, shape, generator=generator).double() / 2


def _batch_norm() -> nn.Module:
    module = nn.BatchNorm2d(2, eps=0.0)
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean.copy_(torch.tensor([0.5, -1.0]))
    module.running_var.copy_(torch.tensor([4.0, 0.25]))
    return module.eval()


#: A layer, and the shape of its input; of some kinds there are rules for one alone.
_WEIGHED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 4), (2, 3)),
    "linear-3d": (lambda: nn.Linear(3, 2), (2, 2, 3)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 2, padding=1, groups=2), (2, 4, 3, 2)),
    "conv1d-circular": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 2, 4)),
    "convtranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 2, stride=2), (2, 2, 3)),
    "batchnorm2d": (_batch_norm, (2, 2, 2, 3)),
    "avgpool2d": (lambda: nn.AvgPool2d(2), (2, 1, 4, 4)),
    "own": (lambda: Watched(3, 4), (2, 3)),
}
_MAXIMUM: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "maxpool1d": (lambda: nn.MaxPool1d(2), (2, 2, 4)),
}
_BENT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (nn.ReLU, (2, 5)),
    "relu-4d": (nn.ReLU, (2, 2, 3, 2)),
}
_SLOPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "leakyrelu": (lambda: nn.LeakyReLU(0.25), (2, 5)),
}
_PASSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "identity": (nn.Identity, (2, 5)),
    "linear": (lambda: nn.Linear(3, 3), (2, 3)),
}


def kinds(rule: str) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Return the layers that a rule is tried on, by name."""
    if rule == "Pass":
        return _BENT | _PASSED
    if rule in GRADIENT:
        return _BENT | (_SLOPED if rule == "ReLUGuidedBackprop" else {})
    return _WEIGHED | (_MAXIMUM if rule in {"Epsilon", "Norm"} else {})


def setting(rule: str, kind: str) -> Setting:
    """Return a new layer of a kind, with the data."""
    build, shape = kinds(rule)[kind]
    generator = torch.Generator().manual_seed(len(shape))
    module: Any = build().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(halves(generator, tuple(parameter.shape)))
    x, other = halves(generator, shape), halves(generator, shape)
    with torch.no_grad():
        outputs = tuple(module(x).shape)
    return Setting(build, module, x, halves(generator, outputs), other, halves(generator, outputs))

"""Relevance of all classes of a classifier: in one pass, beside one pass for each. ``pytest bench/test_classes.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.measuring import settle_heap
from lrp_rules import Epsilon, Gamma, Pass, ZBox, attach

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 10


def _classifier() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
    ]
    return nn.Sequential(*convolutions, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, CLASSES))


def _loop(z: Tensor, x: Tensor, each: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(z, x, R, retain_graph=True)[0] for R in each])


def _at_once(z: Tensor, x: Tensor, each: Tensor) -> Tensor:
    (r,) = torch.autograd.grad(z, x, each, retain_graph=True, is_grads_batched=True)
    return r


def pytest_generate_tests(metafunc: Any) -> None:
    """Make a test of each way."""
    metafunc.parametrize("way", [_loop, _at_once], ids=["loop", "at-once"])


def test_all_classes(benchmark: Any, way: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Time the relevances of all classes of four images, after both ways gave the same."""
    model, x = _classifier(), torch.rand(4, 3, 32, 32, requires_grad=True)
    rules = {"0": ZBox(0.0, 1.0), nn.Conv2d: Gamma(0.25), nn.ReLU: Pass(), nn.Linear: Epsilon(1e-6)}
    with attach(model, rules):
        z = model(x)
    each = torch.eye(CLASSES)[:, None].expand(CLASSES, 4, CLASSES)
    expected = _loop(z, x, each)
    room = 2**10 * torch.finfo(x.dtype).eps * expected.abs().max()  # sums of up to 2^9 products, in another order
    assert bool(((way(z, x, each) - expected).abs() <= room).all())
    benchmark.group = "all classes"
    settle_heap()
    benchmark(way, z, x, each)

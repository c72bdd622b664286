"""zennit, also on a machine with a CPU build of torch."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import pytest
import torch


def load_zennit() -> Any:
    """Import zennit, or skip the tests that need it.

    zennit imports torchvision, whose compiled operators a CPU build of torch cannot load. They are not needed here: it
    is enough that the two which torchvision looks for are declared.
    """
    load_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("zennit")


def load_torchvision() -> Any:
    """Import torchvision, or skip the tests that need it."""
    if "torchvision" in sys.modules:
        return pytest.importorskip("torchvision", exc_type=ImportError)
    _torchvision()
    return sys.modules["torchvision"]


def _torchvision() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision")
        except ImportError:
            pytest.skip("torchvision is not installed")
        except RuntimeError:
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            for operator in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            importlib.import_module("torchvision")

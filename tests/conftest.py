"""What all tests share: the same random numbers in each run and in any order."""

import os
import random
import signal

import numpy as np
import pytest
import torch

# what an earlier run has computed must not hide a change of today, which a test may make in memory alone
os.environ.setdefault("LRP_VERIFY_CACHE", "off")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries under test may draw from the global state
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    # a shell that starts the tests in the background has interrupts ignored, here and in all programs started from here
    signal.signal(signal.SIGINT, signal.default_int_handler)

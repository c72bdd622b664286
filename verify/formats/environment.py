"""What a number may depend on besides the subject: versions, and the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def version() -> str:
    """Return the version of this project."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("lrp-rules")
    return "unknown"


def torch_version() -> str:
    """Return the version of torch, without its import."""
    return importlib.metadata.version("torch")


def environment(device: str) -> dict[str, Any]:
    """Return what a number may depend on besides the subject. Imports torch only for an accelerator's name."""
    accelerator = None
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415  seconds, for nothing where there is no accelerator

        accelerator = torch.cuda.get_device_name(device)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "lrp-rules": version(),
        "python": platform.python_version(),
        "torch": torch_version(),
        "numpy": importlib.metadata.version("numpy"),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": cpu_count(),
        "threads": 1,  # of each worker
        "accelerator": accelerator,
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

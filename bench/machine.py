"""The facts beside the times: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import lrp_rules

#: How the names of variables begin that may bear on times: of threads, of libraries, of malloc.
_BEARING = ("OMP_", "MKL_", "DNNL_", "MALLOC_", "GLIBC_", "LD_PRELOAD")
_PACKAGES = ("captum", "lxt", "numpy", "pandas", "torchvision", "zennit")


def processor() -> str:
    """Return the name of the processor, as the system knows it."""
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def name(device: str = "cpu") -> str:
    """Return the name under which runs are comparable: processor and cores, and the card if it is one's."""
    own = f"{processor()}, {cores()} cores"
    return f"{torch.cuda.get_device_name(device)}, {own}" if device.startswith("cuda") else own


def stable(device: str = "cpu") -> dict[str, Any]:
    """Return what is the same in each run on this machine with these versions."""
    return {
        "machine": name(device),
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def facts(device: str = "cpu") -> dict[str, Any]:
    """Return all that may bear on times; None where the system does not say."""
    return {
        **stable(device),
        "release": platform.release(),
        "load": list(os.getloadavg()),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "turbo": _turbo(),
        "torch_config": torch.__config__.show(),
        "parallel_info": torch.__config__.parallel_info(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "environment": {key: value for key, value in os.environ.items() if key.startswith(_BEARING)},
        "cuda": _cuda(device) if device.startswith("cuda") else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {"lrp_rules": lrp_rules.__version__, "torch": str(torch.__version__)}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of the rules, with a + where files have changed since; None outside of a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    folder = Path(lrp_rules.__file__).parent

    def ask(*arguments: str) -> str | None:
        answer = subprocess.run(  # noqa: S603  git, in our own folder
            [git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    # an installed package within some other repository is not of its commit
    if ask("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no", ".")
    return None if head is None else head + ("+" if changes else "")


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _turbo() -> bool | None:
    if text := _text("/sys/devices/system/cpu/intel_pstate/no_turbo").strip():
        return text == "0"
    text = _text("/sys/devices/system/cpu/cpufreq/boost").strip()
    return text == "1" if text else None


def _cuda(device: str) -> dict[str, Any]:
    """Return card, driver and clock."""
    card = torch.cuda.get_device_properties(device)
    asked = "driver_version,clocks.sm,clocks.max.sm,power.limit"
    smi = shutil.which("nvidia-smi")
    answer = ""
    if smi is not None:
        answer = subprocess.run(  # noqa: S603  the driver's own program
            [smi, f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, check=False
        ).stdout
    return {
        "card": card.name,
        "memory_bytes": card.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        **dict(zip(asked.split(","), (part.strip() for part in answer.split(",")), strict=False)),
    }

"""The state that all cases of a process share: each starts from the same, and one that leaves it changed is named."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

#: Modules whose absence would be felt by the next case.
_KEPT = ("torch", "numpy", "reference", "verify", "lrp_rules")
_HOOKS = (
    "_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks", "_global_backward_hooks",
    "_global_buffer_registration_hooks", "_global_module_registration_hooks", "_global_parameter_registration_hooks",
)  # fmt: skip
#: What is most likely to be replaced by a function of somebody's own: in which module, by names.
_FUNCTIONS = {
    "torch": ("where", "matmul", "zeros_like"),
    "torch.autograd": ("grad", "backward"),
    "torch.nn.functional": ("linear", "conv1d", "conv2d", "conv3d", "batch_norm", "avg_pool2d", "max_pool2d", "relu"),
}
_TINY = np.nextafter(0.0, 1.0).item()


class State:
    """What it was when this was made, or marked."""

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._parts = self._settings()
        self._before: dict[str, Any] = {}
        #: Whether the last `restore` put back all.
        self.whole = True
        self.mark()

    def mark(self) -> None:
        """Take the state of now for the one to come back to."""
        self._before = {name: read() for name, (read, _) in self._parts.items()}

    def restore(self) -> str:
        """Put back what was changed, and say what that was; empty where nothing was."""
        changed = []
        self.whole = True
        for name, (read, write) in self._parts.items():
            before = self._before[name]
            try:
                now = read()
                if now == before:
                    continue
                changed.append(f"{name}{_from_to(before, now)}")
                write(before)
                self.whole &= read() == before
            except Exception:  # noqa: BLE001  what is in the way may be anything
                changed.append(name)
                self.whole = False
        return "; ".join(dict.fromkeys(changed))

    def _settings(self) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
        """How each part is read and written; what can be compared is read."""
        torch = self._torch
        c, inner = torch._C, torch._C._autograd  # noqa: SLF001  torch has no public way to these
        modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in _KEPT}
        hooks = [getattr(torch.nn.modules.module, name) for name in _HOOKS]
        functions = [(importlib.import_module(module), name) for module, names in _FUNCTIONS.items() for name in names]
        parts: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
            "modes of torch": (
                lambda: (c._len_torch_function_stack(), c._len_torch_dispatch_stack()),  # noqa: SLF001
                self._end_modes,
            ),
            "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
            "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
            "torch's inference mode": (
                torch.is_inference_mode_enabled,
                lambda _: None,
            ),  # only a new process is without
            "torch's anomaly mode": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
            "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
            "torch's deterministic algorithms": (
                lambda: (
                    torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled(),
                ),
                lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1]),
            ),
            "torch's float32 matmul precision": (
                torch.get_float32_matmul_precision,
                torch.set_float32_matmul_precision,
            ),
            "torch's use of oneDNN": (c._get_mkldnn_enabled, c._set_mkldnn_enabled),  # noqa: SLF001
            "torch's flushing of denormal numbers": (_flushes, torch.set_flush_denormal),
            "torch's default saved-tensor hooks": (
                lambda: inner._top_saved_tensors_default_hooks(False) is not None,  # noqa: FBT003, SLF001
                lambda _: inner._pop_saved_tensors_default_hooks(),  # noqa: SLF001
            ),
            "hooks of all modules": (
                lambda: [list(hook) for hook in hooks],
                lambda was: _keep(hooks, was),
            ),
            "functions of torch": (
                lambda: [getattr(module, name) for module, name in functions],
                lambda was: _put_back(functions, was),
            ),
            "NumPy's error handling": (np.geterr, lambda was: np.seterr(**was)),
            "imported modules": (lambda: sys.modules.keys() >= modules.keys(), lambda _: sys.modules.update(modules)),
            "the current folder": (os.getcwd, os.chdir),
            "the limit of recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
        }
        for device in ("cpu", "cuda"):
            parts[f"autocast on {device}"] = partial(_autocast, torch, device), partial(_set_autocast, torch, device)
        return parts

    def _end_modes(self, was: tuple[int, int]) -> None:
        c = self._torch._C  # noqa: SLF001  torch has no public way to these
        # the default device is such a mode
        if self._torch.get_default_device().type != "cpu":
            self._torch.set_default_device(None)
        while c._len_torch_function_stack() > was[0]:  # noqa: SLF001
            c._pop_torch_function_stack()  # noqa: SLF001
        while c._len_torch_dispatch_stack() > was[1]:  # noqa: SLF001
            c._pop_torch_dispatch_stack()  # noqa: SLF001


def _autocast(torch: Any, device: str) -> tuple[Any, Any]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _set_autocast(torch: Any, device: str, was: tuple[Any, Any]) -> None:
    torch.set_autocast_enabled(device, was[0])
    torch.set_autocast_dtype(device, was[1])


def _flushes() -> bool:
    return bool(_TINY * 1.0 == 0.0)


def _keep(hooks: list[Any], keys: list[list[Any]]) -> None:
    for those, kept in zip(hooks, keys, strict=True):
        for key in [key for key in those if key not in kept]:
            del those[key]


def _put_back(places: list[tuple[Any, str]], functions: list[Any]) -> None:
    for (module, name), function in zip(places, functions, strict=True):
        setattr(module, name, function)


def _from_to(before: Any, now: Any) -> str:
    plain = (bool, int, float, str)
    if isinstance(before, plain) or type(before).__name__ == "dtype":
        return f" (was {before}, is {now})"
    return ""

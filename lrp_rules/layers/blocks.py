"""Compute large tensors part by part, so that intermediate results stay in the cache of a core.

They are then never written to main memory, and need no new memory from the system, which can cost more than the
arithmetic. On other devices than the CPU, and where a derivative is needed, everything is computed at once.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


def _cache() -> int:
    """Return the size of the second-level cache of a core in bytes, within the range that was measured."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return min(max(int(capabilities.get("l2_cache_size", 0)), 2**19), 2**21)


#: Bytes of one part of the largest tensor, for each thread.
PART = _cache()


def large(*tensors: Tensor) -> bool:
    """Whether one of the tensors is larger than one part."""
    return max([t.nbytes for t in tensors]) > PART


class _Mode(threading.local):
    plain = False


_mode = _Mode()
#: How many threads are inside ``plainly``. Only if there are any is the mode of this thread looked up, which costs.
_threads = 0
_lock = threading.Lock()


def plain() -> bool:
    """Whether everything must be computed in one piece and out of place: for a derivative, and inside ``plainly``."""
    return torch.is_grad_enabled() or (_threads > 0 and _mode.plain)


@contextmanager
def plainly() -> Iterator[None]:
    """Compute everything in one piece and out of place, on this thread.

    Under torch.func and ``is_grads_batched``, a tensor stands for a batch of tensors, and cannot be written into an
    ordinary one.
    """
    global _threads  # noqa: PLW0603  one number for all threads
    before, _mode.plain = _mode.plain, True
    with _lock:
        _threads += 1
    try:
        yield
    finally:
        with _lock:
            _threads -= 1
        _mode.plain = before


def is_plain() -> bool:
    """Whether this is inside ``plainly``."""
    return _threads > 0 and _mode.plain


#: The dispatch key of torch.func, and that of ``is_grads_batched`` and ``jacobian(vectorize=True)``.
interpreters = torch._C._functorch.peek_interpreter_stack
VMAP: Any = torch._C._parse_dispatch_key("VmapMode")
in_vmap = torch._C._dispatch_tls_is_dispatch_key_included


def stands_for_many() -> bool:
    """Whether a tensor may stand for a batch of tensors here, as under torch.func."""
    return interpreters() is not None or in_vmap(VMAP)


def whole(tensor: Tensor) -> bool:
    """Whether the tensor is contiguous, and not a view that would keep the memory of a larger one alive."""
    if is_plain():
        return False
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


def parts(size: int, *tensors: Tensor) -> list[slice] | None:
    """Return how to cut ``size`` samples or outputs, given the tensors that hold them; None if not to cut."""
    if size < 2 or plain() or any(t.device.type != "cpu" for t in tensors):
        return None
    step = max(1, PART * torch.get_num_threads() * size // max(1, *(t.nbytes for t in tensors)))
    return None if step >= size else [slice(start, start + step) for start in range(0, size, step)]


def into(tensor: Tensor) -> Tensor | None:
    """Return a tensor that is not needed any more as ``out`` of the next operation; None where that is not allowed.

    The result is then written to cache, and needs no new memory.
    """
    return None if torch.is_grad_enabled() or (_threads > 0 and _mode.plain) else tensor

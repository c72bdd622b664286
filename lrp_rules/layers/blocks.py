"""Large tensors part by part, so that what lies between input and result stays in a core's own cache.

It is never written to main memory then, and no fresh memory is asked of the system for it, which can cost more than the
arithmetic. On other devices than the CPU, and where a derivative will be asked for, everything is done at once.
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
    """Return the bytes of a core's own cache, its second level, within what was measured; not every torch tells."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return min(max(int(capabilities.get("l2_cache_size", 0)), 2**19), 2**21)


#: How many bytes a part has in the largest tensor, for each thread.
PART = _cache()


def large(*tensors: Tensor) -> bool:
    """Whether one of the tensors is more than a part."""
    return max([t.nbytes for t in tensors]) > PART


class _Mode(threading.local):
    plain = False


_mode = _Mode()
#: How many threads are in ``plainly``: to look at a thread's own mode takes as long as a small part of an operation.
_threads = 0
_lock = threading.Lock()


def plain() -> bool:
    """Whether everything is to be done in one piece and out of place.

    That is so where a derivative is asked for, and ``plainly``.
    """
    return torch.is_grad_enabled() or (_threads > 0 and _mode.plain)


@contextmanager
def plainly() -> Iterator[None]:
    """Do everything in one piece and out of place, on this thread.

    Where a tensor stands for a whole batch of them, as in torch.func and under ``is_grads_batched``, it cannot be
    written into one that does not.
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
    """Whether ``plainly`` holds here."""
    return _threads > 0 and _mode.plain


#: What torch.func goes by; and what ``is_grads_batched`` and ``jacobian(vectorize=True)`` do.
interpreters = torch._C._functorch.peek_interpreter_stack
VMAP: Any = torch._C._parse_dispatch_key("VmapMode")
in_vmap = torch._C._dispatch_tls_is_dispatch_key_included


def stands_for_many() -> bool:
    """Whether tensors may stand for batches of others here."""
    return interpreters() is not None or in_vmap(VMAP)


def whole(tensor: Tensor) -> bool:
    """Whether the tensor is contiguous and no part of a wider one, whose memory would live as long."""
    if is_plain():
        return False
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


def parts(size: int, *tensors: Tensor) -> list[slice] | None:
    """Return how to cut ``size`` equal things, which the tensors hold together; None if they are better left whole."""
    if size < 2 or plain() or any(t.device.type != "cpu" for t in tensors):
        return None
    step = max(1, PART * torch.get_num_threads() * size // max(1, *(t.nbytes for t in tensors)))
    return None if step >= size else [slice(start, start + step) for start in range(0, size, step)]


def into(tensor: Tensor) -> Tensor | None:
    """Return the tensor as the ``out`` of an operation that it is not needed after; None where that must not be.

    What is written there is in cache, and no memory is asked for.
    """
    return None if torch.is_grad_enabled() or (_threads > 0 and _mode.plain) else tensor

"""Peak memory of one call, beyond what was there before it.

On the CPU it is added up from the profiler's allocation events, which torch's allocator reports one by one: memory that
a library takes by itself, past that allocator, is not seen. On CUDA it is ``torch.cuda.max_memory_allocated``.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


def peak_bytes(call: Callable[[], Tensor], device: str = "cpu") -> int:
    """Return the largest number of bytes that one call held at a time. The call is warmed first."""
    call()
    return _on_cuda(call) if device.startswith("cuda") else _on_cpu(call)


def _on_cpu(call: Callable[[], Tensor]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        kept = call()
        del kept
    return peak(_events(profiler))


def peak(changes: Iterable[int]) -> int:
    """Return the highest level that changes add up to, from zero.

    >>> peak([100, 50, -100, 60, -110])
    150

    """
    return max(accumulate(changes), default=0)


def _events(profiler: Any) -> list[int]:
    """Bytes taken (or given back, negative) in the order of time."""
    found = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and str(event.device_type()).endswith("CPU")
    ]
    return [size for _, size in sorted(found, key=lambda event: event[0])]


def _on_cuda(call: Callable[[], Tensor]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) - before

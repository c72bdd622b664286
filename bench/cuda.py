"""Time on a CUDA device: events around the call, a flushed L2 cache, and replays of a CUDA graph.

A call's time by events begins when the device takes it up and includes the gaps in which the device waits for the next
launch; the time of a graph's replay has no launches in it. Between calls the L2 cache is overwritten, so that no
subject finds its weights there because the one before it has used them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.pairing import warm

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[], Any]

#: More than any L2 cache holds.
FLUSHED_BYTES = 256 * 2**20


def full_precision() -> None:
    """Switch off TF32, which torch allows in convolutions by default: rules are held to float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


class EventClock:
    """Times a call by two events on the current stream, after the L2 cache was overwritten."""

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._flush = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device="cuda" if cuda is torch.cuda else "cpu")

    def __call__(self, call: Call) -> float:
        """Return the seconds between the events; waits for the device before and after."""
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        self._cuda.synchronize()
        start.record()
        kept = call()
        end.record()
        self._cuda.synchronize()
        del kept
        return float(start.elapsed_time(end)) * 1e-3  # milliseconds


def graph_seconds(call: Call, clock: Callable[[Call], float], replays: int = 20, cuda: Any = torch.cuda) -> float:
    """Return the median time of a replay of the call as a CUDA graph.

    Raises
    ------
    RuntimeError
        If the call cannot be captured, because it waits for the device for instance.

    """
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):  # as capture demands: warmed on a stream of its own
        for _ in range(3):
            call()
    cuda.current_stream().wait_stream(stream)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        kept = call()
    warm(graph.replay, clock, 0.0)
    times = [clock(graph.replay) for _ in range(replays)]
    del kept
    return float(np.median(times))

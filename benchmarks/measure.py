"""Time and peak memory of a forward and backward pass, on CPU and CUDA."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# glibc's malloc.h.
_M_MMAP_THRESHOLD = -3

Forward = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Quantiles:
    """Of one measured quantity over the rounds, in its SI unit."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> "Quantiles":
        """Median, 20% and 80% quantile."""
        tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
        return cls(tenths[4], tenths[1], tenths[7], len(values))


def backward(outputs: tuple[Tensor, ...]) -> None:
    """Differentiate the sum of all outputs. Not `autograd.grad`: verl's checkpointing, reentrant, forbids it."""
    sum(output.sum().float() for output in outputs).backward()


def seconds(forward: Forward, device: str) -> tuple[float, float]:
    """Time of the forward pass, and of forward and backward together, of one run."""
    if device == "cpu":
        start = time.perf_counter()
        outputs = forward()
        middle = time.perf_counter()
        backward(outputs)
        return middle - start, time.perf_counter() - start
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    torch.cuda.synchronize()
    events[0].record()
    outputs = forward()
    events[1].record()
    backward(outputs)
    events[2].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3, events[0].elapsed_time(events[2]) / 1e3


def peak_growth(run: Callable[[], Any], device: str) -> int | None:
    """Bytes that ``run`` needs at its peak beyond what was there before; None where that cannot be measured.

    CUDA: of torch's allocator. CPU: of the resident pages of this process. The kernel itself keeps their maximum,
    ``VmHWM``, and restarts it when 5 is written to ``clear_refs``, so that no short peak is missed, as it could be
    by sampling; its counters are exact to some tens of pages per core. It is to be called in a fresh process
    (`in_fresh_process`), where resident pages are tensors in use, after a small run that loads what is loaded lazily.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        # Not Linux with glibc.
        return None
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def available_memory(device: str) -> int:
    """Bytes that this machine or device can still give."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    information = Path("/proc/meminfo").read_text()
    return int(information.split("MemAvailable:")[1].split()[0]) * 1024


def _start(threads: int) -> None:
    """Give every large tensor a mapping of its own, which goes when the tensor does: malloc may keep other memory."""
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 2**17)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` in a process that has imported this benchmark but allocated nothing yet.

    Its parent is a server that only imports, which saves five seconds of imports per measurement.

    Raises:
        BrokenProcessPool: the process was killed, for example for want of memory.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.methods"])
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(torch.get_num_threads(),)) as pool:
        return pool.submit(function, *arguments).result()


def copy_bandwidth(size: int, rounds: int = 20) -> float:
    """Bytes per second that a copy within the CUDA device reads and writes, ``size`` bytes at a time, median."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    times = []
    for _ in range(rounds + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * size / Quantiles.of(times[1:]).median

"""What of the process is set up for speed: its worker threads, and the memory that it keeps.

Many one-threaded operators side by side beat one operator on many threads for small networks. Knows nothing about what
the threads run or who allocates.
"""

import ctypes
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_BYTES = 1 << 25
"""The most that glibc allows."""

_TRIM_BYTES = 1 << 30


def num_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores that this process may use: those that it is bound to, and no more than its container is paid for.

    cgroups: where Linux shows the limits of control groups. A quota of one core and a half is taken for two.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in (_quota_of_version_2(cgroups), _quota_of_version_1(cgroups)):
        if quota > 0 and period > 0:
            bound = min(bound, math.ceil(quota / period))
    return max(1, bound)


def _quota_of_version_2(cgroups: Path) -> tuple[int, int]:
    """Microseconds of all cores together, in each period of so many microseconds; (0, 0) without a limit."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
        return int(quota), int(period)
    except (OSError, ValueError):  # no such file, or no limit: the word "max"
        return 0, 0


def _quota_of_version_1(cgroups: Path) -> tuple[int, int]:
    try:
        quota, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota), int(period)  # -1 is no limit
    except (OSError, ValueError):
        return 0, 0


def memory_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may have: the machine's, or the limit of its control group if that is less.

    cgroups: where Linux shows the limits of control groups.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no limit
            found = min(found, int((cgroups / name).read_text()))
    return found


def worker_threads(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads that each run torch's operators alone. They end when the pool is closed or forgotten."""
    if num_threads < 1:
        raise ValueError(f"at least one thread is needed, not {num_threads}")
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=_prepare_thread)


def _prepare_thread() -> None:
    import torch  # here, since how many cores there are is asked by commands that need none of it

    # OpenMP's thread count and the processor's rounding mode both belong to the thread that sets them.
    torch.set_num_threads(1)
    # Denormal numbers cost 10 to 20 times the work of ordinary ones (oneDNN#561).
    torch.set_flush_denormal(True)


def keep_freed_memory() -> None:
    """From now on blocks below 32 MiB stay with the process when they are freed, up to 1 GiB a heap.

    Training frees and takes the same tens of megabytes in every step. By default glibc hands them back to the
    system, and the page faults of getting them again cost a fifth of the time. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; no library of the process (Windows)
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)

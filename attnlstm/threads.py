"""Worker threads for small networks: many one-threaded operators side by side beat one operator on many
threads.

Owns how such threads are set up. Knows nothing about what they run.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import torch


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_threads(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads that each run torch's operators alone. They end when the pool is closed or forgotten."""
    if num_threads < 1:
        raise ValueError(f"at least one thread is needed, not {num_threads}")
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=_prepare_thread)


def _prepare_thread() -> None:
    # OpenMP's thread count and the processor's rounding mode both belong to the thread that sets them.
    torch.set_num_threads(1)
    # Denormal numbers cost 10 to 20 times the work of ordinary ones (oneDNN#561).
    torch.set_flush_denormal(True)

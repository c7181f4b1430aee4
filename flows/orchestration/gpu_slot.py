"""The right to compute on a GPU: one process at a time, so that two runs do not share one by accident.

A file for each GPU, which the operating system locks and lets go of when a process ends, however it ends. So nothing
has to be set up, and nobody waits for a run that was killed. Threads of one process share its turn. It holds among
the processes of one user that have the same temporary folder; between users, containers and machines, GPUs are for the
cluster or the work pool to give out. Knows nothing about what is computed.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_LOOK_SECONDS = 0.2


@contextmanager
def device_slot(device: str, *, on_wait: Callable[[str], None], check: Callable[[], object]) -> Iterator[None]:
    """`gpu_slot` of the GPU that this process computes on, if the device is "cuda" or "auto" finds one."""
    if device == "auto":
        from attnlstm.engines.torch_engine import resolve_device

        device = resolve_device("auto")
    if device == "cpu":
        yield
        return
    import torch

    # What tells it from all other GPUs, however many of them are visible.
    gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    with gpu_slot(gpu, on_wait=on_wait, check=check):
        yield


@contextmanager
def gpu_slot(gpu: str, *, on_wait: Callable[[str], None], check: Callable[[], object]) -> Iterator[None]:
    """Hold the GPU of this name until the block ends, and wait for it as long as it takes.

    on_wait: called with a message, once, if another process holds it. check: called again and again while waiting;
    what it raises ends the wait.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    file = Path(tempfile.gettempdir()) / f"attnlstm-{user}-{re.sub(r'[^A-Za-z0-9-]', '-', gpu)}.lock"
    # One object for the process, and not one for each thread: it is let go of when the last thread is through.
    lock = FileLock(file, thread_local=False, is_singleton=True)

    def look() -> bool:
        check()
        return False

    try:
        lock.acquire(timeout=_LOOK_SECONDS)  # longer than other threads of this process take to come and go
    except Timeout:
        on_wait(f"GPU {gpu} is in use by another run on this machine; waiting for it. ({file})")
        lock.acquire(poll_interval=_LOOK_SECONDS, cancel_check=look)
    try:
        yield
    finally:
        lock.release()

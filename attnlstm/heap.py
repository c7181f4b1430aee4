"""Memory that is freed and soon asked for again, which the C library's heap would give back in between.

Owns one setting of glibc, for the whole process. Knows nothing about who allocates.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_BYTES = 1 << 25
"""The most that glibc allows."""

_TRIM_BYTES = 1 << 30


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

"""Compiling a function with Numba, by way of its cache on disk, whatever state that cache is in.

Owns what becomes of a cache that is damaged or can't be used: a file that a power cut or a full disk left empty or torn
is written anew, and without a folder to read from and write to, every process compiles for itself. Knows nothing about
what is compiled. It imports Numba: import it late.
"""

# mypy: ignore-errors
# Numba's own classes have no types.

import contextlib
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache
from numba.core.types import Type


class _MendingCache(FunctionCache):
    """Numba's cache, for which a file that can't be used is one that is not there."""

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a torn pickle may raise anything
            with contextlib.suppress(OSError):
                self.flush()  # an index without entries, so that the file is written again
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except OSError:
            pass  # a full or a read-only disk: the next process compiles again
        except Exception:  # an index that another process has left torn meanwhile
            with contextlib.suppress(OSError):
                self.flush()
                super().save_overload(sig, data)


def compiled(function: Callable[..., None], signature: Type) -> Callable[..., Any]:
    """The function compiled for one signature, without the GIL; read from Numba's cache where that has it."""
    dispatcher = njit(nogil=True)(function)
    # RuntimeError: Numba found no folder that it may write to. OSError: of one that is there it may not even list.
    with contextlib.suppress(RuntimeError, OSError):
        dispatcher._cache = _MendingCache(function)  # what `enable_caching` does, with Numba's own class
    dispatcher.compile(signature)
    dispatcher.disable_compile()  # arrays that may be written to are no reason for another version
    return dispatcher

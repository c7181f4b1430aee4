"""Tokens put end to end as they are read: in memory while they are few, in a mapped temporary file once they are many.

Knows nothing about rows or what tokens mean.
"""

import tempfile
from typing import IO

import numpy as np
import numpy.typing as npt

MEMORY_BYTES = 2 << 30
"""Tokens that are kept in memory; more go to a file in the system's temporary folder (TMPDIR names another)."""


class TokenSpool:
    """Grows by arrays of one dtype, and ends as one array.

    The file has no name from the start, so that nothing is left of it when the last array that it backs is forgotten,
    or when the process is killed.
    """

    def __init__(self, dtype: npt.DTypeLike, memory_bytes: int = MEMORY_BYTES) -> None:
        self._dtype = np.dtype(dtype)
        self._memory_bytes = memory_bytes
        self._parts: list[npt.NDArray[np.integer]] = []
        self._num_bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, values: npt.NDArray[np.integer]) -> None:
        """Put a copy of `values` at the end."""
        self._num_bytes += len(values) * self._dtype.itemsize
        if self._file is None and self._num_bytes > self._memory_bytes:
            self._file = tempfile.TemporaryFile(prefix="attnlstm-tokens-")  # noqa: SIM115  (`array` closes it)
            for part in self._parts:
                self._file.write(part.data)
            self._parts.clear()
        if self._file is None:
            self._parts.append(np.array(values, self._dtype))
        else:
            self._file.write(np.ascontiguousarray(values, self._dtype).data)

    def array(self) -> npt.NDArray[np.integer]:
        """All that was appended, read only if it is backed by a file. The spool can't grow after this."""
        if self._file is None:
            return np.concatenate([np.zeros(0, self._dtype), *self._parts])
        with self._file as file:
            file.flush()
            return np.asarray(np.memmap(file, self._dtype, mode="r"))

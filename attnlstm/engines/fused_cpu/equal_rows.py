"""Rows with the same tokens: which of them come first, and the others' scores, copied from those.

Owns how equal rows are found: by a hash of their tokens, and then token by token. Knows nothing about networks. It
imports Numba: import it late.
"""

# mypy: ignore-errors
# Numba gives inner functions their types when it compiles them; mypy can't follow.

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numba.core import types

from attnlstm.engines.numba_cache import compiled

MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd and without a pattern: the golden ratio in 64 bits."""


class EqualRows:
    """The rows of a ragged batch, int32 values and int64 offsets (N + 1,).

    first_rows: int64, ascending, every row that has no equal before it.
    """

    def __init__(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> None:
        self._offsets = offsets
        num_rows = len(offsets) - 1
        self._first = np.empty(num_rows, np.int64)
        # At most half of the places are taken, so searches are short.
        places = np.full(1 << (2 * num_rows).bit_length(), -1, np.int64)
        _compile_find()(values, offsets, places, np.empty(num_rows, np.uint64), self._first)
        self.first_rows = np.flatnonzero(self._first == np.arange(num_rows))

    def copy_scores(
        self,
        logits: npt.NDArray[np.float64],
        probabilities: npt.NDArray[np.float32],
        attention_weights: npt.NDArray[np.float32],
    ) -> None:
        """Fill in what the other rows score. logits, probabilities: (N, C). attention_weights: one for each value."""
        if len(self.first_rows) < len(self._first):
            logits[:] = logits[self._first]
            probabilities[:] = probabilities[self._first]
            _compile_copy()(self._offsets, self._first, attention_weights)


@functools.cache
def _compile_find() -> Callable[..., None]:
    def find(values, offsets, places, hashes, first):
        """first[n] = the first row that has the same tokens as row n. places: -1s, a power of two of them."""
        for n in range(len(first)):
            begin, length = offsets[n], offsets[n + 1] - offsets[n]
            hashed = np.uint64(length)
            # Two tokens at a time: a multiplication takes longer than all else.
            for t in range(begin, begin + length - 1, 2):
                pair = np.uint64(values[t]) | (np.uint64(values[t + 1]) << np.uint64(32))
                hashed = (hashed ^ pair) * np.uint64(MULTIPLIER)
                hashed ^= hashed >> np.uint64(32)
            if length % 2:
                hashed = (hashed ^ np.uint64(values[begin + length - 1])) * np.uint64(MULTIPLIER)
                hashed ^= hashed >> np.uint64(32)
            hashes[n] = hashed
            place = np.int64(hashed & np.uint64(len(places) - 1))
            while True:
                other = places[place]
                if other < 0:
                    places[place] = first[n] = n
                    break
                if hashes[other] == hashed and offsets[other + 1] - offsets[other] == length:
                    t = 0
                    while t < length and values[offsets[other] + t] == values[begin + t]:
                        t += 1
                    if t == length:
                        first[n] = other
                        break
                place = (place + 1) & (len(places) - 1)

    read, write = (lambda type_, r=r: types.Array(type_, 1, "C", readonly=r) for r in (True, False))
    i64 = types.int64
    return compiled(find, types.void(read(types.int32), read(i64), write(i64), write(types.uint64), write(i64)))


@functools.cache
def _compile_copy() -> Callable[..., None]:
    def copy(offsets, first, attention_weights):
        for n in range(len(first)):
            if first[n] != n:
                for t in range(offsets[n + 1] - offsets[n]):
                    attention_weights[offsets[n] + t] = attention_weights[offsets[first[n]] + t]

    read, write = (lambda type_, r=r: types.Array(type_, 1, "C", readonly=r) for r in (True, False))
    return compiled(copy, types.void(read(types.int64), read(types.int64), write(types.float32)))

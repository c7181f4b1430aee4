"""Sequences of different lengths as one array of values and one of offsets: the few operations needed on them.

Pure numpy, no loops over rows.
"""

import numpy as np
import numpy.typing as npt

_WEIGHT_BITS = 30
_HIGHEST_BITS = np.uint64((1 << _WEIGHT_BITS) - 1)
"""A float32 in 0 .. 1 as an integer fits in so many bits, in the order of the numbers. What is not a number counts as
the largest."""


def top_of_rows(
    weights: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The `count` largest weights of each row, largest first; equal ones in order of position.

    weights: (num_tokens,), 0 to 1. offsets: (N + 1,).
    Returns positions within the row (num_kept,), weights (num_kept,), offsets (N + 1,): shorter rows keep all.
    """
    lengths = np.diff(offsets)
    kept = np.minimum(lengths, count)
    kept_offsets = np.concatenate(([0], np.cumsum(kept)))
    positions = np.empty(kept_offsets[-1], np.int32)
    # A plain sort of integers that hold row, weight and position is ten times as fast as sorting by three keys.
    position_bits = max(1, int(lengths.max(initial=0)).bit_length())
    rows_at_once = 1 << (64 - _WEIGHT_BITS - position_bits)
    for first in range(0, len(lengths), rows_at_once):
        last = min(first + rows_at_once, len(lengths))
        tokens = slice(offsets[first], offsets[last])
        of_each = lengths[first:last]
        place = np.arange(offsets[last] - offsets[first]) - np.repeat(offsets[first:last] - offsets[first], of_each)
        keys = np.repeat(np.arange(last - first, dtype=np.uint64), of_each)
        keys <<= np.uint64(_WEIGHT_BITS)
        keys |= _HIGHEST_BITS - np.minimum(weights[tokens].view(np.uint32), _HIGHEST_BITS)
        keys <<= np.uint64(position_bits)
        keys |= place.astype(np.uint64)
        keys.sort()
        chosen = place < np.repeat(kept[first:last], of_each)
        positions[kept_offsets[first] : kept_offsets[last]] = keys[chosen] & np.uint64((1 << position_bits) - 1)
    return positions, weights[positions + np.repeat(offsets[:-1], kept)], kept_offsets

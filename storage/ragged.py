"""Sequences of different lengths as one array of values and one of offsets: the few operations needed on them.

Pure numpy, no loops over rows.
"""

import numpy as np
import numpy.typing as npt


def top_of_rows(
    weights: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The `count` largest weights of each row, largest first; equal ones in order of position.

    weights: (num_tokens,). offsets: (N + 1,).
    Returns positions within the row (num_kept,), weights (num_kept,), offsets (N + 1,): shorter rows keep all.
    """
    lengths = np.diff(offsets)
    row = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-weights, row))
    kept = np.minimum(lengths, count)
    rank = np.arange(len(weights)) - np.repeat(offsets[:-1], lengths)
    chosen = order[rank < np.repeat(kept, lengths)]
    kept_offsets = np.concatenate(([0], np.cumsum(kept)))
    positions = chosen - np.repeat(offsets[:-1], kept)
    return positions.astype(np.int32), weights[chosen], kept_offsets

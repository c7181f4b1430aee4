"""What has to hold between input rows and their attention: the same rows, a weight for each token, sums that add up.

Knows nothing about networks: whether a weight is the right one, only scoring again can tell.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.input.tokens import TokenRows
from storage.output.checked_rows import CheckedRows
from storage.output.layout import AttentionSaving

# How far the sum of a row's weights may be from 1. They are normalised by a float32 sum; in 8 lanes or more, n terms
# are off by n / 8 roundings of 2**-24 at most, besides what the exponentials and the division cost.
_TOLERANCE, _TOLERANCE_PER_TOKEN = 1e-5, 2.0**-24 / 8


def check_attention(found: CheckedRows, tokens: TokenRows, ids: pa.ChunkedArray, saving: AttentionSaving) -> None:
    """found: N rows of attention. tokens: of these rows. ids: N or more."""
    found.check_equal("id", ids[: found.table.num_rows])
    num_scored = np.zeros(found.table.num_rows, np.int64)
    num_scored[tokens.usable] = np.diff(tokens.offsets)
    num_kept = np.minimum(num_scored, saving.top or num_scored)
    is_whole = tokens.usable.copy()
    lists = found.table.column_names[1:]
    for name in lists:
        is_whole &= found.check_presence(name, tokens.usable)
        is_whole &= found.check_lengths(name, num_kept)
    whole = found.only(lists, is_whole)
    _check_weights(whole, num_scored[is_whole], num_kept[is_whole])
    if saving.kind == "top":
        _check_positions(whole, num_scored[is_whole], num_kept[is_whole])


def _check_weights(found: CheckedRows, num_scored: npt.NDArray[np.int64], num_kept: npt.NDArray[np.int64]) -> None:
    """found: N rows with as many weights as there should be. num_scored, num_kept: (N,), tokens and weights of each."""
    weights = pc.list_flatten(found.table["weights"]).to_numpy().astype(np.float64)  # NaN for a null
    starts = np.cumsum(num_kept) - num_kept  # no row is empty, as `reduceat` wants it
    sums = np.add.reduceat(weights, starts) if len(starts) else np.zeros(0)
    is_weight = np.logical_and.reduceat(weights >= 0, starts) if len(starts) else np.zeros(0, bool)
    tolerance = _TOLERANCE + _TOLERANCE_PER_TOKEN * num_scored
    # The largest K of n weights are at least K/n of all.
    is_sum = (sums <= 1 + tolerance) & (sums >= num_kept / num_scored - tolerance)
    found.tell(~is_weight, lambda row: f"weights are {found.shown('weights', row)}, expected all 0 or more")
    found.tell(
        is_weight & ~is_sum,
        lambda row: (
            f"weights sum to {sums[row]:.7f}, expected "
            + ("1" if num_kept[row] == num_scored[row] else f"{num_kept[row] / num_scored[row]:.7f} to 1")
        ),
    )


def _check_positions(found: CheckedRows, num_scored: npt.NDArray[np.int64], num_kept: npt.NDArray[np.int64]) -> None:
    """As `_check_weights`; rows with as many positions as weights."""
    positions = pc.fill_null(pc.list_flatten(found.table["positions"]), -1).to_numpy()
    weights = pc.list_flatten(found.table["weights"]).to_numpy()
    row_of = np.repeat(np.arange(len(num_kept)), num_kept)
    is_out = (positions < 0) | (positions >= num_scored[row_of])
    order = np.lexsort((positions, row_of))
    is_same_row = row_of[1:] == row_of[:-1]
    is_twice = is_same_row & (np.diff(positions[order]) == 0)
    rises = is_same_row & (weights[1:] > weights[:-1])
    for places, expected in (
        (row_of[is_out], "all within the row"),
        (row_of[1:][is_twice], "none twice"),
        (row_of[1:][rises], "those of the largest weights first"),
    ):
        wrong = np.zeros(len(num_kept), bool)
        wrong[places] = True
        _tell_positions(found, wrong, expected)


def _tell_positions(found: CheckedRows, wrong: npt.NDArray[np.bool_], expected: str) -> None:
    found.tell(wrong, lambda row: f"positions are {found.shown('positions', row)}, expected {expected}")

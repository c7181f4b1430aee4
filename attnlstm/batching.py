"""Ragged rows to padded batches.

Owns which rows share a batch, which depends on lengths alone, so that the same rows give the same batches on
every machine. Knows numpy only: nothing of networks or devices. Nothing here loops over rows.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer]

LONG_ROWS_MORE = 4
"""How many times the usual tokens a batch of few long rows may have. Of two rows a processor reads the weights as
often as of sixteen."""

ALIKE = 0.98
"""Such a row is at least this share of the batch's longest."""


def check_ragged(values: Integers, offsets: npt.NDArray[np.int64], num_tokens_known: int) -> None:
    """Raises ValueError unless every row has a token and every token id is in 0 .. num_tokens_known - 1."""
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"values must be integers in one dimension, not {values.dtype} {values.shape}")
    if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(values):
        raise ValueError(f"offsets must run from 0 to the number of values, {len(values)}")
    short = np.flatnonzero(np.diff(offsets) < 1)
    if len(short):
        raise ValueError(f"every row needs at least one token; row {short[0]} has none")
    # Most values are bytes, whose type alone says that they are in range.
    bounds = np.iinfo(values.dtype)
    if len(values) and (bounds.min < 0 or bounds.max >= num_tokens_known):
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest >= num_tokens_known:
            raise ValueError(f"token ids must be in 0..{num_tokens_known - 1}; found {lowest}..{highest}")


def plan_batches(
    lengths: Integers, *, max_tokens: int, max_rows: int, min_rows: int = 1
) -> Iterator[npt.NDArray[np.int64]]:
    """Row indices of each batch: rows of like length together, longest first.

    lengths: integer (N,), all at least 1.
    max_tokens: a batch's rows times its longest row stay within this; a single longer row is a batch of its
    own.
    max_rows: most rows in a batch.
    min_rows: with fewer than these, where rows are long, a batch goes on to LONG_ROWS_MORE * max_tokens, with rows
    that cost next to no padding.
    Every row is in exactly one batch; among equal lengths, earlier rows come first.
    """
    # Longest first: what is left for last is small, so threads that share the batches end together.
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        num_rows = max(1, min(max_rows, max_tokens // longest))
        if num_rows < min_rows:
            next_lengths = lengths[order[start : start + min(min_rows, LONG_ROWS_MORE * max_tokens // longest)]]
            num_rows = max(num_rows, int((next_lengths >= ALIKE * longest).sum()))
        rows = order[start : start + num_rows]
        yield rows
        start += len(rows)


def plan_pieces(offsets: npt.NDArray[np.int64], max_tokens: int) -> Iterator[slice]:
    """Rows in input order, as slices of at most max_tokens tokens; a single longer row is a slice of its own."""
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + max_tokens, side="right")) - 1
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop


def pad(
    values: Integers, offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], padding_id: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The rows of a batch as one rectangle: token_ids (B, T), left-aligned, and lengths (B,).

    values: tokens of all rows end to end. offsets: (N + 1,), where each row starts. rows: (B,), indices in 0
    .. N - 1.
    """
    lengths = offsets[rows + 1] - offsets[rows]
    token_ids = np.full((len(rows), lengths.max()), padding_id, np.int32)
    before = np.cumsum(lengths) - lengths
    positions = np.arange(lengths.sum()) + np.repeat(offsets[rows] - before, lengths)  # row after row
    token_ids[np.arange(token_ids.shape[1]) < lengths[:, None]] = values[positions]
    return token_ids, lengths

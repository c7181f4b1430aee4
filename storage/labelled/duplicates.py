"""Rows with the same tokens: how many there are, which of them the split parted, and where their labels disagree.

Knows hashes, sides and class numbers only.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.labelled.split import TEST


@dataclass(frozen=True)
class Duplicates:
    """Counts over N rows. A content is what rows with the same tokens share.

    num_rows: rows that repeat an earlier one. num_across_sides: contents on more than one side of the split, which
    a split by content never has. num_test_rows_seen: test rows of such contents: training met the same tokens.
    num_conflicting: contents whose rows do not all have the same label. num_conflicting_rows: their rows, of which some
    are scored wrong by any classifier.
    """

    num_rows: int
    num_across_sides: int
    num_test_rows_seen: int
    num_conflicting: int
    num_conflicting_rows: int


def count_duplicates(
    contents: npt.NDArray[np.uint64], splits: npt.NDArray[np.int8], labels: npt.NDArray[np.int64]
) -> Duplicates:
    """contents: uint64 (N,), equal for rows with the same tokens. splits: int8 (N,). labels: int64 (N,)."""
    if not len(contents):
        return Duplicates(0, 0, 0, 0, 0)
    order = np.argsort(contents, kind="stable")
    ordered = contents[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(starts, len(ordered)))
    is_parted = _differs(splits[order], starts)
    conflicts = _differs(labels[order], starts)
    test_rows = np.add.reduceat((splits[order] == TEST).astype(np.int64), starts)
    return Duplicates(
        num_rows=len(ordered) - len(starts),
        num_across_sides=int(np.count_nonzero(is_parted)),
        num_test_rows_seen=int(test_rows[is_parted].sum()),
        num_conflicting=int(np.count_nonzero(conflicts)),
        num_conflicting_rows=int(sizes[conflicts].sum()),
    )


def _differs(numbers: npt.NDArray[np.integer], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool (num_contents,): whether the numbers of a content's rows are not all the same."""
    different: npt.NDArray[np.bool_] = np.minimum.reduceat(numbers, starts) != np.maximum.reduceat(numbers, starts)
    return different

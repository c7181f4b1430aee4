"""Cross-validation: each row scored by a network that was trained without its group, so that all rows can be measured.

Owns which rows are in which fold. Knows numpy only, and nothing of how a network is trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attnlstm.training.rows import LabelledSequences

NUM_FOLDS = 5
"""Trainings of a cross-validation. More would each see a few rows more, and take longer together."""


@dataclass(frozen=True)
class Fold:
    """One training: the rows that it is trained on, those that it stops by, and those that it is measured on.

    Each is bool (N,); a row is in one of them, and rows of a group are in the same.
    """

    train: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]
    held_out: npt.NDArray[np.bool_]


def folds_of(groups: npt.NDArray[np.integer]) -> Iterator[Fold]:
    """NUM_FOLDS folds, or as many as there are groups; each row is held out once.

    groups: integer (N,), hashes of what keeps rows together: their order is as good as any other, and the same again.
    Raises ValueError with fewer than three groups, since each part needs one.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    num_folds = min(NUM_FOLDS, len(names))
    if num_folds < 3:
        raise ValueError(f"cross-validation needs three groups of rows or more; there are {len(names)}")
    fold_of_row = numbers % num_folds
    for number in range(num_folds):
        held_out, validation = fold_of_row == number, fold_of_row == (number + 1) % num_folds
        yield Fold(~(held_out | validation), validation, held_out)


def chosen(rows: LabelledSequences, which: npt.NDArray[np.bool_]) -> LabelledSequences:
    """Some of the rows, in order. which: bool (N,)."""
    lengths = rows.lengths
    offsets = np.concatenate(([0], np.cumsum(lengths[which])))
    return LabelledSequences(rows.values[np.repeat(which, lengths)], offsets, rows.labels[which])

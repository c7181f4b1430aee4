"""Labelled rows by side of the split, with where each came from, and without classes that have too few of them.

Knows nothing about files or columns.
"""

from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import numpy.typing as npt

from storage.labelled.duplicates import Duplicates, count_duplicates
from storage.labelled.split import TEST, TRAIN, VALIDATION
from storage.labelled.spool import TokenSpool

SIDES = (TRAIN, VALIDATION, TEST)
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class LabelledRows:
    """N rows that have a label and can be scored.

    values: for each side of the split integers (num_tokens,), the tokens of its rows end to end.
    lengths: int64 (N,). labels: int64 (N,), indices into `classes`. splits: int8 (N,), see `storage.labelled.split`.
    groups: int64 (N,), a hash of what decided the row's side: equal for rows that the split keeps together.
    contents: uint64 (N,), a hash of each row's tokens. file_numbers: int32 (N,), indices into `files`.
    positions: int64 (N,), of each row in its file.
    split_by: "group", "content", or "group and content" where some rows have a group and some have none.
    since: the first date of the range that was asked for, ISO 8601; None for all that there is.
    num_unlabelled: rows that were left out for want of a label; num_unusable: for their tokens.
    left_out: rows of each class that has too few of them to train on.
    """

    values: tuple[npt.NDArray[np.integer], ...]
    lengths: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    splits: npt.NDArray[np.int8]
    groups: npt.NDArray[np.int64]
    contents: npt.NDArray[np.uint64]
    file_numbers: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    files: tuple[str, ...]
    split_by: str
    since: str | None
    num_unlabelled: int
    num_unusable: int
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_files(self) -> int:
        return len(self.files)

    def side(self, split: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(values, offsets, labels) of the rows on one side of the split, in order. Values are not copied."""
        chosen = self.splits == split
        return self.values[split], np.concatenate(([0], np.cumsum(self.lengths[chosen]))), self.labels[chosen]

    def place(self, row: int) -> str:
        """Where a row is, for people: its file and its position there, from 0."""
        return f"{self.files[self.file_numbers[row]]} row {self.positions[row]}"

    def duplicates(self) -> Duplicates:
        """How many rows share their tokens with others."""
        return count_duplicates(self.contents, self.splits, self.labels)


def without_small_classes(rows: LabelledRows, min_class_rows: int, memory_bytes: int) -> LabelledRows:
    """The rows of classes with at least `min_class_rows` rows on the train side. memory_bytes: see `read_labelled`."""
    to_train_on = np.bincount(rows.labels[rows.splits == TRAIN], minlength=len(rows.classes))
    is_small = to_train_on < min_class_rows
    if not is_small.any():
        return rows
    counts = np.bincount(rows.labels, minlength=len(rows.classes))
    kept = ~is_small[rows.labels]
    renumbered = np.cumsum(~is_small) - 1
    return replace(
        rows,
        values=tuple(_gather(rows, side, kept, memory_bytes) for side in SIDES),
        lengths=rows.lengths[kept],
        labels=renumbered[rows.labels[kept]],
        classes=tuple(compress(rows.classes, ~is_small)),
        splits=rows.splits[kept],
        groups=rows.groups[kept],
        contents=rows.contents[kept],
        file_numbers=rows.file_numbers[kept],
        positions=rows.positions[kept],
        left_out={name: int(counts[i]) for i, name in enumerate(rows.classes) if is_small[i]},
    )


def _gather(rows: LabelledRows, side: int, kept: npt.NDArray[np.bool_], memory_bytes: int) -> npt.NDArray[np.integer]:
    """The tokens of the kept rows of one side, some rows at a time: they may be many."""
    values, offsets, _ = rows.side(side)
    kept, lengths = kept[rows.splits == side], np.diff(offsets)
    spool = TokenSpool(values.dtype, memory_bytes)
    for start in range(0, len(kept), _BLOCK_ROWS):
        end = min(start + _BLOCK_ROWS, len(kept))
        spool.append(values[offsets[start] : offsets[end]][np.repeat(kept[start:end], lengths[start:end])])
    return spool.array()

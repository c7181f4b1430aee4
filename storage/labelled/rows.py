"""Labelled rows in memory: by side of the split, with where each came from, which repeat others, and their tokens.

Owns the spool that tokens are gathered in. Knows nothing about Parquet or columns.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import IO

import numpy as np
import numpy.typing as npt

from storage.labelled.classes import LabelType
from storage.labelled.split import TEST, TRAIN, VALIDATION
from storage.labelled.vocabulary import Outside

SIDES = (TRAIN, VALIDATION, TEST)
_BLOCK_ROWS = 4096

MEMORY_BYTES = 2 << 30
"""Tokens that are kept in memory; more go to a file in the system's temporary folder (TMPDIR names another)."""


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


@dataclass(frozen=True)
class LabelledRows:
    """N rows that have a label and can be scored.

    values: for each side of the split integers (num_tokens,), the tokens of its rows end to end.
    lengths: int64 (N,). labels: int64 (N,), indices into `classes`. label_type: of the labels as they came.
    splits: int8 (N,), see `storage.labelled.split`.
    groups: int64 (N,), a hash of what decided the row's side: equal for rows that the split keeps together.
    contents: uint64 (N,), a hash of each row's tokens. file_numbers: int32 (N,), indices into `files`.
    positions: int64 (N,), of each row in its file.
    split_by: "group", "content", or "group and content" where some rows have a group and some have none.
    since: the first date of the range that was asked for, ISO 8601; None for all that there is.
    num_unlabelled: rows that were left out for want of a label; num_unusable: for their tokens. outside: those of the
    latter that have token ids outside the vocabulary; None if there are none.
    left_out: rows of each class that has too few of them to train on.
    overlooked_group: a column such as `Group` in a file without `group`, which might be meant and was not read.
    """

    values: tuple[npt.NDArray[np.integer], ...]
    lengths: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    label_type: LabelType
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
    outside: Outside | None
    left_out: dict[str, int]
    overlooked_group: str | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_files(self) -> int:
        return len(self.files)

    def side(self, split: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(values, offsets, labels) of the rows on one side of the split, in order. Values are not copied."""
        chosen = self.splits == split
        return self.values[split], np.concatenate(([0], np.cumsum(self.lengths[chosen]))), self.labels[chosen]

    def sides(
        self, splits: Sequence[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.integer], npt.NDArray[np.int64]]:
        """(rows, values, offsets) of the rows on several sides, one side after the other. rows: (N,), which ones."""
        rows = np.concatenate([np.flatnonzero(self.splits == split) for split in splits])
        values = np.concatenate([self.values[split] for split in splits])
        return rows, values, np.concatenate(([0], np.cumsum(self.lengths[rows])))

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

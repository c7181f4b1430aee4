"""Reading labelled sequences for training, whole and in memory, with their classes and their side of the split."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from storage.columns import Columns, require_column
from storage.errors import FileError, SourceError
from storage.footer import read_footer
from storage.reading import read_shard
from storage.shards import Shard, ShardLimits, plan_shards
from storage.source import Source, find_source, partition_values
from storage.split import assign_splits
from storage.tokens import TokenRules, decode_tokens


@dataclass(frozen=True)
class LabelledRows:
    """N rows that have a label and can be scored.

    values: integers (num_tokens,). offsets: int64 (N + 1,). labels: int64 (N,), indices into `classes`.
    splits: int8 (N,), see `storage.split`. split_by: "group" or "content". num_unlabelled: rows that were left
    out for want of a label; num_unusable: for their tokens.
    """

    values: npt.NDArray[np.integer]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    splits: npt.NDArray[np.int8]
    split_by: str
    num_files: int
    num_unlabelled: int
    num_unusable: int

    def __len__(self) -> int:
        return len(self.labels)

    def side(self, split: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(values, offsets, labels) of the rows on one side of the split, in order."""
        chosen = self.splits == split
        lengths = np.diff(self.offsets)
        values = self.values[np.repeat(chosen, lengths)]
        return values, np.concatenate(([0], np.cumsum(lengths[chosen]))), self.labels[chosen]


def read_labelled(
    source: str,
    *,
    tokens_column: str = "tokens",
    label_column: str = "label",
    group_column: str = "group",
    rules: TokenRules | None = None,
) -> LabelledRows:
    """Read every labelled row of `source` (see `storage.source.find_source`).

    Labels are strings or integers; a Hive partition may hold them. Classes are in sorted order: integers by
    value, strings by code point. Rows are split by `group_column` where every file has it, else by content; rows
    whose group is null by content too.
    Raises SourceError if a file can't be read, or if fewer than two classes are left.
    """
    found = find_source(source)
    plan = plan_shards(found, Columns(tokens=tokens_column), ShardLimits(rows=2**62, bytes=2**62))
    if plan.unreadable:
        first, others = plan.unreadable[0], len(plan.unreadable) - 1
        more = f" ({others} more files can't be read either)" if others else ""
        raise SourceError(f"{found.root / first.file}: {first.reason}{more}")
    schemas = {shard.file: read_footer(found.root / shard.file).schema for shard in plan.shards}
    grouped = bool(schemas) and all(group_column in schema.names for schema in schemas.values())

    group = group_column if grouped else None
    parts: list[_Part] = []
    for shard in plan.shards:
        try:
            schema = schemas[shard.file]
            parts += _read_file(found, shard, schema, tokens_column, label_column, group, rules or TokenRules())
        except FileError as error:
            raise SourceError(f"{found.root / shard.file}: {error}.") from None
    labels = pa.chunked_array([part.labels for part in parts], _common_type([part.labels for part in parts]))
    classes, codes = _encode(labels)
    if len(classes) < 2:
        only = f"only {classes[0]!r}" if classes else "no label at all"
        raise SourceError(
            f"The source {found.root / found.scope} has {only} in column {label_column!r}; "
            "training needs two classes or more."
        )
    lengths = np.concatenate([part.lengths for part in parts])
    return LabelledRows(
        values=np.concatenate([part.values for part in parts]),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        labels=codes,
        classes=classes,
        splits=assign_splits(key for part in parts for key in part.split_keys()),
        split_by="group" if grouped else "content",
        num_files=len(schemas),
        num_unlabelled=sum(part.num_unlabelled for part in parts),
        num_unusable=sum(part.num_unusable for part in parts),
    )


@dataclass(frozen=True)
class _Part:
    values: npt.NDArray[np.integer]
    lengths: npt.NDArray[np.int64]
    labels: pa.Array
    groups: list[Any]
    num_unlabelled: int
    num_unusable: int

    def split_keys(self) -> Iterator[bytes]:
        """What decides each row's side: its group, or else its tokens."""
        content, width = self.values.tobytes(), self.values.itemsize
        bounds = pairwise([0, *np.cumsum(self.lengths * width).tolist()])
        for group, (start, end) in zip(self.groups, bounds, strict=True):
            yield content[start:end] if group is None else str(group).encode()


def _read_file(
    source: Source,
    shard: Shard,
    schema: pa.Schema,
    tokens_column: str,
    label_column: str,
    group_column: str | None,
    rules: TokenRules,
) -> Iterator[_Part]:
    partitions = partition_values(shard.file)
    names = [tokens_column, *([group_column] if group_column else [])]
    if label_column not in partitions:
        require_column(schema, label_column, "label_column")
        _check_label_type(schema.field(label_column))
        names.append(label_column)
    for table in read_shard(source.root, shard, list(dict.fromkeys(names))):
        if label_column in partitions:
            labels: pa.ChunkedArray = pa.chunked_array([pa.repeat(partitions[label_column], table.num_rows)])
        else:
            labels = table[label_column]
        # Masks of numpy rather than Arrow's `filter`, which pyarrow 26 does not have for views.
        labelled = labels.is_valid().to_numpy()
        rows = decode_tokens(table[tokens_column], rules)
        chosen, lengths = labelled & rows.usable, np.diff(rows.offsets)
        among_usable = labelled[rows.usable]
        groups = table[group_column].to_pylist() if group_column else [None] * table.num_rows
        yield _Part(
            values=rows.values[np.repeat(among_usable, lengths)],
            lengths=lengths[among_usable],
            labels=_plain(labels).filter(pa.array(chosen)),
            groups=list(compress(groups, chosen)),
            num_unlabelled=int(np.count_nonzero(~labelled)),
            num_unusable=int(np.count_nonzero(labelled & ~rows.usable)),
        )


def _check_label_type(field: pa.Field) -> None:
    kind = field.type.value_type if pt.is_dictionary(field.type) else field.type
    if not (pt.is_integer(kind) or pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)):
        raise FileError(f"column {field.name!r} (label) has type {field.type}; a label must be a string or an integer")


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array, integers as int64 and everything else as text."""
    if pt.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = column.cast(pa.int64() if pt.is_integer(column.type) else pa.large_string())
    return column.combine_chunks()


def _common_type(labels: list[pa.Array]) -> pa.DataType:
    kinds = {str(label.type): label.type for label in labels}
    if len(kinds) > 1:
        raise SourceError("The label column holds integers in some files and strings in others; use one of the two.")
    return next(iter(kinds.values()), pa.large_string())


def _encode(labels: pa.ChunkedArray) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    distinct = pc.unique(labels)
    ordered = distinct.take(pc.sort_indices(distinct))
    codes = pc.index_in(labels, value_set=ordered).to_numpy().astype(np.int64)
    return tuple(str(name) for name in ordered.to_pylist()), codes

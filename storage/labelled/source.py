"""Labelled sequences for training: which ones a training takes, and how they are read, with classes and sides.

Owns what is left out, and counts it. Knows nothing about the model. A `LabelledSource` is small, so that it travels to
tasks in place of the rows. Files are read one piece at a time. Tokens are gathered by side, in memory or in a mapped
file; everything else takes some 40 bytes a row.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from storage.errors import FileError, SourceError, first_line
from storage.footers import read_footer
from storage.input.columns import Columns, column_or_partition, has_column, require_column
from storage.input.hive import partition_values
from storage.input.partitions import DateRange
from storage.input.reading import read_shard
from storage.input.shards import Shard, ShardLimits, plan_shards, unreadable_in_words
from storage.input.sources import Source, SourceFile, find_source
from storage.input.tokens import TokenRules, decode_tokens, outside_vocabulary
from storage.labelled.classes import ReadLabels, check_label_type, number_classes, read_labels
from storage.labelled.rows import MEMORY_BYTES, SIDES, LabelledRows, TokenSpool, without_small_classes
from storage.labelled.split import SPLIT_NAMES, hash_keys, splits_of_hashes
from storage.labelled.vocabulary import Outside
from storage.locations import Location, without_credentials

DEFAULT_GROUP = "group"
"""The group column that a source need not have. One of another name was named, and must be somewhere."""

_ENOUGH_GROUPS = 50
"""With so many, one side of a tenth is left without any in one source of a hundred."""


@dataclass(frozen=True)
class LabelledSource:
    """Where labelled rows are, in which columns, and which count. See `read_labelled`.

    num_tokens_known: see `storage.input.tokens.TokenRules`.
    """

    source: str
    tokens_column: str = "tokens"
    label_column: str = "label"
    group_column: str = DEFAULT_GROUP
    also: tuple[str, ...] = ()
    dates: DateRange = field(default_factory=DateRange)
    min_class_rows: int = 1
    num_tokens_known: int = TokenRules.num_tokens_known

    @property
    def place(self) -> str:
        """The sources, for names and records."""
        return ", ".join(without_credentials(each) for each in (self.source, *self.also))

    def read(self) -> LabelledRows:
        """Raises SourceError unless every side of the split has rows, and the train side those of two classes."""
        rows = read_labelled(
            (self.source, *self.also),
            tokens_column=self.tokens_column,
            label_column=self.label_column,
            group_column=self.group_column,
            rules=TokenRules(self.num_tokens_known),
            dates=self.dates,
            min_class_rows=self.min_class_rows,
        )
        counts = num_rows_of_sides(rows)
        if missing := [name for name, count in counts.items() if not count]:
            sides = ", ".join(f"{name} {count}" for name, count in counts.items())
            kind = "distinct row" if rows.split_by == "content" else "group"
            number = len(np.unique(rows.groups))
            each = f"each of its {number} {kind}s" if number > 1 else f"its one {kind}"
            raise SourceError(
                f"The source {self.place} has too few labelled rows to split by {rows.split_by}: {sides}. "
                f"{' and '.join(missing).capitalize()} {'have' if len(missing) > 1 else 'has'} none: a hash takes "
                f"{each} to validation or test with a chance of a tenth each, so some {_ENOUGH_GROUPS} are needed. "
                "Give more of them."
            )
        return rows

    def record(self) -> dict[str, Any]:
        """For a checkpoint's card."""
        return {
            "source": without_credentials(self.source),
            "also": tuple(without_credentials(each) for each in self.also),
            "tokens_column": self.tokens_column,
            "label_column": self.label_column,
            "group_column": self.group_column,
            "partition": self.dates.partition,
            "window": self.dates.window,
        }


def num_rows_of_sides(rows: LabelledRows) -> dict[str, int]:
    """How many rows are on each side of the split, by its name."""
    return {name: int(np.count_nonzero(rows.splits == side)) for name, side in zip(SPLIT_NAMES, SIDES, strict=True)}


def read_labelled(
    source: str | Sequence[str],
    *,
    tokens_column: str = "tokens",
    label_column: str = "label",
    group_column: str = DEFAULT_GROUP,
    rules: TokenRules | None = None,
    dates: DateRange | None = None,
    min_class_rows: int = 0,
    memory_bytes: int = MEMORY_BYTES,
) -> LabelledRows:
    """Read every labelled row of `source`, one or several (see `storage.input.sources.find_source`); no file twice.

    Labels are strings, integers or bools; a Hive partition may hold them, and groups. Classes are in sorted order:
    integers by value, strings by code point. A row's side follows from its `group_column` if it has one, else from its
    tokens; what other files hold does not change it.
    dates: which files are read. min_class_rows: rows of a class with fewer than this on the train side are left out.
    memory_bytes: tokens kept in memory, for each side; more go to a temporary file.
    Raises SourceError if a file can't be read or has a label that can't be one, if no file has a `group_column` that
    is not called `group`, if most rows have token ids outside the vocabulary, or if fewer than two classes are left.
    """
    rules = rules or TokenRules()
    sources = [source] if isinstance(source, str) else list(source)
    reader = _Reader(tokens_column, label_column, group_column, rules, memory_bytes)
    found, since = _find(sources, dates or DateRange())
    for each in found:
        reader.read(each)
    return reader.finish(", ".join(str(each.root / each.scope) for each in found), since, min_class_rows)


def _find(sources: list[str], dates: DateRange) -> tuple[list[Source], str | None]:
    """The files of each source that are in the range and that no earlier source has, and the range's first date."""
    found = [find_source(each) for each in sources]
    first = dates.first_date(file.relative for each in found for file in each.files)
    seen: set[str] = set()
    chosen = []
    for each in found:
        files: list[SourceFile] = []
        for file in each.files:
            place = each.location(file)
            # A link may lead to a file that another source has.
            path = os.path.realpath(place.path) if place.is_local else str(place)
            if dates.includes(file.relative, first) and path not in seen:
                seen.add(path)
                files.append(file)
        chosen.append(replace(each, files=tuple(files)))
    if not seen:
        places = ", ".join(str(each.root / each.scope) for each in found)
        raise SourceError(f"The source {places} has no file from {first} on. Check the dates.")
    return chosen, first.isoformat() if first else None


class _Reader:
    """Takes in one source after the other."""

    def __init__(self, tokens: str, label: str, group: str, rules: TokenRules, memory_bytes: int) -> None:
        self._tokens_column, self._label_column, self._group_column = tokens, label, group
        self._rules = rules
        self._memory_bytes = memory_bytes
        self._dtype = np.min_scalar_type(rules.num_tokens_known - 1)
        self._spools = [self._spool() for _ in SIDES]
        self._parts: list[_Part] = []
        self._files: list[str] = []
        self._has_groups = False
        self._overlooked_group: str | None = None

    def _spool(self) -> TokenSpool:
        return TokenSpool(self._dtype, self._memory_bytes)

    def read(self, source: Source) -> None:
        """Raises SourceError if a file of the source can't be read."""
        plan = plan_shards(source, Columns(tokens=self._tokens_column), ShardLimits(rows=2**62, bytes=2**62))
        if plan.unreadable:
            raise SourceError(unreadable_in_words(source.root, plan.unreadable))
        for shard in plan.shards:
            try:
                self._parts += self._read_file(source.root, shard)
            except FileError as error:
                raise SourceError(f"{source.root / shard.file}: {error}.") from None
            self._files.append(str(source.root / shard.file))

    def _read_file(self, root: Location, shard: Shard) -> "Iterator[_Part]":
        schema, partitions = read_footer(root / shard.file).schema, partition_values(shard.file)
        names = [self._tokens_column]
        if self._label_column not in partitions:
            check_label_type(require_column(schema, self._label_column, "label_column"))
        # A column beside a partition of its name is read to be compared with it.
        for name, role in ((self._label_column, "label_column"), (self._group_column, "group_column")):
            if has_column(schema, name):
                names.append(require_column(schema, name, role).name)
        has_group = self._group_column in partitions or self._group_column in names
        if not has_group and self._group_column == DEFAULT_GROUP:
            near = [name for name in (*schema.names, *partitions) if name.casefold() == DEFAULT_GROUP]
            self._overlooked_group = self._overlooked_group or next(iter(near), None)
        self._has_groups |= has_group
        first_row = 0
        for table in read_shard(root, shard, list(dict.fromkeys(names))):
            yield self._take(table, root, shard, first_row, has_group=has_group)
            first_row += table.num_rows

    def _take(self, table: pa.Table, root: Location, shard: Shard, first_row: int, *, has_group: bool) -> "_Part":
        """Put the tokens of some rows of a file into the spools; what else is known of the rows is returned."""
        tokens = table[self._tokens_column]
        labels = column_or_partition(table, self._label_column, shard.file)
        # Masks of numpy rather than Arrow's `filter`, which pyarrow 26 does not have for views.
        labelled = labels.is_valid().to_numpy()
        rows = decode_tokens(tokens, self._rules)
        is_outside = labelled & outside_vocabulary(rows)
        chosen, among_usable = labelled & rows.usable, labelled[rows.usable]
        lengths = np.diff(rows.offsets)
        values = rows.values[np.repeat(among_usable, lengths)].astype(self._dtype, copy=False)
        lengths = lengths[among_usable]
        contents = hash_keys(_contents(values, lengths))
        keys, is_grouped = contents.copy(), np.zeros(len(contents), bool)
        if has_group:
            found = column_or_partition(table, self._group_column, shard.file)
            groups = list(compress(_texts(found, self._group_column, first_row), chosen))
            is_grouped = np.array([group is not None for group in groups], bool)
            keys[is_grouped] = hash_keys(group for group in groups if group is not None)
        splits = splits_of_hashes(keys)
        for side, spool in zip(SIDES, self._spools, strict=True):
            spool.append(values[np.repeat(splits == side, lengths)])
        is_typed = self._label_column not in partition_values(shard.file)
        read = read_labels(labels, chosen, name=self._label_column, first_row=first_row, is_typed=is_typed)
        return _Part(
            lengths=lengths,
            labels=replace(read, file=str(root / shard.file)),
            splits=splits,
            groups=keys.view(np.int64),
            contents=contents,
            positions=first_row + np.flatnonzero(chosen),
            file_number=len(self._files),
            num_grouped=int(np.count_nonzero(is_grouped)),
            num_unlabelled=int(np.count_nonzero(~labelled)),
            num_unusable=int(np.count_nonzero(labelled & ~rows.usable)),
            outside=Outside.of(tokens, is_outside),
        )

    def finish(self, where: str, since: str | None, min_class_rows: int) -> LabelledRows:
        parts = self._parts
        if self._group_column != DEFAULT_GROUP and not self._has_groups:
            raise SourceError(
                f"No file of the source {where} has a column or partition {self._group_column!r} (group_column), so "
                "rows of one group would get on both sides of the split. Check the name, or leave it out to split by "
                "content."
            )
        lengths = np.concatenate([part.lengths for part in parts])
        outside = Outside.sum(part.outside for part in parts)
        num_unusable = sum(part.num_unusable for part in parts)
        classes, codes, label_type = number_classes([part.labels for part in parts])
        num_labelled = len(lengths) + num_unusable
        if outside is not None and (outside.num_rows * 2 > num_labelled or len(classes) < 2):
            outside.refuse(num_labelled, self._rules.num_tokens_known, where)
        num_grouped = sum(part.num_grouped for part in parts)
        rows = LabelledRows(
            values=tuple(spool.array() for spool in self._spools),
            lengths=lengths,
            labels=codes,
            classes=classes,
            label_type=label_type,
            splits=np.concatenate([part.splits for part in parts]),
            groups=np.concatenate([part.groups for part in parts]),
            contents=np.concatenate([part.contents for part in parts]),
            file_numbers=np.concatenate([np.full(len(part.lengths), part.file_number, np.int32) for part in parts]),
            positions=np.concatenate([part.positions for part in parts]),
            files=tuple(self._files),
            split_by=_split_by(num_grouped, len(lengths)),
            since=since,
            num_unlabelled=sum(part.num_unlabelled for part in parts),
            num_unusable=num_unusable,
            outside=outside,
            left_out={},
            overlooked_group=self._overlooked_group,
        )
        rows = without_small_classes(rows, min_class_rows, self._memory_bytes)
        if len(rows.classes) < 2:
            only = f"only {rows.classes[0]!r}" if rows.classes else "no label at all"
            small = f" ({', '.join(rows.left_out)}: too few rows to train on)" if rows.left_out else ""
            raise SourceError(
                f"The source {where} has {only} in column {self._label_column!r}{small}; "
                "training needs two classes or more."
            )
        return rows


@dataclass(frozen=True)
class _Part:
    """What is kept of some rows of a file beside their tokens."""

    lengths: npt.NDArray[np.int64]
    labels: ReadLabels
    splits: npt.NDArray[np.int8]
    groups: npt.NDArray[np.int64]
    contents: npt.NDArray[np.uint64]
    positions: npt.NDArray[np.int64]
    file_number: int
    num_grouped: int
    num_unlabelled: int
    num_unusable: int
    outside: Outside | None


def _contents(values: npt.NDArray[np.integer], lengths: npt.NDArray[np.int64]) -> Iterator[bytes]:
    """The tokens of each row as bytes: one a token where all of the row fit, whatever the vocabulary.

    So a row has the same content, and with it the same side, in every vocabulary.
    """
    ends = np.cumsum(lengths)
    content, narrow = values.tobytes(), values.astype(np.uint8).tobytes()
    size = values.itemsize
    is_narrow = np.ones(len(lengths), bool)
    if size > 1 and len(lengths):
        is_narrow = np.maximum.reduceat(values, ends - lengths) < 256
    for start, end, fits in zip((ends - lengths).tolist(), ends.tolist(), is_narrow.tolist(), strict=True):
        yield narrow[start:end] if fits else content[start * size : end * size]


def _texts(groups: pa.ChunkedArray, name: str, first_row: int) -> list[bytes | None]:
    """What a group is known by, None for a null: the text of its value, which strings of any bytes have.

    One group is spelled alike whatever type a file has for it: bytes as text; 7.0, as pandas has integers beside nulls,
    as 7; and midnight, as pandas has dates, as the day.
    """
    kind = groups.type.value_type if pt.is_dictionary(groups.type) else groups.type
    if _is_bytes(kind):
        texts: list[bytes | None] = groups.cast(kind).cast(pa.large_binary()).to_pylist()
        return texts
    texts = []
    for group in groups:
        try:
            value = group.as_py()
        except (ValueError, OverflowError) as error:
            raise FileError(
                f"column {name!r} (group_column) has a value of type {kind} in row {first_row + len(texts)} that can't "
                f"be read ({first_line(error)}); a group is best a string or an integer"
            ) from None
        texts.append(None if value is None else _spelled(value).encode())
    return texts


def _is_bytes(kind: pa.DataType) -> bool:
    texts = (pt.is_string, pt.is_large_string, pt.is_string_view)
    return any(check(kind) for check in (*texts, pt.is_binary, pt.is_large_binary, pt.is_binary_view))


def _spelled(group: Any) -> str:
    if isinstance(group, float | Decimal) and group == group // 1:  # not so for NaN
        return str(int(group))
    return str(group).removesuffix(" 00:00:00") if isinstance(group, datetime) else str(group)


def _split_by(num_grouped: int, num_rows: int) -> str:
    if not num_grouped:
        return "content"
    return "group" if num_grouped == num_rows else "group and content"

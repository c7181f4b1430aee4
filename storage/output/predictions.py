"""Writing a shard's predictions and attention: schemas, row order, and the commit.

Rows go in as they were read, with the scores of the usable ones; out come exactly as many rows, in the same
order. Knows nothing about how scores are made.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from storage.described.columns import Part, with_comments
from storage.errors import FileError
from storage.input.columns import ROW, Columns
from storage.input.hive import partition_values
from storage.input.shards import Shard
from storage.input.tokens import TokenRows, any_too_long
from storage.labelled.classes import LabelType, class_values
from storage.locks import Hold
from storage.output.carried import fit
from storage.output.layout import CLASSES_KEY, PREDICTION, STAMP_KEY, THRESHOLDS_KEY, AttentionSaving, Output, Stamp
from storage.registry.checkpoints import CheckpointId

# Predictions are narrow; this many rows make a row group of a few megabytes.
_PREDICTION_GROUP_ROWS = 131_072
# Level 1 is as small as level 3 on split floats, and a quarter faster. Checksums let readers and `verify` tell a
# flipped bit from a value.
_COMPRESSION = {"compression": "zstd", "compression_level": 1, "write_page_checksum": True}
# Values that Parquet's encoder takes at once; its default of 1,024 costs a tenth more on lists of floats.
_ENCODED_AT_ONCE = 1 << 16
# Our float columns and where Parquet keeps their values.
_PREDICTION_FLOATS = {"score": "score", "probabilities": "probabilities.list.element"}
_ATTENTION_FLOATS = {"weights": "weights.list.element"}
# A float32 in 0 .. 1 as an integer fits in so many bits, in the order of the numbers. What is not a number counts as
# the largest.
_WEIGHT_BITS = 30
_HIGHEST_BITS = np.uint64((1 << _WEIGHT_BITS) - 1)


@contextmanager
def write_shard(
    output: Output,
    shard: Shard,
    checkpoint: CheckpointId,
    classes: tuple[str, ...],
    label_type: LabelType = "string",
    thresholds: npt.NDArray[np.float32] | None = None,
) -> Iterator["ShardWriter"]:
    """Yields a writer; when the block ends well, the shard's files appear, attention first.

    checkpoint: what scores the rows. classes: its own, in the order of their probabilities. label_type: of predictions,
    unless the output has another one. thresholds: (C,), the score below which a prediction of each class is withheld;
    None: all predictions are given.
    If the block raises, or not every row was written, nothing appears. Raises OutputError if the run has lost its hold
    on the output.
    """
    hold = output.hold or Hold(output.root)
    hold.check()  # before the work, and again after it
    stamp = Stamp.of(shard, checkpoint, output.settings)
    with ExitStack() as stack:
        # Left in reverse: the predictions, entered first, are put in place last. That rename is the commit.
        predictions = stack.enter_context(output.predictions(shard.name).replacing())
        attention = None
        if output.settings.attention.kind != "none":
            attention = stack.enter_context(output.attention(shard.name).replacing())
        writer = ShardWriter(output, classes, label_type, stamp, predictions, attention, thresholds)
        try:
            yield writer
            writer.finish()
            hold.check()
        finally:
            writer.close()


class ShardWriter:
    """Takes a shard's rows chunk by chunk. Made by `write_shard`."""

    def __init__(
        self,
        output: Output,
        classes: tuple[str, ...],
        label_type: LabelType,
        stamp: Stamp,
        predictions: Path,
        attention: Path | None,
        thresholds: npt.NDArray[np.float32] | None = None,
    ) -> None:
        columns = output.settings.columns
        in_path = partition_values(stamp.file)
        self._columns = replace(columns, keep=tuple(name for name in columns.keep if name not in in_path))
        self._types = output.types
        self._saving = output.settings.attention
        self._has_rows = output.settings.has_rows
        self._classes, self._thresholds = classes, thresholds
        self._metadata = {CLASSES_KEY: json.dumps(classes)}
        if thresholds is not None:
            self._metadata[THRESHOLDS_KEY] = json.dumps(thresholds.tolist())
        named = class_values(classes, label_type)
        self._named = named.cast(self._types.get(PREDICTION, named.type))
        self._stamp = stamp
        self._predictions = _ParquetFile(predictions, _PREDICTION_FLOATS, self._has_rows)
        self._attention = _ParquetFile(attention, _ATTENTION_FLOATS, self._has_rows) if attention else None
        self._held: list[pa.Table] = []
        self._num_rows = self._num_errors = self._num_tokens = self._num_abstained = 0
        self._refusing = output.settings.max_tokens if output.settings.can_lengthen else None
        self._refused_above: int | None = None

    def write(
        self,
        table: pa.Table,
        rows: TokenRows,
        probabilities: npt.NDArray[np.float32],
        attention_weights: npt.NDArray[np.float32],
    ) -> None:
        """Add N rows as read, of which M are usable.

        probabilities: (M, num_classes). attention_weights: (rows.offsets[-1],), aligned with rows.values.
        """
        assert len(rows.usable) == table.num_rows, "the rows that were decoded are those of the table"
        assert probabilities.shape == (len(rows.offsets) - 1, len(self._classes)), probabilities.shape
        assert attention_weights.shape == rows.values.shape, attention_weights.shape
        table, ids = self._fitting(table)
        known = {"id": ids}
        if self._has_rows:
            first = self._stamp.first_row + self._num_rows
            known = {ROW: pa.array(np.arange(first, first + table.num_rows))} | known
        version = self._stamp.checkpoint
        made = _prediction_table(
            table, known, rows, probabilities, self._columns, version, self._named, self._thresholds
        )
        self._num_abstained += made["prediction"].null_count - int(np.count_nonzero(~rows.usable))
        made = made.replace_schema_metadata(self._metadata)
        self._held.append(self._commented("predictions", made))
        if sum(held.num_rows for held in self._held) >= _PREDICTION_GROUP_ROWS:
            self._write_held()
        if self._attention:
            attention = _attention_table(known, rows, attention_weights, self._saving)
            self._attention.write(self._commented("attention", attention))
        self._num_rows += table.num_rows
        self._num_errors += int(np.count_nonzero(~rows.usable))
        self._num_tokens += len(rows.values)
        if self._refusing and any_too_long(rows):
            self._refused_above = self._refusing

    def finish(self) -> None:
        """Complete both files. Raises FileError unless every row of the shard was written."""
        if self._num_rows != self._stamp.num_rows:
            raise FileError(f"{self._num_rows:,} of its {self._stamp.num_rows:,} rows were scored")
        self._write_held()
        counts = {"num_errors": self._num_errors, "num_tokens": self._num_tokens}
        if self._thresholds is not None:
            counts["num_abstained"] = self._num_abstained
        if self._refused_above:
            counts["refused_above"] = self._refused_above
        self._predictions.finish({STAMP_KEY: self._stamp.to_json(**counts)}, self._num_rows)
        if self._attention:
            self._attention.finish({STAMP_KEY: self._stamp.to_json()}, self._num_rows)

    def close(self) -> None:
        self._predictions.close()
        if self._attention:
            self._attention.close()

    def _commented(self, part: Part, table: pa.Table) -> pa.Table:
        if not self._has_rows:
            return table
        return pa.Table.from_arrays(table.columns, schema=with_comments(part, table.schema))

    def _write_held(self) -> None:
        if self._held:
            self._predictions.write(pa.concat_tables(self._held))
            self._held = []

    def _fitting(self, table: pa.Table) -> tuple[pa.Table, pa.ChunkedArray]:
        """The table with its kept columns, and the ids, as the types that they have in this output."""
        first = self._stamp.first_row + self._num_rows
        for place, name in enumerate(table.column_names):
            if name in self._columns.keep and name in self._types:
                table = table.set_column(place, name, fit(name, table[name], self._types[name], first))
        note = ""
        if self._columns.id in table.column_names:
            ids = table[self._columns.id]
        else:
            ids = pa.chunked_array([pa.array(np.arange(first, first + table.num_rows))])
            note = " (row numbers, since the file has no such column)"
        return table, fit("id", ids, self._types["id"], first, note) if "id" in self._types else ids


class _ParquetFile:
    """A Parquet file whose schema is that of its first table, checked before it counts."""

    def __init__(self, path: Path, floats: dict[str, str], has_rows: bool) -> None:
        self._path = path
        self._floats, self._has_rows = floats, has_rows
        self._writer: pq.ParquetWriter | None = None
        self._sink = pa.OSFile(str(path), "wb")

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            encoding = _encoding(table.schema, self._floats, self._has_rows)
            self._writer = pq.ParquetWriter(self._sink, table.schema, **encoding, **_COMPRESSION)
        # One row group: chunk sizes are already what a row group should be.
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def finish(self, key_values: dict[str, str], num_rows: int) -> None:
        assert self._writer is not None, "a shard without rows is written as one empty table"
        self._writer.add_key_value_metadata(key_values)
        self._writer.close()
        self._sink.close()
        # A file that closed is not yet one that was written whole.
        written = pq.read_metadata(self._path).num_rows
        if written != num_rows:
            raise FileError(f"{self._path} holds {written:,} rows after writing {num_rows:,}")

    def close(self) -> None:
        """Let go of the file, finished or not: an open one holds its space on a full disk after it is removed."""
        if self._writer is not None and self._writer.is_open:
            with suppress(OSError):
                self._writer.close()
            self._writer.is_open = False  # or it would try again when it is collected
        self._sink.close()


def _prediction_table(
    table: pa.Table,
    known: dict[str, pa.Array | pa.ChunkedArray],
    rows: TokenRows,
    probabilities: npt.NDArray[np.float32],
    columns: Columns,
    version: str,
    classes: pa.Array,
    thresholds: npt.NDArray[np.float32] | None,
) -> pa.Table:
    num_rows, num_classes = table.num_rows, len(classes)
    # usable row -> its place among the scores; None elsewhere, which `take` turns into a null
    place = pa.array(np.cumsum(rows.usable) - 1, mask=~rows.usable)
    winners = probabilities.argmax(axis=1) if len(probabilities) else np.zeros(0, np.int64)
    best = probabilities[np.arange(len(winners)), winners]
    is_low = None if thresholds is None else best < thresholds[winners]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel(), pa.float32()), num_classes)
    named = dict(known)
    for name in columns.keep:
        if name in table.column_names:
            named[name] = table[name]
    named |= {
        PREDICTION: classes.take(pa.array(winners, mask=is_low)).take(place),
        "score": pa.array(best, pa.float32()).take(place),
        "probabilities": vectors.take(place),
        "num_tokens": pa.array(rows.num_tokens, mask=rows.num_tokens < 0),
        "truncated": pa.array(rows.truncated),
        "error": rows.errors,
        "checkpoint": pa.repeat(version, num_rows),
    }
    return pa.table(named)


def _attention_table(
    known: dict[str, pa.Array | pa.ChunkedArray],
    rows: TokenRows,
    weights: npt.NDArray[np.float32],
    saving: AttentionSaving,
) -> pa.Table:
    if saving.kind == "full":
        lists = {"weights": _lists(pa.array(weights, pa.float32()), rows.offsets, rows.usable)}
    else:
        positions, kept, offsets = top_weights(weights, rows.offsets, saving.top)
        lists = {
            "positions": _lists(pa.array(positions, pa.int32()), offsets, rows.usable),
            "weights": _lists(pa.array(kept, pa.float32()), offsets, rows.usable),
        }
    return pa.table(known | lists)


def top_weights(
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


def _lists(values: pa.Array, offsets: npt.NDArray[np.int64], usable: npt.NDArray[np.bool_]) -> pa.ListArray:
    """Lists for all N rows from the offsets of the usable ones; the others are null."""
    of_all = offsets[np.concatenate(([0], np.cumsum(usable)))].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(of_all), values, mask=pa.array(~usable))


def _encoding(schema: pa.Schema, floats: dict[str, str], has_rows: bool) -> dict[str, object]:
    """Dictionaries for words that repeat; byte-stream-split for floats, whose bytes compress apart; steps for `row`."""
    by_column = {path: "BYTE_STREAM_SPLIT" for path in floats.values() if path.partition(".")[0] in schema.names}
    plain = {"id", "num_tokens", "truncated", *floats, "positions"}
    if has_rows:  # or a kept column may have the name
        by_column[ROW] = "DELTA_BINARY_PACKED"
        plain.add(ROW)
    return {
        "use_dictionary": [name for name in schema.names if name not in plain],
        "column_encoding": by_column,
        # The least and largest of a row group's weights let nobody skip it, and cost a tenth of the writing.
        "write_statistics": [name for name in (ROW, "id") if name in schema.names]
        if "weights" in schema.names
        else True,
        "write_batch_size": _ENCODED_AT_ONCE,
    }

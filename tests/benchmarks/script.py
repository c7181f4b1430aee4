"""What every peer's script has in common: reading a Parquet dataset, and writing what was found beside it.

A peer is a module with `open_peer(Task, **options)`, which loads the model and returns what scores ragged rows, and
with `CANDIDATES`, the options worth trying. It is written as its own users would write it at their best. Knows nothing
about models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from attnlstm.batching import pad
from attnlstm.checkpoint import from_files
from attnlstm.network import AttentionLSTM

Values = npt.NDArray[np.integer]
Offsets = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Score = Callable[[Values, Offsets], tuple[Floats, Floats]]
"""values, offsets: ragged rows. Returns probabilities (N, C) and attention weights, one for each value."""


@dataclass(frozen=True)
class Task:
    """What all contenders are given alike. attention: whether attention weights are to be written."""

    checkpoint: Path
    threads: int = 1
    attention: bool = True


def load_network(checkpoint: Path) -> AttentionLSTM:
    return from_files({file.name: file.read_bytes() for file in checkpoint.iterdir()}, str(checkpoint))


def score_dataset(score: Score, source: Path, output: Path, attention: bool) -> None:
    """Read everything, score it, write predictions and attention: the script around a model that scores arrays."""
    table = ds.dataset(source).to_table(columns=["id", "tokens"]).combine_chunks()
    values, offsets = tokens_of(table["tokens"].chunk(0))
    probabilities, weights = score(values, offsets)
    write(output / "predictions.parquet", id=table["id"], probabilities=vectors(probabilities))
    if attention:
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(weights))
        write(output / "attention.parquet", id=table["id"], weights=lists)


def tokens_of(column: pa.BinaryArray) -> tuple[npt.NDArray[np.uint8], Offsets]:
    """A column without nulls as values and offsets, without a copy of the values."""
    _, offsets_buffer, data = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]], (offsets - offsets[0]).astype(np.int64)


def vectors(probabilities: Floats) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), probabilities.shape[1])


def write(path: Path, **columns: pa.Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without dictionaries, which floats only fill, snappy is the fastest that pyarrow writes by its defaults.
    pq.write_table(pa.table(columns), path, use_dictionary=False)


def sorted_batches(offsets: Offsets, batch_rows: int) -> list[Rows]:
    """Rows of like length together, longest first, so that threads which share them end together."""
    return _slices(np.argsort(-np.diff(offsets), kind="stable"), batch_rows)


def batches_in_file_order(offsets: Offsets, batch_rows: int) -> list[Rows]:
    return _slices(np.arange(len(offsets) - 1), batch_rows)


def _slices(order: Rows, batch_rows: int) -> list[Rows]:
    return [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]


class Batches:
    """Results of padded batches, put where the rows were: `pad` and its reverse around a forward pass."""

    def __init__(self, values: Values, offsets: Offsets, num_classes: int, padding_id: int) -> None:
        self._values, self._offsets, self._padding_id = values, offsets, padding_id
        self.probabilities = np.empty((len(offsets) - 1, num_classes), np.float32)
        self.weights = np.empty(len(values), np.float32)

    def padded(self, rows: Rows) -> tuple[npt.NDArray[np.int32], Rows]:
        """token_ids (B, T) and lengths (B,)."""
        return pad(self._values, self._offsets, rows, self._padding_id)

    def keep(self, rows: Rows, probabilities: Floats, weights: Floats) -> None:
        self.probabilities[rows] = probabilities
        lengths, steps = np.diff(self._offsets)[rows], np.arange(weights.shape[1])
        is_token = steps < lengths[:, None]
        self.weights[(self._offsets[rows, None] + steps)[is_token]] = weights[is_token]

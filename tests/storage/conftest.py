"""Fixtures for data at rest: a dataset to fill with Parquet, and the whole path with a scorer that needs no model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.input.columns import Columns
from storage.input.reading import decode_rows, read_shard
from storage.input.shards import Shard
from storage.input.tokens import TokenRows, TokenRules
from storage.labelled.classes import LabelType, class_values
from storage.locations import Location
from storage.output.layout import AttentionSaving, Output, OutputSettings
from storage.output.plan import plan_output
from storage.output.predictions import write_shard
from storage.registry.checkpoints import CheckpointId

CLASSES = ("even", "odd", "third")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def put(data: Path) -> Callable[..., Path]:
    """put(relative, tokens=[...], **columns): writes a Parquet file into the dataset; `row_group_size` is passed on."""

    def put(
        relative: str, tokens: object = (b"ab", b"c"), *, row_group_size: int | None = None, **columns: object
    ) -> Path:
        path = data / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        held = tokens if isinstance(tokens, pa.Array | pa.ChunkedArray) else pa.array(tokens, pa.binary())
        pq.write_table(pa.table({"tokens": held, **columns}), path, row_group_size=row_group_size)
        return path

    return put


def fake_scores(rows: TokenRows, num_classes: int = 3) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Probabilities and attention that follow from each row's own tokens, so that a row out of place shows."""
    lengths = np.diff(rows.offsets)
    sums = np.zeros(len(lengths), np.int64)
    np.add.at(sums, np.repeat(np.arange(len(lengths)), lengths), rows.values.astype(np.int64))
    parts = np.stack([np.ones(len(lengths)), sums % 7, sums % 5, sums % 3][:num_classes], axis=1)
    attention = (rows.values.astype(np.float64) + 1) / np.repeat(sums + lengths, lengths)
    return (parts / parts.sum(axis=1, keepdims=True)).astype(np.float32), attention.astype(np.float32)


@pytest.fixture
def checkpoint() -> CheckpointId:
    return CheckpointId("v1", "d" * 32)


@pytest.fixture
def score(checkpoint: CheckpointId) -> Callable[..., tuple[Shard, ...]]:
    """score(source, output): reads, scores with `fake_scores` and writes all of a source, in small chunks."""

    def score(
        source: Path | str,
        output: Output,
        *,
        by: CheckpointId = checkpoint,
        classes: tuple[str, ...] = CLASSES,
        label_type: LabelType = "string",
        chunk_rows: int = 65_536,
        damaged: bool = False,
        thresholds: npt.NDArray[np.float32] | None = None,
        num_tokens_known: int = 256,
    ) -> tuple[Shard, ...]:
        planned = plan_output(str(source), output)
        assert damaged or not planned.unreadable
        columns: Columns = output.settings.columns
        rules = TokenRules(num_tokens_known, output.settings.max_tokens, output.settings.long_rows)
        output = output.prepare(str(planned.source.root), planned.types, class_values(classes, label_type))
        for shard in planned.shards:
            with write_shard(output, shard, by, classes, label_type, thresholds) as writer:
                for table in read_shard(planned.source.root, shard, columns, chunk_rows=chunk_rows):
                    table, rows = decode_rows(table, columns, rules)
                    writer.write(table, rows, *fake_scores(rows, len(classes)))
        return planned.shards

    return score


@pytest.fixture
def made(data: Path, tmp_path: Path, score: Callable[..., object]) -> Callable[..., Output]:
    """made(saving, **settings): the output of all that lies in the dataset. scoring: options of `score`."""

    def make(saving: str = "full", *, name: str = "out", scoring: dict[str, Any] | None = None, **settings: Any):
        saved = OutputSettings(attention=AttentionSaving.parse(saving), **settings)
        output = Output(Location.parse(tmp_path / name), saved)
        score(data, output, **scoring or {})
        return output

    return make

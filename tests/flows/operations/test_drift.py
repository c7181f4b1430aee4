"""Drift of a run's input from what its checkpoint was measured on: what is compared, and when there is nothing to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attnlstm.evaluation import drift
from flows.operations.score import measure_drift


def make_shard(reference: dict[str, Any], token: int, num_rows: int = 60) -> drift.Observed:
    """Counts over rows of one token, alike in all else."""
    observed = drift.Observed(reference)
    confidence = np.full(num_rows, 0.9, np.float32)
    observed.add(np.full(num_rows, token, np.uint8), np.arange(num_rows + 1), np.zeros(num_rows, np.int64), confidence)
    return observed


@pytest.fixture
def reference() -> dict[str, Any]:
    """Of a checkpoint that was measured on rows of one token, 70 and 80 in turn."""
    probabilities = np.full((400, 2), [0.9, 0.1], np.float32)
    values = np.tile(np.array([70, 80], np.uint8), 200)
    return dict(json.loads(json.dumps(drift.reference(values, np.arange(401), probabilities))))


def test_shards_are_compared_as_one(reference: dict[str, Any]) -> None:
    together = make_shard(reference, 70)
    together.merge(make_shard(reference, 80))
    calm, drifted = measure_drift(reference, together), measure_drift(reference, make_shard(reference, 90))

    assert calm is not None
    assert (calm["num_rows"], calm["drifted"]) == (120, [])
    assert drifted is not None
    assert drifted["drifted"] == ["tokens"]


def test_without_a_reference_or_scored_rows_there_is_nothing_to_compare(reference: dict[str, Any]) -> None:
    assert measure_drift(None, None) is None
    assert measure_drift(reference, None) is None
    assert measure_drift(reference, make_shard(reference, 70, num_rows=0)) is None


def test_run_over_rows_like_those_of_training_finds_no_drift(scored: Any) -> None:
    record = scored.manifest.drift

    assert record["num_rows"] == 412
    assert record["drifted"] == []
    assert record["estimated_accuracy"] == pytest.approx(scored.manifest.evaluation["accuracy"], abs=0.1)


def test_run_over_other_bytes_and_lengths_finds_drift(
    dataset_copy: Path, rescore: Callable[..., Any], tmp_path: Path
) -> None:
    for path in dataset_copy.rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        others = pa.array([b"\x07\x08" * 150] * len(table), pa.binary())
        pq.write_table(table.set_column(table.column_names.index("tokens"), "tokens", others), path)

    run = rescore(tmp_path / "output", dataset_copy)

    assert {"tokens", "lengths"} <= set(run.manifest.drift["drifted"])


def test_checkpoint_without_a_reference_has_nothing_to_compare(
    untrained: dict[str, Path], rescore: Callable[..., Any], tmp_path: Path
) -> None:
    run = rescore(tmp_path / "output", checkpoint=str(untrained["additive"]))

    assert run.state.is_completed()
    assert run.manifest.drift is None

"""What the shards of a run gave, added up: memory follows the number of classes, not that of shards times classes."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from flows.operations.runs import ScoringOutcome
from flows.operations.score import ScoredShard, _Tally
from storage.input.shards import Shard
from storage.input.tokens import TokenRules, decode_tokens
from storage.output.manifests import CLASSES_OF_SHARD, FailureRecord

NUM_CLASSES, NUM_ROWS = 2000, 3000
CLASSES = tuple(f"class {place}" for place in range(NUM_CLASSES))


def scored_shard(seed: int) -> tuple[ScoredShard, list[str], list[str]]:
    """A shard as it is counted, with the labels and the predictions of its rows."""
    random = np.random.default_rng(seed)
    labels, winners = random.integers(0, NUM_CLASSES, NUM_ROWS), random.integers(0, 700, NUM_ROWS) ** 2 % NUM_CLASSES
    winners = np.where(random.random(NUM_ROWS) < 0.5, labels, winners)
    tally = _Tally(CLASSES, None)
    rows = decode_tokens(pa.chunked_array([pa.array([b"a"] * NUM_ROWS)]), TokenRules())
    names = [CLASSES[label] for label in labels]
    tally.add(rows, np.eye(NUM_CLASSES, dtype=np.float32)[winners], pa.chunked_array([names]))
    shard = Shard("a.parquet", f"{seed}.parquet", "f", 0, 1, 0, NUM_ROWS, NUM_ROWS)
    return tally.scored(shard, "missing", "torch", 0.1), names, [CLASSES[winner] for winner in winners]


def test_shards_are_added_up_as_they_come() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    outcome, labels, predicted = ScoringOutcome(2), [], []
    for seed in range(3):
        scored, more_labels, more_predicted = scored_shard(seed)
        outcome.add([scored, FailureRecord(f"{seed}", "damaged")])
        labels += more_labels
        predicted += more_predicted
    assert len(outcome.records) == len(outcome.failures) == 3
    assert outcome.num_rows_and_errors() == (3 * NUM_ROWS, 0)
    assert outcome.engine == "torch"
    evaluation = outcome.evaluation()
    assert evaluation is not None
    assert evaluation["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    f1 = metrics.f1_score(labels, predicted, labels=sorted(set(labels)), average="macro", zero_division=0)
    assert evaluation["macro_f1"] == pytest.approx(f1)
    assert sum(outcome.predictions.values()) == 3 * NUM_ROWS
    assert all(len(record.predictions) == CLASSES_OF_SHARD for record in outcome.records)
    least = min(outcome.records[0].predictions.values())
    first = np.unique(predicted[:NUM_ROWS], return_counts=True)[1]
    assert least >= np.sort(first)[-CLASSES_OF_SHARD]


@pytest.mark.parametrize(
    ("labels", "accuracy"), [(["a", "b", None, "c", "C"], 0.5), (["01", "1.0", None, "C", "D"], None)]
)
def test_labels_that_the_checkpoint_does_not_know_are_counted_and_said(
    labels: list[str | None], accuracy: float | None
) -> None:
    tally, outcome = _Tally(("a", "b", "c"), None), ScoringOutcome(1)
    rows = decode_tokens(pa.chunked_array([pa.array([b"x", b"x", b"x", None, b"x"])]), TokenRules())
    tally.add(rows, np.eye(3, dtype=np.float32)[[0, 0, 0, 0]], pa.chunked_array([labels]))
    outcome.add([tally.scored(Shard("a.parquet", "a.parquet", "f", 0, 1, 0, 5, 5), "missing", "torch", 0.1)])
    assert (outcome.evaluation() or {}).get("accuracy") == accuracy
    number = 1 if accuracy else 3
    assert outcome.notes() == (
        f"rows with a label that the checkpoint does not know, which no figure counts: {number}",
    )


def test_memory_does_not_grow_with_shards_times_classes() -> None:
    outcome = ScoringOutcome(2)
    tracemalloc.start()
    for _ in range(20):
        outcome.add([scored_shard(0)[0]])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 20 * 40_000, f"{kept / 20:,.0f} bytes a shard"  # a matrix of counts has 32,000,000

"""Drift as a run tells of it: what is compared, in which words, and what Prefect gets to see."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

from attnlstm.evaluation import drift
from flows.orchestration.drift import compare_shards, describe_drift, describe_estimate, publish_drift
from storage.output.manifests import RunManifest

# An event goes its way in the background.
_PATIENCE_S = 20


def make_shard(card: dict[str, Any], token: int, num_rows: int = 60) -> drift.Observed:
    """Counts over rows of one token, alike in all else."""
    observed = drift.Observed(card["drift"])
    confidence = np.full(num_rows, 0.9, np.float32)
    observed.add(np.full(num_rows, token, np.uint8), np.arange(num_rows + 1), np.zeros(num_rows, np.int64), confidence)
    return observed


@pytest.fixture
def card() -> dict[str, Any]:
    """Of a checkpoint that was measured on rows of one token, 70 and 80 in turn."""
    probabilities = np.full((400, 2), [0.9, 0.1], np.float32)
    values = np.tile(np.array([70, 80], np.uint8), 200)
    return {"drift": json.loads(json.dumps(drift.reference(values, np.arange(401), probabilities)))}


@pytest.fixture
def drifted(card: dict[str, Any]) -> dict[str, Any]:
    record = compare_shards(card, [make_shard(card, 90)])
    assert record is not None
    return record


def test_shards_are_compared_as_one_and_failed_ones_left_out(card: dict[str, Any], drifted: dict[str, Any]) -> None:
    record = compare_shards(card, [make_shard(card, 70), None, make_shard(card, 80)])

    assert record is not None
    assert record["num_rows"] == 120
    assert record["drifted"] == []
    assert drifted["drifted"] == ["tokens"]


def test_without_a_reference_or_scored_rows_there_is_nothing_to_compare(card: dict[str, Any]) -> None:
    assert compare_shards({}, [None]) is None
    assert compare_shards(card, []) is None
    assert compare_shards(card, [make_shard(card, 70, num_rows=0)]) is None


def test_verdict_and_estimate_are_said_in_words(card: dict[str, Any], drifted: dict[str, Any]) -> None:
    calm = compare_shards(card, [make_shard(card, 70), make_shard(card, 80)])
    assert calm is not None

    assert describe_drift(calm) == "none: the rows are like those that the checkpoint was measured on"
    assert (
        describe_estimate(calm) == "0.9000 by mean confidence, without labels, if the checkpoint is calibrated for it"
    )
    assert describe_drift(drifted).startswith("which tokens there are (index ")
    assert describe_drift(drifted).endswith("): not as in the rows that the checkpoint was measured on")
    assert describe_estimate(drifted).endswith("without labels, doubtful, since the input has drifted")


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


def test_prefect_shows_the_comparison_and_gets_an_event_of_drift_alone(
    prefect_server: str, card: dict[str, Any], drifted: dict[str, Any], plain_manifest: RunManifest
) -> None:
    calm = compare_shards(card, [make_shard(card, 70), make_shard(card, 80)])
    runs = [
        replace(plain_manifest, checkpoint=f"version-{uuid.uuid4()}", drift=record) for record in (calm, None, drifted)
    ]

    @flow
    def publish_all() -> None:
        for run in runs:
            publish_drift(run)

    state: Any = publish_all(return_state=True)
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            flow_run_filter=FlowRunFilter(id={"any_": [state.state_details.flow_run_id]}),  # type: ignore[arg-type]
        )
    tables = [json.loads(str(artifact.data)) for artifact in artifacts]
    assert {artifact.key for artifact in artifacts} == {"classify-drift"}
    assert len(tables) == 2
    verdicts = [[row["drifted"] for row in table] for table in tables]
    assert sorted(verdicts) == [["no", "no", "no", "no"], ["yes", "no", "no", "no"]]

    events = _events_about([run.checkpoint for run in runs])
    assert [event.resource["prefect.resource.name"] for event in events] == [runs[2].checkpoint]
    assert events[0].payload["drifted"] == ["tokens"]
    assert events[0].payload["source"] == "/data"


def _events_about(checkpoints: list[str]) -> list[Any]:
    """What the server knows, once it knows anything."""
    wanted = EventFilter(
        event=EventNameFilter(name=["attnlstm.evaluation.drift.detected"]),
        resource=EventResourceFilter(id=[f"attnlstm.checkpoint.{checkpoint}" for checkpoint in checkpoints]),
    )
    deadline = time.monotonic() + _PATIENCE_S
    with get_client(sync_client=True) as client:
        while not (events := client.read_events(wanted, limit=10).events) and time.monotonic() < deadline:
            time.sleep(0.2)
    return list(events)

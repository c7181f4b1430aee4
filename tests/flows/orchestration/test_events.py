"""The events that runs emit, as a server has them: names, resources, what they are related to, and payloads."""

import time
import uuid
from dataclasses import replace
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.events.filters import EventFilter, EventNameFilter, EventRelatedFilter

from flows.orchestration.events import emit_promotion, emit_run_ended
from storage.output.manifests import FailureRecord, RunManifest, ShardRecord

# An event goes its way in the background.
_PATIENCE_S = 30


@pytest.fixture(scope="module")
def manifest(plain_manifest: RunManifest) -> RunManifest:
    return replace(
        plain_manifest,
        source="/data/date=2026-11-01",
        output=f"/out/{uuid.uuid4()}",
        shards=(ShardRecord("a.parquet", "missing", 13, 4000, 2, {"no tokens": 7}, {"x": 6}, 1.5, "a.parquet"),),
        evaluation={"accuracy": 0.75},
        drift={"drifted": ["tokens"], "shifts": {}, "estimated_accuracy": 0.5},
    )


@pytest.fixture(scope="module")
def emitted(prefect_server: str, manifest: RunManifest) -> dict[str, Any]:
    """What the server has of a run that emits one of each, by name. Of its two endings one is of input that drifted."""
    assert manifest.drift is not None
    failed = replace(
        manifest,
        state="failed",
        shards=(),
        failures=(FailureRecord("c.parquet", "damaged"),),
        drift=manifest.drift | {"drifted": []},
    )

    @flow
    def emit_all() -> None:
        emit_run_ended(manifest)
        emit_run_ended(failed)
        emit_promotion("v2", "promoted", "it is better", "/registry")
        emit_promotion("v3", "rejected", "it is worse", "/registry")

    state: Any = emit_all(return_state=True)
    run = f"prefect.flow-run.{state.state_details.flow_run_id}"
    wanted = EventFilter(event=EventNameFilter(prefix=["attnlstm."]), related=EventRelatedFilter(id=[run]))
    deadline = time.monotonic() + _PATIENCE_S
    with get_client(sync_client=True) as client:
        while len(events := client.read_events(wanted, limit=50).events) < 5 and time.monotonic() < deadline:
            time.sleep(0.2)
    assert len(events) == 5
    return {event.event: event for event in events}


def test_run_that_completed_tells_of_its_output_and_what_it_counted(
    emitted: dict[str, Any], manifest: RunManifest
) -> None:
    event = emitted["attnlstm.run.completed"]

    assert dict(event.resource.root) == {
        "prefect.resource.id": f"attnlstm.output.{manifest.output}",
        "prefect.resource.name": manifest.output,
        "attnlstm.source": "/data/date=2026-11-01",
        "attnlstm.wrote": "yes",
    }
    related = {resource.role: resource.id for resource in event.related}
    assert related["checkpoint"] == "attnlstm.checkpoint.v1"
    assert related["flow"].startswith("prefect.flow.")
    assert event.payload == {
        "run_id": "3f2a",
        "run_name": "brave-fox",
        "state": "completed",
        "source": "/data/date=2026-11-01",
        "output": manifest.output,
        "mode": "missing",
        "checkpoint": "v1",
        "shards": 1,
        "up_to_date": 5,
        "failed": 0,
        "rows": 13,
        "errors": {"no tokens": 7},
        "abstained": 0,
        "truncated": 2,
        "tokens": 4000,
        "seconds": 2.0,
        "tokens_per_second": 2000,
        "evaluation": {"accuracy": 0.75},
        "drifted": ["tokens"],
        "passed_over": 0,
        "report": "",
    }


def test_run_that_failed_has_a_name_and_a_label_that_triggers_can_tell_it_by(emitted: dict[str, Any]) -> None:
    event = emitted["attnlstm.run.failed"]

    assert event.resource["attnlstm.wrote"] == "no"
    assert (event.payload["state"], event.payload["failed"], event.payload["drifted"]) == ("failed", 1, [])


def test_events_of_promotion_and_drift_are_about_the_checkpoint(emitted: dict[str, Any]) -> None:
    about = {name: event.resource.id for name, event in emitted.items() if "attnlstm.run." not in name}

    assert about == {
        "attnlstm.checkpoint.promoted": "attnlstm.checkpoint.v2",
        "attnlstm.checkpoint.rejected": "attnlstm.checkpoint.v3",
        "attnlstm.drift.detected": "attnlstm.checkpoint.v1",
    }
    assert emitted["attnlstm.drift.detected"].payload["drifted"] == ["tokens"]
    promoted = {"version": "v2", "alias": "champion", "why": "it is better", "registry": "/registry"}
    assert emitted["attnlstm.checkpoint.promoted"].payload == promoted

"""What runs tell others, as a server has it: events of each kind, their assets, the partitions that they wrote."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, tags
from prefect.assets import Asset

from flows.backfill import backfill
from flows.orchestration.events import asset_key, emit_promotion, emit_run_ended
from storage.output.manifests import FailureRecord, RunManifest, ShardRecord

Events = Callable[..., list[Any]]


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
def emitted(events_of: Events, manifest: RunManifest) -> dict[str, Any]:
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
    events = events_of(str(state.state_details.flow_run_id), last="attnlstm.checkpoint.rejected")
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


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ("/data/date=2026-11-01", "file:///data/date=2026-11-01"),
        ("s3://bucket/out", "s3://bucket/out"),
        ("gcs://bucket/out", "gcs://bucket/out"),
        ("/a b", "file:///a_b-"),
        ("s3://bucket/<b>{{ 1 }}</b>?[x]#%\n\0\u202e", "s3://bucket/_b____1____/b___x______-"),
        ("/" + "a/" * 300, "file:///a/a/a/"),
        ("/caf\u00e9/\udcff", "file:///caf_/_-"),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_key_of_an_asset_is_valid_and_that_of_one_place_only(place: str, key: str) -> None:
    assert Asset(key=asset_key(place)).key.startswith(key)
    assert asset_key(place) != asset_key(place.replace("b", "c").replace("a", "b") + "x")
    assert asset_key("/a b") != asset_key("/a_b")


def _named(events: list[Any], name: str) -> list[Any]:
    return [event for event in events if event.event == name]


def _partitions(events: list[Any]) -> dict[str, str]:
    """Of each partition that was told of, whether it was said to be the newest."""
    told = (event.resource for event in _named(events, "attnlstm.partition.completed"))
    return {resource["attnlstm.partition"]: resource["attnlstm.newest"] for resource in told}


def test_run_materialises_its_output_of_source_and_checkpoint_and_tells_of_each_partition(
    scored: Any, trained: Any, dataset: Path, events_of: Events
) -> None:
    events = events_of(scored.manifest.run_id)

    (made,) = _named(events, "prefect.asset.materialization.succeeded")
    source, checkpoint = f"file://{dataset}", f"file://{trained.folder}"
    assert dict(made.resource.root) == {
        "prefect.resource.id": f"file://{scored.output}",
        "prefect.resource.name": str(scored.output),
        "prefect.asset.url": scored.output.as_uri(),
    }
    assert sorted(each.id for each in made.related if each.role == "asset") == sorted([source, checkpoint])
    assert made.payload == scored.state.result()
    assert made.payload["report"] == f"{scored.output}/{scored.manifest.report}"
    referenced = {event.resource.id for event in _named(events, "prefect.asset.referenced")}
    assert referenced == {source, checkpoint}
    days = ("2026-11-01", "2026-11-02", "2026-11-04", "2026-11-05")
    assert _partitions(events) == {f"date={day}": "yes" if day == days[-1] else "no" for day in days}
    first = _named(events, "attnlstm.partition.completed")[0]
    assert first.resource.id == f"attnlstm.output.{scored.output}"
    assert first.payload == {
        "partition": "date=2026-11-01",
        "begins": "2026-11-01T00:00:00",
        "newest": False,
        "output": str(scored.output),
        "rows": 105,
        "errors": 2,
        "run_id": scored.manifest.run_id,
    }


def test_run_without_work_materialises_nothing(
    output_copy: Path, rescore: Callable[..., Any], events_of: Events
) -> None:
    events = events_of(rescore(output_copy).manifest.run_id)

    assert [event.event for event in events] == ["attnlstm.run.completed"]


def test_partition_with_a_failure_or_too_many_errors_is_not_completed_and_a_failed_run_fails_to_materialise(
    dataset_copy: Path, rescore: Callable[..., Any], tmp_path: Path, events_of: Events
) -> None:
    (dataset_copy / "date=2026-11-05" / "part-0.parquet").write_bytes(b"no Parquet at all")

    broken = events_of(rescore(tmp_path / "broken", source=dataset_copy).manifest.run_id)
    strictly = rescore(tmp_path / "strict", source=dataset_copy / "date=2026-11-02", max_errors="1")
    strict = events_of(strictly.manifest.run_id)

    assert _partitions(broken) == {"date=2026-11-01": "no", "date=2026-11-02": "no", "date=2026-11-04": "yes"}
    assert _partitions(strict) == {}
    for events in (broken, strict):
        assert len(_named(events, "prefect.asset.materialization.failed")) == 1
        assert _named(events, "prefect.asset.materialization.succeeded") == []


def test_partitions_of_a_backfill_tell_of_themselves_with_its_tags(
    output_copy: Path, trained: Any, dataset: Path, events_of: Events
) -> None:
    options = {"registry": str(trained.registry), "mode": "all", "end": "2026-11-01", "return_state": True}
    with tags("nightly"):
        state: Any = backfill(str(dataset), str(output_copy), **options)
    (run,) = state.result()

    events = events_of(run["run_id"])

    assert _partitions(events) == {"date=2026-11-01": "no"}
    (told,) = _named(events, "attnlstm.partition.completed")
    assert "prefect.tag.nightly" in [each.id for each in told.related if each.role == "tag"]

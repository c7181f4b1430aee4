"""What a run tells its neighbours: the asset that it made, and the partitions that it wrote, as the server has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import tags
from prefect.assets import Asset

from flows.backfill import backfill
from flows.orchestration.assets import asset_key

Events = Callable[[str], list[Any]]


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

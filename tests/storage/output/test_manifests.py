"""A run's record: totals that add up, and the same back from the disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from builders import make_manifest
from storage.input.sources import PassedOver
from storage.locations import Location
from storage.output.manifests import FailureRecord, RunManifest, ShardRecord, read_manifest, write_manifest


@pytest.fixture
def manifest() -> RunManifest:
    return make_manifest(
        state="Completed",
        settings={"keep": ["label"], "max_tokens": None},
        shards=(
            ShardRecord(
                "a.parquet",
                "missing",
                7,
                301,
                1,
                {"no tokens": 1},
                {"x": 4, "y": 2},
                0.5,
                "a.parquet",
                {"no tokens": [3]},
            ),
            ShardRecord("b.parquet", "stale", 11, 500, 0, {"no tokens": 1, "tokens are null": 3}, {"y": 7}, 0.25),
        ),
        failures=(FailureRecord("c.parquet", "damaged: cut, naïvely"),),
        evaluation={"accuracy": 0.75},
        passed_over=(PassedOver("_SUCCESS", "its name is hidden"), PassedOver("latest", "a link to a.parquet")),
        num_passed_over=207,
        notes=("1 file has a column 'ID'",),
    )


def test_totals_add_up_the_shards_most_frequent_first(manifest: RunManifest) -> None:
    assert manifest.totals == {
        "rows": 18,
        "errors": {"tokens are null": 3, "no tokens": 2},
        "truncated": 1,
        "abstained": 0,
        "tokens": 801,
        "tokens_per_second": 400,
        "predictions": {"y": 9, "x": 4},
    }
    assert list(manifest.totals["predictions"]) == ["y", "x"]
    assert manifest.num_errors == 5


def test_totals_have_all_classes_where_shards_have_the_commonest_only(manifest: RunManifest, tmp_path: Path) -> None:
    manifest = replace(manifest, predictions={"x": 5, "y": 9, "z": 1})
    write_manifest(Location.parse(tmp_path), manifest)
    for found in (manifest, replace(manifest, mode="all"), read_manifest(Location.parse(tmp_path), "3f2a")):
        assert found is not None
        assert list(found.totals["predictions"].items()) == [("y", 9), ("x", 5), ("z", 1)]
    assert "predictions" not in json.loads((tmp_path / "runs/3f2a.json").read_text())


def test_run_that_scored_nothing_has_no_speed(manifest: RunManifest) -> None:
    assert replace(manifest, shards=(), seconds=0.0).totals["tokens_per_second"] == 0


def test_manifest_reads_as_it_was_written(manifest: RunManifest, tmp_path: Path) -> None:
    write_manifest(Location.parse(tmp_path), manifest)
    assert read_manifest(Location.parse(tmp_path), "3f2a") == replace(
        manifest, predictions=manifest.totals["predictions"]
    )
    text = (tmp_path / "runs/3f2a.json").read_text()
    assert json.loads(text)["totals"]["rows"] == 18
    assert "naïvely" in text


def test_manifest_of_an_older_version_reads_without_what_it_does_not_have(
    manifest: RunManifest, tmp_path: Path
) -> None:
    write_manifest(Location.parse(tmp_path), manifest)
    record = json.loads((tmp_path / "runs/3f2a.json").read_text())
    for shard in record["shards"]:
        del shard["file"], shard["first_errors"]
    del record["passed_over"], record["num_passed_over"], record["notes"]
    (tmp_path / "runs/3f2a.json").write_text(json.dumps(record))
    found = read_manifest(Location.parse(tmp_path), "3f2a")
    assert found is not None
    assert [(shard.file, shard.first_errors) for shard in found.shards] == [("", {}), ("", {})]
    assert (found.passed_over, found.num_passed_over, found.notes) == ((), 0, ())


def test_run_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert read_manifest(Location.parse(tmp_path), "3f2a") is None

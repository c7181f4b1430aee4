"""How backfill goes through a range of dates. What a single date's run does is for the tests of classify."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from flows.backfill import backfill
from storage.errors import SourceError


def _scored_files(output: Path) -> list[str]:
    return sorted(
        path.relative_to(output / "predictions").as_posix() for path in (output / "predictions").rglob("*.parquet")
    )


def test_only_the_dates_of_the_range_are_scored_and_one_without_input_is_reported(
    trained: Any, dataset: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"

    state: Any = backfill(
        str(dataset),
        str(output),
        start="2026-11-02",
        end="2026-11-04",
        registry=str(trained.registry),
        return_state=True,
    )

    assert state.is_completed()
    assert state.message == "2 of 3 partitions completed, 1 no input."
    assert _scored_files(output) == ["date=2026-11-02/part-0.parquet", "date=2026-11-04/part-0.parquet"]
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
    table = json.loads(str({artifact.key: artifact.data for artifact in artifacts}["backfill-partitions"]))
    assert [(row["partition"], row["state"], row["rows"], row["errors"], row["message"]) for row in table] == [
        ("date=2026-11-02", "Completed", "105", "2", ""),
        ("date=2026-11-03", "No input", "0", "0", f"{dataset}/date=2026-11-03 does not exist"),
        ("date=2026-11-04", "Completed", "105", "2", ""),
    ]


def test_date_that_fails_is_named_and_does_not_stop_the_others(
    trained: Any, dataset_copy: Path, output_copy: Path
) -> None:
    # The output says that it was made from the dataset at its first place; a backfill goes on in its settings.
    record = json.loads((output_copy / "_dataset.json").read_text())
    (output_copy / "_dataset.json").write_text(json.dumps(record | {"source": str(dataset_copy)}))
    shutil.rmtree(output_copy / "predictions")
    (dataset_copy / "date=2026-11-04" / "part-0.parquet").write_bytes(b"no Parquet at all")

    state: Any = backfill(
        str(dataset_copy),
        str(output_copy),
        start="2026-11-04",
        end="2026-11-05",
        registry=str(trained.registry),
        return_state=True,
    )

    assert state.is_failed()
    assert state.message.startswith("1 of 2 partitions completed, 1 failed. First: date=2026-11-04: ")
    assert "date=2026-11-04/part-0.parquet: not a whole Parquet file" in state.message
    assert _scored_files(output_copy) == ["date=2026-11-05/part-0.parquet"]


def test_partitions_at_once_give_the_same_files(trained: Any, dataset: Path, scored: Any, tmp_path: Path) -> None:
    output = tmp_path / "output"
    state: Any = backfill(str(dataset), str(output), registry=str(trained.registry), parallel=2, return_state=True)
    assert state.is_completed(), state.message
    names = _scored_files(output)
    assert names == _scored_files(scored.output)
    rows = [pq.read_table(root / "predictions" / name, partitioning=None) for name in names for root in (output,)]
    wanted = [pq.read_table(scored.output / "predictions" / name, partitioning=None) for name in names]
    for found, expected in zip(rows, wanted, strict=True):
        assert found.select(["id", "probabilities"]).equals(expected.select(["id", "probabilities"]))


def test_dry_run_says_what_would_be_scored_and_writes_nothing(trained: Any, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    state: Any = backfill(str(dataset), str(output), registry=str(trained.registry), dry_run=True, return_state=True)
    runs = state.result()
    num_rows = sum(pq.read_metadata(path).num_rows for path in dataset.rglob("*.parquet"))
    assert sum(run["rows"] for run in runs) == num_rows
    assert {run["state"] for run in runs} == {"Planned"}
    assert state.message == f"{num_rows:,} rows of {len(runs)} partitions would be scored."
    assert not output.exists()


def test_after_a_failure_fail_fast_starts_no_more(trained: Any, dataset_copy: Path, tmp_path: Path) -> None:
    (dataset_copy / "date=2026-11-05" / "part-0.parquet").write_bytes(b"no Parquet at all")
    output = tmp_path / "output"
    state: Any = backfill(
        str(dataset_copy),
        str(output),
        start="2026-11-04",
        registry=str(trained.registry),
        newest_first=True,
        fail_fast=True,
        return_state=True,
    )
    assert state.is_failed()
    runs = state.result(raise_on_failure=False)
    assert [(run["partition"], run["state"]) for run in runs] == [
        ("date=2026-11-05", "Failed"),
        ("date=2026-11-04", "Not started"),
    ]
    assert _scored_files(output) == []


def test_range_without_partitions_is_refused(dataset: Path) -> None:
    with pytest.raises(SourceError, match=r"No partition of .* lies in the range"):
        backfill.fn(str(dataset), "output", start="2031-01-01")

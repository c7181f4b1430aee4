"""How backfill goes through a range of dates. What a single date's run does is for the tests of classify."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

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
        start=date(2026, 11, 2),
        end=date(2026, 11, 4),
        registry=str(trained.registry),
        return_state=True,
    )

    assert state.is_completed()
    assert state.message == "2 of 3 dates completed, 1 without input."
    assert _scored_files(output) == ["date=2026-11-02/part-0.parquet", "date=2026-11-04/part-0.parquet"]
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
    table = json.loads(str({artifact.key: artifact.data for artifact in artifacts}["backfill-partitions"]))
    assert [(row["date"], row["state"]) for row in table] == [
        ("2026-11-02", "Completed"),
        ("2026-11-03", "No input"),
        ("2026-11-04", "Completed"),
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
        start=date(2026, 11, 4),
        end=date(2026, 11, 5),
        registry=str(trained.registry),
        return_state=True,
    )

    assert state.is_failed()
    assert state.message.startswith("1 of 2 dates completed, 0 without input, 1 failed. First: ")
    assert "date=2026-11-04/part-0.parquet: not a whole Parquet file" in state.message
    assert _scored_files(output_copy) == ["date=2026-11-05/part-0.parquet"]


def test_range_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(SourceError, match=r"ends on 2026-11-01, before it starts on 2026-11-04\. Swap start and end"):
        backfill.fn("source", "output", start=date(2026, 11, 4), end=date(2026, 11, 1))

"""How backfill goes through a range of dates. What a single date's run does is for the tests of classify."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.backfill import backfill
from storage.errors import SourceError

Run = Callable[..., Any]


def _predictions(output: Path) -> list[str]:
    return [path.relative_to(output / "predictions").as_posix() for path in sorted(output.rglob("predictions/*/*"))]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def run(trained: Any, dataset: Path, output: Path) -> Run:
    """run(source, **options): a backfill by the champion; gives its state."""

    def run(source: Path = dataset, **options: Any) -> Any:
        return backfill(str(source), str(output), registry=str(trained.registry), **options, return_state=True)

    return run


def test_only_the_dates_of_the_range_are_scored_and_one_without_input_is_reported(
    run: Run, dataset: Path, output: Path, artifacts_of: Run
) -> None:
    state = run(start="2026-11-02", end="2026-11-04")

    assert state.is_completed()
    assert state.message == "2 of 3 partitions completed, 1 no input."
    assert _predictions(output) == ["date=2026-11-02/part-0.parquet", "date=2026-11-04/part-0.parquet"]
    table = json.loads(artifacts_of(state)["backfill-partitions"].data)
    assert [(row["partition"], row["state"], row["rows"], row["errors"], row["message"]) for row in table] == [
        ("date=2026-11-02", "Completed", "105", "2", ""),
        ("date=2026-11-03", "No input", "0", "0", f"{dataset}/date=2026-11-03 does not exist"),
        ("date=2026-11-04", "Completed", "105", "2", ""),
    ]


def test_date_that_fails_is_named_and_does_not_stop_the_others(run: Run, dataset_copy: Path, output: Path) -> None:
    (dataset_copy / "date=2026-11-04" / "part-0.parquet").write_bytes(b"no Parquet at all")

    state = run(dataset_copy, start="2026-11-04", end="2026-11-05")

    assert state.is_failed()
    assert state.message.startswith("1 of 2 partitions completed, 1 failed. First: date=2026-11-04: ")
    assert "date=2026-11-04/part-0.parquet: not a whole Parquet file" in state.message
    assert _predictions(output) == ["date=2026-11-05/part-0.parquet"]


def test_partitions_at_once_give_the_same_files(run: Run, output: Path, scored: Any) -> None:
    state = run(parallel=2)
    assert state.is_completed(), state.message
    names = _predictions(output)
    assert names == _predictions(scored.output)
    for name in names:
        found, expected = (
            pq.read_table(root / "predictions" / name, partitioning=None).select(["id", "probabilities"])
            for root in (output, scored.output)
        )
        assert found.equals(expected)


def test_dry_run_says_what_would_be_scored_and_writes_nothing(run: Run, dataset: Path, output: Path) -> None:
    state = run(dry_run=True)
    runs = state.result()
    num_rows = sum(pq.read_metadata(path).num_rows for path in dataset.rglob("*.parquet"))
    assert sum(run["rows"] for run in runs) == num_rows
    assert {run["state"] for run in runs} == {"Planned"}
    assert state.message == f"{num_rows:,} rows of {len(runs)} partitions would be scored."
    assert not output.exists()


def test_after_a_failure_fail_fast_starts_no_more(run: Run, dataset_copy: Path, output: Path) -> None:
    (dataset_copy / "date=2026-11-05" / "part-0.parquet").write_bytes(b"no Parquet at all")
    state = run(dataset_copy, start="2026-11-04", newest_first=True, fail_fast=True)
    assert state.is_failed()
    runs = state.result(raise_on_failure=False)
    assert [(run["partition"], run["state"]) for run in runs] == [
        ("date=2026-11-05", "Failed"),
        ("date=2026-11-04", "Not started"),
    ]
    assert _predictions(output) == []


def test_range_without_partitions_is_refused(dataset: Path) -> None:
    with pytest.raises(SourceError, match=r"No partition of .* lies in the range"):
        backfill.fn(str(dataset), "output", start="2031-01-01")

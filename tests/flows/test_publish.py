"""Publishing: a run that ends well changes its Delta table once; one that does not changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from flows.backfill import backfill
from flows.cli.commands import classify_nothing
from flows.settings import ClassifyOptions
from storage.delta import Table

Rescore = Callable[..., Any]


def version(table: Path) -> int:
    return int(DeltaTable(table).version())


def test_a_run_publishes_once_what_it_scored_or_what_a_killed_one_left(
    rescore: Rescore, dataset: Path, output_copy: Path, tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table"
    options = ClassifyOptions(
        source=str(dataset), output=str(output_copy), registry=str(trained.registry), publish=f"delta:{table}"
    )
    assert classify_nothing(options) is None  # nothing to score, and perhaps something to publish

    first = rescore(output_copy, publish=f"delta:{table}")
    again = rescore(output_copy, publish=f"delta:{table}")

    assert first.manifest.notes[-1] == f"published to {table} as version 0: files added 4, removed 0"
    assert again.manifest.notes[-1] == f"{table} has it already, as version 0"
    assert (first.state.is_completed(), again.state.is_completed(), version(table)) == (True, True, 0)
    assert pl.scan_delta(table).select("file", "row").unique().collect().height == 420


def test_a_run_with_too_many_errors_publishes_nothing(rescore: Rescore, tmp_path: Path) -> None:
    table = tmp_path / "table"

    failed = rescore(tmp_path / "output", publish=f"delta:{table}", max_errors="3")

    assert failed.state.is_failed()
    assert failed.manifest.notes[-1] == f"not published to {table}, since the run did not end well"
    assert not table.exists()


def test_a_backfill_publishes_all_of_its_partitions_by_one_commit(trained: Any, dataset: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    state: Any = backfill(
        str(dataset),
        str(tmp_path / "output"),
        registry=str(trained.registry),
        start="2026-11-02",
        publish=f"delta:{table}",
        return_state=True,
    )

    assert state.is_completed(), state.message
    assert state.message.endswith(f"Published to {table} as version 0: files added 3, removed 0.")
    dates = pl.scan_delta(table).select(pl.col("date").unique().sort()).collect()["date"].to_list()
    assert dates == ["2026-11-02", "2026-11-04", "2026-11-05"]


def test_what_can_not_be_published_to_is_refused_before_anything_is_scored(rescore: Rescore, tmp_path: Path) -> None:
    pl.DataFrame({"x": [1]}).write_delta(str(tmp_path / "theirs"))

    refused = rescore(tmp_path / "output", publish=f"delta:{tmp_path / 'theirs'}")

    assert refused.state.is_failed()
    assert "is none that attnlstm made" in refused.state.message
    assert not (tmp_path / "output" / "predictions").exists()


def test_a_commit_that_fails_fails_the_run_and_says_so(
    rescore: Rescore, output_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Table, "_commit", fail)
    failed = rescore(output_copy, publish=f"delta:{tmp_path / 'table'}")

    assert failed.state.is_failed()
    assert "it was not published: no space left" in failed.state.message

"""The report of a classify run: what it says of counts, classes, errors and failures, in Prefect and in a terminal."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter
from rich.console import Console

from flows.orchestration.report import first_errors, print_summary, publish_report
from storage.output.manifests import FIRST_ERRORS, FailureRecord, RunManifest, ShardRecord


@pytest.fixture(scope="module")
def manifest(plain_manifest: RunManifest) -> RunManifest:
    """Of a run that scored two shards and failed at one file; the output's name has a space and a bracket."""
    return replace(
        plain_manifest,
        state="failed",
        output="/out put (1)",
        shards=(
            ShardRecord(
                "a.parquet", "missing", 1307, 3_000_000, 0, {"no tokens": 7}, {"x": 900, "y|z": 400}, 1.5,
                file="a.parquet", first_errors={"no tokens": [3, 1001, 1002]},
            ),
            ShardRecord(
                "b-00001-of-00002.parquet", "stale", 110, 500, 0, {"no tokens": 9, "tokens are null": 1}, {"x": 100},
                0.25, file="b.parquet", first_errors={"no tokens": [20, 21, 22, 23, 24], "tokens are null": [19]},
            ),
        ),
        failures=(FailureRecord("c.parquet", "damaged: cut\nshort"),),
        evaluation={"accuracy": 0.75, "macro_f1": 0.5},
    )  # fmt: skip


def publish(manifest: RunManifest) -> dict[str, Any]:
    """Publish a report in a flow run of its own; gives its artifacts by key."""

    @flow
    def report() -> None:
        publish_report(manifest)

    state: Any = report(return_state=True)
    assert state.is_completed(), state.message
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
    return {str(artifact.key): artifact for artifact in artifacts}


@pytest.fixture(scope="module")
def published(prefect_server: str, manifest: RunManifest) -> dict[str, Any]:
    return publish(manifest)


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """(level, message) of each line of the report."""
    records = [record for record in caplog.records if record.module == "report"]
    return [(record.levelname, record.getMessage()) for record in records]


def test_report_has_counts_shares_failures_and_where_errors_are_first_found(published: dict[str, Any]) -> None:
    report = str(published["classify-report"].data)

    assert report.startswith("## 1,417 rows scored, 17 with errors, 1 failure\n")
    assert "| 2 | 5 | 1,417 | 17 | 0 | 3,000,500 | 2.0 | 1.50 million |" in report
    assert "- **Against labels**: accuracy 0.7500, macro-F1 0.5000\n" in report
    assert "- `c.parquet`: damaged: cut short\n" in report
    assert "- **no tokens**: 16 rows, first in `a.parquet` rows 3, 1001, 1002; `b.parquet` rows 20, 21\n" in report
    assert "- **tokens are null**: 1 row, first in `b.parquet` row 19\n" in report
    assert report.endswith("| class | rows | share |\n|---|---|---|\n| x | 1,000 | 71.4% |\n| y\\|z | 400 | 28.6% |\n")


def test_links_lead_to_the_output_and_the_manifest(published: dict[str, Any]) -> None:
    place = "file:///out%20put%20%281%29"
    assert published["classify-output"].data == f"[/out put (1)]({place})"
    assert (
        f"[/out put (1)]({place}), [this run's manifest]({place}/runs/3f2a.json)" in published["classify-report"].data
    )


def test_table_has_failed_shards_first_and_numbers_to_read(published: dict[str, Any]) -> None:
    rows = [list(row.values()) for row in json.loads(published["classify-shards"].data)]
    assert rows == [
        ["c.parquet", "failed", "", "", "", "", "damaged: cut\nshort"],
        ["a.parquet", "scored", "1,307", "7", "3,000,000", "1.50", "missing"],
        ["b-00001-of-00002.parquet", "scored", "110", "10", "500", "0.25", "stale"],
    ]


def test_log_warns_of_errors_and_names_what_failed(
    prefect_server: str, manifest: RunManifest, caplog: pytest.LogCaptureFixture
) -> None:
    publish(manifest)

    lines = logged(caplog)
    first = "no tokens in a.parquet, row 3; tokens are null in b.parquet, row 19 (rows from 0)"
    assert ("ERROR", "c.parquet could not be scored: damaged: cut\nshort") in lines
    assert ("WARNING", "errors: no tokens 16, tokens are null 1") in lines
    assert ("WARNING", f"first errors: {first}") in lines
    assert ("INFO", "tokens: 3,000,500 in 2.0 s, 1.50 million a second (torch on cpu)") in lines
    assert ("INFO", "manifest: /out put (1)/runs/3f2a.json") in lines


def test_run_without_work_says_so_and_warns_of_nothing(
    prefect_server: str, manifest: RunManifest, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts = publish(replace(manifest, state="completed", shards=(), failures=(), evaluation=None))

    assert str(artifacts["classify-report"].data).startswith("## Nothing to do: all 5 shards are up to date\n")
    assert sorted(artifacts) == ["classify-output", "classify-report"]
    assert {level for level, _ in logged(caplog)} == {"INFO"}


def test_summary_in_a_terminal_says_where_errors_are_first_found(manifest: RunManifest) -> None:
    printed = io.StringIO()

    print_summary(manifest, Console(file=printed, width=200))

    assert "first errors    no tokens in a.parquet, row 3; tokens are null in b.parquet, row 19" in printed.getvalue()


def test_long_lists_are_cut_and_say_so(
    prefect_server: str, manifest: RunManifest, caplog: pytest.LogCaptureFixture
) -> None:
    shard = replace(manifest.shards[0], predictions={f"class-{number:02d}": 1 for number in range(50)})
    failures = tuple(FailureRecord(f"{number}.parquet", "damaged") for number in range(1200))

    artifacts = publish(replace(manifest, shards=(shard,), failures=failures))

    report = str(artifacts["classify-report"].data)
    assert "| 30 more classes | 30 | 60.0% |" in report
    assert "- 1,190 more, in the table of shards and in the manifest" in report
    assert len(json.loads(artifacts["classify-shards"].data)) == 1000
    assert artifacts["classify-shards"].description.endswith(": the first 1,000 of 1,201")
    assert len([level for level, _ in logged(caplog) if level == "ERROR"]) == 10


def test_first_errors_are_positions_in_the_input_file_whatever_the_shards(
    dataset: Path, rescore: Callable[..., Any], tmp_path: Path
) -> None:
    """Two shards, each read in two pieces: 1024 rows are decoded at once."""
    table = pq.read_table(dataset / "date=2026-11-01/part-0.parquet", partitioning=None)
    table = pa.concat_tables([table] * 24)
    tokens: list[bytes | None] = [b"abc"] * len(table)
    tokens[1] = b""
    for row in (0, 1100, 1400, 2390, 2391, 2392, 2393, 2394):
        tokens[row] = None
    table = table.set_column(table.column_names.index("tokens"), "tokens", pa.array(tokens, pa.binary()))
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/a.parquet", row_group_size=1260)

    run = rescore(tmp_path / "output", tmp_path / "data", shard_rows=1260, chunk_bytes=1)

    assert [shard.name[:7] for shard in run.manifest.shards] == ["a-00000", "a-00001"]
    assert [shard.first_errors for shard in run.manifest.shards] == [
        {"no tokens": [1], "tokens are null": [0, 1100]},
        {"tokens are null": [1400, 2390, 2391, 2392, 2393]},
    ]
    found = first_errors(run.manifest)
    assert found["tokens are null"] == [("a.parquet", row) for row in (0, 1100, 1400, 2390, 2391)]
    assert len(found["tokens are null"]) == FIRST_ERRORS

"""The facts of a run: what it says of counts, errors, drift and places, in which words."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.orchestration.facts import describe_drift, describe_estimate, first_errors, run_facts
from storage.input.sources import PassedOver
from storage.output.manifests import FIRST_ERRORS, RunManifest


def test_run_tells_of_failures_counts_errors_quality_and_places(telling_manifest: RunManifest) -> None:
    assert run_facts(telling_manifest) == {
        "not scored": "1 failure; when what is wrong is mended, the same command scores them",
        "rows": "1,417 in 2 shards (5 more were up to date)",
        "errors": "no tokens 16, tokens are null 1",
        "first errors": "no tokens in a.parquet, row 3; tokens are null in b.parquet, row 19 (rows from 0)",
        "tokens": "3,000,500 in 2.0 s, 1.50 million a second (torch on cpu)",
        "predictions": "x 1,000, y|z 400",
        "against labels": "accuracy 0.7500, macro-F1 0.5000",
        "drift": "which tokens there are (index 0.50): not as in the rows that the checkpoint was measured on",
        "estimated accuracy": "0.9000 by mean confidence, without labels, doubtful, since the input has drifted",
        "checkpoint": "v1",
        "source": "/data",
        "output": "/out put [1]",
        "manifest": "/out put [1]/runs/3f2a.json",
    }


def test_run_without_work_says_so_and_nothing_else(plain_manifest: RunManifest) -> None:
    facts = run_facts(plain_manifest)

    assert facts["result"] == "nothing to do: all 5 shards are up to date"
    assert list(facts) == ["result", "checkpoint", "source", "output", "manifest"]


def test_truncated_rows_and_long_lists_of_classes_are_told_in_short(telling_manifest: RunManifest) -> None:
    classes = {f"class-{number:02d}": 1 for number in range(50)}
    shard = replace(telling_manifest.shards[0], num_truncated=1234, predictions=classes)
    facts = run_facts(replace(telling_manifest, shards=(shard,), settings={"max_tokens": 4096}))

    assert facts["truncated"] == "1,234 rows longer than 4,096 tokens"
    assert facts["predictions"].endswith(", class-19 1, 30 more")


def test_input_that_has_not_drifted_is_said_to_be_alike() -> None:
    calm = {"drifted": [], "shifts": {}, "estimated_accuracy": 0.9}

    assert describe_drift(calm) == "none: the rows are like those that the checkpoint was measured on"
    assert describe_estimate(calm) == (
        "0.9000 by mean confidence, without labels, if the checkpoint is calibrated for it"
    )


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


def test_names_that_are_passed_over_are_counted_and_the_first_of_them_told(plain_manifest: RunManifest) -> None:
    passed_over = tuple(PassedOver(f"{number}.txt", "its name") for number in range(7))
    facts = run_facts(replace(plain_manifest, passed_over=passed_over, num_passed_over=9, notes=("a note",)))
    assert facts["passed over"] == (
        "9 names of the source: 0.txt (its name), 1.txt (its name), 2.txt (its name), 3.txt (its name), "
        "4.txt (its name) and 4 more"
    )
    assert facts["note"] == "a note"

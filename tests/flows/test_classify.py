"""How classify behaves over several runs: what it scores again, what it refuses, what a broken file does."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

import flows.orchestration.task_runs
from flows.classify import classify


def _contents(output: Path) -> dict[str, bytes]:
    """The bytes of everything that was scored, by name."""
    files = [path for kind in ("predictions", "attention") for path in (output / kind).rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


def _times(output: Path) -> dict[str, int]:
    return {name: (output / name).stat().st_mtime_ns for name in _contents(output)}


def _column(output: Path, name: str, kind: str = "predictions") -> list[Any]:
    paths = sorted((output / kind).rglob("*.parquet"))
    return [value for path in paths for value in pq.read_table(path, partitioning=None)[name].to_pylist()]


def test_second_run_scores_nothing_and_touches_no_file(output_copy: Path, rescore: Callable[..., Any]) -> None:
    before = _times(output_copy)

    second = rescore(output_copy)

    assert second.state.is_completed()
    assert second.state.message == "Nothing to do: all 4 shards are up to date."
    assert _times(output_copy) == before
    assert second.manifest.shards == ()
    assert second.manifest.num_up_to_date == 4


def test_another_number_of_workers_and_of_task_runs_gives_the_same_bytes(
    scored: Any, rescore: Callable[..., Any], tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.orchestration.task_runs, "_TASK_TOKEN_BYTES", 1)  # a task run for each shard

    again = rescore(tmp_path / "output", workers=4)

    assert again.state.is_completed()
    assert _contents(again.output) == _contents(scored.output)
    with get_client(sync_client=True) as client:
        run_id = again.state.state_details.flow_run_id
        task_runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
    expected = sorted(path.relative_to(dataset).as_posix() for path in dataset.rglob("*.parquet"))
    assert sorted(task_run.name for task_run in task_runs) == expected


def test_new_checkpoint_is_used_for_what_is_missing_and_in_mode_stale_for_the_rest(
    output_copy: Path, registry_copy: Path, publish: Callable[[int], str], rescore: Callable[..., Any], trained: Any
) -> None:
    version = publish(37)
    (output_copy / "attention" / "date=2026-11-02" / "part-0.parquet").unlink()

    missing = rescore(output_copy, registry=str(registry_copy))

    assert [(shard.name, shard.reason) for shard in missing.manifest.shards] == [
        ("date=2026-11-02/part-0.parquet", "missing")
    ]
    assert sorted(set(_column(output_copy, "checkpoint"))) == sorted([trained.version, version])

    stale = rescore(output_copy, registry=str(registry_copy), mode="stale")

    assert {shard.reason for shard in stale.manifest.shards} == {"stale"}
    assert stale.manifest.num_up_to_date == 1
    assert set(_column(output_copy, "checkpoint")) == {version}


def test_changed_input_is_scored_again_and_the_rest_is_not(
    dataset_copy: Path, rescore: Callable[..., Any], tmp_path: Path
) -> None:
    first = rescore(tmp_path / "output", source=dataset_copy)
    changed = dataset_copy / "date=2026-11-04" / "part-0.parquet"
    pq.write_table(pq.read_table(changed, partitioning=None).slice(0, 50), changed)

    second = rescore(first.output, source=dataset_copy)

    assert [(shard.name, shard.reason, shard.num_rows) for shard in second.manifest.shards] == [
        ("date=2026-11-04/part-0.parquet", "input changed", 50)
    ]
    assert len(_column(first.output, "id")) == len(_column(first.output, "id", "attention")) == 3 * 105 + 50


def test_only_the_largest_weights_are_kept_where_asked_for(
    scored: Any, rescore: Callable[..., Any], tmp_path: Path
) -> None:
    top = rescore(tmp_path / "output", save_attention="top:2")

    assert top.state.is_completed()
    kept_positions, kept_weights = (_column(top.output, name, "attention") for name in ("positions", "weights"))
    for positions, kept, weights in zip(
        kept_positions, kept_weights, _column(scored.output, "weights", "attention"), strict=True
    ):
        if weights is None:
            assert positions is kept is None
            continue
        assert kept == sorted(weights, reverse=True)[:2]
        assert [weights[position] for position in positions] == kept


def test_no_attention_is_written_where_none_is_asked_for_and_a_rerun_misses_none(
    rescore: Callable[..., Any], tmp_path: Path
) -> None:
    first = rescore(tmp_path / "output", save_attention="none")
    second = rescore(tmp_path / "output", save_attention="none")

    assert first.state.is_completed()
    assert not (tmp_path / "output" / "attention").exists()
    assert second.manifest.num_up_to_date == 4


def test_integer_ids_are_carried_through_and_rows_without_an_id_are_numbered_in_their_file(
    prefect_server: str, tmp_path: Path, untrained: dict[str, Path]
) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    tokens = [b"0123", b"abc", b"456"]
    pq.write_table(pa.table({"id": [900, 7, 7], "tokens": tokens}), source / "numbered.parquet")
    lists = pa.array([list(row) for row in tokens], pa.list_(pa.int32()))
    pq.write_table(pa.table({"tokens": lists}), source / "unnumbered.parquet", row_group_size=1)

    state = classify(
        str(source),
        str(output),
        checkpoint=str(untrained["additive"]),
        shard_rows=2,
        return_state=True,
    )

    assert state.is_completed(), state.message
    predictions = {
        path.name: pq.read_table(path).select(["id", "score"]).to_pydict()
        for path in (output / "predictions").iterdir()
    }
    assert {name: columns["id"] for name, columns in predictions.items()} == {
        "numbered.parquet": [900, 7, 7],
        "unnumbered-00000-of-00002.parquet": [0, 1],  # two row groups fill a shard of two rows
        "unnumbered-00001-of-00002.parquet": [2],
    }
    scores = [predictions[f"unnumbered-0000{part}-of-00002.parquet"]["score"] for part in (0, 1)]
    np.testing.assert_allclose([*scores[0], *scores[1]], predictions["numbered.parquet"]["score"], atol=1e-5)


def test_unreadable_file_fails_the_run_by_name_while_others_complete_and_its_repair_completes_it(
    dataset_copy: Path, dataset: Path, rescore: Callable[..., Any], tmp_path: Path, scored: Any
) -> None:
    name = "date=2026-11-02/part-0.parquet"
    (dataset_copy / name).write_bytes((dataset / name).read_bytes()[:-9])

    broken = rescore(tmp_path / "output", source=dataset_copy)

    assert broken.state.is_failed()
    assert broken.state.message.startswith(f"3 shards scored, 1 failed: {name}: not a whole Parquet file")
    assert broken.manifest.state == "failed"
    assert [failure.name for failure in broken.manifest.failures] == [name]
    others = {path: content for path, content in _contents(scored.output).items() if name not in path}
    assert _contents(broken.output) == others

    shutil.copy(dataset / name, dataset_copy / name)
    repaired = rescore(tmp_path / "output", source=dataset_copy)

    assert repaired.state.is_completed()
    assert [shard.name for shard in repaired.manifest.shards] == [name]
    assert _contents(repaired.output) == _contents(scored.output)


def test_damage_that_shows_only_while_reading_fails_that_file_alone(
    dataset_copy: Path, dataset: Path, rescore: Callable[..., Any], tmp_path: Path
) -> None:
    name = "date=2026-11-04/part-0.parquet"
    content = bytearray((dataset / name).read_bytes())
    content[4:1200] = bytes(1196)  # the first pages; the footer stays whole
    (dataset_copy / name).write_bytes(content)

    run = rescore(tmp_path / "output", source=dataset_copy)

    assert run.state.is_failed()
    assert f"3 shards scored, 1 failed: {name}: damaged: " in run.state.message
    assert not (run.output / "predictions" / name).exists()
    assert not (run.output / "attention" / name).exists()
    assert [path.name for path in run.output.rglob("*.tmp")] == []


def test_settings_that_differ_from_the_outputs_are_refused_and_change_nothing(
    output_copy: Path, rescore: Callable[..., Any]
) -> None:
    before = {path: path.read_bytes() for path in output_copy.rglob("*") if path.is_file()}

    refused = rescore(output_copy, save_attention="top:2")

    assert refused.state.is_failed()
    message = str(refused.state.result(raise_on_failure=False))
    assert message == (
        f"The output {output_copy} was made differently:\n"
        "  save_attention: 'full' there, 'top:2' asked for\n"
        "Write to another folder, or ask for what is there."
    )
    assert {path: path.read_bytes() for path in output_copy.rglob("*") if path.is_file()} == before


def test_long_rows_are_truncated_or_refused(rescore: Callable[..., Any], tmp_path: Path, dataset: Path) -> None:
    lengths = [
        len(tokens or b"")
        for path in sorted(dataset.rglob("*.parquet"))
        for tokens in pq.read_table(path, partitioning=None)["tokens"].to_pylist()
    ]
    num_long = sum(length > 20 for length in lengths)

    cut = rescore(tmp_path / "cut", max_tokens=20)
    refused = rescore(tmp_path / "refused", max_tokens=20, long_rows="error")

    assert _column(cut.output, "truncated") == [length > 20 for length in lengths]
    assert max(len(weights or []) for weights in _column(cut.output, "weights", "attention")) == 20
    assert refused.manifest.totals["errors"]["longer than 20 tokens"] == num_long


def test_called_from_python_it_returns_the_counts_and_places_of_the_run(
    trained: Any, dataset: Path, tmp_path: Path
) -> None:
    summary = classify(str(dataset), str(tmp_path / "output"), registry=str(trained.registry))

    assert (summary["state"], summary["shards"], summary["rows"]) == ("completed", 4, 420)
    assert sum(summary["errors"].values()) == 8
    assert summary["output"] == str(tmp_path / "output")
    assert (tmp_path / "output" / "runs" / f"{summary['run_id']}.json").is_file()


@pytest.mark.parametrize(
    ("max_errors", "ends"),
    [("50%", "failed"), ("66%", "failed"), ("1", "failed"), ("67%", "completed"), ("2", "completed")],
)
def test_more_errors_than_allowed_fail_a_run_that_has_written_everything(
    max_errors: str, ends: str, trained: Any, tmp_path: Path
) -> None:
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"tokens": pa.array([None, b"abc", None], pa.binary())}), source)
    output = tmp_path / "output"
    registry = str(trained.registry)
    state: Any = classify(str(source), str(output), registry=registry, max_errors=max_errors, return_state=True)

    assert state.name.lower() == ends
    assert pq.read_table(output / "predictions" / "rows.parquet").num_rows == 3
    assert state.result(raise_on_failure=False)["state"] == ends

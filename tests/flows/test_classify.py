"""How classify behaves over several runs, and with options: what it scores again, refuses, withholds, fails for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

import flows.orchestration.task_runs
from attnlstm.evaluation.abstention import LADDER
from builders import rewrite, scored_files
from flows.classify import classify
from flows.orchestration.facts import run_facts, run_summary
from flows.pages.page import render_page
from flows.pages.report import report_output
from storage.errors import RegistryError
from storage.output.frames import open_predictions
from storage.output.plan import existing_output, plan_output
from storage.output.verification import verify_output
from storage.registry.checkpoints import Registry


def _checkpoints(output: Path) -> set[str]:
    """Which checkpoints scored the rows."""
    paths = (output / "predictions").rglob("*.parquet")
    return {name for path in paths for name in pq.read_table(path, partitioning=None)["checkpoint"].to_pylist()}


def test_second_run_scores_nothing_and_touches_no_file(output_copy: Path, rescore: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in output_copy.rglob("part-*")}

    second = rescore(output_copy)

    assert second.state.is_completed()
    assert second.state.message == "Nothing to do: all 4 shards are up to date."
    assert {path: path.stat().st_mtime_ns for path in output_copy.rglob("part-*")} == before
    assert second.manifest.shards == ()
    assert second.manifest.num_up_to_date == 4


def test_another_number_of_workers_and_of_task_runs_gives_the_same_bytes(
    scored: Any, rescore: Callable[..., Any], tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.orchestration.task_runs, "_TASK_TOKEN_BYTES", 1)  # a task run for each shard

    again = rescore(tmp_path / "output", workers=4)

    assert again.state.is_completed()
    assert scored_files(again.output) == scored_files(scored.output)
    with get_client(sync_client=True) as client:
        run_id = again.state.state_details.flow_run_id
        task_runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
    expected = sorted(path.relative_to(dataset).as_posix() for path in dataset.rglob("*.parquet"))
    assert sorted(task_run.name for task_run in task_runs) == [*expected, "materialise output"]


def test_new_checkpoint_is_used_for_what_is_missing_and_in_mode_stale_for_the_rest(
    output_copy: Path, registry_copy: Path, publish: Callable[[int], str], rescore: Callable[..., Any], trained: Any
) -> None:
    version = publish(37)
    (output_copy / "attention" / "date=2026-11-02" / "part-0.parquet").unlink()

    missing = rescore(output_copy, registry=str(registry_copy))

    assert [(shard.name, shard.reason) for shard in missing.manifest.shards] == [
        ("date=2026-11-02/part-0.parquet", "missing")
    ]
    assert _checkpoints(output_copy) == {trained.version, version}

    stale = rescore(output_copy, registry=str(registry_copy), mode="stale")

    assert {shard.reason for shard in stale.manifest.shards} == {"stale"}
    assert stale.manifest.num_up_to_date == 1
    assert _checkpoints(output_copy) == {version}


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
    others = {path: content for path, content in scored_files(scored.output).items() if name not in path}
    assert scored_files(broken.output) == others

    shutil.copy(dataset / name, dataset_copy / name)
    repaired = rescore(tmp_path / "output", source=dataset_copy)

    assert repaired.state.is_completed()
    assert [shard.name for shard in repaired.manifest.shards] == [name]
    assert scored_files(repaired.output) == scored_files(scored.output)


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


def test_mode_errors_takes_a_longer_limit_and_ends_as_if_it_had_been_the_limit_at_first(
    dataset_copy: Path, rescore: Callable[..., Any], attnlstm: Callable[..., Any], trained: Any, tmp_path: Path
) -> None:
    rewrite(dataset_copy / "date=2026-11-02/part-0.parquet", lambda table: table[:2])
    limits = {"long_rows": "error", "source": dataset_copy}
    first = rescore(tmp_path / "output", max_tokens=40, **limits)
    too_long = first.manifest.totals["errors"]["longer than 40 tokens"]
    asked = (str(dataset_copy), str(first.output), "--registry", str(trained.registry))
    refused = attnlstm("plan", *asked, "--max-tokens", "60")
    planned = attnlstm("backfill", *asked, "--max-tokens", "60", "--mode", "errors", "--dry-run")

    again = rescore(first.output, max_tokens=60, mode="errors", **limits)
    after = scored_files(first.output)
    nothing = attnlstm("classify", *asked, "--mode", "errors")

    assert too_long > 0
    assert "max_tokens: 40 there, 60 asked for" in refused.err
    assert planned.out.count("1 with errors") == 3
    assert [shard.reason for shard in again.manifest.shards] == ["with errors"] * 3
    assert again.manifest.totals["errors"] == {"no tokens": 3, "tokens are null": 3}
    assert after == scored_files(rescore(tmp_path / "fresh", max_tokens=60, **limits).output)
    assert "nothing to do: all 4 shards are up to date" in nothing.out


@pytest.mark.parametrize("wanted", ["0.9", "precision=0.9"])
def test_rows_with_low_scores_are_counted_apart_from_errors(
    wanted: str,
    scored: Any,
    trained: Any,
    rescore: Callable[..., Any],
    attnlstm: Callable[..., Any],
    tmp_path: Path,
) -> None:
    run = rescore(tmp_path / "output", abstain_below=wanted)

    assert run.state.is_completed(), run.state.message
    before, after = (open_predictions(str(each.output)).sort("id").collect() for each in (scored, run))
    unchanged = [name for name in after.columns if name != "prediction"]
    assert after.select(unchanged).equals(before.select(unchanged))
    given = after.filter(after["prediction"].is_not_null())
    num_abstained = before["prediction"].count() - len(given)
    assert 0 < num_abstained < len(after) / 2
    manifest = run.manifest
    assert manifest.totals["abstained"] == num_abstained == run_summary(manifest)["abstained"]
    assert manifest.totals["errors"] == scored.manifest.totals["errors"]
    assert sum(manifest.totals["predictions"].values()) == len(given)
    right = (given["prediction"] == given["label"]).mean()
    assert manifest.evaluation["accuracy"] == pytest.approx(right)
    assert right > scored.manifest.evaluation["accuracy"]
    assert run_facts(manifest)["abstained"] == (
        f"{num_abstained:,} rows have a score too low for a prediction ({wanted})"
    )
    assert f"8 with errors, {num_abstained} without a prediction for their score;" in run.state.message
    output = existing_output(str(run.output))
    assert verify_output(plan_output(manifest.source, output)).problems == ()
    report = report_output(str(run.output), str(trained.registry), 20)
    assert report.figures.num_abstained == num_abstained
    (counts,) = [check for check in report.checks if check.text.startswith("Counts add up")]
    sums = f"{len(given)} with a prediction, {num_abstained} whose score is too low for one, and 8 with an error"
    assert sums in counts.text
    withheld = after.filter(after["prediction"].is_null() & after["error"].is_null())["id"][0]
    where = (str(manifest.source), str(run.output), "--registry", str(trained.registry), "--id", withheld)
    assert f"; the output withholds it, since it was to abstain below {wanted}\n" in attnlstm("explain", *where).out
    page = render_page(report)
    assert f"<dd>{num_abstained + 8}<small>{(num_abstained + 8) / 420:.1%}: {num_abstained} for a low score, 8" in page
    # Shares of a class over partitions are, as its share is, of the rows that have a prediction.
    by_date = given.group_by("date").agg(share=(pl.col("prediction") == "digits").mean())["share"]
    assert f'<td class="n">{by_date.min():.1%} to {by_date.max():.1%}</td>' in page


def test_precision_is_asked_of_a_checkpoint_that_knows_its_scores(
    untrained_registry: Path, dataset: Path, tmp_path: Path, prefect_server: str
) -> None:
    with pytest.raises(RegistryError, match=r"can't abstain below precision=0\.9: it is not known at which scores"):
        classify(str(dataset), str(tmp_path / "out"), registry=str(untrained_registry), abstain_below="precision=0.9")
    assert not (tmp_path / "out").exists()


def test_card_says_what_is_left_and_right_at_each_threshold(trained: Any) -> None:
    abstention = Registry.open(str(trained.registry)).card(trained.version).abstention

    assert abstention is not None
    for found in (abstention.scores, abstention.precisions):
        assert [at.wanted for at in found] == list(LADDER)
        coverages = [at.coverage for at in found]
        assert coverages == sorted(coverages, reverse=True)
    assert set(abstention.by_class) == set(json.loads((trained.folder / "config.json").read_text())["classes"])
    at = abstention.scores[LADDER.index(0.9)]
    words = f"A score of 0.9 leaves {at.coverage:.1%} of the test rows a prediction, {at.accuracy:.1%} of them right"
    assert words in (trained.folder / "README.md").read_text()

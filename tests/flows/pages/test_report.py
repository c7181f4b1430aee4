"""What a report says of runs and of an output: whether all is well, what adds up, which rows are worth a look."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.pages.report import Report, report_output, report_retraining, report_run
from storage.errors import OutputError
from storage.output.manifests import FailureRecord
from storage.output.plan import existing_output
from storage.registry.cards import Card
from storage.registry.checkpoints import Registry


def _said(report: Report, state: str) -> list[str]:
    return [check.text for check in report.checks if check.state == state]


@pytest.fixture(scope="module")
def report(scored: Any, trained: Any) -> Report:
    return report_output(str(scored.output), str(trained.registry), 60)


def test_counts_drift_and_labels_are_looked_at(report: Report, scored: Any) -> None:
    accuracy = f"{scored.manifest.evaluation['accuracy']:.1%}"

    assert "4 shards scored, and none failed" in _said(report, "good")
    assert "Counts add up: 420 rows in 4 files, 412 with a prediction and 8 without" in _said(report, "good")
    assert any(text.startswith("8 rows (1.90%) without a prediction") for text in _said(report, "look"))
    assert any(f"Accuracy {accuracy} on 412 labelled rows" in check.text for check in report.checks)
    assert any("rift: " in check.text for check in report.checks)
    assert (report.state, report.headline[-12:]) == ("look", "worth a look")


def test_errors_have_their_counts_and_first_places(report: Report) -> None:
    assert report.errors.keys() == {"no tokens", "tokens are null"}
    number, places = report.errors["no tokens"]
    assert number == 4
    assert places[:2] == (("date=2026-11-01/part-0.parquet", 1), ("date=2026-11-02/part-0.parquet", 1))


def test_drift_is_laid_over_what_the_checkpoint_was_measured_on(report: Report, scored: Any) -> None:
    overlays = {overlay.aspect: overlay for overlay in report.drift}

    assert overlays.keys() == {"tokens", "lengths", "classes", "confidence"}
    for overlay in overlays.values():
        assert len(overlay.labels) == len(overlay.reference) == len(overlay.observed)
        assert sum(overlay.observed) == pytest.approx(1, abs=1e-3)
    predicted = scored.manifest.totals["predictions"]
    shares = dict(zip(overlays["classes"].labels, overlays["classes"].observed, strict=True))
    assert shares == {name: pytest.approx(number / 412, abs=1e-5) for name, number in predicted.items()}


def test_rows_have_the_tokens_of_the_source_and_their_weights(report: Report, scored: Any, dataset: Path) -> None:
    assert len(report.rows) > 20
    for row in report.rows:
        source = pq.read_table(dataset / row.file, partitioning=None).slice(row.row, 1).to_pylist()[0]
        assert (row.id, row.label) == (source["id"], source["label"])
        assert (row.tokens is None) == (source["tokens"] is None)
        if row.tokens is not None:
            assert row.tokens.num_tokens == len(source["tokens"])
        if row.error is None:
            attention = pq.read_table(scored.output / "attention" / row.file, partitioning=None)
            weights = attention["weights"][row.row].as_py()
            assert row.tokens is not None
            assert row.tokens.most_attended[0].weight == pytest.approx(max(weights))
    assert all(row.is_wrong for row in report.rows if "wrong" in row.why)
    assert {row.error for row in report.rows if "error" in row.why} == {"no tokens", "tokens are null"}


def test_rows_of_a_source_that_is_gone_or_has_changed_come_without_tokens(
    output_copy: Path, dataset_copy: Path, trained: Any
) -> None:
    record = json.loads((output_copy / "_dataset.json").read_text())
    (output_copy / "_dataset.json").write_text(json.dumps(record | {"source": str(dataset_copy)}))
    (dataset_copy / "date=2026-11-01" / "part-0.parquet").unlink()
    changed = dataset_copy / "date=2026-11-02" / "part-0.parquet"
    pq.write_table(pq.read_table(changed, partitioning=None).slice(1), changed)

    rows = report_output(str(output_copy), str(trained.registry), 100).rows

    notes = {row.file.partition("/")[0].removeprefix("date=2026-11-"): row.note for row in rows}
    assert notes == {
        "01": "the source can't be read from here",
        "02": "the source has changed since this row was scored",
        "04": "",
        "05": "",
    }
    assert all((row.tokens is None) == bool(row.note) for row in rows if row.error != "tokens are null")


def test_no_row_is_shown_where_none_may(scored: Any, trained: Any) -> None:
    report = report_output(str(scored.output), str(trained.registry), 0)

    assert report.rows == ()
    assert report.rows_note == "No row is shown, as was asked for."


def test_without_the_registry_the_card_is_left_out(scored: Any, tmp_path: Path) -> None:
    report = report_output(str(scored.output), str(tmp_path / "none"), 5)

    assert (report.card.version, report.drift) == ("", ())
    assert report.rows


def test_files_that_are_not_as_the_runs_recorded_do_not_add_up(output_copy: Path, trained: Any) -> None:
    file = output_copy / "predictions" / "date=2026-11-01" / "part-0.parquet"
    table = pq.read_table(file, partitioning=None).slice(1)
    metadata = pq.read_metadata(file).metadata
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"attnlstm": metadata[b"attnlstm"]})
    (output_copy / "predictions" / "date=2026-11-02" / "part-0.parquet").write_bytes(b"torn")

    report = report_output(str(output_copy), str(trained.registry), 5)

    assert report.state == "bad"
    bad = " | ".join(_said(report, "bad"))
    assert "predictions/date=2026-11-02/part-0.parquet: not a whole Parquet file" in bad
    assert "Counts do not add up: 314 rows in 3 files, not as the runs recorded, first date=2026-11-01" in bad


def test_what_a_later_run_has_scored_is_no_failure_any_more(scored: Any) -> None:
    manifest, output = scored.manifest, existing_output(str(scored.output))
    name = manifest.shards[0].name
    earlier = replace(manifest, state="failed", shards=(), failures=(FailureRecord(name, "cut short"),))

    after = report_run(str(scored.output), output, None, [manifest, earlier], Card(), 0)
    before = report_run(str(scored.output), output, None, [earlier], Card(), 0)

    assert _said(after, "bad") == []
    assert _said(before, "bad") == [f"Not scored: {name}: cut short"]
    assert before.headline == "Something went wrong"


def test_a_run_is_reported_on_by_the_files_that_it_wrote(output_copy: Path, rescore: Callable[..., Any]) -> None:
    shutil.rmtree(output_copy / "predictions" / "date=2026-11-04")

    again = rescore(output_copy)

    assert again.manifest.report == f"runs/{again.manifest.run_id}.html"
    assert (output_copy / again.manifest.report).is_file()
    report = report_run(str(output_copy), existing_output(str(output_copy)), None, [again.manifest], Card(), 10)
    assert report.figures is not None
    assert report.figures.num_rows == 105
    assert report.title == again.manifest.run_name


def test_a_retraining_says_what_was_decided_and_why(trained: Any) -> None:
    registry = Registry.open(str(trained.registry))
    run_id = str(trained.state.state_details.flow_run_id)
    record = json.loads(registry.run_record(run_id).read_text())

    report = report_retraining(record, registry.card(trained.version))

    assert report.checks[0].text.startswith("Promoted: the first checkpoint, test accuracy")
    assert report.facts["checkpoint"] == trained.version
    rejected = report_retraining(record | {"outcome": "rejected"}, registry.card(trained.version))
    assert rejected.state == "look"
    page = registry.run_report(run_id).read_text()
    test = registry.card(trained.version).test
    assert "<dd>{:.1%}<small>{:.0%} to {:.0%}, by".format(test.accuracy, *test.accuracy_interval) in page
    assert "Made by attnlstm from the checkpoint's card." in page  # and not of an output, by `attnlstm report`


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no output of attnlstm"):
        report_output(str(tmp_path), "registry", 5)

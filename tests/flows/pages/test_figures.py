"""What is counted over predictions, against the same questions in SQL; and which rows are picked to be looked at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.pages.figures import OTHER, Figures, count_predictions
from storage.output.layout import Stamp

NAMES = [f"date={date}/part-0.parquet" for date in ("2026-11-01", "2026-11-02", "2026-11-04", "2026-11-05")]


def _ask(output: Path, question: str) -> list[tuple[Any, ...]]:
    return duckdb.sql(question.replace("OUTPUT", f"'{output}/predictions/**/*.parquet'")).fetchall()


@pytest.fixture(scope="module")
def figures(scored: Any) -> Figures:
    return count_predictions(str(scored.output), reversed(NAMES), label_column="label", num_picks=40)


def test_counts_are_those_of_the_output(figures: Figures, scored: Any) -> None:
    ((rows, tokens, confidence),) = _ask(scored.output, "SELECT count(*), sum(num_tokens), avg(score) FROM OUTPUT")

    assert (figures.num_rows, figures.num_tokens) == (rows, tokens)
    assert figures.confidence == pytest.approx(confidence)
    for counted, column in ((figures.errors, "error"), (figures.predictions, "prediction")):
        assert counted == dict(
            _ask(scored.output, f"SELECT {column}, count(*) FROM OUTPUT WHERE {column} IS NOT NULL GROUP BY 1")
        )
    assert sum(figures.predictions.values()) + figures.num_errors == rows
    assert figures.checkpoints == {scored.manifest.checkpoint: rows}


def test_labels_are_compared_with_predictions(figures: Figures, scored: Any) -> None:
    both = "FROM OUTPUT WHERE label IS NOT NULL AND prediction IS NOT NULL"
    pairs = _ask(scored.output, f"SELECT label, prediction, count(*) {both} GROUP BY ALL")
    ((accuracy,),) = _ask(scored.output, f"SELECT avg((label = prediction)::INT) {both}")

    assert figures.confusion == {(label, prediction): count for label, prediction, count in pairs}
    assert figures.accuracy == pytest.approx(accuracy) == scored.manifest.evaluation["accuracy"]
    gaps = _ask(
        scored.output,
        f"SELECT abs(sum((label = prediction)::INT - score)) {both} GROUP BY least(19, floor(score * 20))",
    )
    assert figures.calibration_error == pytest.approx(sum(gap for (gap,) in gaps) / figures.num_labelled)


def test_partitions_come_in_order_with_their_counts(figures: Figures) -> None:
    assert [part.name for part in figures.parts] == [name.partition("/")[0] for name in NAMES]
    assert [part.num_rows for part in figures.parts] == [105] * 4
    assert [part.num_errors for part in figures.parts] == [2] * 4
    for name, number in figures.predictions.items():
        assert sum(part.predictions.get(name, 0) for part in figures.parts) == number


def test_months_are_in_the_order_of_numbers(write: Callable[..., Path], tmp_path: Path) -> None:
    names = [f"month={month}/a.parquet" for month in (1, 2, 10)]
    for name in names:
        write(name)

    figures = count_predictions(str(tmp_path), names)

    assert [part.name for part in figures.parts] == ["month=1", "month=2", "month=10"]


def _row(figures: Figures, output: Path, place: int) -> dict[str, Any]:
    file = next(file for file in figures.files if file.first <= place < file.first + file.num_rows)
    return (
        pq.read_table(output / "predictions" / file.name, partitioning=None).slice(place - file.first, 1).to_pylist()[0]
    )  # type: ignore[no-any-return]


def test_rows_to_look_at_are_what_they_are_picked_for(figures: Figures, scored: Any) -> None:
    rows = {why: [_row(figures, scored.output, place) for place in places] for why, places in figures.picks.items()}

    assert sum(map(len, rows.values())) <= 40
    assert {row["error"] for row in rows["error"]} == {"no tokens", "tokens are null"}
    assert rows["wrong"]
    assert all(row["label"] != row["prediction"] for row in rows["wrong"])
    ((least, most),) = _ask(scored.output, "SELECT min(score), max(score) FROM OUTPUT")
    assert min(row["score"] for row in rows["least sure"]) == pytest.approx(least)
    assert max(row["score"] for row in rows["most sure"]) == pytest.approx(most)
    assert {row["prediction"] for row in rows["of its class"]} == set(figures.predictions)


def test_the_same_rows_are_picked_each_time(figures: Figures, scored: Any) -> None:
    again = count_predictions(str(scored.output), NAMES, label_column="label", num_picks=40)

    assert again.picks == figures.picks
    assert count_predictions(str(scored.output), NAMES).picks == {}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small predictions file, with further columns if they are given."""

    def make(name: str, classes: tuple[str, ...] = ("x", "y"), **columns: Any) -> Path:
        path = tmp_path / "predictions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        given = {
            "id": [1, 2, 3],
            "prediction": ["x", "y", None],
            "score": pa.array([0.5, 1.0, None], pa.float32()),
            "probabilities": pa.array([[1 / len(classes)] * len(classes)] * 3, pa.list_(pa.float32(), len(classes))),
            "num_tokens": [3, 4, None],
            "truncated": [False, True, False],
            "error": [None, None, "tokens are null"],
            "checkpoint": ["v1"] * 3,
        }
        stamp = Stamp(name, "f", 0, 3, "v1", "d", "s", 2)
        metadata = {"attnlstm": stamp.to_json(), "classes": json.dumps(classes)}
        pq.write_table(pa.table(given | columns).replace_schema_metadata(metadata), path)
        return path

    return make


def test_files_with_other_classes_and_types_are_counted_together(write: Callable[..., Path], tmp_path: Path) -> None:
    write("a.parquet", label=["x", "x", "y"])
    write("b.parquet", ("x", "y", "7"), label=[7, None, 1])
    write("c.parquet", label=pa.array(["y", "gone", "x"]).dictionary_encode())

    figures = count_predictions(str(tmp_path), ["a.parquet", "b.parquet", "c.parquet"], label_column="label")

    assert figures.classes == ("x", "y", "7")
    assert (figures.num_rows, figures.num_errors, figures.num_truncated) == (9, 3, 3)
    assert (figures.num_labelled, figures.accuracy) == (4, 0.25)  # as in a run's summary, of labels that are classes
    assert figures.confusion == {("x", "x"): 1, ("x", "y"): 1, ("7", "x"): 1, ("y", "x"): 1, (OTHER, "y"): 1}


def test_labels_may_be_partitions(write: Callable[..., Path], tmp_path: Path) -> None:
    names = ["label=x/a.parquet", "label=y/a.parquet", "label=__HIVE_DEFAULT_PARTITION__/a.parquet"]
    for name in names:
        write(name)

    figures = count_predictions(str(tmp_path), names, label_column="label", num_picks=20)

    assert figures.confusion == {("x", "x"): 1, ("x", "y"): 1, ("y", "x"): 1, ("y", "y"): 1}
    assert len(figures.picks["wrong"]) == 2


@pytest.mark.parametrize("name", ["^label.*$", "place", "path", "<b>", "*", "label"])
def test_label_column_may_have_any_name(write: Callable[..., Path], tmp_path: Path, name: str) -> None:
    write("a.parquet", **{name: ["x", "x", "y"], "label of another": ["y", "y", "y"]})

    figures = count_predictions(str(tmp_path), ["a.parquet"], label_column=name, num_picks=9)

    assert figures.accuracy == 0.5
    assert figures.picks["wrong"] == [1]


def test_files_that_cannot_be_read_are_named_and_the_others_counted(write: Callable[..., Path], tmp_path: Path) -> None:
    write("a.parquet")
    (tmp_path / "predictions" / "b.parquet").write_bytes(b"torn")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "predictions" / "c.parquet")

    figures = count_predictions(str(tmp_path), ["a.parquet", "b.parquet", "c.parquet", "d.parquet"])

    assert figures.num_rows == 3
    assert sorted(figures.unreadable) == ["b.parquet", "c.parquet", "d.parquet"]
    assert (figures.unreadable["c.parquet"], figures.unreadable["d.parquet"]) == ("not written by attnlstm", "missing")


def test_without_files_there_is_nothing_to_count(tmp_path: Path) -> None:
    figures = count_predictions(str(tmp_path), [], label_column="label", num_picks=9)

    assert (figures.num_rows, figures.accuracy, figures.confidence, figures.picks) == (0, None, None, {})


def test_empty_files_count_as_no_rows(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("day=1/a.parquet")
    pq.write_table(pq.read_table(path, partitioning=None).slice(0, 0), path)
    write("day=2/a.parquet")

    figures = count_predictions(str(tmp_path), ["day=1/a.parquet", "day=2/a.parquet"])

    assert [(part.name, part.num_rows) for part in figures.parts] == [("day=1", 0), ("day=2", 3)]

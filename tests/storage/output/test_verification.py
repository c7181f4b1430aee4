"""Verification finds each way in which an output can be wrong, at its exact place, and nothing in a right one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage.output.side_by_side
from builders import rewrite, set_value
from storage.input.columns import Columns
from storage.input.shards import ShardLimits
from storage.output.layout import Output, OutputSettings
from storage.output.plan import plan_output
from storage.output.verification import VerificationReport, verify_output

ROWS = 40
NULL_ROW, EMPTY_ROW, LONG_ROW = 3, 11, 23
TOKENS = [bytes((31 * row + 7 * place) % 251 for place in range(2 + row % 9)) for row in range(ROWS)]
TOKENS[LONG_ROW] = bytes(range(2, 60))
TOKENS[NULL_ROW] = None  # type: ignore[call-overload]
TOKENS[EMPTY_ROW] = b""
IDS = [f"id-{row}" if row % 10 else None for row in range(ROWS)]
MAX_TOKENS = 17

Change = Callable[[pa.Table], pa.Table]
Made = Callable[..., Output]


SETTINGS: dict[str, Any] = {"columns": Columns(keep=("origin",)), "max_tokens": MAX_TOKENS}


@pytest.fixture
def filled(put: Callable[..., Path], data: Path) -> Path:
    put("part.parquet", TOKENS, id=IDS, origin=[f"sensor {row % 3}" for row in range(ROWS)], row_group_size=13)
    return data


@pytest.fixture
def output(filled: Path, made: Made) -> Output:
    """What was made of `filled`, with all of the attention."""
    return made(**SETTINGS)


def _verify(data: Path | str, output: Output, **options: Any) -> VerificationReport:
    return verify_output(plan_output(str(data), output), **options)


def _path(output: Output, kind: str = "predictions", name: str = "part.parquet") -> Path:
    return Path(output.root.path) / kind / name


def test_footers_of_the_output_are_read_once(filled: Path, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_output(str(filled), output)
    read: list[str] = []
    real = storage.output.side_by_side.read_footer
    monkeypatch.setattr(
        storage.output.side_by_side, "read_footer", lambda location: (read.append(location.path), real(location))[1]
    )

    assert verify_output(plan).problems == ()

    assert read == [str(_path(output, kind)) for kind in ("predictions", "attention")]


@pytest.mark.parametrize("saving", ["full", "top:3", "none"])
@pytest.mark.parametrize(("long_rows", "version"), [("truncate", 1), ("truncate", 2), ("error", 2)])
def test_right_output_has_no_problems(filled: Path, made: Made, saving: str, long_rows: str, version: int) -> None:
    settings = SETTINGS | {"limits": ShardLimits(rows=20), "long_rows": long_rows, "format_version": version}
    output = made(saving, scoring={"chunk_rows": 7}, **settings)

    report = _verify(filled, output)

    assert (report.problems, report.num_more, report.num_rows, report.num_files) == ((), 0, ROWS, 2)


THRESHOLDS = np.array([0.5, 0.6, 0.7], np.float32)


@pytest.fixture
def abstaining(filled: Path, made: Made) -> Output:
    """What was made of `filled` without predictions whose score is below the threshold of their class."""
    return made(scoring={"thresholds": THRESHOLDS, "chunk_rows": 7}, abstain_below="precision=0.9", **SETTINGS)


def test_output_that_abstains_is_right_and_known_by_its_settings(filled: Path, abstaining: Output) -> None:
    assert _verify(filled, abstaining).problems == ()

    always = Output(abstaining.root, OutputSettings(**SETTINGS))
    problems = [problem.what for problem in _verify(filled, always).problems]
    assert any("its footer has settings_digest" in what for what in problems)


def test_prediction_that_is_withheld_or_given_against_the_thresholds_is_found(filled: Path, abstaining: Output) -> None:
    rows = pq.ParquetFile(_path(abstaining)).read().to_pylist()
    scored = [row for row in rows if row["error"] is None]
    low = next(row for row in scored if row["prediction"] is None)
    high = next(row for row in scored if row["prediction"] is not None)
    num_low = sum(row["prediction"] is None for row in scored)
    rewrite(_path(abstaining), set_value("prediction", low["row"], "odd"))
    rewrite(_path(abstaining), set_value("prediction", high["row"], None))
    rewrite(_path(abstaining), lambda table: table, num_abstained=num_low + 1)

    found = {(problem.row, problem.what) for problem in _verify(filled, abstaining).problems}

    assert found == {
        (low["row"], "prediction is 'odd', expected null: its score is too low for one"),
        (high["row"], "prediction is null, expected a value in a row without an error"),
        (None, f"its footer has num_abstained {num_low + 1}, expected {num_low}"),
    } | ({(low["row"], what) for row, what in found if row == low["row"] and "the class of the largest" in what})


def test_rows_without_an_id_column_are_right_by_their_position_in_the_input(
    put: Callable[..., Path], data: Path, made: Made
) -> None:
    put("part.parquet", TOKENS, row_group_size=13)
    output = made(max_tokens=MAX_TOKENS, limits=ShardLimits(rows=20))
    assert _verify(data, output).problems == ()

    rewrite(_path(output, "predictions", "part-00001-of-00002.parquet"), set_value("id", 2, 2))
    (problem,) = _verify(data, output).problems
    assert str(problem) == "predictions/part-00001-of-00002.parquet, row 2: id is 2, expected 28"


@pytest.mark.parametrize(
    "kept",
    [
        pa.array([float("nan"), None, 0.5] * 4, pa.float64()),
        pa.array([[1.0, float("nan")], None, []] * 4, pa.list_(pa.float64())),
        pa.array([{"a": 1}, None, {"a": None}] * 4),
        pa.array(["x", None, "y"] * 4).dictionary_encode(),
        pa.array(["x", None, "y"] * 4, pa.string_view()),
        pa.array([1, None, 3] * 4, pa.timestamp("ns", "UTC")),
        pa.nulls(12),
    ],
    ids=lambda kept: str(kept.type),
)
def test_kept_columns_of_any_type_are_compared(
    put: Callable[..., Path], data: Path, made: Made, kept: pa.Array
) -> None:
    put("part.parquet", [b"ab"] * 12, kept=kept)
    output = made(columns=Columns(keep=("kept",)))
    assert _verify(data, output).problems == ()

    if kept.null_count < len(kept):
        shifted = pa.concat_arrays([kept[:6], kept[7:], kept[:1]])  # differs from row 6 to row 11
        change: Change = lambda table: table.set_column(2, table.schema.field("kept"), shifted)  # noqa: E731
        rewrite(_path(output, "predictions"), change)
        assert [problem.row for problem in _verify(data, output).problems] == [6, 7, 8, 9, 10, 11]


ERROR = "no tokens"
PREDICTION_CHANGES: dict[str, tuple[Change, int | None, str]] = {
    "row": (set_value("row", 17, 18), 17, "row is 18, expected 17"),
    "id": (set_value("id", 17, "id-18"), 17, "id is 'id-18', expected 'id-17'"),
    "id lost": (set_value("id", 17, None), 17, "id is null, expected 'id-17'"),
    "kept": (set_value("origin", 5, "sensor 9"), 5, "origin is 'sensor 9', expected 'sensor 2'"),
    "num_tokens": (set_value("num_tokens", 30, 4), 30, "num_tokens is 4, expected 5"),
    "num_tokens of null": (set_value("num_tokens", NULL_ROW, 0), NULL_ROW, "num_tokens is 0, expected null"),
    "truncated": (set_value("truncated", LONG_ROW, False), LONG_ROW, "truncated is False, expected True"),
    "error": (set_value("error", EMPTY_ROW, "because"), EMPTY_ROW, "error is 'because', expected 'no tokens'"),
    "checkpoint": (set_value("checkpoint", 8, "v2"), 8, "checkpoint is 'v2', expected 'v1'"),
    "score": (set_value("score", 8, 0.125), 8, "score is 0.125, expected"),
    "score lost": (set_value("score", 8, None), 8, "score is null, expected a value in a row without an error"),
    "score of an error": (set_value("score", EMPTY_ROW, 0.5), EMPTY_ROW, "score is 0.5, expected null beside an error"),
    "prediction": (set_value("prediction", 8, lambda was: "third" if was != "third" else "odd"), 8, "prediction is"),
    "unknown class": (set_value("prediction", 8, "fourth"), 8, "prediction is 'fourth', expected"),
    "probability": (set_value("probabilities", 8, lambda was: [was[0] * 0.9, *was[1:]]), 8, "probabilities sum to 0."),
    "not a number": (set_value("probabilities", 8, lambda was: [float("nan"), *was[1:]]), 8, "expected all in 0..1"),
    "negative": (set_value("probabilities", 8, [-0.5, 1.0, 0.5]), 8, "probabilities are [-0.5, 1.0, 0.5]"),
}


@pytest.mark.parametrize("name", PREDICTION_CHANGES)
def test_a_changed_value_of_the_predictions_is_found_in_its_row(filled: Path, output: Output, name: str) -> None:
    change, row, what = PREDICTION_CHANGES[name]
    rewrite(_path(output, "predictions"), change)

    problems = _verify(filled, output).problems

    assert {(problem.path, problem.row) for problem in problems} == {("predictions/part.parquet", row)}
    assert any(what in problem.what for problem in problems), problems


ATTENTION_CHANGES: dict[str, tuple[str, Change, int, str]] = {
    "row": ("full", set_value("row", 17, 18), 17, "row is 18, expected 17"),
    "id": ("full", set_value("id", 17, "id-18"), 17, "id is 'id-18', expected 'id-17'"),
    "weight": ("full", set_value("weights", 17, lambda was: [*was[:-1], was[-1] + 0.001]), 17, "weights sum to 1.001"),
    "weight short": ("full", set_value("weights", 17, lambda was: was[:-1]), 17, "weights has 9 values, expected 10"),
    "weight long": (
        "full",
        set_value("weights", LONG_ROW, lambda was: [*was, 0.0]),
        LONG_ROW,
        "18 values, expected 17",
    ),
    "weight negative": (
        "full",
        set_value("weights", 17, lambda was: [-was[0], 2 * was[0], *was[1:]][:10]),
        17,
        "all 0 or",
    ),
    "weight no number": ("full", set_value("weights", 17, lambda was: [float("nan"), *was[1:]]), 17, "all 0 or more"),
    "weights lost": ("full", set_value("weights", 17, None), 17, "weights is null, expected a value"),
    "weights of an error": ("full", set_value("weights", EMPTY_ROW, []), EMPTY_ROW, "weights is [], expected null"),
    "too few": ("top:3", set_value("weights", 17, lambda was: was[:2]), 17, "weights has 2 values, expected 3"),
    "too little": ("top:3", set_value("weights", 17, [0.01, 0.01, 0.01]), 17, "weights sum to 0.0300000, expected 0.3"),
    "rising": ("top:3", set_value("weights", 17, lambda was: [was[1], was[0], was[2]]), 17, "largest weights first"),
    "outside": ("top:3", set_value("positions", 17, lambda was: [10, *was[1:]]), 17, "expected all within the row"),
    "twice": ("top:3", set_value("positions", 17, lambda was: [was[2], *was[1:]]), 17, "expected none twice"),
    "positions lost": ("top:3", set_value("positions", 17, None), 17, "positions is null, expected a value"),
}


@pytest.mark.parametrize("name", ATTENTION_CHANGES)
def test_a_changed_value_of_the_attention_is_found_in_its_row(filled: Path, made: Made, name: str) -> None:
    saving, change, row, what = ATTENTION_CHANGES[name]
    output = made(saving, **SETTINGS)
    rewrite(_path(output, "attention"), change)

    problems = _verify(filled, output).problems

    assert {(problem.path, problem.row) for problem in problems} == {("attention/part.parquet", row)}
    assert any(what in problem.what for problem in problems), problems


@pytest.mark.parametrize("kind", ["predictions", "attention"])
@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ([*range(21), *range(22, ROWS)], [": holds 39 rows, expected 40", ", row 21: row is 22, expected 21"]),
        ([*range(22), *range(21, ROWS)], [": holds 41 rows, expected 40", ", row 22: row is 21, expected 22"]),
        (
            [*range(25), 26, 25, *range(27, ROWS)],
            [", row 25: row is 26, expected 25", ", row 25: id is 'id-26', expected 'id-25'"],
        ),
    ],
    ids=["dropped", "doubled", "swapped"],
)
def test_dropped_doubled_and_swapped_rows_are_found_where_they_are(
    filled: Path, output: Output, kind: str, kept: list[int], found: list[str]
) -> None:
    rewrite(_path(output, kind), lambda table: table.take(kept))

    problems = _verify(filled, output).problems

    assert [str(problem) for problem in problems][: len(found)] == [f"{kind}/part.parquet{what}" for what in found]
    if len(kept) == ROWS:
        assert {problem.row for problem in problems} == {25, 26}


@pytest.mark.parametrize(
    ("kind", "stamp"),
    [
        *(
            (kind, {key: value})
            for kind in ("predictions", "attention")
            for key, value in (
                ("fingerprint", "0" * 32),
                ("first_row", 1),
                ("settings_digest", "0" * 32),
                ("file", "b.parquet"),
            )
        ),
        ("predictions", {"num_errors": 3}),
        ("predictions", {"num_tokens": 7}),
        ("attention", {"checkpoint": "v2", "checkpoint_digest": "e" * 32}),
    ],
    ids=str,
)
def test_a_stamp_of_another_making_is_told_instead_of_all_of_its_rows(
    filled: Path, output: Output, kind: str, stamp: dict[str, object]
) -> None:
    rewrite(_path(output, kind), lambda table: table, **stamp)

    problems = [problem for problem in _verify(filled, output).problems if problem.path == f"{kind}/part.parquet"]

    assert len(problems) == len(stamp)
    key, value = next(iter(stamp.items()))
    assert str(problems[0]).startswith(f"{kind}/part.parquet: its footer has {key} {value!r}, expected ")


@pytest.mark.parametrize("kind", ["predictions", "attention"])
def test_the_file_of_another_shard_is_found(
    put: Callable[..., Path], data: Path, output: Output, score: Callable[..., Any], kind: str
) -> None:
    for name, first in (("a.parquet", 0), ("b.parquet", 5)):
        put(name, TOKENS[first : first + 5], id=IDS[first : first + 5], origin=["x"] * 5)
    score(data, output)
    shutil.copy(_path(output, kind, "b.parquet"), _path(output, kind, "a.parquet"))

    problems = _verify(data, output).problems

    assert {problem.path for problem in problems} == {f"{kind}/a.parquet"}
    assert any("has file 'b.parquet', expected 'a.parquet'" in problem.what for problem in problems)


@pytest.mark.parametrize("kind", ["predictions", "attention"])
def test_a_file_that_is_missing_or_cut_short_is_named_whatever_is_left_of_it(
    filled: Path, output: Output, kind: str
) -> None:
    content = _path(output, kind).read_bytes()
    _path(output, kind).unlink()
    assert [str(problem) for problem in _verify(filled, output).problems] == [f"{kind}/part.parquet: missing"]

    for length in (0, 3, 12, len(content) // 2, len(content) - 9, len(content) - 1):
        _path(output, kind).write_bytes(content[:length])

        (problem,) = _verify(filled, output).problems

        assert problem.path == f"{kind}/part.parquet"
        assert problem.what.startswith("can't be read: ")


@pytest.mark.parametrize("kind", ["predictions", "attention"])
def test_damaged_pages_are_found(filled: Path, output: Output, kind: str) -> None:
    content = _path(output, kind).read_bytes()
    metadata = pq.read_metadata(_path(output, kind))
    for column in range(metadata.num_columns):
        chunk = metadata.row_group(0).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        middle = start + chunk.total_compressed_size - 4  # the last bytes of a page
        damaged = bytearray(content)
        for place in range(middle, middle + 4):
            damaged[place] ^= 0xFF
        _path(output, kind).write_bytes(damaged)

        problems = _verify(filled, output).problems

        assert {problem.path for problem in problems} == {f"{kind}/part.parquet"}, chunk.path_in_schema


def test_one_flipped_bit_in_the_last_digits_of_a_weight_is_found(filled: Path, output: Output) -> None:
    path = _path(output, "attention")
    chunk = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    # The bytes of floats are split, lowest first: this far into the page no sum tells, only its checksum.
    content[chunk.data_page_offset + chunk.total_compressed_size * 2 // 5] ^= 1
    path.write_bytes(content)

    (problem,) = _verify(filled, output).problems

    assert (problem.path, problem.row) == ("attention/part.parquet", 0)
    assert problem.what.startswith("can't be read: ")


def test_rows_are_told_by_their_position_in_the_file_however_it_is_read(
    put: Callable[..., Path], data: Path, made: Made
) -> None:
    put("part.parquet", [bytes([row % 251]) for row in range(5000)], row_group_size=1500)
    output = made(chunk_bytes=1000)
    for kind in ("predictions", "attention"):
        rewrite(_path(output, kind), lambda table: table.take([*range(4200), 4201, 4200, *range(4202, 5000)]))

    report = _verify(data, output)

    assert {(problem.path, problem.row) for problem in report.problems} == {
        (f"{kind}/part.parquet", row) for kind in ("predictions", "attention") for row in (4200, 4201)
    }
    assert report.num_rows == 5000


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda table: table.drop_columns("truncated"), "has the columns row (int64), id, origin, prediction (string)"),
        (lambda table: table.set_column(4, "score", table["score"].cast(pa.float64())), "score (double)"),
    ],
)
def test_predictions_with_other_columns_or_types_are_named(
    filled: Path, output: Output, change: Change, what: str
) -> None:
    rewrite(_path(output, "predictions"), change)

    (problem,) = _verify(filled, output).problems

    assert what in problem.what


def test_an_input_that_changed_since_is_told_once_a_file(
    filled: Path, put: Callable[..., Path], output: Output
) -> None:
    put("part.parquet", TOKENS, id=IDS, origin=["elsewhere"] * ROWS)

    problems = _verify(filled, output).problems

    assert [problem.path for problem in problems] == ["predictions/part.parquet", "attention/part.parquet"]
    assert all("made from other content than the input has now" in problem.what for problem in problems)


def test_an_input_that_cannot_be_read_is_a_problem_of_its_own(filled: Path, output: Output) -> None:
    (filled / "note.parquet").write_text("no Parquet at all")

    (problem,) = _verify(filled, output).problems

    assert str(problem).startswith("note.parquet: the input can't be read: not a whole Parquet file")


def test_rows_that_are_there_twice_under_another_cut_are_found(filled: Path, output: Output) -> None:
    for kind in ("predictions", "attention"):
        shutil.copy(_path(output, kind), _path(output, kind, "part-00000-of-00002.parquet"))

    found = [str(problem) for problem in _verify(filled, output).problems]

    assert found == [
        f"{kind}/part-00000-of-00002.parquet: no input accounts for it: superseded, part.parquet is cut otherwise now"
        for kind in ("attention", "predictions")
    ]


def test_the_first_problems_of_a_shard_are_listed_in_order_of_rows_and_the_rest_counted(
    filled: Path, output: Output
) -> None:
    rewrite(_path(output, "predictions"), lambda table: table.set_column(1, "id", pa.nulls(ROWS, pa.string())))
    rewrite(_path(output, "predictions"), set_value("checkpoint", 0, "v2"))

    report = _verify(filled, output, max_problems=4)

    assert [problem.row for problem in report.problems] == [0, 1, 2, 3]
    assert len(report.problems) + report.num_more == 1 + sum(id is not None for id in IDS)


class TestVocabulary:
    """Which token ids were outside the vocabulary: by the checkpoint, or else by what the errors say."""

    DIGEST = "d" * 32
    OUTSIDE = "a token id outside 0..4"
    TOKENS = pa.array([[1, 2], [3, 9], [4], [-1]], pa.list_(pa.int32()))

    @pytest.fixture
    def scored(self, put: Callable[..., Path], made: Made) -> Output:
        """Scored with a vocabulary of five: rows 1 and 3 have an error."""
        put("part.parquet", self.TOKENS)
        return made(scoring={"num_tokens_known": 5})

    def test_errors_in_the_output_say_how_large_it_was(self, data: Path, scored: Output) -> None:
        assert _verify(data, scored).problems == ()

    def test_checkpoint_knows_it(self, data: Path, scored: Output) -> None:
        assert _verify(data, scored, vocabularies={self.DIGEST: 5}).problems == ()

        found = [str(problem) for problem in _verify(data, scored, vocabularies={self.DIGEST: 10}).problems]
        assert "predictions/part.parquet, row 1: error is 'a token id outside 0..4', expected null" in found

    @pytest.mark.parametrize(("row", "said", "expected"), [(0, f"{OUTSIDE!r}", "null"), (1, "null", f"{OUTSIDE!r}")])
    def test_an_error_without_cause_or_a_missing_one_is_found_without_the_checkpoint(
        self, data: Path, scored: Output, row: int, said: str, expected: str
    ) -> None:
        rewrite(_path(scored, "predictions"), set_value("error", row, None if said == "null" else self.OUTSIDE))

        found = [str(problem) for problem in _verify(data, scored).problems]

        assert f"predictions/part.parquet, row {row}: error is {said}, expected {expected}" in found


def test_zero_rows_are_right(put: Callable[..., Path], data: Path, made: Made) -> None:
    put("part.parquet", [])

    report = _verify(data, made("top:2"))

    assert (report.problems, report.num_rows, report.num_files) == ((), 0, 1)


def test_partitions_that_are_kept_are_not_looked_for_in_the_files(
    put: Callable[..., Path], data: Path, made: Made
) -> None:
    put("date=2026-11-01/part.parquet")

    assert _verify(data, made(columns=Columns(keep=("date",)))).problems == ()

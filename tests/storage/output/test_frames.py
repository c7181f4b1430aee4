"""Files of an output that differ are one frame: of several checkpoints or types, beside partitions and below."""

import shutil
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage
from storage.errors import OutputError
from storage.input.shards import ShardLimits
from storage.locations import Location
from storage.output.layout import Output, OutputSettings
from storage.output.plan import existing_output, plan_output
from storage.output.verification import verify_output
from storage.registry.checkpoints import CheckpointId


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Location.parse(tmp_path / "out"), OutputSettings())


def rows(frame: pl.LazyFrame, *columns: str) -> list[tuple[object, ...]]:
    return frame.select(columns).collect().rows()


def test_files_beside_partitions_have_null_for_them(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("date=2026-11-01/a.parquet", id=[1, 2])
    put("date=2026-11-02/hour=7/a.parquet", id=[3, 4])
    put("e.parquet", id=[5, 6])
    score(data, output)
    day, next_day = date(2026, 11, 1), date(2026, 11, 2)
    expected = [(1, day, None), (2, day, None), (3, next_day, 7), (4, next_day, 7), (5, None, None), (6, None, None)]
    assert rows(storage.open_predictions(output.root.path), "id", "date", "hour") == expected
    attention = storage.open_attention(output.root.path)
    assert rows(attention, "id", "date", "hour") == expected
    assert attention.select(pl.col("weights").list.len() == pl.col("num_tokens")).collect().to_series().all()


@pytest.mark.parametrize("name", ["spark.parquet/part-0", "a/_x.parquet", "[1]/s*.parquet"])
def test_names_of_inputs_are_no_reason_to_pass_over_their_output(
    name: str, data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    score(put(name, id=[1, 2]), output)
    assert rows(storage.open_predictions(output.root.path), "id") == [(1,), (2,)]


@pytest.mark.parametrize("folder", ["model=a", "checkpoint=x", "date=1999-01-01"])
def test_partitions_in_the_outputs_own_path_are_none_of_its_columns(
    folder: str, tmp_path: Path, data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("date=2026-11-01/a.parquet")
    put("date=2026-11-02/b.parquet")
    score(data, output)
    expected = storage.open_predictions(output.root.path).collect()
    moved = Path(shutil.move(output.root.path, tmp_path / folder / "out"))
    assert storage.open_predictions(moved).collect().equals(expected)
    assert storage.open_attention(moved).collect().drop("weights").equals(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "02", "-3"], [1, 2, -3]),
        (["1", "2.5"], [1.0, 2.5]),
        (["true", "false"], [True, False]),
        (["2026-11-01", "2026-11-2"], [date(2026, 11, 1), date(2026, 11, 2)]),
        (["2026-11-01 07%3A00%3A00"], [datetime(2026, 11, 1, 7)]),
        (["2026-02-30"], ["2026-02-30"]),
        (["1", "__HIVE_DEFAULT_PARTITION__"], [1, None]),
        (["1", "a"], ["1", "a"]),
        ([str(2**63 - 1), str(2**63 - 2)], [2**63 - 1, 2**63 - 2]),
        ([str(2**64), str(2**64 + 1)], [str(2**64), str(2**64 + 1)]),
        ([f"0.{'1' * 16}1", f"0.{'1' * 16}2"], [f"0.{'1' * 16}1", f"0.{'1' * 16}2"]),
        (["%FC", "%FD", "a%2Fb"], ["%FC", "%FD", "a/b"]),
        (["x=1", "a%20b"], ["x=1", "a b"]),
        (["", "07%3A00"], ["", "07:00"]),
    ],
)
def test_partitions_are_read_as_what_all_their_values_are(
    values: list[str],
    expected: list[object],
    data: Path,
    output: Output,
    put: Callable[..., Path],
    score: Callable[..., object],
) -> None:
    for value in values:
        put(f"h={value}/a.parquet", [b"a"])
    score(data, output)
    found = storage.open_predictions(output.root.path).collect()["h"].to_list()
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    assert [type(value) for value in found if value is not None] == [type(expected[0])] * (
        len(found) - found.count(None)
    )


def test_attention_is_only_put_beside_the_predictions_that_it_was_made_with(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    for name in "abc":
        put(f"{name}.parquet", id=[f"{name}0", f"{name}1"])
    score(data, output)
    places = {name: Path(output.attention(f"{name}.parquet").path) for name in "abc"}
    Path(output.predictions("b.parquet").path).unlink()  # as if a run had been killed between the two
    attended = rows(storage.open_attention(output.root.path), "id", "weights")
    alone = pl.concat([pl.read_parquet(places[name]) for name in "ac"])
    assert attended == alone.select("id", "weights").rows()
    shutil.copy(places["a"], places["c"])
    with pytest.raises(OutputError, match=r"^The attention of c\.parquet is of another making, so it can't be put"):
        storage.open_attention(output.root.path)
    places["c"].unlink()
    with pytest.raises(OutputError, match=r"^The attention of c\.parquet is missing, so it can't be put"):
        storage.open_attention(output.root.path)


def test_probabilities_of_several_checkpoints_are_brought_together_by_class(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("date=2026-11-01/a.parquet", [b"ab", None])
    score(data, output, classes=("even", "odd"))
    before = storage.open_predictions(output.root.path).collect()["probabilities"].to_list()
    assert storage.class_names(output.root.path) == ("even", "odd")
    shutil.rmtree(data / "date=2026-11-01")
    put("date=2026-11-02/a.parquet", [b"cde", b"f"])
    score(data, output, by=CheckpointId("v2", "e" * 32), classes=("a class", "even", "odd"))
    assert storage.class_names(output.root.path) == ("a class", "even", "odd")
    for frame in (storage.open_predictions(output.root.path), storage.open_attention(output.root.path)):
        together = frame.collect()
        assert together["probabilities"][:2].to_list() == [[0.0, *before[0]], None]
        assert together["probabilities"].dtype == pl.Array(pl.Float32, 3)
        assert together["checkpoint"].to_list() == ["v1", "v1", "v2", "v2"]
        named = together.drop_nulls("prediction").select("prediction", pl.col("probabilities").arr.arg_max()).rows()
        assert all(("a class", "even", "odd")[place] == name for name, place in named)


def test_output_whose_ids_are_of_several_types_is_read(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    """As outputs may be that were made before types were recorded."""
    put("a.parquet")
    score(data, output)
    place = output.predictions("b.parquet").path
    table = pq.ParquetFile(output.predictions("a.parquet").path).read()
    pq.write_table(table.set_column(1, "id", pa.array(["x", "y"])), place)
    assert rows(storage.open_predictions(output.root.path), "id") == [("0",), ("1",), ("x",), ("y",)]


@pytest.mark.parametrize("partition", ["", "d=1/", "d=%3D/"])
def test_rows_are_told_by_their_position_in_the_input_also_where_files_do_not_say_it(
    partition: str, data: Path, tmp_path: Path, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    """Those of version 1 do not; which shard of a large file they are is in their footers."""
    put(f"{partition}a.parquet", [b"x"] * 5, row_group_size=2)
    put(f"{partition}b.parquet", [b"x"] * 3, row_group_size=3)
    for version in (1, 2):
        settings = OutputSettings(limits=ShardLimits(rows=2), format_version=version)
        output = Output(Location.parse(tmp_path / f"v{version}"), settings)
        score(data, output)
        frame = storage.open_predictions(output.root.path)
        assert frame.collect_schema().names()[:2] == ["row", "id"]
        assert rows(frame, "row") == [(0,), (1,), (2,), (3,), (4,), (0,), (1,), (2,)]
        assert rows(frame.filter(pl.col("row") == 3), "row", "id") == [(3, 3)]
        assert rows(storage.open_attention(output.root.path), "row") == rows(frame, "row")


def test_column_row_that_an_output_of_version_1_keeps_is_left_as_it_is(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("a.parquet", row=["first", "second"])
    old = OutputSettings.from_record({"keep": ["row"]}, 1)
    score(data, Output(output.root, old))
    assert rows(storage.open_predictions(output.root.path), "row") == [("first",), ("second",)]
    assert not verify_output(plan_output(str(data), existing_output(output.root.path))).problems


def test_damaged_file_is_named(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("a.parquet")
    score(data, output)
    Path(output.predictions("a.parquet").path).write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"predictions/a\.parquet: not a whole Parquet file"):
        storage.open_predictions(output.root.path)

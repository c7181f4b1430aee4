"""All files of an output have one type for id and each kept column; what does not fit is a failure that says so."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage
import storage.footers
from storage.errors import FileError, OutputError
from storage.input.columns import Columns
from storage.labelled.source import read_labelled
from storage.locations import Location
from storage.output.carried import common_types, fit, types_from_record, types_to_record
from storage.output.layout import Output, OutputSettings
from storage.output.plan import existing_output, plan_output
from storage.output.verification import verify_output

BERLIN = pa.timestamp("us", "Europe/Berlin")
WORDS = pa.dictionary(pa.int32(), pa.string())
LISTS = pa.list_(pa.binary(16))


Made = Callable[..., str]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Location.parse(tmp_path / "out"), OutputSettings(columns=Columns(keep=("x",))))


@pytest.fixture
def made(data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]) -> Made:
    """made(name, tokens, **columns): writes a file, scores the dataset; gives the file's predictions."""

    def make(name: str, tokens: object = (b"ab", b"c"), **columns: object) -> str:
        put(name, tokens, **columns)
        score(data, output)
        return output.predictions(name).path

    return make


def problems(data: Path, output: Output) -> list[str]:
    return [str(each) for each in verify_output(plan_output(str(data), existing_output(output.root.path))).problems]


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([pa.int32(), pa.int64()], pa.int64()),
        ([pa.int64(), pa.float64()], pa.float64()),
        ([pa.int64(), pa.string()], pa.string()),
        ([pa.int64(), WORDS], pa.string()),
        ([pa.string(), pa.string_view(), pa.large_string()], pa.string()),
        ([WORDS, WORDS], WORDS),
        ([pa.null(), pa.int8()], pa.int8()),
        ([pa.timestamp("ns"), pa.timestamp("us")], pa.timestamp("us")),
        ([pa.date32(), pa.timestamp("ms")], pa.timestamp("us")),
        ([BERLIN, pa.timestamp("us", "UTC")], pa.timestamp("us", "UTC")),
        ([pa.list_(pa.int8()), pa.list_(pa.int64())], pa.list_(pa.int64())),
        ([pa.timestamp("us"), BERLIN], pa.timestamp("us")),  # one of the two will not fit
        ([pa.bool_(), pa.int64()], pa.bool_()),
    ],
)
def test_types_of_several_files_are_what_they_have_in_common(types: list[pa.DataType], expected: pa.DataType) -> None:
    assert common_types([{"x": kind} for kind in types]) == {"x": expected}


@pytest.mark.parametrize(
    "kind", [pa.uuid(), WORDS, BERLIN, pa.decimal128(20, 3), pa.list_(pa.struct({"a,b": pa.int8()}))]
)
def test_types_come_back_from_their_record(kind: pa.DataType) -> None:
    assert types_from_record(json.loads(json.dumps(types_to_record({"x": kind})))) == {"x": kind}


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (pa.array([1, None, 3]), pa.int16(), [1, None, 3]),
        (pa.array([1.0, None]), pa.int64(), [1, None]),
        (pa.array(["12", "-3"]), pa.int64(), [12, -3]),
        (pa.array([7, 2**62]), pa.string(), ["7", "4611686018427387904"]),
        (pa.array([0.5, float("inf")]), pa.float32(), [0.5, float("inf")]),
        (pa.array(["a", "b"]), WORDS, ["a", "b"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string(), ["a", None, "a"]),
        (pa.array(["a"], pa.string_view()), pa.string(), ["a"]),
        (
            pa.array([1_000_000, None], pa.timestamp("ns")),
            pa.timestamp("us"),
            [datetime(1970, 1, 1, 0, 0, 0, 1000), None],
        ),
        (pa.array([datetime(9999, 12, 31)], pa.timestamp("us")), pa.date32(), [date(9999, 12, 31)]),
        (pa.array([Decimal("1.50")]), pa.decimal128(38, 4), [Decimal("1.5000")]),
        (pa.array([[1], None]), pa.list_(pa.int64()), [[1], None]),
        (pa.array([[], None, [1, 2]], pa.large_list_view(pa.int8())), pa.large_list(pa.int8()), [[], None, [1, 2]]),
        (pa.nulls(2), BERLIN, [None, None]),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_what_fits_is_cast(values: pa.Array, kind: pa.DataType, expected: list[object]) -> None:
    fitting = fit("x", pa.chunked_array([values]), kind, 0)
    assert fitting.type == kind
    assert fitting.to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "kind", "row"),
    [
        (pa.array([1, 2, 300, 1]), pa.int8(), 12),
        (pa.array(["7", "07"]), pa.int64(), 11),
        (pa.array([1.0, 1.5]), pa.int64(), 11),
        (pa.array([0.5, 0.1]), pa.float32(), 11),
        (pa.array([2**60 + 1]), pa.float64(), 10),
        (pa.array([1_000, 1_001], pa.timestamp("ns")), pa.timestamp("us"), 11),
        (pa.array([datetime(2026, 1, 1, 7)], pa.timestamp("us")), pa.date32(), 10),
        (pa.array([datetime(9999, 12, 31)], pa.timestamp("us")), pa.timestamp("ns"), 10),
        (pa.array([1], pa.int64()), pa.timestamp("us"), None),
        (pa.array([0], pa.timestamp("us")), BERLIN, None),
        (pa.array([True]), pa.int64(), None),
        (pa.array(["a"]), pa.binary(), None),
        (pa.array(["a"]), pa.uuid(), None),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_what_does_not_fit_is_named_with_both_types_and_the_row(
    values: pa.Array, kind: pa.DataType, row: int | None
) -> None:
    with pytest.raises(FileError) as refused:
        fit("x", pa.chunked_array([values]), kind, 10)
    message = str(refused.value)
    assert message.startswith(f"'x' is {values.type} here, and {kind} in this output")
    assert (f"the value in row {row} does not fit" in message) == (row is not None)


def test_all_files_have_the_types_of_the_first_run(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("a.parquet", id=pa.array([1, 2], pa.int32()), x=pa.array(["a", "b"]).dictionary_encode())
    put("b.parquet", id=["x", "y"], x=pa.nulls(2))
    put("c.parquet", x=["a", "c"])  # row numbers are its ids
    score(data, output)
    put("d.parquet", id=pa.array([2**62, None]), x=pa.array(["d", "e"], pa.large_string()))
    score(data, output)
    for kind in (output.predictions, output.attention):
        tables = [pq.ParquetFile(kind(f"{name}.parquet").path).read() for name in "abcd"]
        assert len({table.schema.remove_metadata() for table in tables}) == 1
        assert [table["id"].to_pylist() for table in tables] == [["1", "2"], ["x", "y"], ["0", "1"], [str(2**62), None]]
    folder = f"{output.root.path}/predictions"
    assert duckdb.sql(f"SELECT id FROM '{folder}/*.parquet'").fetchall()[:2] == [("1",), ("2",)]
    assert pl.read_parquet(f"{folder}/*.parquet")["x"].to_list() == ["a", "b", None, None, "a", "c", "d", "e"]
    assert problems(data, output) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([Decimal(f"{10**49}.25")], pa.decimal256(60, 2)), f"{10**49}.25"),
        (pa.array([0], pa.timestamp("us", "+05:30")), datetime(1970, 1, 1, tzinfo=UTC)),
        (pa.array([[1, 2]], pa.list_view(pa.int8())), [1, 2]),
        (pa.array([[{"a": Decimal(7)}]], pa.list_(pa.struct({"a": pa.decimal256(50, 0)}))), [{"a": "7"}]),
        (pa.array([datetime(9999, 12, 31)], pa.timestamp("s")), datetime(9999, 12, 31)),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array([True]), True),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_what_is_kept_can_be_read_by_other_readers(
    values: pa.Array, expected: object, data: Path, output: Output, made: Made
) -> None:
    place = made("a.parquet", [b"a"], x=values)
    assert pl.read_parquet(place)["x"].to_list() == [expected]
    assert duckdb.sql(f"SELECT x FROM '{place}'").fetchall() == [(expected,)]
    assert len(pd.read_parquet(place)["x"]) == 1
    assert problems(data, output) == []


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[0, None]], lambda time: pa.list_(time, 2)),
        ([[("a", 0), ("b", None)]], lambda time: pa.map_(pa.string(), time)),
        ([[{"a": [0]}]], lambda time: pa.list_(pa.struct({"a": pa.list_(time)}))),
    ],
)
def test_what_polars_cannot_read_is_found_within_other_types(
    values: list[object], kind: Callable[[pa.DataType], pa.DataType], data: Path, output: Output, made: Made
) -> None:
    place = made("a.parquet", [b"a"], x=pa.array(values, kind(pa.timestamp("us", "+05:30"))))
    expected = pa.array(values, kind(pa.timestamp("us", "UTC")))
    assert pq.read_table(place)["x"].combine_chunks().cast(expected.type).equals(expected)
    assert "UTC" in str(pl.read_parquet(place)["x"].dtype)
    assert problems(data, output) == []


@pytest.mark.parametrize("rows", [0, 2])
def test_lists_of_uuids_are_kept(rows: int, data: Path, output: Output, made: Made) -> None:
    ids = [[UUID(int=1)], None][:rows]
    stored = pa.array([None if each is None else [value.bytes for value in each] for each in ids], LISTS)
    place = made("a.parquet", [b"a", b"b"][:rows], x=stored.cast(pa.list_(pa.uuid())))
    assert duckdb.sql(f"SELECT x FROM '{place}'").fetchall() == [(each,) for each in ids]
    assert problems(data, output) == []


def test_enums_of_avro_and_protobuf_are_text(data: Path, output: Output, score: Callable[..., object]) -> None:
    path = data / "a.parquet"
    table = pa.table({"tokens": [b"ab", b"c", b"d"], "x": pa.array(["up", None, "down"])})
    pq.write_table(table, path, store_schema=False)
    text, enum = b"x%\0L\x1c\0\0", b"x%\x08L\x4c\0\0"  # the annotation of a column `x`, as Thrift has it
    assert path.read_bytes().count(text) == 1
    path.write_bytes(path.read_bytes().replace(text, enum))
    assert pq.read_metadata(path).schema.column(1).converted_type == "ENUM"
    assert pq.read_schema(path).field("x").type == pa.binary()
    score(data, output)
    place = output.predictions("a.parquet").path
    expected = [("up",), (None,), ("down",)]
    assert duckdb.sql(f"SELECT x FROM '{path}'").fetchall() == expected
    assert duckdb.sql(f"SELECT x FROM '{place}'").fetchall() == expected
    assert pl.read_parquet(place)["x"].dtype == pl.String
    assert problems(data, output) == []
    assert read_labelled(str(path), label_column="x", min_class_rows=0).classes == ("down", "up")


TIMES = [datetime(9999, 12, 31), datetime(1, 1, 1), datetime(2026, 1, 1, 1, 2, 3, 456789), None]


@pytest.fixture
def by_spark(data: Path) -> None:
    """A file whose timestamps are INT96, as Spark writes them."""
    column = pa.array(TIMES, pa.timestamp("us"))
    table = pa.table({"tokens": [b"a"] * 4, "id": column, "x": pa.StructArray.from_arrays([column], ["t"])})
    pq.write_table(table, data / "a.parquet", use_deprecated_int96_timestamps=True, store_schema=False)
    assert pq.read_metadata(data / "a.parquet").schema.column(1).physical_type == "INT96"


@pytest.mark.usefixtures("by_spark")
def test_wrong_reading_of_the_input_is_found_though_the_output_agrees_with_it(
    data: Path, output: Output, score: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.footers, "INT96_UNIT", "ns")
    score(data, output)
    problems = verify_output(plan_output(str(data), existing_output(output.root.path))).problems
    assert [(each.path, each.row) for each in problems] == [("a.parquet", 0), ("a.parquet", 1)]
    assert "as it was scored, and datetime.datetime(9999, 12, 31, 0, 0) by another reading" in problems[0].what


@pytest.mark.usefixtures("by_spark")
def test_sparks_timestamps_are_read_in_microseconds(data: Path, output: Output, score: Callable[..., object]) -> None:
    """Nanoseconds, as which Arrow reads INT96 by default, end in 2262: 9999-12-31 became 1816-03-29."""
    score(data, output)
    place = output.predictions("a.parquet").path
    assert pl.read_parquet(place)["id"].to_list() == TIMES
    assert duckdb.sql(f"SELECT id, x.t FROM '{place}'").fetchall() == [(time, time) for time in TIMES]
    assert pd.read_parquet(place)["id"].dtype == "datetime64[us]"
    assert problems(data, output) == []


def text(*values: bytes | None) -> pa.Array:
    """A column of text that holds any bytes."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize("of", ["id", "x"])
@pytest.mark.parametrize("nested", [False, True])
def test_row_whose_id_or_kept_text_is_not_utf8_has_an_error_and_the_output_is_read(
    of: str, nested: bool, data: Path, output: Output, made: Made
) -> None:
    bad = text(b"ok", b"\xff\xfe", None, b"caf\xc3\xa9", b"\xc3")
    columns = {"id": pa.array(range(5)), "x": pa.array(range(5))}
    columns[of] = bad
    if nested and of == "x":
        columns["x"] = pa.StructArray.from_arrays([bad], ["t"])
    place = made("a.parquet", [b"a", b"b", b"c", b"d", None], **columns)
    frame = pl.read_parquet(place)
    assert frame["error"].to_list() == [None, f"{of} is not UTF-8", None, None, f"{of} is not UTF-8"]
    assert frame["prediction"].is_null().to_list() == [False, True, False, False, True]
    found = [row[0] if isinstance(row[0], str | None) else row[0]["t"] for row in frame.select(of).rows()]
    assert found == ["ok", None, None, "café", None]
    assert duckdb.sql(f"SELECT count({of}), count(prediction) FROM '{place}'").fetchall() in ([(2, 3)], [(3, 3)])
    weights = storage.open_attention(output.root.path).collect()["weights"]
    assert weights.is_null().to_list() == [False, True, False, False, True]
    assert problems(data, output) == []


@pytest.mark.parametrize(
    ("partition", "column"),
    [
        ("x=2026-11-01", pa.array([date(2026, 11, 1)] * 2)),
        ("x=2026-11-01", pa.array([datetime(2026, 11, 1)] * 2, pa.timestamp("us"))),
        ("x=07", pa.array([7, 7], pa.int8())),
        ("x=a%20b", pa.array(["a b", "a b"]).dictionary_encode()),
        ("x=__HIVE_DEFAULT_PARTITION__", pa.array([None, None], pa.float32())),
    ],
    ids=str,
)
def test_kept_column_that_is_what_its_partition_says_is_in_the_path_alone(
    partition: str, column: pa.Array, data: Path, output: Output, made: Made
) -> None:
    assert "x" not in pq.ParquetFile(made(f"{partition}/a.parquet", x=column, id=["a", "b"])).schema_arrow.names
    assert problems(data, output) == []


@pytest.mark.parametrize(
    ("partition", "column", "row"),
    [
        ("x=2026-11-01", pa.array([datetime(2026, 11, 1), datetime(2026, 11, 1, 7)], pa.timestamp("us")), 1),
        ("x=7", pa.array([7, None], pa.int8()), 1),
        ("x=a", pa.array([7, 7], pa.int8()), 0),
        ("x=__HIVE_DEFAULT_PARTITION__", pa.array([None, "a"]), 1),
    ],
    ids=str,
)
def test_kept_column_with_other_values_than_its_partition_is_refused_and_not_lost(
    partition: str, column: pa.Array, row: int, made: Made
) -> None:
    with pytest.raises(FileError, match=f"^column 'x' has another value in row {row} than the partition x="):
        made(f"{partition}/a.parquet", x=column)


def test_file_that_does_not_fit_fails_with_both_types(made: Made) -> None:
    made("a.parquet", id=pa.array([0, 1], pa.timestamp("us")), x=[1, 2])
    with pytest.raises(FileError, match=r"'id' is int64 here \(row numbers, .*\), and timestamp\[us\] in this output"):
        made("b.parquet", x=[1, 2])


def test_output_made_before_types_were_recorded_keeps_those_of_its_files(output: Output, made: Made) -> None:
    made("a.parquet", id=pa.array([1, 2], pa.int32()), x=["a", "b"])
    place = Path(output.root.path) / "_dataset.json"
    recorded = json.loads(place.read_text())
    types = recorded.pop("types"), recorded.pop("arrow_schema")
    place.write_text(json.dumps(recorded))
    second = made("0.parquet", id=[7, 8], x=["c", "d"])
    assert (json.loads(place.read_text())["types"], json.loads(place.read_text())["arrow_schema"]) == types
    assert pq.read_schema(second).field("id").type == pa.int32()
    place.write_text(json.dumps(recorded | {"types": {}, "arrow_schema": "?"}))
    with pytest.raises(OutputError, match=r"_dataset\.json is damaged \(.*\)\. Restore it or write elsewhere\.$"):
        existing_output(output.root.path)


def test_file_of_another_type_is_found_by_verification(data: Path, output: Output, made: Made) -> None:
    for place in (made("a.parquet", id=pa.array([1, 2], pa.int32()), x=["a", "b"]), output.attention("a.parquet").path):
        file = pq.ParquetFile(place)
        table = file.read().set_column(1, "id", pa.array([1, 2]))
        file.close()
        with pq.ParquetWriter(place, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"attnlstm": file.metadata.metadata[b"attnlstm"].decode()})
    found = problems(data, output)
    assert [each.partition(":")[0] for each in found] == ["predictions/a.parquet", "attention/a.parquet"]
    assert all("row (int64), id (int64)" in each and "expected row (int64), id (int32)" in each for each in found)

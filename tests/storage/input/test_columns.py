"""Which columns are read, and what a user is told when they are not there."""

import pyarrow as pa
import pytest

from storage.errors import FileError, OutputError
from storage.input.columns import Columns, find_column

SCHEMA = pa.schema({"id": pa.int64(), "tokens": pa.binary(), "label": pa.string(), "n": pa.int8()})


def test_reads_tokens_kept_columns_and_id_whatever_their_order_in_the_file() -> None:
    assert Columns(keep=("n", "label")).to_read(SCHEMA, "a.parquet") == ["tokens", "n", "label", "id"]


def test_each_column_is_read_once() -> None:
    assert Columns(keep=("tokens",)).to_read(SCHEMA, "a.parquet") == ["tokens", "id"]
    assert Columns(id="label", keep=("label",)).to_read(SCHEMA, "a.parquet") == ["tokens", "label"]


def test_id_is_optional_but_one_that_was_named_is_not() -> None:
    without = pa.schema({"ID": pa.int64(), "tokens": pa.binary()})
    assert Columns().to_read(without, "a.parquet") == ["tokens"]
    with pytest.raises(FileError, match=r"column 'Id' \(id_column\) is missing; the file has: ID \(int64\), tokens"):
        Columns(id="Id").to_read(without, "a.parquet")


@pytest.mark.parametrize(
    ("columns", "names", "overlooked"),
    [
        (Columns(), ["ID", "tokens"], "ID"),
        (Columns(), ["id", "ID", "tokens"], None),
        (Columns(id="ID"), ["ID", "tokens"], None),
        (Columns(), ["tokens", "idea"], None),
    ],
)
def test_id_in_other_letters_is_noticed(columns: Columns, names: list[str], overlooked: str | None) -> None:
    said = columns.overlooked_id(pa.schema([(name, pa.binary()) for name in names]))
    assert said == (
        overlooked
        and f"a column '{overlooked}' and none called 'id', so ids are row numbers; --id-column {overlooked} takes it"
    )


def test_names_with_dots_reach_into_structs_where_no_column_has_that_very_name() -> None:
    event = pa.struct({"tokens": pa.binary(), "user.id": pa.int8(), "at": pa.struct({"site": pa.string()})})
    columns = Columns("event.tokens", "event.user.id", ("event.at.site", "event.n"))
    schema = pa.schema({"event": event, "event.n": pa.int16()})
    assert columns.to_read(schema, "a.parquet") == ["event.tokens", "event.at.site", "event.n", "event.user.id"]
    assert find_column(schema, "event.at.site") == pa.field("event.at.site", pa.string())
    found = find_column(pa.schema({"event": event, "event.tokens": pa.string()}), "event.tokens")
    assert found == pa.field("event.tokens", pa.string())
    with pytest.raises(FileError, match=r"column 'event\.body' \(tokens_column\) is missing; the file has: event \("):
        Columns("event.body").to_read(schema, "a.parquet")


@pytest.mark.parametrize("name", ["row", "score", "ID", "error", "prediction", "Weights", "positions"])
def test_partitions_may_not_be_called_like_columns_of_the_output(name: str) -> None:
    Columns().refuse_partitions(["date=1/a.parquet"])
    with pytest.raises(OutputError, match=f"^date=1/{name}=7/a.parquet: a partition called {name} clashes with"):
        Columns().refuse_partitions(["date=1/b.parquet", f"date=1/{name}=7/a.parquet"])


def test_partition_and_kept_column_may_not_differ_in_letters_only() -> None:
    Columns(keep=("date",)).refuse_partitions(["date=1/a.parquet"])
    with pytest.raises(OutputError, match="a partition called Date clashes with the kept column date"):
        Columns(keep=("date",)).refuse_partitions(["a.parquet", "Date=1/a.parquet"])


def test_kept_partition_needs_no_column() -> None:
    columns = Columns(keep=("date",))
    assert columns.to_read(SCHEMA, "date=2026-11-01/a.parquet") == ["tokens", "id"]
    with pytest.raises(FileError, match=r"column 'date' \(keep\) is missing"):
        columns.to_read(SCHEMA, "a.parquet")


@pytest.mark.parametrize(
    ("columns", "schema", "message"),
    [
        (
            Columns(tokens="body"),
            SCHEMA,
            "column 'body' (tokens_column) is missing; the file has: "
            "id (int64), tokens (binary), label (string), n (int8)",
        ),
        (Columns(tokens="n"), SCHEMA, "column 'n' has type int8; tokens must be binary, string, or a list of integers"),
        (
            Columns(),
            pa.schema([("tokens", pa.binary()), ("tokens", pa.binary())]),
            "column 'tokens' (tokens_column) stands 2 times in the schema; rename",
        ),
        (
            Columns(),
            pa.schema([("tokens", pa.binary()), ("id", pa.int8()), ("id", pa.int8())]),
            "column 'id' (id_column) stands 2 times in the schema; rename",
        ),
        (
            Columns(),
            pa.schema({"tokens": pa.binary(), "id": pa.list_(pa.int8())}),
            "column 'id' has type list<item: int8>; an id must be a scalar, such as an integer",
        ),
    ],
)
def test_columns_that_can_not_be_read_are_refused(columns: Columns, schema: pa.Schema, message: str) -> None:
    with pytest.raises(FileError) as refused:
        columns.to_read(schema, "a.parquet")
    assert str(refused.value).startswith(message)


def test_kept_names_may_not_be_ours_or_repeat() -> None:
    with pytest.raises(OutputError, match="keep names error, score, which the output has as a column"):
        Columns(keep=("score", "error", "label"))
    with pytest.raises(OutputError, match="keep names label more than once"):
        Columns(keep=("label", "label"))
    for name in ("ID", "weights", "Positions"):
        with pytest.raises(OutputError, match=f"keep names {name}, which the output has"):
            Columns(keep=(name,))
    with pytest.raises(OutputError, match="keep names Date, date more than once"):
        Columns(keep=("date", "Date"))

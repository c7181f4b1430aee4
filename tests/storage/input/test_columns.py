"""Which columns are read, and what a user is told when they are not there."""

import pyarrow as pa
import pytest

from storage.errors import FileError, OutputError
from storage.input.columns import Columns

SCHEMA = pa.schema({"id": pa.int64(), "tokens": pa.binary(), "label": pa.string(), "n": pa.int8()})


def test_reads_tokens_kept_columns_and_id_whatever_their_order_in_the_file() -> None:
    assert Columns(keep=("n", "label")).to_read(SCHEMA, "a.parquet") == ["tokens", "n", "label", "id"]


def test_id_is_optional_and_each_column_is_read_once() -> None:
    assert Columns(id="name", keep=("tokens",)).to_read(SCHEMA, "a.parquet") == ["tokens"]
    assert Columns(id="label", keep=("label",)).to_read(SCHEMA, "a.parquet") == ["tokens", "label"]


def test_kept_partition_needs_no_column() -> None:
    columns = Columns(keep=("date",))
    assert columns.to_read(SCHEMA, "date=2026-11-01/a.parquet") == ["tokens", "id"]
    with pytest.raises(FileError, match=r"column 'date' \(keep\) is missing"):
        columns.to_read(SCHEMA, "a.parquet")


def test_missing_tokens_are_reported_with_what_the_file_has() -> None:
    with pytest.raises(FileError) as refused:
        Columns(tokens="body").to_read(SCHEMA, "a.parquet")
    assert str(refused.value) == (
        "column 'body' (tokens_column) is missing; the file has: id (int64), tokens (binary), label (string), n (int8)"
    )


def test_wrong_token_type_is_refused() -> None:
    with pytest.raises(FileError, match="column 'n' has type int8; tokens must be binary, string, or a list"):
        Columns(tokens="n").to_read(SCHEMA, "a.parquet")


def test_column_that_stands_twice_is_refused() -> None:
    twice = pa.schema([("tokens", pa.binary()), ("tokens", pa.binary())])
    with pytest.raises(FileError, match=r"column 'tokens' \(tokens_column\) stands 2 times in the schema; rename"):
        Columns().to_read(twice, "a.parquet")


def test_nested_id_is_refused() -> None:
    nested = pa.schema({"tokens": pa.binary(), "id": pa.list_(pa.int8())})
    with pytest.raises(FileError, match=r"column 'id' has type list<.*; an id must be a scalar"):
        Columns().to_read(nested, "a.parquet")


def test_kept_names_may_not_be_ours_or_repeat() -> None:
    with pytest.raises(OutputError, match="keep names error, score, which the predictions have as a column"):
        Columns(keep=("score", "error", "label"))
    with pytest.raises(OutputError, match="keep names label more than once"):
        Columns(keep=("label", "label"))

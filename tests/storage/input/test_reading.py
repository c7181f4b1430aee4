"""Shards read back as bounded tables, and damage in a file becomes a message rather than wrong rows."""

import base64
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest

from storage.errors import FileError
from storage.input.columns import Columns
from storage.input.reading import read_shard
from storage.input.shards import ShardLimits, plan_shards
from storage.input.sources import find_source
from storage.input.tokens import TokenRules, decode_tokens


def tables(source: Path, columns: list[str], rows: int = 10**6, **limits: int) -> list[list[pa.Table]]:
    """The tables of each shard."""
    found = find_source(str(source))
    planned = plan_shards(found, Columns(), ShardLimits(rows=rows))
    assert not planned.unreadable
    return [list(read_shard(found.root, shard, columns, **limits)) for shard in planned.shards]


def test_shards_together_are_the_file_in_order(put: Callable[..., Path], data: Path) -> None:
    tokens = [bytes([i % 256]) * (i % 5) for i in range(5000)]
    put("a.parquet", tokens, id=list(range(5000)), extra=["x"] * 5000, row_group_size=700)
    shards = tables(data, ["tokens", "id"], rows=1500)
    assert [sum(table.num_rows for table in shard) for shard in shards] == [2100, 2100, 800]
    read = pa.concat_tables(table for shard in shards for table in shard)
    assert sorted(read.column_names) == ["id", "tokens"]
    assert read["tokens"].to_pylist() == tokens
    assert read["id"].to_pylist() == list(range(5000))


def test_tables_end_at_rows_or_bytes(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", [b"x" * 100] * 6000)
    assert [table.num_rows for table in tables(data, ["tokens"], chunk_rows=2000)[0]] == [2048, 2048, 1904]
    assert [table.num_rows for table in tables(data, ["tokens"], chunk_bytes=200_000)[0]] == [2048, 2048, 1904]
    assert [table.num_rows for table in tables(data, ["tokens"])[0]] == [6000]


def test_shard_without_rows_gives_one_empty_table(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", [], id=pa.array([], pa.string()))
    ((table,),) = tables(data, ["tokens", "id"])
    assert table.num_rows == 0
    assert table.schema.field("id").type == pa.string()


@pytest.mark.parametrize(
    ("kind", "stored"),
    [(pl.Int128, "fixed_size_binary[16]"), (pl.List(pl.UInt128), "list<element: fixed_size_binary[16]>")],
)
def test_column_of_a_type_that_arrow_does_not_have_is_no_trouble_until_it_is_asked_for(
    kind: Any, stored: str, data: Path
) -> None:
    values = [[1], [2]] if kind == pl.List else [1, 2]
    frame = pl.DataFrame({"id": [7, 8], "tokens": [b"ab", b"c"], "wide": pl.Series(values, dtype=kind)})
    frame.write_parquet(data / "a.parquet")
    ((table,),) = tables(data, ["tokens", "id"])
    assert table.to_pydict() == {"tokens": [b"ab", b"c"], "id": [7, 8]}
    (unreadable,) = plan_shards(find_source(str(data)), Columns(keep=("wide",)), ShardLimits()).unreadable
    assert unreadable.reason == (
        f"column 'wide' (keep) is stored as {stored}, and what that stands for can't be read (Integers with more than "
        "64 bits not implemented). Write it as another type, such as 64-bit integers or text."
    )


class _Keys(encryption.KmsClient):
    """Wraps keys by writing them out."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
        return base64.b64encode(key_bytes).decode()


@pytest.mark.parametrize("column", ["tokens", "id", "other"])
def test_encrypted_column_is_called_so_where_it_is_asked_for(column: str, data: Path) -> None:
    keys = encryption.CryptoFactory(lambda connection: _Keys())
    how = encryption.EncryptionConfiguration(footer_key="f", column_keys={"k": [column]}, plaintext_footer=True)
    table = pa.table({"tokens": [b"ab"], "id": [7], "other": [1]})
    properties = keys.file_encryption_properties(encryption.KmsConnectionConfig(), how)
    with pq.ParquetWriter(data / "a.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    if column == "other":
        assert tables(data, ["tokens", "id"])[0][0].num_rows == 1
    else:
        with pytest.raises(FileError, match=r"^encrypted, at least in one of tokens, id, which can't be read here$"):
            tables(data, ["tokens", "id"])


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_every_codec_reads(codec: str, data: Path) -> None:
    pq.write_table(pa.table({"tokens": [b"ab"] * 50}), data / "a.parquet", compression=codec)
    ((table,),) = tables(data, ["tokens"])
    assert table["tokens"].to_pylist() == [b"ab"] * 50


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(2),
        pa.dictionary(pa.int8(), pa.binary()),
        pa.string(),
        pa.string_view(),
        pa.list_(pa.uint16()),
        pa.large_list(pa.int8()),
        pa.list_(pa.uint8(), 2),
        pa.list_view(pa.int64()),
        pa.large_list_view(pa.uint32()),
    ],
    ids=str,
)
@pytest.mark.parametrize("store_schema", [True, False])
def test_every_token_type_survives_parquet(kind: pa.DataType, store_schema: bool, data: Path) -> None:
    text = pa.types.is_string(kind) or pa.types.is_string_view(kind)
    cells: list[object] = ["ab", None, "bc"] if text else [b"ab", None, b"bc"]
    if "list" in str(kind):
        cells = [None if cell is None else list(cell) for cell in cells]  # type: ignore[call-overload]
    table = pa.table({"tokens": pa.array(cells, kind)})
    pq.write_table(table, data / "a.parquet", store_schema=store_schema)
    ((read,),) = tables(data, ["tokens"])
    rows = decode_tokens(read["tokens"], TokenRules())
    assert rows.values.tobytes() == b"abbc"
    assert rows.num_tokens.tolist() == [2, -1, 2]


def test_file_that_changed_since_the_plan_is_refused(put: Callable[..., Path], data: Path) -> None:
    path = put("a.parquet", [b"ab"])
    found = find_source(str(data))
    (shard,) = plan_shards(found, Columns(), ShardLimits()).shards
    put("a.parquet", [b"ab", b"c"])
    with pytest.raises(FileError, match=r"^changed while the run was on; run the same command again to score what"):
        list(read_shard(found.root, shard, ["tokens"]))
    path.unlink()
    with pytest.raises(FileError, match=r"^vanished while the run was on$"):
        list(read_shard(found.root, shard, ["tokens"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "zstd"}, "^damaged: "),
        ({"compression": "none", "write_page_checksum": True}, "^damaged: .*CRC"),
    ],
)
def test_damaged_page_is_a_file_error(options: dict[str, object], message: str, data: Path) -> None:
    table = pa.table({"tokens": [random.Random(i).randbytes(50) for i in range(100)]})
    pq.write_table(table, data / "a.parquet", use_dictionary=False, **options)
    content = bytearray((data / "a.parquet").read_bytes())
    content[1000:1100] = bytes(100)
    (data / "a.parquet").write_bytes(content)
    with pytest.raises(FileError, match=message):
        tables(data, ["tokens"])


def test_fields_of_structs_are_columns_and_null_where_a_struct_is(data: Path) -> None:
    event = pa.struct({"n": pa.int8(), "tokens": pa.binary(), "at": pa.struct({"site": pa.string()})})
    rows = [{"n": 1, "tokens": b"ab", "at": {"site": "x"}}, None, {"n": 2, "tokens": None, "at": None}]
    pq.write_table(pa.table({"event": pa.array(rows, event), "event.n": ["own", "own", "own"]}), data / "a.parquet")
    pq.write_table(pa.table({"event": pa.array([], event), "event.n": pa.array([], pa.string())}), data / "b.parquet")
    columns = Columns("event.tokens", "event.n", ("event.at.site",))
    found = find_source(str(data))
    first, second = plan_shards(found, columns, ShardLimits()).shards
    (table,) = read_shard(found.root, first, columns)
    assert table.to_pydict() == {
        "event.tokens": [b"ab", None, None],
        "event.at.site": ["x", None, None],
        "event.n": ["own", "own", "own"],
    }
    (empty,) = read_shard(found.root, second, columns)
    assert (empty.schema.names, empty.num_rows) == (table.schema.names, 0)


def test_id_may_be_a_partition(put: Callable[..., Path], data: Path) -> None:
    put("site=a%20b/a.parquet")
    put("site=__HIVE_DEFAULT_PARTITION__/a.parquet", [])
    found, columns = find_source(str(data)), Columns(id="site")
    read = [list(read_shard(found.root, shard, columns)) for shard in plan_shards(found, columns, ShardLimits()).shards]
    assert [table["site"].to_pylist() for (table,) in read] == [[], ["a b", "a b"]]
    assert {str(table["site"].type) for (table,) in read} == {"string"}


def test_id_that_is_a_partition_and_a_column_is_refused_where_they_differ(put: Callable[..., Path], data: Path) -> None:
    for day in (1, 2):
        put(f"day={day}/a.parquet", day=[1, 1])
    found = find_source(str(data))
    first, second = plan_shards(found, Columns(id="day"), ShardLimits()).shards
    (table,) = read_shard(found.root, first, Columns(id="day"))
    assert table["day"].to_pylist() == ["1", "1"]
    with pytest.raises(FileError, match="column 'day' has another value in row 0 than the partition day=2"):
        list(read_shard(found.root, second, Columns(id="day")))

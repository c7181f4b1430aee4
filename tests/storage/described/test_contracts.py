"""What other tools are told of an output is so: DuckDB runs the views, and the contracts name what the files hold."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from storage.described.columns import describe
from storage.described.contracts import dbt_sources, open_data_contract
from storage.described.outputs import describe_output, sql_type
from storage.described.views import views_sql
from storage.errors import OutputError
from storage.input.columns import Columns
from storage.input.shards import ShardLimits
from storage.locations import Location
from storage.output.layout import Output, OutputSettings
from storage.output.plan import existing_output

TOKENS = [b"ab", b"", None, b"cd\xff"]
Made = Callable[..., Output]
HOSTILE = 'it\'s "x"; DROP VIEW predictions; --'


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    with duckdb.connect() as opened:
        yield opened


@pytest.mark.parametrize(
    ("saving", "version", "name"), [("full", 2, "out"), ("top:2", 2, "o[1]'*"), ("full", 1, "out"), ("none", 2, "out")]
)
@pytest.mark.parametrize("kind", ["bytes", "text", "ids"])
def test_views_are_of_all_rows_by_their_input_file_and_row(
    saving: str,
    version: int,
    name: str,
    kind: str,
    put: Callable[..., Path],
    made: Made,
    connection: duckdb.DuckDBPyConnection,
) -> None:
    texts = [None if row is None else row.replace(b"\xff", b"e") for row in TOKENS]
    tokens = {
        "bytes": pa.array(texts, pa.binary()),
        "text": pa.array([None if row is None else row.decode() for row in texts]),
        "ids": pa.array([None if row is None else list(row) for row in texts], pa.list_(pa.uint8())),
    }[kind]
    put("d=1/train-00000-of-00002.parquet", tokens, id=list("xxyy"), file=list("abcd"), row_group_size=1)
    put("d=2/a.parquet", tokens, id=list("xxyy"), file=list("abcd"))
    columns = Columns(keep=("file",))
    output = made(saving, name=name, columns=columns, limits=ShardLimits(rows=3), format_version=version)
    connection.execute(views_sql(describe_output(output.root.path)))
    keys = [
        (f"d={day}/{file}.parquet", row) for day, file in ((1, "train-00000-of-00002"), (2, "a")) for row in range(4)
    ]
    rows = connection.sql("SELECT input_file, row, file, d FROM predictions ORDER BY 1, 2").fetchall()
    assert rows == [(*key, "abcd"[key[1]], int(key[0][2])) for key in keys]
    errors = connection.sql("SELECT input_file, row, error FROM rows_with_errors ORDER BY 1, 2").fetchall()
    assert errors == [(*key, {1: "no tokens", 2: "tokens are null"}[key[1]]) for key in keys if key[1] in (1, 2)]
    columns = "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'predictions'"
    comments = dict(connection.sql(columns).fetchall())
    assert comments["score"] == describe("predictions", "score").comment
    assert all(comments.values())
    views = {name for (name,) in connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
    if saving == "none":
        assert views == {"predictions", "rows_with_errors"}
        return
    assert views == {"predictions", "rows_with_errors", "attention", "token_weights"}
    query = "SELECT input_file, row, position, token, weight FROM token_weights ORDER BY 1, 2, 3"
    weights = connection.sql(query).fetchall()
    scored = [(key, list(texts[key[1]] or b"")) for key in keys if texts[key[1]]]
    kept = [
        (key, sorted(range(len(row)), key=lambda i: (-row[i], i))[: 2 if saving == "top:2" else 9], row)
        for key, row in scored
    ]
    assert [each[:4] for each in weights] == [
        (*key, place, row[place]) for key, places, row in kept for place in sorted(places)
    ]
    assert all(0 < weight < 1 for *_, weight in weights)


def test_tokens_are_left_out_where_the_source_is_gone(
    data: Path, put: Callable[..., Path], made: Made, connection: duckdb.DuckDBPyConnection
) -> None:
    put("a.parquet", TOKENS)
    output = made()
    shutil.rmtree(data)
    connection.execute(views_sql(describe_output(output.root.path)))
    columns = [name for name, *_ in connection.sql("DESCRIBE token_weights").fetchall()]
    assert columns == ["file", "row", "id", "position", "weight"]


def test_contracts_name_what_the_files_hold_whatever_it_is_called(
    tmp_path: Path, put: Callable[..., Path], made: Made, connection: duckdb.DuckDBPyConnection
) -> None:
    columns = {HOSTILE: [{"a": [1]}] * 4, "day": pa.array([1, 2, 3, None], pa.date32())}
    put("d=2026-11-01/a.parquet", TOKENS, id=pa.array([1, 2, 3, 4], pa.int16()), **columns)
    described = describe_output(made("top:1", columns=Columns(keep=(HOSTILE, "day"))).root.path)
    contract, sources = open_data_contract(described), dbt_sources(described)
    for part, table in zip(contract["schema"], sources["sources"][0]["tables"], strict=True):
        found = connection.sql(f"SELECT * FROM {table['config']['external_location']}")
        types = {name: str(kind) for name, kind in zip(found.columns, found.types, strict=True)}
        assert {each["name"]: each["physicalType"] for each in part["properties"]} == types
        assert {each["name"]: each["data_type"] for each in table["columns"]} == types
        assert [each["name"] for each in part["properties"] if each["required"]][:1] == ["row"]
    logical = {each["name"]: each["logicalType"] for each in contract["schema"][0]["properties"]}
    assert (logical["day"], logical[HOSTILE], logical["probabilities"]) == ("date", "object", "array")
    connection.execute(views_sql(described))
    assert len(connection.sql("SELECT * FROM predictions").fetchall()) == 4
    (tmp_path / "out/a.odcs.yaml").write_text(yaml.safe_dump(contract))
    assert yaml.safe_load(yaml.safe_dump(sources)) == sources
    if lint := shutil.which("datacontract"):
        done = subprocess.run([lint, "lint", tmp_path / "out/a.odcs.yaml"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_contracts_need_predictions(tmp_path: Path) -> None:
    output = Output(Location.parse(tmp_path / "out"), OutputSettings()).prepare("/data")
    assert json.loads((tmp_path / "out/_dataset.json").read_text())
    with pytest.raises(OutputError, match="has no predictions"):
        describe_output(str(existing_output(str(output.root)).root))


@pytest.mark.parametrize(
    "kind",
    [
        pa.float16(),
        pa.binary(3),
        pa.uuid(),
        pa.decimal128(7, 2),
        pa.timestamp("us"),
        pa.timestamp("us", "UTC"),
        pa.time64("us"),
        pa.dictionary(pa.int32(), pa.string()),
        pa.list_(pa.struct({"a b": pa.uint32()})),
        pa.map_(pa.string(), pa.float64()),
        pa.string_view(),
    ],
    ids=str,
)
def test_types_are_called_what_duckdb_calls_them(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_batches([], pa.schema({"x": kind})), tmp_path / "a.parquet")
    (found,) = duckdb.connect().sql(f"SELECT x FROM '{tmp_path}/a.parquet'").types
    assert sql_type(kind) == str(found)

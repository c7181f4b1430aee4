"""pyarrow, pandas and Spark read an output alike: types, partitions, and rows joined by file and position."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from storage.input.columns import Columns
from storage.input.shards import ShardLimits


@pytest.fixture
def spark(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("pyspark", reason="Spark is not installed")
    from pyspark.sql import SparkSession

    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    # Its faster reader does not know floats that are split by bytes (Spark 4.1, "Unsupported encoding").
    builder = builder.config("spark.sql.parquet.enableVectorizedReader", "false")
    session = builder.config("spark.sql.warehouse.dir", str(tmp_path / "warehouse")).getOrCreate()
    yield session
    session.stop()


OF_ROW = [(2, 2, None), (0, None, "no tokens"), (None, None, "tokens are null"), (3, 3, None), (1, 1, None)]
EXPECTED = [(day, row, *OF_ROW[row]) for day in (1, 2) for row in range(5)]
"""Day, row, number of tokens, of weights, and error."""


@pytest.fixture
def scored(tmp_path: Path, put: Callable[..., Path], made: Callable[..., object]) -> Path:
    """An output of two partitions, in files of two rows."""
    for day in (1, 2):
        put(
            f"date=2026-11-0{day}/a.parquet",
            [b"ab", b"", None, b"cde", b"f"],
            id=list("xxyyz"),
            at=pa.array([1, 2, 3, None, 5], pa.timestamp("us", "UTC")),
            row_group_size=2,
        )
    made(columns=Columns(keep=("at",)), limits=ShardLimits(rows=2))
    return tmp_path / "out"


def test_pandas_joins_what_pyarrow_reads_by_file_and_row(scored: Path) -> None:
    frames = {}
    for part in ("predictions", "attention"):
        dataset = ds.dataset(scored / part, partitioning="hive")
        table = dataset.to_table(columns=[*dataset.schema.names, "__filename"])
        frames[part] = table.rename_columns({"__filename": "file"}).to_pandas(types_mapper=pd.ArrowDtype)
        frames[part]["file"] = [str(name).rpartition(f"/{part}/")[2] for name in frames[part]["file"]]
    joined = frames["predictions"].merge(frames["attention"].drop(columns=["id", "date"]), on=["file", "row"])
    joined["day"] = [int(str(date)[-2:]) for date in joined["date"]]
    joined["weights"] = joined["weights"].map(len, na_action="ignore")
    rows = joined.sort_values(["day", "row"])[["day", "row", "num_tokens", "weights", "error"]]
    found = [tuple(None if pd.isna(each) else each for each in row) for row in rows.itertuples(index=False)]
    assert found == EXPECTED
    assert str(frames["predictions"].dtypes["at"]) == "timestamp[us, tz=UTC][pyarrow]"


# Spark's client leaves its socket to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_spark_reads_types_and_partitions_and_joins_by_file_and_row(spark: Any, scored: Path) -> None:
    from pyspark.sql import functions as f

    frames = {}
    for part in ("predictions", "attention"):
        name = f.regexp_extract(f.input_file_name(), f"/{part}/(.*)$", 1)
        frames[part] = spark.read.parquet(str(scored / part)).withColumn("file", name)
    assert dict(frames["predictions"].dtypes) == {
        "row": "bigint",
        "id": "string",
        "at": "timestamp",
        "prediction": "string",
        "score": "float",
        "probabilities": "array<float>",
        "num_tokens": "bigint",
        "truncated": "boolean",
        "error": "string",
        "checkpoint": "string",
        "date": "date",
        "file": "string",
    }
    assert dict(frames["attention"].dtypes)["weights"] == "array<float>"
    joined = frames["predictions"].join(frames["attention"].drop("id", "date"), ["file", "row"])
    found = joined.select(f.day("date"), "row", "num_tokens", f.size("weights"), "error").collect()
    assert sorted((tuple(each) for each in found), key=lambda each: each[:2]) == EXPECTED
    assert frames["predictions"].filter("row >= 3").count() == 4

"""Input, predictions and attention of an output beside each other, whatever files they are in."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import storage
from storage.errors import SourceError
from storage.input.columns import Columns
from storage.input.shards import ShardLimits
from storage.output.layout import Output

Put, Made = Callable[..., Path], Callable[..., Output]


@pytest.fixture
def output(tmp_path: Path, put: Put, made: Made) -> Path:
    """Three files: one in four shards, one whole, and one whose columns are others."""
    put("date=1/a.parquet", [b"a", b"bc", None, b"d"], row_group_size=1, site=["n", "s", "n", "s"], score=[1, 2, 3, 4])
    put("date=1/b.parquet", [b"", b"e"], site=["w", "w"], score=[5, 6])
    put("date=2/c.parquet", [b"fg"], site=["o"], extra=[0.5])
    made(columns=Columns(keep=("site",)), limits=ShardLimits(rows=1))
    return tmp_path / "out"


def test_each_row_stands_beside_its_own_input(output: Path) -> None:
    frame = storage.open_rows(output)
    names = frame.collect_schema().names()
    assert names[0] == "file"
    assert names[-4:] == ["weights", "tokens", "input_score", "extra"]
    assert names.count("site") == names.count("date") == names.count("id") == 1
    found = frame.collect()
    assert found.select("file", "row", "tokens", "site", "input_score").rows() == [
        ("date=1/a.parquet", 0, b"a", "n", 1),
        ("date=1/a.parquet", 1, b"bc", "s", 2),
        ("date=1/a.parquet", 2, None, "n", 3),
        ("date=1/a.parquet", 3, b"d", "s", 4),
        ("date=1/b.parquet", 0, b"", "w", 5),
        ("date=1/b.parquet", 1, b"e", "w", 6),
        ("date=2/c.parquet", 0, b"fg", "o", None),
    ]
    there = found.drop_nulls("weights")
    assert there["weights"].list.len().to_list() == [1, 2, 1, 1, 2]
    assert there["num_tokens"].equals(there["tokens"].bin.size().cast(pl.Int64).alias("num_tokens"))
    made = storage.open_attention(output).collect()
    assert found.select(made.columns).equals(made)
    assert frame.filter(pl.col("prediction").is_null()).select("file", "row").collect().rows() == [
        ("date=1/a.parquet", 2),
        ("date=1/b.parquet", 0),
    ]


def test_without_attention_there_are_no_weights_and_columns_of_some_files_are_null_in_others(
    tmp_path: Path, put: Put, made: Made
) -> None:
    put("a.parquet", [b"a"], extra=[0.5])
    put("b.parquet", [b"b"], file=["mine"])
    made("none")
    found = storage.open_rows(tmp_path / "out").collect()
    assert "weights" not in found.columns
    assert found.select("file", "extra", "input_file").rows() == [("a.parquet", 0.5, None), ("b.parquet", None, "mine")]


def test_input_that_is_not_what_was_scored_is_named(data: Path, output: Path, tmp_path: Path, put: Put) -> None:
    data.rename(tmp_path / "moved")
    with pytest.raises(SourceError, match=r"name the folder that it is below now\.$"):
        storage.open_rows(output)
    moved = tmp_path / "moved"
    assert storage.open_rows(output, moved).select("file").collect().height == 7
    (moved / "date=1/b.parquet").write_bytes((moved / "date=1/a.parquet").read_bytes())
    with pytest.raises(SourceError, match=r"date=1/b\.parquet can't be put beside .*: it has changed since it was sco"):
        storage.open_rows(output, moved)

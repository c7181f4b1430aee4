"""How files are cut into shards: by row groups, the same way every time, under names that can't meet."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import SourceError
from storage.input.columns import Columns
from storage.input.shards import ShardLimits, ShardPlan, plan_shards
from storage.input.sources import find_source


def plan(source: Path, **limits: int) -> ShardPlan:
    return plan_shards(find_source(str(source)), Columns(), ShardLimits(**limits))


def test_small_file_is_one_shard_with_its_own_name(put: Callable[..., Path], data: Path) -> None:
    put("date=1/b.parquet", [b"a"] * 7, row_group_size=2)
    put("a.pq", [b"a"] * 3)
    shards = plan(data).shards
    assert [(shard.file, shard.name, shard.num_rows) for shard in shards] == [
        ("a.pq", "a.pq.parquet", 3),
        ("date=1/b.parquet", "date=1/b.parquet", 7),
    ]


def test_large_file_is_cut_where_row_groups_reach_the_limit(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", [b"a"] * 23, row_group_size=3)
    shards = plan(data, rows=7).shards
    assert [shard.name for shard in shards] == [f"a-{i:05d}-of-00003.parquet" for i in range(3)]
    assert [(shard.first_row_group, shard.end_row_group) for shard in shards] == [(0, 3), (3, 6), (6, 8)]
    assert [(shard.first_row, shard.num_rows) for shard in shards] == [(0, 9), (9, 9), (18, 5)]
    assert len({shard.fingerprint for shard in shards}) == 1


def test_bytes_cut_too(data: Path) -> None:
    tokens = pa.array([bytes([i]) * 1000 for i in range(6)])
    pq.write_table(
        pa.table({"tokens": tokens}), data / "a.parquet", row_group_size=1, use_dictionary=False, write_statistics=False
    )
    shards = plan(data, bytes=2000).shards
    assert [shard.num_rows for shard in shards] == [2, 2, 2]
    assert all(2000 <= shard.token_bytes < 2200 for shard in shards)


def test_plan_is_the_same_every_time_and_in_order_of_names(put: Callable[..., Path], data: Path) -> None:
    for number in range(40):
        put(f"p={number % 3}/{number}.parquet", [b"a"] * (number + 1), row_group_size=5)
    first = plan(data, rows=10)
    assert first == plan(data, rows=10)
    files = list(dict.fromkeys(shard.file for shard in first.shards))
    assert files == sorted(files)
    assert first.num_rows == sum(range(41))


def test_slice_of_a_dataset_is_cut_as_in_the_whole(put: Callable[..., Path], data: Path) -> None:
    for day in (1, 2):
        put(f"date={day}/a.parquet", [b"a"] * 9, row_group_size=3)
    whole, part = plan(data, rows=4).shards, plan(data / "date=2", rows=4).shards
    assert part == tuple(shard for shard in whole if shard.file.startswith("date=2/"))


def test_file_without_rows_is_a_shard_without_rows(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", [])
    pq.ParquetWriter(data / "b.parquet", pa.schema({"tokens": pa.binary()})).close()  # not even a row group
    assert [(shard.name, shard.end_row_group, shard.num_rows) for shard in plan(data).shards] == [
        ("a.parquet", 1, 0),
        ("b.parquet", 0, 0),
    ]


def test_unreadable_files_are_told_and_the_others_planned(put: Callable[..., Path], data: Path) -> None:
    put("good.parquet")
    content = put("cut.parquet").read_bytes()
    (data / "cut.parquet").write_bytes(content[:-30])
    (data / "text.parquet").write_text("id,tokens")
    pq.write_table(pa.table({"body": [b"a"]}), data / "other.parquet")
    pq.write_table(pa.table({"tokens": [1.5]}), data / "wrong.parquet")
    planned = plan(data)
    assert [shard.file for shard in planned.shards] == ["good.parquet"]
    assert {file.file: file.reason.partition(":")[0].partition(";")[0] for file in planned.unreadable} == {
        "cut.parquet": "not a whole Parquet file",
        "other.parquet": "column 'tokens' (tokens_column) is missing",
        "text.parquet": "not a whole Parquet file",
        "wrong.parquet": "column 'tokens' has type double",
    }


def test_column_that_might_be_the_id_is_said(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", ID=[1, 2])
    put("b.parquet", id=[1, 2])
    put("c.parquet", ID=[1, 2])
    frame = pd.DataFrame({"tokens": [b"ab"]}, index=pd.RangeIndex(100, 101, name="id"))
    frame.to_parquet(data / "d.parquet")  # which reads it back with its index; all others see no such column
    frame.to_parquet(data / "e.parquet", index=True)
    frame.rename_axis(None).to_parquet(data / "f.parquet")
    assert plan(data).notes == (
        "2 files have a column 'ID' and none called 'id', so ids are row numbers; --id-column ID takes it",
        "1 file has an index 'id' of pandas and no column, so ids are row numbers; to_parquet(index=True) writes it",
    )


def test_file_that_vanished_after_listing_is_unreadable(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet")
    gone = put("b.parquet")
    source = find_source(str(data))
    gone.unlink()
    planned = plan_shards(source, Columns(), ShardLimits())
    assert [shard.file for shard in planned.shards] == ["a.parquet"]
    assert planned.unreadable[0].file == "b.parquet"
    assert planned.unreadable[0].reason.startswith("can't be opened: ")


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("a.pq", "a.pq.parquet"), "a.pq.parquet"),
        (("a.parquet", "a-00001-of-00002.parquet"), "a-00001-of-00002.parquet"),
    ],
)
def test_two_inputs_with_one_output_name_are_refused(
    names: tuple[str, str], name: str, put: Callable[..., Path], data: Path
) -> None:
    put(names[0], [b"a"] * 4, row_group_size=2)
    put(names[1])
    with pytest.raises(SourceError, match=rf" would both be written to {name}\."):
        plan(data, **({"rows": 2} if "of" in name else {}))


def test_bad_limits_are_refused() -> None:
    for limits, message in (({"rows": 0}, "rows must be at least 1, not 0"), ({"bytes": -1}, "at least 1, not -1")):
        with pytest.raises(ValueError, match=f"^shard .*{message}"):
            ShardLimits(**limits)

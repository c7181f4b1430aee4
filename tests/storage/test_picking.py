"""A few rows of a Parquet file by position: the right ones, from as little as can be read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import FileError
from storage.locations import Location
from storage.picking import pick_rows

NUM_ROWS = 5003


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """Four row groups, each decoded in several pieces; the tokens are a field of a struct, too."""
    path = tmp_path_factory.mktemp("picking") / "a.parquet"
    numbers = list(range(NUM_ROWS))
    events = pa.StructArray.from_arrays([pa.array([f"token {number}" for number in numbers])], ["tokens"])
    pq.write_table(pa.table({"number": numbers, "event": events}), path, row_group_size=1301)
    return Location.parse(path)


@pytest.mark.parametrize("rows", [[], [0], [1300, 1301], [5, 511, 512, 2601, 5002], list(range(0, NUM_ROWS, 97))])
def test_rows_at_these_positions_are_picked(file: Location, rows: list[int]) -> None:
    table = pick_rows(file, rows, ["number", "event.tokens"])

    assert table["number"].to_pylist() == rows
    assert table["event.tokens"].to_pylist() == [f"token {row}" for row in rows]


def test_row_that_is_not_there_is_refused(file: Location) -> None:
    with pytest.raises(FileError, match="row 5,003 was looked for, and it has 5,003"):
        pick_rows(file, [1, NUM_ROWS], ["number"])


def test_column_that_is_not_there_is_refused(file: Location) -> None:
    with pytest.raises(FileError, match="column 'label'"):
        pick_rows(file, [1], ["label"])


def test_damaged_file_is_refused(tmp_path: Path, file: Location) -> None:
    content = bytearray(Path(file.path).read_bytes())
    (tmp_path / "a.parquet").write_bytes(content[:-9])

    with pytest.raises(FileError, match="damaged"):
        pick_rows(Location.parse(tmp_path / "a.parquet"), [1], ["number"])

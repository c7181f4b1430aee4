"""Which rows of an output have no prediction, over all of its files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import OutputError
from storage.input.shards import ShardLimits
from storage.output.layout import Output
from storage.output.row_errors import ErrorRow, ErrorRows, find_errors


@pytest.fixture
def output(put: Callable[..., Path], made: Callable[..., Output]) -> Output:
    """Two files, of which one is cut into shards of two rows; five rows have an error."""
    put("date=1/a.parquet", [b"a", None, b"b", b"", None], row_group_size=1, id=[10, 11, 12, 13, 14])
    put("date=2/b.parquet", [b"", b"", b"c"], id=[20, 21, 22])
    return made(limits=ShardLimits(rows=2))


def test_rows_with_errors_are_found_by_reason_with_their_places_in_the_input(output: Output) -> None:
    nulls = (ErrorRow("date=1/a.parquet", 1, 11), ErrorRow("date=1/a.parquet", 4, 14))
    empty = (ErrorRow("date=1/a.parquet", 3, 13), *(ErrorRow("date=2/b.parquet", row, 20 + row) for row in (0, 1)))
    assert find_errors(output, 100) == (ErrorRows("no tokens", 3, empty), ErrorRows("tokens are null", 2, nulls))
    assert find_errors(output, 2) == (ErrorRows("no tokens", 3, empty[:2]), ErrorRows("tokens are null", 2, nulls))
    assert [(each.num_rows, each.first) for each in find_errors(output, 0)] == [(3, ()), (2, ())]


def test_damaged_file_is_named(output: Output) -> None:
    Path(output.predictions("date=2/b.parquet").path).write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"predictions/date=2/b\.parquet: not a whole Parquet file"):
        find_errors(output, 1)

"""A few rows of a Parquet file, by their positions, without the memory that its row groups would take."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import FileError, first_line
from storage.input.columns import require_column, select_columns
from storage.locations import Location

# Rows decoded at once. Small, since a row can be large.
_DECODE_ROWS = 512


def pick_rows(location: Location, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """The rows at these positions, from 0 and ascending, with these columns; a name with dots may reach into structs.

    Only the row groups that hold them are read, each up to the last row that is wanted. Raises FileError if a column
    or a row is missing, or if the file is damaged, and FileNotFoundError without a file.
    """
    wanted = np.asarray(rows, np.int64)
    with location.filesystem.open_input_file(location.path) as file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            fields = [require_column(parquet.schema_arrow, name, "columns") for name in columns]
            taken = [pa.Table.from_batches([], pa.schema(fields))] if not len(wanted) else []
            first = 0
            for group in range(parquet.metadata.num_row_groups):
                end = first + parquet.metadata.row_group(group).num_rows
                inside = wanted[(wanted >= first) & (wanted < end)]
                if len(inside):
                    taken += _from_group(parquet, group, inside - first, list(columns))
                first = end
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FileError(f"damaged: {first_line(error)}") from error
    if len(wanted) and wanted[-1] >= first:
        raise FileError(f"row {wanted[-1]:,} was looked for, and it has {first:,}")
    return pa.concat_tables(taken)


def _from_group(parquet: pq.ParquetFile, group: int, rows: np.ndarray, columns: list[str]) -> list[pa.Table]:
    """rows: positions within the row group."""
    taken, first = [], 0
    for batch in parquet.iter_batches(_DECODE_ROWS, [group], columns=columns, use_threads=False):
        end = first + batch.num_rows
        inside = rows[(rows >= first) & (rows < end)] - first
        if len(inside):
            taken.append(select_columns(pa.Table.from_batches([batch]), columns).take(pa.array(inside)))
        if end > rows[-1]:
            break
        first = end
    return taken

"""Reading a shard as a stream of tables of bounded size, whatever the size of its row groups.

Where the tables are cut depends on the data only, so that what is computed from them does too.
"""

from collections.abc import Iterator

import pyarrow as pa

from storage.errors import FileError
from storage.footers import Footer, open_parquet, read_footer
from storage.input.columns import Columns, column_or_partition, require_column, select_columns
from storage.input.hive import partition_values
from storage.input.shards import Shard
from storage.locations import Location

# Rows decoded at once. Small, since a row can be large and footers do not tell (dictionary pages hide it).
_DECODE_ROWS = 1024
_CHANGED = "changed while the run was on; run the same command again to score what it holds now"
_VANISHED = "vanished while the run was on"


def _footer(root: Location, shard: Shard) -> Footer:
    """The footer of the shard's file. Raises FileError if the file changed or vanished since the plan was made."""
    try:
        footer = read_footer(root / shard.file)
    except FileNotFoundError:
        raise FileError(_VANISHED) from None
    if footer.fingerprint != shard.fingerprint:
        raise FileError(_CHANGED)
    return footer


def read_shard(
    root: Location, shard: Shard, columns: Columns | list[str], *, chunk_rows: int = 65_536, chunk_bytes: int = 4 << 20
) -> Iterator[pa.Table]:
    """Yield the shard's rows in order, in tables that end once they hold `chunk_rows` or `chunk_bytes`.

    columns: names, or what names them for this file's schema; with it, an id that is a Hive partition is a column of
    the tables too. A name with dots may reach into structs. A shard without rows gives one empty table.

    The footer is read before the first row, and once more after the last: a file that was overwritten meanwhile may
    have been read as if it were the old one. Raises FileError if the file changed since the plan was made, lacks a
    column, or is damaged.
    """
    footer = _footer(root, shard)
    names = columns.to_read(footer.schema, shard.file) if isinstance(columns, Columns) else columns
    num_rows = 0
    for table in _gather(_decode(root, footer, shard, names), chunk_rows, chunk_bytes):
        num_rows += table.num_rows
        yield _complete(table, names, columns, shard.file)
    if not num_rows:
        empty = pa.schema([require_column(footer.schema, name, "columns") for name in names]).empty_table()
        yield _complete(empty, names, columns, shard.file)
    if num_rows != shard.num_rows:
        raise FileError(f"damaged: its footer promises {shard.num_rows:,} rows and {num_rows:,} could be read")


def _complete(table: pa.Table, names: list[str], columns: Columns | list[str], file: str) -> pa.Table:
    """The table with fields of structs as columns, and with the id that is a partition."""
    if not set(names) <= set(table.column_names):
        table = select_columns(table, names)
    if isinstance(columns, Columns) and columns.id not in names and columns.id in partition_values(file):
        table = table.append_column(columns.id, column_or_partition(table, columns.id, file))
    return table


def _decode(root: Location, footer: Footer, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
    location = root / shard.file
    row_groups = list(range(shard.first_row_group, shard.end_row_group))
    if not row_groups:
        return
    reads = None
    try:
        with location.filesystem.open_input_file(location.path) as file:
            reads = _Reads(file)
            parquet = open_parquet(reads, footer.metadata)
            yield from parquet.iter_batches(_DECODE_ROWS, row_groups, columns=columns, use_threads=False)
    except FileNotFoundError:
        raise FileError(_VANISHED) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if reads is None:
            raise  # it could not even be opened
        if reads.fault is not None:
            if not location.is_file():  # an object store says so in words only
                raise FileError(_VANISHED) from None
            raise reads.fault from None
        _footer(root, shard)
        raise FileError(f"damaged: {str(error).splitlines()[0]}") from error
    _footer(root, shard)


class _Reads:
    """A file for Arrow to read that keeps the error of a read that failed.

    Arrow's own exceptions do not tell a fault of the disk or the network, which may pass, from bytes that came through
    and can't be decoded: both are an OSError without an errno.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.fault: OSError | None = None

    def read(self, num_bytes: int | None = None) -> pa.Buffer:
        try:
            return self._file.read_buffer(num_bytes)
        except OSError as error:
            self.fault = error
            raise

    def seek(self, position: int, whence: int = 0) -> int:
        return int(self._file.seek(position, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def close(self) -> None:
        self._file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


def _gather(batches: Iterator[pa.RecordBatch], chunk_rows: int, chunk_bytes: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = num_bytes = 0
    for batch in batches:
        held.append(batch)
        rows, num_bytes = rows + batch.num_rows, num_bytes + batch.nbytes
        if rows >= chunk_rows or num_bytes >= chunk_bytes:
            yield pa.Table.from_batches(held)
            held, rows, num_bytes = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)

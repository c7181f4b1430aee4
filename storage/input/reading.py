"""Reading a shard as a stream of tables of bounded size, whatever the size of its row groups, and its rows from them.

Where the tables are cut depends on the data only, so that what is computed from them does too. Owns as well what a row
needs beside tokens: what is carried along has to be readable, and no other than the partition of the same name.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from storage.errors import FileError
from storage.footers import Footer, as_texts, open_parquet, read_footer
from storage.input.columns import Columns, column_or_partition, require_column, select_columns
from storage.input.hive import partition_values
from storage.input.shards import Shard
from storage.input.tokens import TokenRows, TokenRules, decode_tokens
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
    the tables too, and a kept one is not. A name with dots may reach into structs. A shard without rows gives one
    empty table.

    The footer is read before the first row, and once more after the last: a file that was overwritten meanwhile may
    have been read as if it were the old one. Raises FileError if the file changed since the plan was made, lacks a
    column, is damaged, or has other values in a column than its partition of the same name.
    """
    footer = _footer(root, shard)
    names = columns.to_read(footer.schema, shard.file) if isinstance(columns, Columns) else columns
    num_rows, first = 0, shard.first_row
    for table in _gather(_decode(root, footer, shard, names), chunk_rows, chunk_bytes):
        yield _complete(table, names, columns, shard.file, first + num_rows)
        num_rows += table.num_rows
    if not num_rows:
        schema = pa.schema([require_column(footer.schema, name, "columns") for name in names])
        empty = pa.Table.from_batches([], schema)
        yield _complete(empty, names, columns, shard.file, first)
    if num_rows != shard.num_rows:
        raise FileError(f"damaged: its footer promises {shard.num_rows:,} rows and {num_rows:,} could be read")


def decode_rows(table: pa.Table, columns: Columns, rules: TokenRules) -> tuple[pa.Table, TokenRows]:
    """The rows of a table that `read_shard` gave, and the table as it may be written.

    A row whose id or kept value is no value of its type, such as text that is not UTF-8, can't be scored. It has null
    there, since no reader would take a file with such a value.
    """
    rows = decode_tokens(table[columns.tokens], rules)
    for name in dict.fromkeys((columns.id, *columns.keep)):
        if name in table.column_names:
            invalid = _invalid(table[name])
            if invalid.any():
                place = table.column_names.index(name)
                table = table.set_column(place, name, _nulled(table[name], invalid))
                rows = rows.without(invalid, f"{name} is {_not_valid(table[name].type)}")
    return table, rows


def _invalid(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """bool (N,): values that are none of the column's type."""
    try:
        column.validate(full=True)
        return np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        column = _plain(column)
        return np.array([not _is_valid(column.take(pa.array([row]))) for row in range(len(column))])


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _nulled(column: pa.ChunkedArray, nulled: npt.NDArray[np.bool_]) -> pa.ChunkedArray:
    """The column with null where `nulled`, bool (N,)."""
    return _plain(column).take(pa.array(np.arange(len(column)), mask=nulled)).cast(column.type)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values in a type whose rows can be taken one by one, without what they do not use."""
    if pt.is_dictionary(column.type):
        return pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
    if pt.is_string_view(column.type):
        # Through bytes: a cast from text to text checks it.
        return pa.chunked_array(
            [chunk.cast(pa.binary_view()).cast(pa.binary()).view(pa.string()) for chunk in column.chunks]
        )
    return column


def _not_valid(kind: pa.DataType) -> str:
    return "not UTF-8" if "string" in str(kind) or "json" in str(kind) else f"no {kind}"


def _complete(table: pa.Table, names: list[str], columns: Columns | list[str], file: str, first_row: int) -> pa.Table:
    """The table with fields of structs as columns, with the id that is a partition, and without kept ones that are."""
    if not set(names) <= set(table.column_names):
        table = select_columns(table, names)
    tokens, ids = (columns.tokens, columns.id) if isinstance(columns, Columns) else ("", "")
    for name, value in partition_values(file).items():
        if name in names and name != tokens:
            _refuse_other(name, table[name], value, first_row)
            table = table.drop_columns([name]) if isinstance(columns, Columns) else table
        if name == ids:
            table = table.append_column(name, column_or_partition(table, name, file))
    return table


def _refuse_other(name: str, column: pa.ChunkedArray, value: str | None, first_row: int) -> None:
    """Raises FileError if a column has other values than the partition `name=value` that its file lies in."""
    if value is None:
        other = column.is_valid()
    else:
        column = column.cast(column.type.value_type) if pt.is_dictionary(column.type) else column
        try:
            other = pc.fill_null(pc.not_equal(column, pa.scalar(value).cast(column.type)), True)
        except pa.ArrowException:  # the partition is no value of the column's type
            other = pa.chunked_array([np.ones(len(column), bool)])
    if pc.any(other).as_py():
        row = first_row + pc.index(other, True).as_py()
        raise FileError(
            f"column {name!r} has another value in row {row} than the partition {name}={value} that the file lies in, "
            "and only one of them can have this name in the output. Rename the column or the folders, or leave it out."
        )


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
            for batch in parquet.iter_batches(_DECODE_ROWS, row_groups, columns=columns, use_threads=False):
                yield as_texts(batch, footer.schema)
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
        if "decrypt" in str(error).lower():
            raise FileError(f"encrypted, at least in one of {', '.join(columns)}, which can't be read here") from error
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

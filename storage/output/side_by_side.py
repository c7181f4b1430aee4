"""Reading in lock-step what went into an output and what came out: input rows, their predictions, their attention.

Owns that the three stay in step, in pieces of bounded size, and the errors that name a file of the output that can't be
read. Knows nothing about what the rows should say.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import FileError, first_line
from storage.footers import Footer, read_footer
from storage.input.reading import read_shard
from storage.input.shards import Shard
from storage.locations import Location
from storage.output.layout import Output

# Rows decoded at once; as in `storage.input.reading`, small since a row can be large.
_DECODE_ROWS = 1024


@dataclass(frozen=True)
class Piece:
    """Some rows of a shard as they were read and as they were written.

    first: position, in the files of the output, of the first one. attention: None where none is saved. Of a file that
    ends too early there are fewer rows.
    """

    first: int
    source: pa.Table
    predictions: pa.Table
    attention: pa.Table | None


class OutputFileError(FileError):
    """A file of the output is missing or damaged.

    path: below the output's root. row: the first that could not be read, if any could.
    """

    def __init__(self, path: str, row: int | None, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path, self.row, self.what = path, row, what


def read_side_by_side(source_root: Location, output: Output, shard: Shard) -> Iterator[Piece]:
    """A shard's rows with their predictions and attention, in order, in pieces of bounded size.

    Raises OutputFileError if a file of the output can't be read, FileError if the input can't.
    """
    with ExitStack() as stack:
        predictions = stack.enter_context(open_rows(output, f"predictions/{shard.name}"))
        attention = None
        if output.settings.attention.kind != "none":
            attention = stack.enter_context(open_rows(output, f"attention/{shard.name}"))
        first = 0
        for table in read_shard(source_root, shard, output.settings.columns, chunk_bytes=output.settings.chunk_bytes):
            count = table.num_rows
            yield Piece(first, table, predictions.take(count), attention.take(count) if attention else None)
            first += count


class RowReader:
    """Reads a file of the output from its first row to its last, as many rows at a time as are asked for."""

    def __init__(self, path: str, file: pq.ParquetFile, columns: list[str]) -> None:
        self._path = path
        self._schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        self._batches = self._decode(file, columns)
        self._held: list[pa.RecordBatch] = []
        self._num_read = 0

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, fewer at the end of the file. Raises OutputFileError if they can't be read."""
        with _reading(self._path, self._num_read):
            while sum(held.num_rows for held in self._held) < count and (batch := next(self._batches, None)):
                self._held.append(batch)
            table = pa.Table.from_batches(self._held, self._schema)
            table.validate(full=True)  # what decodes without complaint may still be no text, or no list
        self._held = table[count:].to_batches()
        self._num_read += min(count, table.num_rows)
        return table[:count]

    @staticmethod
    def _decode(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
        # Group by group: a batch may span them, and they are what bounds the attention that is held.
        for group in range(file.num_row_groups):
            yield from file.iter_batches(_DECODE_ROWS, [group], columns, use_threads=False)


@contextmanager
def open_rows(output: Output, path: str, columns: list[str] | None = None) -> Iterator[RowReader]:
    """Open a file of the output at its first row. path: below the output's root. columns: by default, all.

    Raises OutputFileError if the file can't be opened.
    """
    location = output.root / path
    footer = read_output_footer(output, path)
    with ExitStack() as stack:
        with _reading(path, None):
            stored = stack.enter_context(location.filesystem.open_input_file(location.path))
            # Checksums are verified where there are any. Without `pre_buffer` memory stays flat.
            file = pq.ParquetFile(stored, metadata=footer.metadata, pre_buffer=False, page_checksum_verification=True)
        yield RowReader(path, file, columns or footer.schema.names)


def read_output_footer(output: Output, path: str) -> Footer:
    """The footer of a file of the output. path: below its root. Raises OutputFileError if it can't be read."""
    with _reading(path, None):
        return read_footer(output.root / path)


@contextmanager
def _reading(path: str, row: int | None) -> Iterator[None]:
    """Has errors say which file of the output can't be read, and from which row on."""
    try:
        yield
    except FileNotFoundError:
        raise OutputFileError(path, None, "missing") from None
    except (pa.ArrowException, OSError, ValueError, FileError) as error:
        raise OutputFileError(path, row, f"can't be read: {first_line(error)}") from error

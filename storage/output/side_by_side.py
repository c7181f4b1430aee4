"""Reading in step what went into an output and what came out, and telling where the two differ.

Owns that input rows, their predictions and their attention stay in step, in pieces of bounded size; the errors that
name a file of the output that can't be read; and the list of what was found to be wrong. Knows nothing about what the
rows should say: that is for `verification`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from storage.errors import FileError, first_line
from storage.footers import Footer, open_parquet, read_footer
from storage.input.reading import read_shard
from storage.input.shards import Shard
from storage.locations import Location
from storage.output.carried import differing
from storage.output.layout import ATTENTION, PREDICTIONS, Output, OutputSettings

Flags = npt.NDArray[np.bool_]

# Rows decoded at once; as in `storage.input.reading`, small since a row can be large.
_DECODE_ROWS = 1024
_SHOWN_CHARACTERS = 80


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


@dataclass(frozen=True)
class OutputFile:
    """A file of the output, whose footer has been read. path: below the output's root."""

    path: str
    location: Location
    footer: Footer

    @classmethod
    def open(cls, output: Output, path: str) -> "OutputFile":
        """Raises OutputFileError if the file is missing or its footer can't be read."""
        with _reading(path, None):
            return cls(path, output.root / path, read_footer(output.root / path))

    @contextmanager
    def rows(self, columns: list[str] | None = None) -> Iterator["RowReader"]:
        """The rows from the first one on. columns: by default, all. Raises OutputFileError if they can't be opened."""
        with ExitStack() as stack:
            with _reading(self.path, None):
                stored = stack.enter_context(self.location.filesystem.open_input_file(self.location.path))
            yield RowReader(self.path, open_parquet(stored, self.footer.metadata), columns or self.footer.schema.names)


def open_predictions_file(output: Output, shard: Shard) -> OutputFile:
    """Raises OutputFileError if the file can't be opened."""
    return OutputFile.open(output, f"{PREDICTIONS}/{shard.name}")


def open_attention_file(output: Output, shard: Shard) -> OutputFile | None:
    """None for an output without attention. Raises OutputFileError if the file can't be opened."""
    return None if output.settings.attention.kind == "none" else OutputFile.open(output, f"{ATTENTION}/{shard.name}")


def read_side_by_side(
    source_root: Location, shard: Shard, settings: OutputSettings, predictions: OutputFile, attention: OutputFile | None
) -> Iterator[Piece]:
    """A shard's rows with their predictions and attention, in order, in pieces of bounded size.

    Raises OutputFileError if a file of the output can't be read, FileError if the input can't.
    """
    with ExitStack() as stack:
        predicted = stack.enter_context(predictions.rows())
        attended = stack.enter_context(attention.rows()) if attention else None
        first = 0
        for table in read_shard(source_root, shard, settings.columns, chunk_bytes=settings.chunk_bytes):
            count = table.num_rows
            yield Piece(first, table, predicted.take(count), attended.take(count) if attended else None)
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


class SecondReading:
    """Timestamps of an input file in another way than what scored it reads them.

    Only those of INT96, which Arrow reads as nanoseconds, microseconds or milliseconds as it is told: the last ones no
    date overflows. All else has one reading, which is not Polars': of some types it ends the process.
    """

    def __init__(self, root: Location, shard: Shard, names: Iterable[str]) -> None:
        """names: of columns; those that the file does not have are left out."""
        self._place, self._shard, self._names = root / shard.file, shard, tuple(dict.fromkeys(names))
        self._read: pa.Table | None = None

    def compare(self, first: int, table: pa.Table) -> dict[str, tuple[pa.ChunkedArray, Flags]]:
        """Of each such column: N values, and where they differ, bool (N,), from those of the table of N rows.

        first: position in the shard of the first of them.
        """
        if not any(name in table.column_names and pt.is_timestamp(table[name].type) for name in self._names):
            return {}
        if self._read is None:
            self._read = self._in_milliseconds()
        again = self._read.slice(first, table.num_rows)
        found = {}
        for name in again.column_names:
            floored = pc.floor_temporal(table[name], unit="millisecond").cast(again[name].type)
            found[name] = again[name], differing(again[name], floored)
        return found

    def _in_milliseconds(self) -> pa.Table:
        groups = list(range(self._shard.first_row_group, self._shard.end_row_group))
        with self._place.filesystem.open_input_file(self._place.path) as stored:
            file = pq.ParquetFile(stored, coerce_int96_timestamp_unit="ms")
            columns = map(file.metadata.schema.column, range(len(file.metadata.schema)))
            names = {column.path for column in columns if column.physical_type == "INT96"}
            return file.read_row_groups(
                groups, [name for name in self._names if name in names & {*file.schema_arrow.names}]
            )


@contextmanager
def _reading(path: str, row: int | None) -> Iterator[None]:
    """Has errors say which file of the output can't be read, and from which row on."""
    try:
        yield
    except FileNotFoundError:
        raise OutputFileError(path, None, "missing") from None
    except (pa.ArrowException, OSError, ValueError, FileError) as error:
        raise OutputFileError(path, row, f"can't be read: {first_line(error)}") from error


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where. path: below the output's root. row: position in that file, from 0; None for all."""

    path: str
    row: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.row is None else f', row {self.row}'}: {self.what}"


@dataclass
class Findings:
    """The first problems of a shard, in order of their rows, and how many more there are."""

    limit: int
    kept: list[Problem] = field(default_factory=list)
    num_more: int = 0
    _new: list[Problem] = field(default_factory=list)

    def add(self, path: str, row: int | None, what: str) -> None:
        self._new.append(Problem(path, row, what))

    def add_rows(
        self, path: str, rows: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], what: Callable[[int], str]
    ) -> None:
        """rows: (N,), positions in the file. wrong: bool (N,), which of them are. what: says it of the i-th of N."""
        places = np.flatnonzero(wrong)
        for place in places[: self.limit].tolist():
            self.add(path, int(rows[place]), what(place))
        self.num_more += max(0, len(places) - self.limit)

    def settle(self) -> None:
        """Keep the first of those that were added since the last call."""
        self._new.sort(key=lambda problem: -1 if problem.row is None else problem.row)
        room = self.limit - len(self.kept)
        self.kept += self._new[:room]
        self.num_more += len(self._new[room:])
        self._new = []


@dataclass(frozen=True)
class CheckedRows:
    """N rows of the file `path`. at: (N,), their positions in it. findings: where what is wrong is told."""

    findings: Findings
    path: str
    table: pa.Table
    at: npt.NDArray[np.int64]

    @classmethod
    def starting(cls, first: int, table: pa.Table, path: str, findings: Findings) -> "CheckedRows":
        """Neighbours, the first of them at the position `first`."""
        return cls(findings, path, table, first + np.arange(table.num_rows))

    def tell(self, wrong: Flags, what: Callable[[int], str]) -> None:
        """wrong: bool (N,). what: says what is wrong with the i-th of N rows."""
        self.findings.add_rows(self.path, self.at, wrong, what)

    def shown(self, name: str, row: int) -> str:
        """A value for a message."""
        return shown(self.table[name][row])

    def only(self, columns: list[str], wanted: Flags) -> "CheckedRows":
        """The rows where `wanted`, bool (N,), with these columns; of some types, such as string views, none can be."""
        table = self.table.select(columns).filter(pa.array(wanted))
        return CheckedRows(self.findings, self.path, table, self.at[wanted])

    def check_equal(self, name: str, expected: pa.ChunkedArray) -> None:
        """expected: N values; a null equals a null, and NaN equals NaN."""
        self.tell(
            differing(self.table[name], expected),
            lambda row: f"{name} is {self.shown(name, row)}, expected {shown(expected[row])}",
        )

    def check_presence(self, name: str, wanted: Flags) -> Flags:
        """bool (N,): where there is a value. wanted: bool (N,), where there should be one."""
        is_there: Flags = self.table[name].is_valid().to_numpy()
        self.tell(wanted & ~is_there, lambda row: f"{name} is null, expected a value in a row without an error")
        self.tell(is_there & ~wanted, lambda row: f"{name} is {self.shown(name, row)}, expected null beside an error")
        return is_there

    def check_lengths(self, name: str, expected: npt.NDArray[np.int64]) -> Flags:
        """bool (N,): where a list is as long as expected; one that is null is for `check_presence` to tell of."""
        lengths = pc.list_value_length(self.table[name])
        is_right: Flags = pc.fill_null(pc.equal(lengths, pa.array(expected)), True).to_numpy()
        self.tell(~is_right, lambda row: f"{name} has {lengths[row]} values, expected {expected[row]}")
        return is_right


def shown(value: pa.Scalar) -> str:
    """A value in a message, cut short if it is long."""
    try:
        content = value.as_py()
    except (ValueError, OverflowError):
        content = str(value.type)
    text = "null" if content is None else repr(content)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."

"""The rows of an output that have no prediction: which there are, by the reason why.

Reads two narrow columns of those predictions files that say they have such rows, a piece at a time. Knows nothing about
what would mend them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import FileError, OutputError, first_line
from storage.footers import open_parquet, read_footer
from storage.locations import Location
from storage.output.layout import Output, Stamp, stamp_in

# Rows decoded at once: ids are narrow, and nearly all errors are null.
_DECODE_ROWS = 65_536


@dataclass(frozen=True)
class ErrorRow:
    """A row without a prediction. file: its input file. row: its position there, from 0. id: as JSON has it."""

    file: str
    row: int
    id: str | int | float | None


@dataclass(frozen=True)
class ErrorRows:
    """The rows with one error. num_rows: how many there are. first: some of them, in order of file and row."""

    reason: str
    num_rows: int
    first: tuple[ErrorRow, ...]


def find_errors(output: Output, most: int) -> tuple[ErrorRows, ...]:
    """The rows without a prediction in all files of an output, by their error, the commonest first.

    most: rows that are listed of each error. Raises OutputError if a file can't be read.
    """
    counts: Counter[str] = Counter()
    first: dict[str, list[ErrorRow]] = {}
    for place in output.predictions_files():
        for stamp, start, batch in _pieces(place, ["error", "id"]):
            for reason in pc.unique(batch["error"]).drop_null().to_pylist():
                found = pc.indices_nonzero(pc.equal(batch["error"], reason)).to_numpy()
                counts[reason] += len(found)
                listed = first.setdefault(reason, [])
                for row in found[: most - len(listed)].tolist():
                    listed.append(ErrorRow(stamp.file, start + row, _plain(batch["id"][row])))
    return tuple(ErrorRows(reason, count, tuple(first[reason])) for reason, count in counts.most_common())


def errors_in(place: Location) -> set[str]:
    """The errors that rows of a predictions file have. Raises OutputError if it can't be read."""
    found: set[str] = set()
    for _, _, batch in _pieces(place, ["error"]):
        found.update(pc.unique(batch["error"]).drop_null().to_pylist())
    return found


def _pieces(place: Location, columns: list[str]) -> Iterator[tuple[Stamp, int, pa.RecordBatch]]:
    """Pieces of a predictions file that has errors: its stamp, the first row's position in the input file, the rows.

    Raises OutputError if the file can't be read.
    """
    try:
        footer = read_footer(place)
        stamp = stamp_in(footer)
        if stamp is None or stamp.num_errors == 0:
            return
        first = stamp.first_row
        with place.filesystem.open_input_file(place.path) as stored:
            file = open_parquet(stored, footer.metadata)
            for batch in file.iter_batches(_DECODE_ROWS, columns=columns, use_threads=False):
                yield stamp, first, batch
                first += batch.num_rows
    except (FileError, pa.ArrowException, OSError) as error:
        raise OutputError(f"{place}: {first_line(error)}. Run classify again; it scores what is missing.") from error


def _plain(value: pa.Scalar) -> str | int | float | None:
    """A value as JSON has it, or as text."""
    try:
        content = value.as_py()
    except (ValueError, OverflowError):  # a time that Python has none for
        content = str(value)
    if isinstance(content, bytes):
        return content.decode(errors="backslashreplace")
    return content if content is None or isinstance(content, str | int | float) else str(content)

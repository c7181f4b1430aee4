"""Checking an output against its input, from Parquet alone: every row once, in order, with sums that add up.

Owns what has to hold between an input file and what was written for it. Reads both side by side, in pieces of bounded
size. Knows nothing about networks: whether a probability is the right one, only scoring again can tell.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from storage.columns import PREDICTION_COLUMNS
from storage.errors import FileError
from storage.footer import Footer, read_footer
from storage.location import Location
from storage.orphans import find_orphans
from storage.output import STAMP_KEY, Output, Stamp
from storage.reading import read_shard, shard_footer
from storage.shards import Shard, ShardPlan
from storage.source import Source, partition_values
from storage.tokens import TokenRows, TokenRules, decode_tokens

Flags = npt.NDArray[np.bool_]

# How far the sum of a row's float32 probabilities may be from 1.
_PROBABILITY_TOLERANCE = 1e-4
# The same for attention weights. They are normalised by a float32 sum; in 8 lanes or more, n terms are off by n / 8
# roundings of 2**-24 at most, besides what the exponentials and the division cost.
_WEIGHT_TOLERANCE, _WEIGHT_TOLERANCE_PER_TOKEN = 1e-5, 2.0**-24 / 8
# No vocabulary is this large: for tokens where nothing says how large it was.
_UNKNOWN_VOCABULARY = 2**31
_OUTSIDE_VOCABULARY = re.compile(r"a token id outside 0\.\.(\d+)")
_TYPES = {
    "prediction": pa.string(),
    "score": pa.float32(),
    "num_tokens": pa.int64(),
    "truncated": pa.bool_(),
    "error": pa.string(),
    "checkpoint": pa.string(),
}
_DECODE_ROWS = 1024
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where. path: below the output's root. row: position in that file, from 0; None for all."""

    path: str
    row: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.row is None else f', row {self.row}'}: {self.what}"


@dataclass(frozen=True)
class VerificationReport:
    """num_rows: input rows that were compared. num_files: predictions files. num_more: problems that are not listed."""

    num_rows: int
    num_files: int
    problems: tuple[Problem, ...]
    num_more: int


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
    """A file of the output is missing or damaged. row: the first that could not be read, if any could."""

    def __init__(self, path: str, row: int | None, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.problem = Problem(path, row, what)


def verify_output(
    output: Output,
    source: Source,
    plan: ShardPlan,
    *,
    is_pattern: bool = False,
    vocabularies: Mapping[str, int] | None = None,
    max_problems: int = 10,
    threads: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> VerificationReport:
    """Compare every file of the output with the input that it was made from; every page of both is read.

    plan: of this source with this output's settings. is_pattern: `source` was a glob (see `find_orphans`).
    max_problems: how many are listed for each shard. threads: shards compared side by side; by default, a core each.
    on_rows: called with the number of rows after each piece, from those threads.

    vocabularies: how many token ids a checkpoint knows, by its digest. The output does not record it, other than in the
    errors of rows that hold an id outside of it. So for a checkpoint that is not given here those errors are believed
    where all of a file agree; in a file without any, only negative ids are known to be outside.
    """
    checks = [_ShardCheck(output, source.root, shard, vocabularies or {}, max_problems) for shard in plan.shards]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        list(pool.map(lambda check: check.run(on_rows), checks))
    problems = [problem for check in checks for problem in check.findings.kept]
    problems += [Problem(file.file, None, f"the input can't be read: {file.reason}") for file in plan.unreadable]
    for orphan in find_orphans(output, source, plan, is_pattern=is_pattern):
        problems.append(Problem(orphan.path, None, f"no input accounts for it: {orphan.why}"))
    return VerificationReport(
        num_rows=sum(check.num_rows for check in checks),
        num_files=len(checks),
        problems=tuple(problems),
        num_more=sum(check.findings.num_more for check in checks),
    )


def read_side_by_side(source_root: Location, output: Output, shard: Shard) -> Iterator[Piece]:
    """A shard's rows with their predictions and attention, in order, in pieces of bounded size.

    Raises OutputFileError if a file of the output can't be read, FileError if the input can't.
    """
    columns = output.settings.columns.to_read(shard_footer(source_root, shard).schema, shard.file)
    with ExitStack() as stack:
        predictions = stack.enter_context(_reader(output, f"predictions/{shard.name}"))
        attention = None
        if output.settings.attention.kind != "none":
            attention = stack.enter_context(_reader(output, f"attention/{shard.name}"))
        first = 0
        for table in read_shard(source_root, shard, columns, chunk_bytes=output.settings.chunk_bytes):
            count = table.num_rows
            yield Piece(first, table, predictions.take(count), attention.take(count) if attention else None)
            first += count


class _RowReader:
    """Reads a file of the output from its first row to its last, as many rows at a time as are asked for."""

    def __init__(self, path: str, file: pq.ParquetFile, columns: list[str]) -> None:
        self._path = path
        self._schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        self._batches = self._decode(file, columns)
        self._held: list[pa.RecordBatch] = []
        self._num_read = 0

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, fewer at the end of the file."""
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
def _reader(output: Output, path: str, columns: list[str] | None = None) -> Iterator[_RowReader]:
    location = output.root / path
    footer = _output_footer(output, path)
    with ExitStack() as stack:
        with _reading(path, None):
            stored = stack.enter_context(location.filesystem.open_input_file(location.path))
            # Checksums are verified where there are any. Without `pre_buffer` memory stays flat.
            file = pq.ParquetFile(stored, metadata=footer.metadata, pre_buffer=False, page_checksum_verification=True)
        yield _RowReader(path, file, columns or footer.schema.names)


@contextmanager
def _reading(path: str, row: int | None) -> Iterator[None]:
    """Has errors say which file of the output can't be read, and from which row on."""
    try:
        yield
    except FileNotFoundError:
        raise OutputFileError(path, None, "missing") from None
    except (pa.ArrowException, OSError, ValueError, FileError) as error:
        raise OutputFileError(path, row, f"can't be read: {_first_line(error)}") from error


def _output_footer(output: Output, path: str) -> Footer:
    with _reading(path, None):
        return read_footer(output.root / path)


@dataclass
class _Findings:
    """The first problems of a shard, in order of their rows, and how many more there are."""

    limit: int
    kept: list[Problem] = field(default_factory=list)
    num_more: int = 0
    _new: list[Problem] = field(default_factory=list)

    def add(self, path: str, row: int | None, what: str) -> None:
        self._new.append(Problem(path, row, what))

    def add_rows(self, path: str, rows: npt.NDArray[np.int64], wrong: Flags, what: Callable[[int], str]) -> None:
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
class _Made:
    """What a predictions file says of itself. stamp: with the counts."""

    stamp: dict[str, Any]
    classes: tuple[str, ...]


class _ShardCheck:
    """All that is checked of one shard. num_rows: how many of its rows were compared."""

    def __init__(
        self, output: Output, source_root: Location, shard: Shard, vocabularies: Mapping[str, int], max_problems: int
    ) -> None:
        self._output, self._settings = output, output.settings
        self._source_root, self._shard, self._vocabularies = source_root, shard, vocabularies
        self._predictions, self._attention = f"predictions/{shard.name}", f"attention/{shard.name}"
        self.findings = _Findings(max_problems)
        self.num_rows = 0

    def run(self, on_rows: Callable[[int], None]) -> None:
        try:
            made = self._check_footers()
            if made is not None:
                self._check_rows(made, on_rows)
        except OutputFileError as error:
            self.findings.add(error.problem.path, error.problem.row, error.problem.what)
        except (FileError, OSError) as error:
            self.findings.add(self._shard.file, None, f"the input can't be read: {_first_line(error)}")
        self.findings.settle()

    def _check_footers(self) -> _Made | None:
        """What the footers say made the files; None where they are of another making: then all rows would differ."""
        footer = _output_footer(self._output, self._predictions)
        recorded = self._recorded(self._predictions, footer)
        expected = Stamp.of(
            self._shard, recorded.get("checkpoint", ""), recorded.get("checkpoint_digest", ""), self._settings
        )
        right = self._check_stamp(self._predictions, recorded, expected)
        names = [name for name in self._settings.columns.keep if name not in partition_values(self._shard.file)]
        right &= self._check_columns(self._predictions, footer, ["id", *names, *PREDICTION_COLUMNS[1:]])
        saving = self._settings.attention
        if saving.kind != "none":
            attention = _output_footer(self._output, self._attention)
            right &= self._check_stamp(self._attention, self._recorded(self._attention, attention), expected)
            positions = ["positions"] if saving.kind == "top" else []
            right &= self._check_columns(self._attention, attention, ["id", *positions, "weights"])
        if not right:
            return None
        classes = self._classes(footer)
        return _Made(recorded, classes) if classes else None

    def _recorded(self, path: str, footer: Footer) -> dict[str, Any]:
        """The stamp in a footer, as it stands there; empty if there is none."""
        try:
            recorded = json.loads(footer.key_values[STAMP_KEY])
        except (KeyError, ValueError):
            return {}
        return recorded if isinstance(recorded, dict) else {}

    def _check_stamp(self, path: str, recorded: dict[str, Any], expected: Stamp) -> bool:
        if not recorded:
            self.findings.add(path, None, "its footer does not say what it was made from")
            return False
        wrong = {name: value for name, value in asdict(expected).items() if recorded.get(name) != value}
        for name, value in wrong.items():
            why = ": it was made from other content than the input has now" if name == "fingerprint" else ""
            self.findings.add(path, None, f"its footer has {name} {recorded.get(name)!r}, expected {value!r}{why}")
        return not wrong

    def _check_columns(self, path: str, footer: Footer, expected: list[str]) -> bool:
        """Names, their order, and the types of columns that are ours; how many rows there are, besides."""
        if footer.metadata.num_rows != self._shard.num_rows:
            self.findings.add(path, None, f"holds {footer.metadata.num_rows} rows, expected {self._shard.num_rows}")
        found = [f"{column.name} ({column.type})" if column.name in _TYPES else column.name for column in footer.schema]
        wanted = [f"{name} ({_TYPES[name]})" if name in _TYPES else name for name in expected]
        if found != wanted:
            self.findings.add(path, None, f"has the columns {', '.join(found)}; expected {', '.join(wanted)}")
        return found == wanted

    def _classes(self, footer: Footer) -> tuple[str, ...]:
        try:
            classes = tuple(json.loads((footer.schema.metadata or {})[b"classes"]))
        except (KeyError, ValueError, TypeError):
            classes = ()
        kind = footer.schema.field("probabilities").type
        if not classes or kind != pa.list_(pa.float32(), len(classes)):
            named = ", ".join(map(str, classes)) or "nowhere"
            what = f"probabilities are {kind}, and the classes that its footer names are {named}"
            self.findings.add(self._predictions, None, what)
            return ()
        return classes

    def _check_rows(self, made: _Made, on_rows: Callable[[int], None]) -> None:
        vocabulary = self._vocabularies.get(made.stamp["checkpoint_digest"]) or self._vocabulary_by_errors()
        rules = TokenRules(vocabulary, self._settings.max_tokens, self._settings.long_rows)
        counts = {"num_errors": 0, "num_tokens": 0}
        for piece in read_side_by_side(self._source_root, self._output, self._shard):
            rows = decode_tokens(piece.source[self._settings.columns.tokens], rules)
            self._check_predictions(piece, rows, made)
            if piece.attention is not None:
                self._check_attention(piece, piece.attention, rows)
            self._check_end(piece)
            self.findings.settle()
            counts["num_errors"] += int(np.count_nonzero(~rows.usable))
            counts["num_tokens"] += len(rows.values)
            self.num_rows += piece.source.num_rows
            on_rows(piece.source.num_rows)
        for name, count in counts.items():
            if made.stamp.get(name) != count:
                what = f"its footer has {name} {made.stamp.get(name)!r}, expected {count}"
                self.findings.add(self._predictions, None, what)

    def _check_end(self, piece: Piece) -> None:
        for path, table in ((self._predictions, piece.predictions), (self._attention, piece.attention)):
            if table is not None and table.num_rows < piece.source.num_rows:
                self.findings.add(path, piece.first + table.num_rows, "the file ends before this row")

    def _vocabulary_by_errors(self) -> int:
        sizes: set[int] = set()
        with _reader(self._output, self._predictions, ["error"]) as reader:
            while (table := reader.take(_DECODE_ROWS * 64)).num_rows:
                errors = (_OUTSIDE_VOCABULARY.fullmatch(error or "") for error in pc.unique(table["error"]).to_pylist())
                sizes |= {int(match.group(1)) + 1 for match in errors if match}
        return sizes.pop() if len(sizes) == 1 else _UNKNOWN_VOCABULARY

    def _check_predictions(self, piece: Piece, rows: TokenRows, made: _Made) -> None:
        table = piece.predictions
        rows, at = _first_rows(rows, table.num_rows), piece.first + np.arange(table.num_rows)
        kept = [name for name in self._settings.columns.keep if name in piece.source.column_names]
        expected = {
            "id": self._ids(piece),
            **{name: piece.source[name] for name in kept},
            "num_tokens": pa.chunked_array([pa.array(rows.num_tokens, mask=rows.num_tokens < 0)]),
            "truncated": pa.chunked_array([pa.array(rows.truncated)]),
            "error": pa.chunked_array([rows.errors]),
            "checkpoint": pa.chunked_array([pa.repeat(made.stamp["checkpoint"], table.num_rows)]),
        }
        for name, column in expected.items():
            self._check_column(self._predictions, at, name, table[name], column[: table.num_rows])
        is_scored = table["error"].is_null().to_numpy()
        is_whole = is_scored.copy()
        for name in ("prediction", "score", "probabilities"):
            is_whole &= self._check_presence(self._predictions, at, name, table[name], is_scored)
        # Of our own columns: those of some types, such as string views, can't be filtered.
        scores = table.select(["prediction", "score", "probabilities"]).filter(pa.array(is_whole))
        self._check_probabilities(scores, at[is_whole], made.classes)

    def _check_probabilities(self, table: pa.Table, at: npt.NDArray[np.int64], classes: tuple[str, ...]) -> None:
        """table: rows that have a prediction, a score and probabilities. at: (N,), their positions in the file."""
        flat = pc.list_flatten(table["probabilities"]).to_numpy()  # NaN for a null
        probabilities = flat.reshape(-1, len(classes))
        in_range = ((probabilities >= 0) & (probabilities <= 1)).all(axis=1)
        sums = probabilities.sum(axis=1, dtype=np.float64)
        best = probabilities.max(axis=1, initial=0)
        scores = table["score"].to_numpy()
        codes = pc.fill_null(pc.index_in(table["prediction"], pa.array(classes)), -1).to_numpy()
        # Of equal probabilities either class will do.
        is_best = (codes >= 0) & (probabilities[np.arange(len(codes)), codes] == best)
        path, add = self._predictions, self.findings.add_rows
        add(
            path,
            at,
            ~in_range,
            lambda row: f"probabilities are {_show(table['probabilities'][row])}, expected all in 0..1",
        )
        off = in_range & (np.abs(sums - 1) > _PROBABILITY_TOLERANCE)
        add(path, at, off, lambda row: f"probabilities sum to {sums[row]:.6f}, expected 1")
        add(
            path,
            at,
            in_range & (scores != best),
            lambda row: f"score is {scores[row]}, expected {best[row]}, the largest probability",
        )
        add(
            path,
            at,
            in_range & ~is_best,
            lambda row: (
                f"prediction is {_show(table['prediction'][row])}, "
                f"expected {classes[probabilities[row].argmax()]!r}, the class of the largest probability"
            ),
        )

    def _check_attention(self, piece: Piece, table: pa.Table, rows: TokenRows) -> None:
        rows, at = _first_rows(rows, table.num_rows), piece.first + np.arange(table.num_rows)
        self._check_column(self._attention, at, "id", table["id"], self._ids(piece)[: table.num_rows])
        num_scored = np.zeros(table.num_rows, np.int64)
        num_scored[rows.usable] = np.diff(rows.offsets)
        num_kept = np.minimum(num_scored, self._settings.attention.top or num_scored)
        is_whole = rows.usable.copy()
        for name in table.column_names[1:]:
            is_whole &= self._check_presence(self._attention, at, name, table[name], rows.usable)
            is_whole &= self._check_lengths(at, name, table[name], num_kept)
        whole = table.select(table.column_names[1:]).filter(pa.array(is_whole))
        self._check_weights(whole, at[is_whole], num_scored[is_whole])
        if self._settings.attention.kind == "top":
            self._check_positions(whole, at[is_whole], num_scored[is_whole])

    def _check_weights(self, table: pa.Table, at: npt.NDArray[np.int64], num_scored: npt.NDArray[np.int64]) -> None:
        """table: rows with as many weights as there should be. num_scored: (N,), tokens that were scored."""
        weights = pc.list_flatten(table["weights"]).to_numpy().astype(np.float64)  # NaN for a null
        num_kept = np.minimum(num_scored, self._settings.attention.top or num_scored)
        starts = np.cumsum(num_kept) - num_kept  # no row is empty, as `reduceat` wants it
        sums = np.add.reduceat(weights, starts) if len(at) else np.zeros(0)
        is_weight = np.logical_and.reduceat(weights >= 0, starts) if len(at) else np.zeros(0, bool)
        tolerance = _WEIGHT_TOLERANCE + _WEIGHT_TOLERANCE_PER_TOKEN * num_scored
        # The largest K of n weights are at least K/n of all.
        is_sum = (sums <= 1 + tolerance) & (sums >= num_kept / num_scored - tolerance)
        path, add = self._attention, self.findings.add_rows
        add(path, at, ~is_weight, lambda row: f"weights are {_show(table['weights'][row])}, expected all 0 or more")
        add(
            path,
            at,
            is_weight & ~is_sum,
            lambda row: (
                f"weights sum to {sums[row]:.7f}, expected "
                + ("1" if num_kept[row] == num_scored[row] else f"{num_kept[row] / num_scored[row]:.7f} to 1")
            ),
        )

    def _check_positions(self, table: pa.Table, at: npt.NDArray[np.int64], num_scored: npt.NDArray[np.int64]) -> None:
        """table: rows with as many weights and positions as there should be."""
        positions = pc.fill_null(pc.list_flatten(table["positions"]), -1).to_numpy()
        weights = pc.list_flatten(table["weights"]).to_numpy()
        row_of = np.repeat(np.arange(len(at)), np.minimum(num_scored, self._settings.attention.top))
        is_out = (positions < 0) | (positions >= num_scored[row_of])
        order = np.lexsort((positions, row_of))
        is_same_row = row_of[1:] == row_of[:-1]
        is_twice = is_same_row & (np.diff(positions[order]) == 0)
        rises = is_same_row & (weights[1:] > weights[:-1])
        for places, expected in (
            (row_of[is_out], "all within the row"),
            (row_of[1:][is_twice], "none twice"),
            (row_of[1:][rises], "those of the largest weights first"),
        ):
            wrong = np.zeros(len(at), bool)
            wrong[places] = True
            self._add_positions(at, wrong, table, f"expected {expected}")

    def _add_positions(self, at: npt.NDArray[np.int64], wrong: Flags, table: pa.Table, expected: str) -> None:
        self.findings.add_rows(
            self._attention, at, wrong, lambda row: f"positions are {_show(table['positions'][row])}, {expected}"
        )

    def _check_presence(
        self, path: str, at: npt.NDArray[np.int64], name: str, column: pa.ChunkedArray, wanted: Flags
    ) -> Flags:
        """bool (N,): where there is a value. wanted: bool (N,), where there should be one."""
        is_there: Flags = column.is_valid().to_numpy()
        add = self.findings.add_rows
        add(path, at, wanted & ~is_there, lambda row: f"{name} is null, expected a value in a row without an error")
        add(path, at, is_there & ~wanted, lambda row: f"{name} is {_show(column[row])}, expected null beside an error")
        return is_there

    def _check_lengths(
        self, at: npt.NDArray[np.int64], name: str, column: pa.ChunkedArray, expected: npt.NDArray[np.int64]
    ) -> Flags:
        """bool (N,): where a list is as long as expected; one that is null has been told of already."""
        lengths = pc.list_value_length(column)
        is_right: Flags = pc.fill_null(pc.equal(lengths, pa.array(expected)), True).to_numpy()
        self.findings.add_rows(
            self._attention, at, ~is_right, lambda row: f"{name} has {lengths[row]} values, expected {expected[row]}"
        )
        return is_right

    def _check_column(
        self, path: str, at: npt.NDArray[np.int64], name: str, found: pa.ChunkedArray, expected: pa.ChunkedArray
    ) -> None:
        self.findings.add_rows(
            path,
            at,
            _differing(found, expected),
            lambda row: f"{name} is {_show(found[row])}, expected {_show(expected[row])}",
        )

    def _ids(self, piece: Piece) -> pa.ChunkedArray:
        if self._settings.columns.id in piece.source.column_names:
            return piece.source[self._settings.columns.id]
        first = self._shard.first_row + piece.first
        return pa.chunked_array([np.arange(first, first + piece.source.num_rows)])


def _first_rows(rows: TokenRows, count: int) -> TokenRows:
    num_usable = int(np.count_nonzero(rows.usable[:count]))
    return TokenRows(
        values=rows.values[: rows.offsets[num_usable]],
        offsets=rows.offsets[: num_usable + 1],
        usable=rows.usable[:count],
        num_tokens=rows.num_tokens[:count],
        truncated=rows.truncated[:count],
        errors=rows.errors[:count],
    )


def _differing(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> Flags:
    """bool (N,): where two columns of N rows differ. Nulls are equal to each other, and so are NaNs."""
    found, expected = _comparable(found), _comparable(expected)
    differ: Flags = found.is_null().to_numpy() != expected.is_null().to_numpy()
    try:
        found = found.cast(expected.type)
        differ |= pc.fill_null(pc.not_equal(found, expected), False).to_numpy()
        if pt.is_floating(expected.type):
            both = pc.and_(pc.is_nan(found), pc.is_nan(expected))
            differ &= ~pc.fill_null(both, False).to_numpy()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
        # Nested columns, which no kernel compares, and such as do not even have the same type.
        differ = np.zeros(len(expected), bool)
        _mark_differing(found, expected, 0, differ)
    return differ


def _mark_differing(found: pa.ChunkedArray, expected: pa.ChunkedArray, first: int, differ: Flags) -> None:
    """By halves, so that equal stretches cost one comparison."""
    count = len(expected)
    if found.equals(expected):
        return
    if count == 1:
        differ[first] = repr(found[0].as_py()) != repr(expected[0].as_py())  # by their text, NaN equals NaN
        return
    half = count // 2
    _mark_differing(found[:half], expected[:half], first, differ)
    _mark_differing(found[half:], expected[half:], first + half, differ)


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pt.is_dictionary(kind):
        return _comparable(column.cast(kind.value_type))
    if pt.is_string_view(kind):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if pt.is_binary_view(kind) else column


def _show(value: pa.Scalar) -> str:
    """A value in a message, cut short if it is long."""
    try:
        content = value.as_py()
    except (ValueError, OverflowError):
        content = str(value.type)
    text = "null" if content is None else repr(content)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

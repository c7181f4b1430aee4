"""Checking an output against its input, from Parquet alone: every row once, in order, with sums that add up.

Owns which checks an output has to pass, shard by shard: what the footers say the files were made from and which columns
they have, that rows and their ids are those of the input, that probabilities and weights make sense. How files are read
and values compared is for `side_by_side`. Knows nothing about networks: whether a probability is the right one, only
scoring again can tell.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import FileError, first_line
from storage.input.columns import ATTENTION_COLUMNS, PREDICTION_COLUMNS, ROW
from storage.input.hive import partition_values
from storage.input.reading import decode_rows
from storage.input.shards import Shard
from storage.input.tokens import ANY_VOCABULARY, TokenRows, TokenRules, any_too_long, vocabulary_in
from storage.locations import Location
from storage.output.carried import as_read_back
from storage.output.layout import STAMP_KEY, AttentionSaving, Output, Stamp, classes_in, thresholds_in
from storage.output.orphans import find_orphans
from storage.output.plan import OutputPlan
from storage.output.side_by_side import (
    CheckedRows,
    Findings,
    OutputFile,
    OutputFileError,
    Piece,
    Problem,
    SecondReading,
    open_attention_file,
    open_predictions_file,
    read_side_by_side,
    shown,
)
from storage.registry.checkpoints import CheckpointId

_TYPES = {
    "prediction": pa.string(),
    "score": pa.float32(),
    "num_tokens": pa.int64(),
    "truncated": pa.bool_(),
    "error": pa.string(),
    "checkpoint": pa.string(),
}
# Rows of a predictions file whose errors are looked at before anything is compared; one short column.
_ERRORS_AT_ONCE = 65_536
# How far the sum of a row's float32 probabilities may be from 1.
_PROBABILITY_TOLERANCE = 1e-4
# How far the sum of a row's weights may be from 1. They are normalised by a float32 sum; in 8 lanes or more, n terms
# are off by n / 8 roundings of 2**-24 at most, besides what the exponentials and the division cost.
_WEIGHT_TOLERANCE, _WEIGHT_TOLERANCE_PER_TOKEN = 1e-5, 2.0**-24 / 8


@dataclass(frozen=True)
class VerificationReport:
    """num_rows: input rows that were compared. num_files: predictions files. num_more: problems that are not listed."""

    num_rows: int
    num_files: int
    problems: tuple[Problem, ...]
    num_more: int


def verify_output(
    plan: OutputPlan,
    *,
    vocabularies: Mapping[str, int] | None = None,
    max_problems: int = 10,
    threads: int = 1,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> VerificationReport:
    """Compare every file of the output with the input that it was made from; every page of both is read.

    max_problems: how many are listed for each shard. threads: shards compared side by side.
    on_rows: called with the number of rows after each piece, from those threads.

    vocabularies: how many token ids a checkpoint knows, by its digest. The output does not record it, other than in the
    errors of rows that hold an id outside of it. So for a checkpoint that is not given here those errors are believed
    where all of a file agree; in a file without any, only negative ids are known to be outside.
    """
    checks = [
        _ShardCheck(plan.output, plan.source.root, shard, vocabularies or {}, max_problems) for shard in plan.shards
    ]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda check: check.run(on_rows), checks))
    problems = [problem for check in checks for problem in check.findings.kept]
    problems += [Problem(file.file, None, f"the input can't be read: {file.reason}") for file in plan.unreadable]
    for orphan in find_orphans(plan):
        problems.append(Problem(orphan.path, None, f"no input accounts for it: {orphan.why}"))
    return VerificationReport(
        num_rows=sum(check.num_rows for check in checks),
        num_files=len(checks),
        problems=tuple(problems),
        num_more=sum(check.findings.num_more for check in checks),
    )


@dataclass(frozen=True)
class _Made:
    """A shard's files, and what that of the predictions says of itself. stamp: with the counts. thresholds: (C,)."""

    predictions: OutputFile
    attention: OutputFile | None
    stamp: dict[str, Any]
    classes: tuple[str, ...]
    thresholds: npt.NDArray[np.float32]


class _ShardCheck:
    """All that is checked of one shard. num_rows: how many of its rows were compared."""

    def __init__(
        self, output: Output, source_root: Location, shard: Shard, vocabularies: Mapping[str, int], max_problems: int
    ) -> None:
        self._output, self._settings = output, output.settings
        self._source_root, self._shard, self._vocabularies = source_root, shard, vocabularies
        self.findings = Findings(max_problems)
        self.num_rows = 0

    def run(self, on_rows: Callable[[int], None]) -> None:
        try:
            made = self._check_footers()
            if made is not None:
                self._check_rows(made, on_rows)
        except OutputFileError as error:
            self.findings.add(error.path, error.row, error.what)
        except (FileError, OSError) as error:
            self.findings.add(self._shard.file, None, f"the input can't be read: {first_line(error)}")
        self.findings.settle()

    def _check_footers(self) -> _Made | None:
        """What the footers say made the files; None where they are of another making: then all rows would differ."""
        predictions = open_predictions_file(self._output, self._shard)
        recorded = self._recorded(predictions)
        checkpoint = CheckpointId(recorded.get("checkpoint", ""), recorded.get("checkpoint_digest", ""))
        expected = Stamp.of(self._shard, checkpoint, self._settings)
        right = self._check_stamp(predictions, recorded, expected)
        known = [ROW, "id"] if self._settings.has_rows else ["id"]
        right &= self._check_columns(predictions, [*known, *self._kept(), *PREDICTION_COLUMNS[2:]])
        attention = open_attention_file(self._output, self._shard)
        if attention:
            right &= self._check_stamp(attention, self._recorded(attention), expected)
            positions = ["positions"] if self._settings.attention.kind == "top" else []
            right &= self._check_columns(attention, [*known, *positions, "weights"])
        if not right:
            return None
        classes = self._classes(predictions)
        thresholds = self._thresholds(predictions, classes)
        return _Made(predictions, attention, recorded, classes, thresholds) if classes else None

    def _kept(self) -> list[str]:
        """The kept columns that are in the files; the others are partitions."""
        return [name for name in self._settings.columns.keep if name not in partition_values(self._shard.file)]

    def _recorded(self, file: OutputFile) -> dict[str, Any]:
        """The stamp in a footer, as it stands there; empty if there is none."""
        try:
            recorded = json.loads(file.footer.key_values[STAMP_KEY])
        except (KeyError, ValueError):
            return {}
        return recorded if isinstance(recorded, dict) else {}

    def _check_stamp(self, file: OutputFile, recorded: dict[str, Any], expected: Stamp) -> bool:
        if not recorded:
            self.findings.add(file.path, None, "its footer does not say what it was made from")
            return False
        wrong = {name: value for name, value in expected.fields().items() if recorded.get(name) != value}
        for name, value in wrong.items():
            why = ": it was made from other content than the input has now" if name == "fingerprint" else ""
            self.findings.add(file.path, None, f"its footer has {name} {recorded.get(name)!r}, expected {value!r}{why}")
        return not wrong

    def _check_columns(self, file: OutputFile, expected: list[str]) -> bool:
        """Names, their order, and types as far as they are known; how many rows there are, besides."""
        num_rows, schema = file.footer.metadata.num_rows, file.footer.schema
        if num_rows != self._shard.num_rows:
            self.findings.add(file.path, None, f"holds {num_rows} rows, expected {self._shard.num_rows}")
        types = {**({ROW: pa.int64()} if self._settings.has_rows else {}), **_TYPES, **as_read_back(self._output.types)}
        found = {column.name: column.type if column.name in types else None for column in schema}
        wanted = {name: types.get(name) for name in expected}
        is_right = schema.names == expected and found == wanted
        if not is_right:
            has, should = (
                ", ".join(f"{name} ({kind})" if kind else name for name, kind in each.items())
                for each in (found, wanted)
            )
            self.findings.add(file.path, None, f"has the columns {has}; expected {should}")
        return is_right

    def _classes(self, file: OutputFile) -> tuple[str, ...]:
        classes = classes_in(file.footer)
        kind = file.footer.schema.field("probabilities").type
        if not classes or kind != pa.list_(pa.float32(), len(classes)):
            named = ", ".join(map(str, classes)) or "nowhere"
            what = f"probabilities are {kind}, and the classes that its footer names are {named}"
            self.findings.add(file.path, None, what)
            return ()
        return classes

    def _thresholds(self, file: OutputFile, classes: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """(C,): the scores below which predictions are withheld; 0 for all where the output withholds none."""
        found = thresholds_in(file.footer)
        if (found is not None) != (self._settings.abstain_below is not None) or len(found or classes) != len(classes):
            asked = f"abstain_below is {self._settings.abstain_below}"
            self.findings.add(file.path, None, f"its footer has the thresholds {found}, and in this output {asked}")
        return np.resize(np.array(found or [0.0], np.float32), len(classes))

    def _check_rows(self, made: _Made, on_rows: Callable[[int], None]) -> None:
        vocabulary = self._vocabularies.get(made.stamp["checkpoint_digest"]) or _vocabulary_by_errors(made.predictions)
        rules = TokenRules(vocabulary, self._settings.max_tokens, self._settings.long_rows)
        counts = {"num_errors": 0, "num_tokens": 0}
        if self._settings.abstain_below is not None:
            counts["num_abstained"] = 0
        refused_above = None
        again = SecondReading(self._source_root, self._shard, [self._settings.columns.id, *self._kept()])
        for piece in read_side_by_side(
            self._source_root, self._shard, self._settings, made.predictions, made.attention
        ):
            source, rows = decode_rows(piece.source, self._settings.columns, rules)
            self._check_piece(replace(piece, source=source), rows, made)
            self._check_reading(again, piece.first, source)
            self.findings.settle()
            counts["num_errors"] += int(np.count_nonzero(~rows.usable))
            counts["num_tokens"] += len(rows.values)
            if "num_abstained" in counts:
                found = piece.predictions
                abstains = pc.and_(found["prediction"].is_null(), found["error"].is_null())
                counts["num_abstained"] += pc.sum(abstains).as_py() or 0
            if self._settings.can_lengthen and any_too_long(rows):
                refused_above = self._settings.max_tokens
            self.num_rows += piece.source.num_rows
            on_rows(piece.source.num_rows)
        for name, count in {**counts, "refused_above": refused_above}.items():
            if made.stamp.get(name) != count:
                what = f"its footer has {name} {made.stamp.get(name)!r}, expected {count}"
                self.findings.add(made.predictions.path, None, what)

    def _check_piece(self, piece: Piece, rows: TokenRows, made: _Made) -> None:
        known = self._known(piece)
        _check_predictions(
            CheckedRows.starting(piece.first, piece.predictions, made.predictions.path, self.findings),
            _first_rows(rows, piece.predictions.num_rows),
            known | {name: piece.source[name] for name in self._kept()},
            made.stamp["checkpoint"],
            made.classes,
            made.thresholds,
        )
        if made.attention and piece.attention is not None:
            _check_attention(
                CheckedRows.starting(piece.first, piece.attention, made.attention.path, self.findings),
                _first_rows(rows, piece.attention.num_rows),
                known,
                self._settings.attention,
            )
        for file, table in ((made.predictions, piece.predictions), (made.attention, piece.attention)):
            if file and table is not None and table.num_rows < piece.source.num_rows:
                self.findings.add(file.path, piece.first + table.num_rows, "the file ends before this row")

    def _check_reading(self, again: SecondReading, first: int, source: pa.Table) -> None:
        """What the input says must not depend on who reads it, or the output is right by its own reading only."""
        rows = CheckedRows.starting(self._shard.first_row + first, source, self._shard.file, self.findings)
        for name, (values, differ) in again.compare(first, source).items():
            rows.tell(
                differ,
                lambda row, name=name, values=values: (  # type: ignore[misc]
                    f"{name} is {rows.shown(name, row)} as it was scored, and {shown(values[row])} by another reading"
                ),
            )

    def _known(self, piece: Piece) -> dict[str, pa.ChunkedArray]:
        """What both files say of which rows these are, by column."""
        first = self._shard.first_row + piece.first
        rows = pa.chunked_array([np.arange(first, first + piece.source.num_rows)])
        has_ids = self._settings.columns.id in piece.source.column_names
        ids = {"id": piece.source[self._settings.columns.id] if has_ids else rows}
        return {ROW: rows} | ids if self._settings.has_rows else ids


def _vocabulary_by_errors(predictions: OutputFile) -> int:
    """How many token ids the checkpoint knew, where all errors of the file that say so agree."""
    sizes: set[int] = set()
    with predictions.rows(["error"]) as reader:
        while (table := reader.take(_ERRORS_AT_ONCE)).num_rows:
            errors = pc.unique(table["error"]).drop_null().to_pylist()
            sizes |= {known for error in errors if (known := vocabulary_in(error))}
    return sizes.pop() if len(sizes) == 1 else ANY_VOCABULARY


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


def _check_predictions(
    found: CheckedRows,
    tokens: TokenRows,
    carried: dict[str, pa.ChunkedArray],
    checkpoint: str,
    classes: tuple[str, ...],
    thresholds: npt.NDArray[np.float32],
) -> None:
    """found: N rows of predictions. tokens: of these rows. carried: row, id and kept columns, N values each or more."""
    num_rows = found.table.num_rows
    expected = carried | {
        "num_tokens": pa.chunked_array([pa.array(tokens.num_tokens, mask=tokens.num_tokens < 0)]),
        "truncated": pa.chunked_array([pa.array(tokens.truncated)]),
        "error": pa.chunked_array([tokens.errors]),
        "checkpoint": pa.chunked_array([pa.repeat(checkpoint, num_rows)]),
    }
    for name, column in expected.items():
        found.check_equal(name, column[:num_rows])
    is_scored = found.table["error"].is_null().to_numpy()
    is_whole = is_scored.copy()
    for name in ("score", "probabilities"):
        is_whole &= found.check_presence(name, is_scored)
    whole = found.only(["prediction", "score", "probabilities"], is_whole)
    is_low, probabilities = np.zeros(num_rows, bool), _probabilities(whole, classes)
    is_low[is_whole] = probabilities.max(axis=1, initial=0) < thresholds[probabilities.argmax(axis=1)]
    is_there = found.table["prediction"].is_valid().to_numpy()
    found.tell(
        is_low & is_there,
        lambda row: f"prediction is {found.shown('prediction', row)}, expected null: its score is too low for one",
    )
    found.check_presence("prediction", is_scored & (is_there | ~is_low))
    _check_probabilities(whole, classes)


def _probabilities(found: CheckedRows, classes: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """(N, C), NaN for a null. found: rows that have probabilities."""
    flat: npt.NDArray[np.float32] = pc.list_flatten(found.table["probabilities"]).to_numpy()
    return flat.reshape(-1, len(classes))


def _check_probabilities(found: CheckedRows, classes: tuple[str, ...]) -> None:
    """found: rows that have a score and probabilities, and perhaps a prediction."""
    probabilities = _probabilities(found, classes)
    in_range = np.logical_and.reduce((probabilities >= 0) & (probabilities <= 1), axis=1)
    sums = probabilities.sum(axis=1, dtype=np.float64)
    best = probabilities.max(axis=1, initial=0)
    scores = found.table["score"].to_numpy()
    names = found.table["prediction"].cast(pa.string())
    codes = pc.fill_null(pc.index_in(names, pa.array(classes)), -1).to_numpy()
    # Of equal probabilities either class will do.
    is_missing = found.table["prediction"].is_null().to_numpy()
    is_best = (codes >= 0) & (probabilities[np.arange(len(codes)), codes] == best)
    found.tell(~in_range, lambda row: f"probabilities are {found.shown('probabilities', row)}, expected all in 0..1")
    found.tell(
        in_range & (np.abs(sums - 1) > _PROBABILITY_TOLERANCE),
        lambda row: f"probabilities sum to {sums[row]:.6f}, expected 1",
    )
    found.tell(
        in_range & (scores != best),
        lambda row: f"score is {scores[row]}, expected {best[row]}, the largest probability",
    )
    found.tell(
        in_range & ~is_best & ~is_missing,
        lambda row: (
            f"prediction is {found.shown('prediction', row)}, "
            f"expected {classes[probabilities[row].argmax()]!r}, the class of the largest probability"
        ),
    )


def _check_attention(
    found: CheckedRows, tokens: TokenRows, carried: dict[str, pa.ChunkedArray], saving: AttentionSaving
) -> None:
    """found: N rows of attention. tokens: of these rows. carried: row and id, N values each or more."""
    for name, column in carried.items():
        found.check_equal(name, column[: found.table.num_rows])
    num_scored = np.zeros(found.table.num_rows, np.int64)
    num_scored[tokens.usable] = np.diff(tokens.offsets)
    num_kept = np.minimum(num_scored, saving.top or num_scored)
    is_whole = tokens.usable.copy()
    lists = [name for name in found.table.column_names if name in ATTENTION_COLUMNS]
    for name in lists:
        is_whole &= found.check_presence(name, tokens.usable)
        is_whole &= found.check_lengths(name, num_kept)
    whole = found.only(lists, is_whole)
    _check_weights(whole, num_scored[is_whole], num_kept[is_whole])
    if saving.kind == "top":
        _check_positions(whole, num_scored[is_whole], num_kept[is_whole])


def _check_weights(found: CheckedRows, num_scored: npt.NDArray[np.int64], num_kept: npt.NDArray[np.int64]) -> None:
    """found: N rows with as many weights as there should be. num_scored, num_kept: (N,), tokens and weights of each."""
    weights = pc.list_flatten(found.table["weights"]).to_numpy().astype(np.float64)  # NaN for a null
    starts = np.cumsum(num_kept) - num_kept  # no row is empty, as `reduceat` wants it
    sums = np.add.reduceat(weights, starts) if len(starts) else np.zeros(0)
    is_weight = np.logical_and.reduceat(weights >= 0, starts) if len(starts) else np.zeros(0, bool)
    tolerance = _WEIGHT_TOLERANCE + _WEIGHT_TOLERANCE_PER_TOKEN * num_scored
    # The largest K of n weights are at least K/n of all.
    is_sum = (sums <= 1 + tolerance) & (sums >= num_kept / num_scored - tolerance)
    found.tell(~is_weight, lambda row: f"weights are {found.shown('weights', row)}, expected all 0 or more")
    found.tell(
        is_weight & ~is_sum,
        lambda row: (
            f"weights sum to {sums[row]:.7f}, expected "
            + ("1" if num_kept[row] == num_scored[row] else f"{num_kept[row] / num_scored[row]:.7f} to 1")
        ),
    )


def _check_positions(found: CheckedRows, num_scored: npt.NDArray[np.int64], num_kept: npt.NDArray[np.int64]) -> None:
    """As `_check_weights`; rows with as many positions as weights."""
    positions = pc.fill_null(pc.list_flatten(found.table["positions"]), -1).to_numpy()
    weights = pc.list_flatten(found.table["weights"]).to_numpy()
    row_of = np.repeat(np.arange(len(num_kept)), num_kept)
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
        wrong = np.zeros(len(num_kept), bool)
        wrong[places] = True
        _tell_positions(found, wrong, expected)


def _tell_positions(found: CheckedRows, wrong: npt.NDArray[np.bool_], expected: str) -> None:
    found.tell(wrong, lambda row: f"positions are {found.shown('positions', row)}, expected {expected}")

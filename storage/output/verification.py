"""Checking an output against its input, from Parquet alone: every row once, in order, with sums that add up.

Owns which checks an output has to pass, shard by shard, and those of its footers: what they say the files were made
from, and which columns they have. Knows nothing about networks: whether a probability is the right one, only scoring
again can tell.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import FileError, first_line
from storage.footers import Footer
from storage.input.columns import PREDICTION_COLUMNS
from storage.input.shards import Shard
from storage.input.sources import partition_values
from storage.input.tokens import TokenRows, TokenRules, decode_tokens
from storage.locations import Location
from storage.output.attention_checks import check_attention
from storage.output.checked_rows import CheckedRows
from storage.output.findings import Findings, Problem
from storage.output.layout import STAMP_KEY, Output, Stamp
from storage.output.orphans import find_orphans
from storage.output.plan import OutputPlan
from storage.output.prediction_checks import check_predictions
from storage.output.side_by_side import OutputFileError, Piece, open_rows, read_output_footer, read_side_by_side
from storage.registry.checkpoints import CheckpointId

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
# Rows of a predictions file whose errors are looked at before anything is compared; one short column.
_ERRORS_AT_ONCE = 65_536


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
    threads: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> VerificationReport:
    """Compare every file of the output with the input that it was made from; every page of both is read.

    max_problems: how many are listed for each shard. threads: shards compared side by side; by default, a core each.
    on_rows: called with the number of rows after each piece, from those threads.

    vocabularies: how many token ids a checkpoint knows, by its digest. The output does not record it, other than in the
    errors of rows that hold an id outside of it. So for a checkpoint that is not given here those errors are believed
    where all of a file agree; in a file without any, only negative ids are known to be outside.
    """
    checks = [
        _ShardCheck(plan.output, plan.source.root, shard, vocabularies or {}, max_problems) for shard in plan.shards
    ]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
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
        footer = read_output_footer(self._output, self._predictions)
        recorded = self._recorded(self._predictions, footer)
        checkpoint = CheckpointId(recorded.get("checkpoint", ""), recorded.get("checkpoint_digest", ""))
        expected = Stamp.of(self._shard, checkpoint, self._settings)
        right = self._check_stamp(self._predictions, recorded, expected)
        names = [name for name in self._settings.columns.keep if name not in partition_values(self._shard.file)]
        right &= self._check_columns(self._predictions, footer, ["id", *names, *PREDICTION_COLUMNS[1:]])
        saving = self._settings.attention
        if saving.kind != "none":
            attention = read_output_footer(self._output, self._attention)
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
            self._check_piece(piece, rows, made)
            self.findings.settle()
            counts["num_errors"] += int(np.count_nonzero(~rows.usable))
            counts["num_tokens"] += len(rows.values)
            self.num_rows += piece.source.num_rows
            on_rows(piece.source.num_rows)
        for name, count in counts.items():
            if made.stamp.get(name) != count:
                what = f"its footer has {name} {made.stamp.get(name)!r}, expected {count}"
                self.findings.add(self._predictions, None, what)

    def _check_piece(self, piece: Piece, rows: TokenRows, made: _Made) -> None:
        ids = self._ids(piece)
        kept = [name for name in self._settings.columns.keep if name in piece.source.column_names]
        check_predictions(
            CheckedRows.starting(piece.first, piece.predictions, self._predictions, self.findings),
            _first_rows(rows, piece.predictions.num_rows),
            {"id": ids, **{name: piece.source[name] for name in kept}},
            made.stamp["checkpoint"],
            made.classes,
        )
        if piece.attention is not None:
            check_attention(
                CheckedRows.starting(piece.first, piece.attention, self._attention, self.findings),
                _first_rows(rows, piece.attention.num_rows),
                ids,
                self._settings.attention,
            )
        for path, table in ((self._predictions, piece.predictions), (self._attention, piece.attention)):
            if table is not None and table.num_rows < piece.source.num_rows:
                self.findings.add(path, piece.first + table.num_rows, "the file ends before this row")

    def _vocabulary_by_errors(self) -> int:
        sizes: set[int] = set()
        with open_rows(self._output, self._predictions, ["error"]) as reader:
            while (table := reader.take(_ERRORS_AT_ONCE)).num_rows:
                errors = (_OUTSIDE_VOCABULARY.fullmatch(error or "") for error in pc.unique(table["error"]).to_pylist())
                sizes |= {int(match.group(1)) + 1 for match in errors if match}
        return sizes.pop() if len(sizes) == 1 else _UNKNOWN_VOCABULARY

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

"""What is counted over the predictions of an output, however many there are.

Owns which counts a report needs and which rows are worth a look. Everything is counted by Polars' streaming engine in
passes over a few narrow columns, so memory does not grow with the rows. Knows nothing about what is made of the counts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from storage.errors import FileError
from storage.footers import FOOTER_READERS, Footer, read_footer
from storage.input.hive import partition_values
from storage.locations import Location
from storage.output.frames import FILE, PLACE, scan_predictions_files
from storage.output.layout import PREDICTIONS, Stamp, classes_in, stamp_in

NUM_BINS = 20
"""Bins of equal width over the probabilities 0 to 1."""

OTHER = "any other"
"""In place of labels that are no class of any checkpoint."""

LEAST_SURE = "least sure"
"""Why a row with one of the lowest scores is worth a look."""

_LONGEST_TEXT = 1000  # characters of an error or a label that are kept apart
_MOST_SALTS = 4
_MULTIPLIER = 0x9E3779B97F4A7C15  # Knuth's, for hashes of 64 bits, of which the upper 31 leave room for a row


@dataclass(frozen=True)
class PredictionsFile:
    """A predictions file: name below `predictions/`, and what its footer says.

    first: place of its first row among all rows that are counted. stamp: what it was made from.
    label_type: of the column of labels, "" without one; label: that of all rows, where it is a partition.
    """

    name: str
    first: int
    num_rows: int
    stamp: Stamp
    classes: tuple[str, ...]
    label_type: str
    label: str | None

    @property
    def partition(self) -> str:
        """Such as `date=2026-11-01`; "" where there are no partitions."""
        return ", ".join(f"{name}={value}" for name, value in partition_values(self.name).items())


@dataclass(frozen=True)
class Part:
    """The rows of a partition: all of them, those with an error, and those of each predicted class."""

    name: str
    num_rows: int
    num_errors: int
    predictions: dict[str, int]

    @property
    def num_predicted(self) -> int:
        return sum(self.predictions.values())


@dataclass(frozen=True)
class Bin:
    """Rows whose score lies in one of NUM_BINS. num_labelled: with a prediction, and a label that is a class;
    num_right: and predicted as it says.
    """

    num_rows: int = 0
    scores: float = 0.0
    num_labelled: int = 0
    labelled_scores: float = 0.0
    num_right: int = 0


@dataclass(frozen=True)
class Figures:
    """Counts over the predictions of an output, or of the files that a run wrote.

    classes: of all checkpoints, in their order. errors, predictions, checkpoints: rows of each, most first.
    confusion: rows by label and predicted class. num_abstained: rows without a prediction and without an error.
    picks: why a row is worth a look, and the places of such rows; unreadable: files that could not be counted.
    """

    files: tuple[PredictionsFile, ...]
    unreadable: dict[str, str]
    num_rows: int = 0
    num_tokens: int = 0
    num_truncated: int = 0
    num_abstained: int = 0
    classes: tuple[str, ...] = ()
    errors: dict[str, int] = field(default_factory=dict)
    predictions: dict[str, int] = field(default_factory=dict)
    checkpoints: dict[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    bins: tuple[Bin, ...] = (Bin(),) * NUM_BINS
    confusion: dict[tuple[str, str], int] = field(default_factory=dict)
    picks: dict[str, list[int]] = field(default_factory=dict)

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())

    @property
    def num_labelled(self) -> int:
        return sum(each.num_labelled for each in self.bins)

    @property
    def accuracy(self) -> float | None:
        """Against labels; None without any."""
        return sum(each.num_right for each in self.bins) / self.num_labelled if self.num_labelled else None

    @property
    def confidence(self) -> float | None:
        """The mean score; None without predictions."""
        num_predicted = sum(each.num_rows for each in self.bins)
        return sum(each.scores for each in self.bins) / num_predicted if num_predicted else None

    @property
    def calibration_error(self) -> float | None:
        """Mean over labelled rows of how far the share that is right is from the mean score, bin by bin."""
        gaps = sum(abs(each.num_right - each.labelled_scores) for each in self.bins)
        return gaps / self.num_labelled if self.num_labelled else None


def count_predictions(
    output: str,
    names: Iterable[str],
    *,
    label_column: str | None = None,
    num_picks: int = 0,
) -> Figures:
    """Count over these predictions files of an output.

    output: path or URI, as typed. label_column: with the true classes, among the kept columns. num_picks: how many rows
    to look at.
    """
    files, unreadable = _read_footers(Location.parse(output), names, label_column)
    if not files:
        return Figures((), unreadable)
    classes = tuple(dict.fromkeys(name for file in files for name in file.classes))
    frame = _open(output, files, label_column, classes)
    counts, bins, confusion, *picked = pl.collect_all(
        [
            _by_file(frame),
            _by_score(frame),
            frame.filter(pl.col("label").is_not_null() & pl.col("prediction").is_not_null())
            .group_by("label", "prediction")
            .len(),
            *_picks(frame, num_picks, len(classes)),
        ],
        engine="streaming",
        # What the questions have in common would be kept in memory for all of them: 86 bytes for each row.
        optimizations=pl.QueryOptFlags(comm_subplan_elim=False),
    )
    totals = counts.select(cs.by_name("len", "num_tokens", "truncated").sum()).row(0, named=True)
    return Figures(
        files=files,
        unreadable=unreadable,
        num_rows=totals["len"],
        num_tokens=totals["num_tokens"],
        num_truncated=totals["truncated"],
        num_abstained=int(counts.filter(pl.col("prediction").is_null() & pl.col("error").is_null())["len"].sum()),
        classes=classes,
        errors=_totals(counts, "error"),
        predictions=_totals(counts, "prediction"),
        checkpoints=_totals(counts, "checkpoint"),
        parts=_parts(files, counts),
        bins=_bins(bins),
        confusion={(label, prediction): number for label, prediction, number in confusion.iter_rows()},
        picks=_picked(picked, num_picks),
    )


def _read_footers(
    root: Location, names: Iterable[str], label_column: str | None
) -> tuple[tuple[PredictionsFile, ...], dict[str, str]]:
    def read(name: str) -> Footer | str:
        try:
            return read_footer(root / f"{PREDICTIONS}/{name}")
        except (FileError, OSError) as error:
            return "missing" if isinstance(error, FileNotFoundError) else str(error)

    names = sorted(names)
    files, unreadable, first = [], {}, 0
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        for name, footer in zip(names, pool.map(read, names), strict=True):
            found = footer if isinstance(footer, str) else _describe(name, footer, first, label_column)
            if isinstance(found, str):
                unreadable[name] = found
            else:
                files.append(found)
                first += found.num_rows
    return tuple(files), unreadable


def _describe(name: str, footer: Footer, first: int, label_column: str | None) -> PredictionsFile | str:
    stamp = stamp_in(footer)
    if stamp is None:
        return "not written by attnlstm"
    schema = footer.schema
    return PredictionsFile(
        name,
        first,
        footer.metadata.num_rows,
        stamp,
        tuple(map(str, classes_in(footer))),
        str(schema.field(label_column).type) if label_column in schema.names else "",
        partition_values(name).get(label_column or ""),
    )


def _open(
    output: str, files: Sequence[PredictionsFile], label_column: str | None, classes: tuple[str, ...]
) -> pl.LazyFrame:
    """All rows with the columns that are counted: place, path, prediction, label, score, num_tokens, ..."""
    frames = []
    # Files in which a column is of another type are scanned apart, and cast to be counted together.
    for (label_type, label), group in groupby(files, key=lambda file: (file.label_type, file.label)):
        alike = list(group)
        frame = scan_predictions_files(output, [file.name for file in alike], alike[0].first)
        text = pl.lit(label, pl.String)
        if label_type and label_column:
            # By a selector, since a name may read like a pattern; under its own name it may be called like ours.
            text = cs.by_name(label_column).cast(pl.String).str.slice(0, _LONGEST_TEXT)
        known = pl.when(text.is_in(classes)).then(text).when(text.is_not_null()).then(pl.lit(OTHER)).alias("label")
        frames.append(
            frame.select(
                pl.col(PLACE).alias("place"),
                pl.col(FILE).alias("path"),
                "score",
                "num_tokens",
                "truncated",
                pl.col("prediction").cast(pl.String),
                pl.col("error").str.slice(0, _LONGEST_TEXT),
                "checkpoint",
                known,
            )
        )
    return pl.concat(frames)


def _by_file(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.group_by("path", "prediction", "error", "checkpoint").agg(
        pl.len(), pl.col("num_tokens").sum(), pl.col("truncated").sum(), pl.col("place").min()
    )


def _by_score(frame: pl.LazyFrame) -> pl.LazyFrame:
    bins = (pl.col("score") * NUM_BINS).cast(pl.Int32).clip(0, NUM_BINS - 1).alias("bin")
    right = pl.when(pl.col("label") != OTHER).then(pl.col("label") == pl.col("prediction")).alias("right")
    return (
        frame.filter(pl.col("score").is_not_null())
        .group_by(bins, right)
        .agg(pl.len(), pl.col("score").cast(pl.Float64).sum())
    )


def _picks(frame: pl.LazyFrame, num_picks: int, num_classes: int) -> list[pl.LazyFrame]:
    """Least sure, most sure, wrong, then by class and by error: rows that are like chosen by lot, always the same."""
    if not num_picks:
        return []
    sure = frame.filter(pl.col("score").is_not_null()).select("place", "score")
    wrong = frame.filter(pl.col("label") != pl.col("prediction")).select("place", "score")
    of_class = min(_MOST_SALTS, max(1, num_picks // 3 // max(1, num_classes)))
    return [
        sure.bottom_k(max(1, num_picks // 4), by=["score", "place"]).select("place"),
        sure.top_k(max(1, num_picks // 10), by=["score", "place"]).select("place"),
        wrong.top_k(max(1, num_picks // 4), by=["score", "place"]).select("place"),
        frame.filter(pl.col("prediction").is_not_null()).group_by("prediction").agg(_by_lot(of_class)),
        frame.filter(pl.col("error").is_not_null()).group_by("error").agg(_by_lot(_MOST_SALTS)),
    ]


def _by_lot(number: int) -> list[pl.Expr]:
    """A row of each group for each salt: the least of hash and place in one integer, which streams as any minimum."""
    place = pl.col("place").cast(pl.UInt64)
    lots = [(place + salt * 7919) * pl.lit(_MULTIPLIER, pl.UInt64) // 2**33 for salt in range(1, number + 1)]
    return [(lot * 2**32 + place).min().alias(str(salt)) for salt, lot in enumerate(lots)]


def _picked(picked: Sequence[pl.DataFrame], num_picks: int) -> dict[str, list[int]]:
    if not picked:
        return {}
    least, most, wrong, classes, errors = picked
    found = {
        "error": _places(errors.sort("error")),
        "wrong": wrong["place"].to_list(),
        LEAST_SURE: least["place"].to_list(),
        "most sure": most["place"].to_list(),
        "of its class": _places(classes.sort("prediction")),
    }
    left, shares = num_picks, {}
    for why, places in found.items():
        shares[why] = [int(place) for place in dict.fromkeys(places)][: max(0, left)]
        left -= len(shares[why])
    return shares


def _places(lots: pl.DataFrame) -> list[int]:
    """Of all groups the row of the first salt, then of the second, and so on."""
    return [key & (2**32 - 1) for column in lots.columns[1:] for key in lots[column].to_list()]


def _totals(counts: pl.DataFrame, column: str) -> dict[str, int]:
    of_each = counts.filter(pl.col(column).is_not_null()).group_by(column).agg(pl.col("len").sum())
    return dict(of_each.sort("len", column, descending=[True, False]).iter_rows())


def _parts(files: Sequence[PredictionsFile], counts: pl.DataFrame) -> tuple[Part, ...]:
    """In the order of their names, and of the numbers in these."""
    firsts = np.array([file.first for file in files])
    parts: dict[str, dict[str, Any]] = {file.partition: {"rows": 0, "errors": 0, "predictions": {}} for file in files}
    for place, prediction, error, number in counts.select("place", "prediction", "error", "len").iter_rows():
        # The last file that begins there or before: an empty one begins where the one after it does.
        part = parts[files[int(np.searchsorted(firsts, place, side="right")) - 1].partition]
        part["rows"] += number
        if error is not None:
            part["errors"] += number
        if prediction is not None:
            part["predictions"][prediction] = part["predictions"].get(prediction, 0) + number
    found = [Part(name, part["rows"], part["errors"], part["predictions"]) for name, part in parts.items()]
    return tuple(sorted(found, key=lambda part: _by_number(part.name)))


def _by_number(name: str) -> list[tuple[int, str]]:
    """For sorting: month=2 before month=10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"([0-9]+)", name)]


def _bins(counts: pl.DataFrame) -> tuple[Bin, ...]:
    sums: list[Mapping[str, Any]] = [{"n": 0, "s": 0.0, "nl": 0, "sl": 0.0, "r": 0} for _ in range(NUM_BINS)]
    for place, right, number, scores in counts.iter_rows():
        bin_: Any = sums[place]
        bin_["n"], bin_["s"] = bin_["n"] + number, bin_["s"] + scores
        if right is not None:
            bin_["nl"], bin_["sl"], bin_["r"] = bin_["nl"] + number, bin_["sl"] + scores, bin_["r"] + number * right
    return tuple(Bin(*each.values()) for each in sums)

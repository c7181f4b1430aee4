"""Rows to look at: what was predicted, and the tokens as the source has them.

Owns how rows of an output are put together from three files: predictions, attention and the source. Knows nothing about
which rows are worth a look, nor about how a row is drawn.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flows.pages.figures import PredictionsFile
from flows.pages.shading import ShadedTokens, harmless, shade
from storage.errors import StorageError
from storage.footers import read_footer
from storage.locations import Location
from storage.output.layout import Output
from storage.picking import pick_rows

_MOST_LIKELY = 3
_FILES_AT_ONCE = 4  # half of the time is decoding, half is waiting
_LONGEST_TEXT = 300  # characters of an id or a label that are shown


@dataclass(frozen=True)
class Row:
    """A row of an output.

    file, row: its place in the source. why: why it is worth a look, most telling first. likely: the likeliest classes
    with their probabilities. tokens: None where the source can't be read, and then `note` says why.
    """

    file: str
    row: int
    id: str
    why: tuple[str, ...]
    prediction: str | None
    score: float | None
    label: str | None
    error: str | None
    likely: tuple[tuple[str, float], ...]
    tokens: ShadedTokens | None
    note: str
    is_wrong: bool


def read_rows(
    output: Output, source: Location, files: Sequence[PredictionsFile], picks: Mapping[str, Sequence[int]]
) -> tuple[Row, ...]:
    """The rows at these places, as `Figures` counts them, in the order of `picks`; one that is there twice comes once.

    source: the root of what was scored. What can't be read of it, or has changed since, has no tokens.
    """
    why: dict[int, list[str]] = {}
    for reason, places in picks.items():
        for place in places:
            why.setdefault(place, []).append(reason)
    firsts = np.array([file.first for file in files])
    by_file: dict[int, list[int]] = defaultdict(list)
    for place in sorted(why):
        by_file[int(np.searchsorted(firsts, place, side="right")) - 1].append(place)

    def rows_of(number: int) -> list[Row]:
        return list(_rows_of(output, source, files[number], by_file[number], why))

    found: dict[int, Row] = {}
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for places, rows in zip(by_file.values(), pool.map(rows_of, by_file), strict=True):
            found |= zip(places, rows, strict=False)
    return tuple(found[place] for place in why if place in found)


def _rows_of(
    output: Output, source: Location, file: PredictionsFile, places: list[int], why: Mapping[int, list[str]]
) -> Iterator[Row]:
    positions = [place - file.first for place in places]
    label_column = output.settings.also.get("label_column")
    labels = [str(label_column)] if file.label_type else []
    names = ["id", "prediction", "score", "probabilities", "error", *labels]
    predictions = _pick(output.predictions(file.name), positions, names)
    if isinstance(predictions, str):
        return
    attention = _attention(output, file, positions)
    tokens = _tokens(output, source, file, positions)
    for i, record in enumerate(predictions.to_pylist()):
        of_class = record["probabilities"] or ()
        ranked = sorted(zip(file.classes, of_class, strict=False), key=lambda each: -each[1])
        shaded, note = None, tokens if isinstance(tokens, str) else ""
        if not isinstance(tokens, str) and (content := tokens[i]) is not None:
            weights, where = attention[i] if attention else (None, None)
            limit = output.settings.max_tokens
            shaded = shade(content, weights, where, num_scored=min(limit, len(content)) if limit else None)
        prediction = None if record["prediction"] is None else str(record["prediction"])
        label = record[label_column] if file.label_type else file.label
        yield Row(
            file=file.stamp.file,
            row=file.stamp.first_row + positions[i],
            id=harmless(str(record["id"]), _LONGEST_TEXT),
            why=tuple(why[places[i]]),
            prediction=prediction,
            score=record["score"],
            label=None if label is None else harmless(str(label), _LONGEST_TEXT),
            error=record["error"],
            likely=tuple(ranked[:_MOST_LIKELY]),
            tokens=shaded,
            note=note,
            is_wrong=label is not None and prediction is not None and str(label) != prediction,
        )


def _attention(output: Output, file: PredictionsFile, positions: list[int]) -> list[tuple[Any, Any]] | None:
    """Of each row its weights and, of the largest ones only, where they stand; None where there are none."""
    kind = output.settings.attention.kind
    if kind == "none":
        return None
    names = ["weights", "positions"] if kind == "top" else ["weights"]
    table = _pick(output.attention(file.name), positions, names)
    if isinstance(table, str):
        return None
    rows = []
    for record in table.to_pylist():
        weights, where = record["weights"], record.get("positions")
        numbers = None if weights is None else np.array(weights, np.float64)
        rows.append((numbers, None if where is None else np.array(where, np.int64)))
    return rows


def _tokens(
    output: Output, source: Location, file: PredictionsFile, positions: list[int]
) -> list[bytes | list[int | None] | None] | str:
    """Of each row its tokens, None for null; or why they can't be shown."""
    place, column = source / file.stamp.file, output.settings.columns.tokens
    try:
        if read_footer(place).fingerprint != file.stamp.fingerprint:
            return "the source has changed since this row was scored"
    except (StorageError, OSError):
        return "the source can't be read from here"
    table = _pick(place, [file.stamp.first_row + position for position in positions], [column])
    return table if isinstance(table, str) else _as_tokens(table[column])


def _as_tokens(column: pa.ChunkedArray) -> list[bytes | list[int | None] | None]:
    if column.null_count == len(column):
        return [None] * len(column)
    found: list[bytes | list[int | None] | None] = []
    for value in column.to_pylist():
        if isinstance(value, str):
            value = value.encode(errors="surrogatepass")
        found.append(value)
    return found


def _pick(place: Location, rows: list[int], columns: list[str]) -> pa.Table | str:
    """The rows, or why they can't be read."""
    try:
        return pick_rows(place, rows, columns)
    except (StorageError, OSError) as error:
        return f"{place.name} can't be read: {error}"

"""What a class attends to over a whole output: short runs of tokens, n-grams, with how much attention they get.

Owns how n-grams are counted in one pass and memory of a fixed size: packed into 64 bits, and the least attended ones
let go of where there are too many. Tokens are read from the source, which the output has not. Knows nothing about how
n-grams are shown.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.analysis.inputs import Inputs
from storage.errors import FileError, OutputError, did_you_mean, first_line
from storage.input.reading import read_shard
from storage.input.shards import Shard
from storage.input.tokens import ANY_VOCABULARY, TokenRules, decode_tokens, holds_bytes
from storage.locations import Location
from storage.output.frames import class_names
from storage.output.layout import PREDICTION, Output
from storage.output.plan import existing_output
from storage.output.side_by_side import open_attention_file, open_predictions_file

# Distinct n-grams that are held at a time, of 32 bytes each.
_MOST_HELD = 1 << 20
_MOST_NAMED = 10


@dataclass(frozen=True)
class Ngram:
    """A run of tokens. count: how often it stands in the rows. weight: the mean of its share of a row's attention.

    times_even: how many times the attention that it would get if each row's were spread evenly over its tokens.
    """

    tokens: tuple[int, ...]
    count: int
    weight: float
    times_even: float


@dataclass(frozen=True)
class AttendedNgrams:
    """ngrams: those that get most more than their even share, in all rows together, first.

    num_rows: rows of the class that were read. are_bytes: whether tokens are bytes. missing: files that could not be
    read, and why. let_go: share of all attention that went to n-grams of which no count was kept, 0 if all are exact.
    """

    ngrams: tuple[Ngram, ...]
    num_rows: int
    are_bytes: bool
    missing: Mapping[str, str]
    let_go: float


def attended_ngrams(
    output: str, name: str, *, length: int = 3, most: int = 20, source: str | None = None
) -> AttendedNgrams:
    """The n-grams that a class attends to, over all rows that are predicted as it.

    output: folder or URI. name: the class as text. length: tokens of an n-gram. most: n-grams that are given. source:
    where the input is now, if not where the output says. Where only the largest weights of a row are saved, n-grams
    without any of them are not counted.
    Raises OutputError if the output has no attention or no such class, SourceError if nothing of the source can be
    read, and ValueError if n-grams of this length are more than 64 bits hold, eight bytes.
    """
    existing = existing_output(output)
    if existing.settings.attention.kind == "none":
        raise OutputError(f"{existing.root} has no attention: it was made with --save-attention none.")
    known = class_names(output)
    if name not in known:
        more = f" and {len(known) - _MOST_NAMED:,} more" if len(known) > _MOST_NAMED else ""
        guess = did_you_mean(name, known)
        raise OutputError(f"The output has no class {name!r}; it has {', '.join(known[:_MOST_NAMED])}{more}.{guess}")
    inputs = Inputs.of(existing, source or Output.recorded_source(output))
    missing = dict(inputs.missing)
    counts, num_rows, are_bytes = _Counts(length), 0, False
    for shard in inputs.shards:
        try:
            for rows in _rows_of(existing, inputs.root, shard, name):
                counts.add(rows)
                num_rows += len(rows.offsets) - 1
                are_bytes = rows.are_bytes
        except (FileError, OSError) as error:
            missing[shard.file] = first_line(error)
    return AttendedNgrams(counts.first(most), num_rows, are_bytes, missing, counts.let_go)


@dataclass(frozen=True)
class _Rows:
    """Rows of the class. values, weights: (num_tokens,), of the tokens that were scored. offsets: (N + 1,)."""

    values: npt.NDArray[np.integer]
    weights: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.int64]
    are_bytes: bool


def _rows_of(output: Output, root: Location, shard: Shard, name: str) -> Iterator[_Rows]:
    """Raises FileError if a file of the shard can't be read."""
    settings = output.settings
    column = settings.columns.tokens
    rules = TokenRules(ANY_VOCABULARY, settings.max_tokens, settings.long_rows)
    predictions, attention = open_predictions_file(output, shard), open_attention_file(output, shard)
    assert attention is not None, "the output has attention"
    names = ["positions", "weights"] if settings.attention.kind == "top" else ["weights"]
    with ExitStack() as stack:
        predicted = stack.enter_context(predictions.rows([PREDICTION]))
        attended = stack.enter_context(attention.rows(names))
        for table in read_shard(root, shard, [column], chunk_bytes=settings.chunk_bytes):
            classes, beside = predicted.take(table.num_rows), attended.take(table.num_rows)
            is_chosen = pc.fill_null(pc.equal(classes[PREDICTION].cast(pa.string()), name), False)
            if not pc.any(is_chosen).as_py():
                continue
            decoded = decode_tokens(table[column].filter(is_chosen), rules)
            beside = beside.filter(is_chosen)
            kept = pc.list_flatten(beside["weights"]).to_numpy().astype(np.float64)
            weights = kept
            if "positions" in names:
                starts = np.repeat(decoded.offsets[:-1], pc.list_value_length(beside["weights"]).to_numpy())
                weights = np.zeros(len(decoded.values))
                weights[starts + pc.list_flatten(beside["positions"]).to_numpy()] = kept
            if not decoded.usable.all() or len(weights) != len(decoded.values):
                raise FileError("its rows are not those that were scored")
            yield _Rows(decoded.values, weights, decoded.offsets, holds_bytes(table[column].type))


class _Counts:
    """Of each n-gram: how often it stands in the rows, the attention that it gets, and what would be its even share.

    let_go: share of the attention of all n-grams that went to those that were let go of.
    """

    def __init__(self, length: int) -> None:
        self._length, self._bits = length, 64 // length
        self._keys = np.zeros(0, np.uint64)
        self._sums = np.zeros((0, 3))  # counts, weights, even shares
        self._lost = 0.0

    @property
    def let_go(self) -> float:
        total = self._lost + self._sums[:, 1].sum()
        return float(self._lost / total) if total else 0.0

    def add(self, rows: _Rows) -> None:
        lengths = np.diff(rows.offsets)
        if (largest := int(rows.values.max(initial=0))) >> self._bits:
            raise ValueError(f"n-grams of {self._length} tokens hold no token {largest:,}; ask for shorter ones")
        # An n-gram begins at each token with as many behind it in its row.
        begins = np.flatnonzero(np.arange(len(rows.values)) + self._length <= np.repeat(rows.offsets[1:], lengths))
        keys, weights = np.zeros(len(begins), np.uint64), np.zeros(len(begins))
        for place in range(self._length):
            keys = (keys << np.uint64(self._bits)) | rows.values[begins + place].astype(np.uint64)
            weights += rows.weights[begins + place]
        even = self._length / np.repeat(lengths, lengths)[begins]
        has_weight = weights > 0
        sums = np.stack([np.ones(len(begins)), weights, even], axis=1)[has_weight]
        self._merge(keys[has_weight], sums)

    def first(self, most: int) -> tuple[Ngram, ...]:
        order = np.lexsort((self._keys, self._sums[:, 2] - self._sums[:, 1]))[:most]
        return tuple(
            Ngram(self._tokens(int(key)), int(count), weight / count, weight / even)
            for key, (count, weight, even) in zip(self._keys[order], self._sums[order].tolist(), strict=True)
        )

    def _merge(self, keys: npt.NDArray[np.uint64], sums: npt.NDArray[np.float64]) -> None:
        self._keys, place = np.unique(np.concatenate((self._keys, keys)), return_inverse=True)
        both = np.concatenate((self._sums, sums))
        self._sums = np.stack([np.bincount(place, column, len(self._keys)) for column in both.T], axis=1)
        if len(self._keys) > _MOST_HELD:
            kept = np.sort(np.argpartition(-self._sums[:, 1], _MOST_HELD)[:_MOST_HELD])
            self._lost += self._sums[:, 1].sum() - self._sums[kept, 1].sum()
            self._keys, self._sums = self._keys[kept], self._sums[kept]

    def _tokens(self, key: int) -> tuple[int, ...]:
        places = range(self._length - 1, -1, -1)
        return tuple(key >> (self._bits * place) & ((1 << self._bits) - 1) for place in places)

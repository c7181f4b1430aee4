"""A checkpoint from Python: texts, bytes or token ids in, classes, probabilities and attention weights out.

Owns how rows of any kind that people hold (lists, numpy, Arrow, Polars, torch) become the ragged rows that an engine
takes, and how results come back. What a row must be to be scored is `storage.input.tokens`'.
"""

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from attnlstm.checkpoint import CONFIG_FILE
from attnlstm.engines import Device, EngineName, Precision, Scores, open_engine
from attnlstm.process import num_cores
from flows.operations.explain import Explanation, explained
from flows.operations.score import network_of
from storage.input.tokens import TokenRows, TokenRules, check_token_type, decode_tokens, holds_bytes
from storage.labelled.classes import class_values
from storage.locations import Location
from storage.registry.checkpoints import CHAMPION, Registry, StoredCheckpoint, read_checkpoint

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM

_NOT_ONE_ROW = "tokens must be a column of rows, such as a list of texts; for a single row, put it into a list"


def load(
    place: str,
    checkpoint: str = CHAMPION,
    *,
    device: Device = "auto",
    threads: int | None = None,
    engine: EngineName = "auto",
    precision: Precision = "float32",
) -> "Model":
    """A checkpoint, ready to score.

    place: path or URI of a registry, or of a checkpoint's own folder. checkpoint: of a registry, a version or an alias.
    threads: rows computed side by side on a CPU; None for one a core. The others are as for `open_engine`.
    Raises RegistryError if there is no such checkpoint, CheckpointError if its files can't be used.
    """
    stored = _read(place, checkpoint)
    return Model.of(stored, device=device, threads=threads, engine=engine, precision=precision)


def _read(place: str, checkpoint: str) -> StoredCheckpoint:
    folder = Location.parse(place)
    if (folder / CONFIG_FILE).is_file():
        return read_checkpoint(folder, folder.name)
    return Registry.open(place).load(checkpoint)


class Model:
    """A network with its engine, and the rows that people hold.

    network: the torch module; later changes to it don't reach the engine. version: the checkpoint's. classes: names, in
    the order of probabilities. max_tokens: longer rows are scored by their first tokens; None for whole rows.

    Rows are a list of texts, bytes or sequences of token ids (None for a missing one), a numpy array (one row of ids
    for each row of it, or objects), a torch tensor, an Arrow array or a Polars series of any type that a `tokens`
    column may have. Raises TypeError on what can't be rows. A row's results do not depend on the others. A row that
    can't be scored has none, and `score` says why.
    """

    def __init__(
        self,
        network: "AttentionLSTM",
        version: str,
        *,
        max_tokens: int | None = None,
        device: Device = "auto",
        threads: int | None = None,
        engine: EngineName = "auto",
        precision: Precision = "float32",
    ) -> None:
        self.network = network
        self.version = version
        self.classes = network.config.classes
        self._labels = pl.Series(class_values(self.classes, network.config.label_type))
        self._rules = TokenRules(network.config.padding_id, max_tokens, "truncate")
        self._engine = open_engine(network, device, threads or num_cores(), engine, precision)

    @classmethod
    def of(cls, stored: StoredCheckpoint, **options: Any) -> Self:
        """Of a checkpoint's files. options: as for the class. Raises CheckpointError if they can't be used."""
        return cls(network_of(stored), stored.version, **options)

    def __repr__(self) -> str:
        where = f"{self._engine.name} on {self._engine.device}"
        return f"<attnlstm model {self.version}: {len(self.classes)} classes, {where}>"

    def predict(self, tokens: Any) -> npt.NDArray[Any]:
        """The class of each row, (N,), in the type of the labels; objects, with None, if a row can't be scored."""
        predicted = self.score(tokens)["prediction"]
        if predicted.null_count() or predicted.dtype == pl.String:
            return np.array(predicted.to_list(), dtype=object)
        return predicted.to_numpy()

    def predict_proba(self, tokens: Any) -> npt.NDArray[np.float32]:
        """float32 (N, C): the probability of each of `classes`; NaN for rows that can't be scored."""
        rows = self._rows(tokens)
        probabilities = np.full((len(rows.usable), len(self.classes)), np.nan, np.float32)
        probabilities[rows.usable] = self._scores(rows).probabilities
        return probabilities

    def attention(self, tokens: Any) -> list[npt.NDArray[np.float32] | None]:
        """A weight for each token of each row, float32; they sum to 1. None for rows that can't be scored."""
        return [None if each is None else each.to_numpy() for each in self.score(tokens)["weights"]]

    def score(self, tokens: Any) -> pl.DataFrame:
        """All of it, a row for each row, in columns named as those of an output.

        prediction, score (its probability), probabilities, num_tokens, error (why a row has no prediction) and weights.
        `frame.with_columns(model.score(frame["tokens"]))` puts them beside a frame's own.
        """
        rows = self._rows(tokens)
        scores = self._scores(rows)
        places = np.full(len(rows.usable), len(rows.offsets) - 1, np.int64)
        places[rows.usable] = np.arange(len(rows.offsets) - 1)

        def of_rows(column: pl.Series) -> pl.Series:  # with a null for the others
            return column.extend_constant(None, 1).gather(places)

        winners = scores.probabilities.argmax(axis=1) if len(scores.probabilities) else np.zeros(0, np.int64)
        weights = pa.ListArray.from_arrays(pa.array(rows.offsets, pa.int32()), pa.array(scores.attention_weights))
        columns = {
            "prediction": of_rows(self._labels.gather(winners)),
            "score": of_rows(pl.Series(np.take_along_axis(scores.probabilities, winners[:, None], axis=1)[:, 0])),
            "probabilities": of_rows(pl.Series(scores.probabilities, dtype=pl.Array(pl.Float32, len(self.classes)))),
            "num_tokens": pl.Series(rows.num_tokens).replace(-1, None),
            "error": pl.Series(rows.errors),
            "weights": of_rows(pl.Series(weights)),
        }
        return pl.DataFrame([column.alias(name) for name, column in columns.items()])

    def explain(self, tokens: Any) -> Explanation:
        """One row: what it is taken for, which tokens are attended to, and what comes of erasing them.

        tokens: a text, bytes, a sequence of token ids, or an Arrow column of one row. Raises ValueError if it can't be
        scored.
        """
        column = tokens if isinstance(tokens, pa.ChunkedArray) and len(tokens) == 1 else _column([tokens])
        rows = decode_tokens(column, self._rules)
        if not rows.usable[0]:
            raise ValueError(f"this row can't be scored: {rows.errors[0]}")
        shown = rows.values.tobytes() if holds_bytes(column.type) else tuple(rows.values.tolist())
        return explained(self.version, self.classes, self._engine, shown, rows.values)

    def _rows(self, tokens: Any) -> TokenRows:
        return decode_tokens(_column(tokens), self._rules)

    def _scores(self, rows: TokenRows) -> Scores:
        if len(rows.offsets) == 1:
            return Scores(np.zeros((0, len(self.classes)), np.float32), np.zeros(0, np.float32))
        return self._engine.score(rows.values, rows.offsets)


def _column(tokens: Any) -> pa.ChunkedArray:
    """Rows of any kind as an Arrow column that `decode_tokens` takes. Raises TypeError, which says why not."""
    if isinstance(tokens, str | bytes | bytearray | memoryview):
        raise TypeError(_NOT_ONE_ROW)
    if isinstance(tokens, pl.Series):
        column = tokens.to_arrow()
    elif isinstance(tokens, pa.Array | pa.ChunkedArray):
        column = tokens
    elif hasattr(tokens, "__array__"):
        array = np.asarray(tokens)
        if array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
            column = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        elif array.ndim == 1 and array.dtype.kind in "OSU":
            column = _from_objects(array.tolist())
        else:
            raise TypeError(f"an array of rows is two-dimensional and of integers, not {array.dtype} {array.shape}")
    elif isinstance(tokens, Sequence):
        column = _from_objects(tokens)
    else:
        raise TypeError(f"{_NOT_ONE_ROW}; this is a {type(tokens).__name__}")
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    check_token_type("tokens", column.type)
    return column


def _from_objects(rows: Sequence[Any]) -> pa.Array:
    if rows and isinstance(rows[0], int | np.integer):
        raise TypeError(_NOT_ONE_ROW)
    contents = [row.encode() if isinstance(row, str) else row for row in rows]
    if all(row is None or isinstance(row, bytes | bytearray | memoryview) for row in contents):
        return pa.array([None if row is None else bytes(row) for row in contents], pa.large_binary())
    try:
        return pa.array([None if row is None else list(map(index, row)) for row in contents], pa.large_list(pa.int64()))
    except (TypeError, ValueError, OverflowError) as error:
        odd = next((row for row in contents if not _is_ids(row)), None)
        raise TypeError(f"a row is a text, bytes or a sequence of token ids; not {odd!r:.80}") from error


def _is_ids(row: Any) -> bool:
    try:
        return row is None or bool(list(map(index, row)) or True)
    except (TypeError, ValueError):
        return False

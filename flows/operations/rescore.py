"""Scoring some rows of an output again, with the checkpoints that made it, and how far the results are apart.

Owns which rows those are, and how far apart is wrong. Knows nothing about printing. Torch is loaded once it is needed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import RegistryError
from storage.input.columns import ATTENTION_COLUMNS
from storage.input.shards import Shard
from storage.input.tokens import TokenRules, decode_tokens
from storage.output.layout import PREDICTIONS, Stamp
from storage.output.plan import OutputPlan
from storage.output.side_by_side import Problem, open_attention_file, open_predictions_file, read_side_by_side
from storage.registry.checkpoints import Registry, StoredCheckpoint

if TYPE_CHECKING:
    from attnlstm.engines import Engine

# Scored again on another machine or in other company, float32 results differ by roundings.
_TOLERANCE = 1e-5
# Which rows are scored again must not change from one call to the next.
_SEED = 20_261_101


def num_tokens_known(stored: StoredCheckpoint) -> int:
    """How many token ids a checkpoint knows, without padding. Raises CheckpointError if its config can't be read."""
    from attnlstm.config import ModelConfig

    text = stored.files["config.json"].decode(errors="replace")
    return ModelConfig.from_json(text, where=str(stored.location)).padding_id


class Checkpoints:
    """The checkpoints that made an output, by their digests."""

    def __init__(self, registry: Registry, checkpoint: str | None) -> None:
        self._registry = registry
        self._found: dict[str, StoredCheckpoint | None] = {}
        if checkpoint is not None:
            given = registry.load(checkpoint)
            self._found[given.digest] = given

    def find(self, stamp: Stamp) -> StoredCheckpoint | None:
        """The checkpoint that a file says it was made with; None if it is not there, or has other weights now."""
        if stamp.checkpoint_digest not in self._found:
            try:
                stored = self._registry.load(stamp.checkpoint)
            except RegistryError:
                stored = None
            right = stored is not None and stored.digest == stamp.checkpoint_digest
            self._found[stamp.checkpoint_digest] = stored if right else None
        return self._found[stamp.checkpoint_digest]

    def vocabularies(self, stamps: Iterable[Stamp]) -> dict[str, int]:
        """How many token ids each checkpoint knows, by digest; of those that are there."""
        found = (self.find(stamp) for stamp in stamps)
        return {stored.digest: num_tokens_known(stored) for stored in found if stored}

    def require(self, stamp: Stamp) -> StoredCheckpoint:
        """As `find`. Raises RegistryError if the checkpoint is not there."""
        stored = self.find(stamp)
        if stored is None:
            raise RegistryError(
                f"{stamp.file} was scored by checkpoint {stamp.checkpoint} (digest {stamp.checkpoint_digest}), "
                f"which is not in {self._registry.root}. Scoring again needs it: name its registry with --registry, "
                "or its folder with --checkpoint."
            )
        return stored

    def engine(self, stamp: Stamp) -> "Engine":
        """Ready to score as the file was scored. Raises RegistryError if the checkpoint is not there."""
        from attnlstm.checkpoint import from_files
        from attnlstm.engines import open_engine

        stored = self.require(stamp)
        return open_engine(from_files(stored.files, where=str(stored.location)))


@dataclass(frozen=True)
class Rescored:
    """num_rows: rows that were scored again. difference: the greatest, of a probability or a weight."""

    num_rows: int
    difference: float
    problems: tuple[Problem, ...]


def score_again(planned: OutputPlan, stamps: dict[str, Stamp], checkpoints: Checkpoints, num_rows: int) -> Rescored:
    """Compare up to `num_rows` rows, the same ones each time, with what their checkpoints give now.

    For an output that passed `verify_output`. stamps: of every shard. Raises RegistryError if a checkpoint is missing.
    """
    total = planned.num_rows
    sample = np.random.default_rng(_SEED).choice(total, min(num_rows, total), replace=False)
    engines: dict[str, Engine] = {}
    problems: list[Problem] = []
    scored, greatest, first = 0, 0.0, 0
    for shard in planned.shards:
        chosen = np.sort(sample[(sample >= first) & (sample < first + shard.num_rows)]) - first
        first += shard.num_rows
        if len(chosen):
            stamp = stamps[shard.name]
            if stamp.checkpoint_digest not in engines:
                engines[stamp.checkpoint_digest] = checkpoints.engine(stamp)
            for path, row, difference in _differences(planned, shard, engines[stamp.checkpoint_digest], chosen):
                scored += path.startswith(f"{PREDICTIONS}/")
                greatest = max(greatest, difference)
                if not difference <= _TOLERANCE:
                    what = f"differs by {difference:.2g} from what scoring again gives, expected {_TOLERANCE} or less"
                    problems.append(Problem(path, row, what))
    return Rescored(scored, greatest, tuple(problems))


def _differences(
    planned: OutputPlan, shard: Shard, engine: "Engine", chosen: npt.NDArray[np.int64]
) -> Iterator[tuple[str, int, float]]:
    """(path, row, greatest difference) of each chosen row that has scores, in both files of a shard.

    chosen: positions in the shard, sorted.
    """
    settings = planned.output.settings
    # Which rows can be scored was checked before; here those that have scores count.
    rules = TokenRules(2**31, settings.max_tokens, settings.long_rows)
    predictions, attention = open_predictions_file(planned.output, shard), open_attention_file(planned.output, shard)
    for piece in read_side_by_side(planned.source.root, shard, settings, predictions, attention):
        inside = chosen[(chosen >= piece.first) & (chosen < piece.first + piece.source.num_rows)] - piece.first
        places = inside[piece.predictions["error"].is_null().to_numpy()[inside]]
        if not len(places):
            continue
        rows = decode_tokens(piece.source[settings.columns.tokens], rules)
        usable = np.cumsum(rows.usable)[places] - 1
        sequences = [rows.values[rows.offsets[row] : rows.offsets[row + 1]] for row in usable]
        offsets = np.cumsum([0, *map(len, sequences)])
        scores = engine.score(np.concatenate(sequences), offsets)
        written = pc.list_flatten(piece.predictions["probabilities"].take(pa.array(places))).to_numpy()
        differences = np.abs(written.reshape(scores.probabilities.shape) - scores.probabilities).max(axis=1)
        yield from _each(predictions.path, piece.first + places, differences)
        if attention and piece.attention is not None:
            lists = [name for name in piece.attention.column_names if name in ATTENTION_COLUMNS]
            written_weights = piece.attention.select(lists).take(pa.array(places))
            differences = _weight_differences(written_weights, scores.attention_weights, offsets)
            yield from _each(attention.path, piece.first + places, differences)


def _each(
    path: str, rows: npt.NDArray[np.int64], differences: npt.NDArray[np.float32]
) -> Iterator[tuple[str, int, float]]:
    for row, difference in zip(rows.tolist(), differences.tolist(), strict=True):
        yield path, row, difference


def _weight_differences(
    attention: pa.Table, weights: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """(N,): the greatest difference of each row. weights: (offsets[-1],), of all tokens; the table may have fewer."""
    num_kept = pc.list_value_length(attention["weights"]).to_numpy().astype(np.int64)
    starts = np.cumsum(num_kept) - num_kept
    if "positions" in attention.column_names:
        weights = weights[np.repeat(offsets[:-1], num_kept) + pc.list_flatten(attention["positions"]).to_numpy()]
    apart = np.abs(pc.list_flatten(attention["weights"]).to_numpy() - weights)
    return np.asarray(np.maximum.reduceat(apart, starts))

"""Scoring some rows again, and how far the results are apart: rows of an output by the checkpoints that made it, and
test rows by a published checkpoint through the real classify path, before it becomes champion.

Owns which rows those are, and how far apart is wrong. Knows nothing about printing. Torch is loaded once it is needed.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.operations.score import LoadedCheckpoint, ScoredShard, ScoringJob, config_of, network_of, score_bundle
from storage.errors import RegistryError
from storage.input.columns import ATTENTION_COLUMNS
from storage.input.shards import Shard
from storage.input.tokens import ANY_VOCABULARY, TokenRules, decode_tokens
from storage.labelled.rows import LabelledRows
from storage.labelled.split import TEST
from storage.locations import Location
from storage.output.layout import PREDICTIONS, Output, OutputSettings, Stamp
from storage.output.plan import OutputPlan, plan_output
from storage.output.side_by_side import Problem, open_attention_file, open_predictions_file, read_side_by_side
from storage.registry.cards import Sample
from storage.registry.checkpoints import Registry, StoredCheckpoint

if TYPE_CHECKING:
    from attnlstm.engines import Engine

# Scored again on another machine or in other company, float32 results differ by roundings.
_TOLERANCE = 1e-5
# Of probabilities from training and from classify: ten times what engines differ by.
_REPLAY_TOLERANCE = 1e-4
# Which rows are scored again must not change from one call to the next.
_SEED = 20_261_101


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
        return {stored.digest: config_of(stored).padding_id for stored in found if stored}

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
        from attnlstm.engines import open_engine

        return open_engine(network_of(self.require(stamp)))


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
    rules = TokenRules(ANY_VOCABULARY, settings.max_tokens, settings.long_rows)
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


def replay_through_classify(stored: StoredCheckpoint, rows: LabelledRows) -> str | None:
    """None if `classify` with these files gives the scores that training saw; else what is wrong."""
    sample = stored.card.sample or Sample(contents=(), probabilities=())
    place = {f"{content:016x}": index for index, content in enumerate(rows.contents[rows.splits == TEST].tolist())}
    pairs = zip(sample.contents, sample.probabilities, strict=True)
    here = [(place[content], p) for content, p in pairs if content in place]
    if not here:
        return "none of the rows whose scores its card keeps is among the test rows"
    values, offsets, _ = rows.side(TEST)
    tokens = [values[offsets[row] : offsets[row + 1]] for row, _ in here]
    seen = np.array([p for _, p in here], np.float64)
    with tempfile.TemporaryDirectory(prefix="attnlstm-smoke-") as folder:
        predictions = _classified(stored, tokens, Path(folder))
    if isinstance(predictions, str):
        return predictions
    errors = [error for error in predictions["error"].to_pylist() if error is not None]
    if errors:
        return f"classify gives {len(errors)} of {len(tokens)} rows no score: {errors[0]}"
    found = np.array(predictions["probabilities"].to_pylist(), np.float64)
    if found.shape != seen.shape:
        return f"classify gives {found.shape[1]} probabilities a row, and training saw {seen.shape[1]}"
    apart = float(np.abs(found - seen).max())
    return (
        f"classify gives scores that are {apart:.2g} from those seen in training" if apart > _REPLAY_TOLERANCE else None
    )


def _classified(stored: StoredCheckpoint, tokens: list[npt.NDArray[np.integer]], folder: Path) -> pa.Table | str:
    """What classify writes about these rows; or why it does not."""
    (folder / "source").mkdir()
    path = folder / "source" / "rows.parquet"
    as_bytes = all(each.dtype == np.uint8 for each in tokens)
    column = pa.array([each.tobytes() for each in tokens], pa.binary()) if as_bytes else pa.array(tokens)
    pq.write_table(pa.table({"tokens": column}), path)
    output = Output(Location.parse(folder / "output"), OutputSettings())
    plan = plan_output(str(path), output)
    job = ScoringJob.of(stored, plan.source.root, output)
    for result in score_bundle(job, plan.pending(stored.id, "missing"), LoadedCheckpoint(job, stored)):
        if not isinstance(result, ScoredShard):
            return f"classify fails: {result.reason}"
    return pq.read_table(output.predictions(plan.shards[0].name).path, partitioning=None)

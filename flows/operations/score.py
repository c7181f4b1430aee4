"""Scoring one shard from Parquet to Parquet: the body of a classify task.

Where storage and the model meet. Knows nothing about Prefect.
"""

import heapq
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from attnlstm.evaluation.abstention import thresholds_of, withheld
from attnlstm.evaluation.metrics import counts_by_class
from storage.errors import FileError, RegistryError, StorageError
from storage.input.columns import column_or_partition
from storage.input.reading import decode_rows, read_shard
from storage.input.shards import Shard
from storage.input.tokens import TokenRows, TokenRules
from storage.locations import Location
from storage.output.layout import Output
from storage.output.manifests import CLASSES_OF_SHARD, FIRST_ERRORS, FailureRecord, ShardRecord
from storage.output.plan import Pending
from storage.output.predictions import write_shard
from storage.overlap import read_ahead, write_behind
from storage.registry.checkpoints import CheckpointId, StoredCheckpoint, read_checkpoint

if TYPE_CHECKING:
    from attnlstm.config import ModelConfig
    from attnlstm.engines import Device, Engine, EngineName, Precision, Scores
    from attnlstm.evaluation.drift import Observed
    from attnlstm.network import AttentionLSTM


@dataclass(frozen=True)
class ScoringJob:
    """What every shard of a run has in common: paths and settings, small enough to travel to any worker.

    folder: where the checkpoint is. checkpoint: what its files must still be.
    label_column: true classes to compare with, or None. threads: compute threads of a process.
    """

    source_root: Location
    output: Output
    folder: Location
    checkpoint: CheckpointId
    label_column: str | None
    device: "Device"
    engine: "EngineName"
    threads: int
    precision: "Precision"

    @classmethod
    def of(
        cls,
        stored: StoredCheckpoint,
        source_root: Location,
        output: Output,
        *,
        label_column: str | None = None,
        device: "Device" = "auto",
        engine: "EngineName" = "auto",
        threads: int = 1,
        precision: "Precision" = "float32",
    ) -> Self:
        """The job of scoring with a checkpoint."""
        return cls(source_root, output, stored.location, stored.id, label_column, device, engine, threads, precision)


@dataclass(frozen=True)
class ScoredShard:
    """What scoring a shard gave.

    engine: what computed it, and where. predictions: rows by predicted class. label_counts: of the rows whose label the
    checkpoint knows, as `counts_by_class` has them; None without labels. num_other_labels: rows with another label.
    observed: counts to tell drift by, where the checkpoint's card has a reference for them.
    """

    record: ShardRecord
    engine: str
    predictions: dict[str, int]
    label_counts: npt.NDArray[np.int64] | None
    observed: "Observed | None"
    num_other_labels: int = 0


class LoadedCheckpoint:
    """A checkpoint ready to score. Whoever loads one hands it to what scores with it.

    engine: what computes. drift_reference: what the checkpoint's card says that rows look like, or None. thresholds:
    (C,), the scores below which predictions are withheld, or None.
    A plain class, not a dataclass, so that Prefect passes it on without looking into it.
    """

    def __init__(self, job: ScoringJob, stored: StoredCheckpoint) -> None:
        """Raises CheckpointError if the files can't be used."""
        from attnlstm.engines import open_engine

        network = network_of(stored)
        self.config: ModelConfig = network.config
        self.engine: Engine = open_engine(network, job.device, job.threads, job.engine, job.precision)
        self.drift_reference: dict[str, Any] | None = stored.card.drift
        self.thresholds = thresholds_for(job.output, stored, self.config)

    def describe(self) -> str:
        """Which engine computes where and, if it is not the fast one, why."""
        from attnlstm.engines import why_not_fused

        precision = self.engine.precision
        what = f"{self.engine.name} on {self.engine.device}{'' if precision == 'float32' else f' in {precision}'}"
        reason = None
        if self.engine.name == "torch" and self.engine.device == "cpu":
            reason = why_not_fused(self.config, self.engine.device, precision)
        return f"{what}, since {reason}" if reason else what


def network_of(stored: StoredCheckpoint) -> "AttentionLSTM":
    """A checkpoint's network. Raises CheckpointError if the files can't be used."""
    from attnlstm.checkpoint import from_files

    return from_files(stored.files, where=str(stored.location))


def config_of(stored: StoredCheckpoint) -> "ModelConfig":
    """What a checkpoint's network looks like, without its weights. Raises ValueError if its config.json is damaged."""
    from attnlstm.config import ModelConfig

    return ModelConfig.from_json(stored.files["config.json"], f"{stored.location}/config.json")


def check_checkpoint(stored: StoredCheckpoint, output: Output) -> "ModelConfig":
    """For a process that has others score. Raises CheckpointError if the files can't be used."""
    config = network_of(stored).config
    thresholds_for(output, stored, config)
    return config


def thresholds_for(output: Output, stored: StoredCheckpoint, config: "ModelConfig") -> npt.NDArray[np.float32] | None:
    """(C,): the scores below which an output has no prediction by this checkpoint; None if it always has one.

    Raises RegistryError if a precision is wanted, and the checkpoint's card does not say which scores reach it.
    """
    wanted = output.settings.abstain_below
    if wanted is None:
        return None
    abstention = stored.card.abstention
    try:
        return thresholds_of(wanted, config.classes, abstention.by_class if abstention else {})
    except ValueError as error:
        raise RegistryError(
            f"The checkpoint {stored.version} can't abstain below {wanted}: {error}. What `retrain` makes knows it "
            "from its validation rows; for others give a score, such as --abstain-below 0.8."
        ) from None


class _ProcessCheckpoint:
    """The checkpoint of a process that others send tasks to: loaded at the first task, and kept for the next ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[CheckpointId, str, str, int, str] | None = None
        self._loaded: LoadedCheckpoint | None = None

    def get(self, job: ScoringJob) -> LoadedCheckpoint:
        """Raises CheckpointError if the files can't be used, RegistryError if they changed since the run began."""
        key = (job.checkpoint, job.device, job.engine, job.threads, job.precision)
        with self._lock:
            if self._loaded is None or self._key != key:
                self._loaded = None  # a process serves one run at a time: the last one's weights are of no more use
                stored = read_checkpoint(job.folder, job.checkpoint.version, digest=job.checkpoint.digest)
                self._key, self._loaded = key, LoadedCheckpoint(job, stored)
            return self._loaded


checkpoint_of_process = _ProcessCheckpoint()
"""For tasks that run in a process of their own, to which the run can hand over no more than the job."""


def ignore_rows(num_rows: int) -> None:
    """For `on_rows` where nobody watches."""


def never(error: Exception) -> bool:
    """For `is_retried` where nobody tries again."""
    return False


def score_bundle(
    job: ScoringJob,
    pending: Sequence[Pending],
    loaded: LoadedCheckpoint | None = None,
    *,
    on_rows: Callable[[int], None] = ignore_rows,
    is_retried: Callable[[Exception], bool] = never,
) -> list[ScoredShard | FailureRecord]:
    """Score a few shards, one after the other. Whatever goes wrong with a shard fails that shard only.

    loaded: the job's checkpoint; None is the one that this process keeps. on_rows: as in `score_shard`. is_retried:
    whether an error may pass and somebody tries again; it is raised once the others are scored. Raises what is no
    shard's fault: what `on_rows` raises, a checkpoint that can't be loaded, an output that is no longer this run's.
    """
    loaded = loaded or checkpoint_of_process.get(job)
    results: list[ScoredShard | FailureRecord] = []
    to_retry: list[Exception] = []
    stops: list[Exception] = []

    def watched(num_rows: int) -> None:
        try:
            on_rows(num_rows)
        except Exception as error:
            stops.append(error)
            raise

    for each in pending:
        try:
            results.append(score_shard(job, loaded, each.shard, each.reason, on_rows=watched))
        except FileError as error:
            results.append(FailureRecord(each.shard.name, str(error)))
        except StorageError:
            raise
        except Exception as error:
            if error in stops:
                raise
            if is_retried(error):
                to_retry.append(error)
            results.append(FailureRecord(each.shard.name, f"{type(error).__name__}: {error}"))
    if to_retry:
        raise to_retry[0]
    return results


def score_shard(
    job: ScoringJob,
    loaded: LoadedCheckpoint,
    shard: Shard,
    reason: str,
    *,
    on_rows: Callable[[int], None] = ignore_rows,
) -> ScoredShard:
    """Read, score and write one shard. Its output appears at the end, whole, or not at all.

    on_rows: called with the number of rows after each piece that was scored.
    """
    started = time.perf_counter()
    settings = job.output.settings
    rules = TokenRules(loaded.config.padding_id, settings.max_tokens, settings.long_rows)
    tally = _Tally(loaded.config.classes, loaded.drift_reference, loaded.thresholds)

    def pieces() -> Iterator[tuple[pa.Table, TokenRows]]:
        for table in read_shard(job.source_root, shard, settings.columns, chunk_bytes=settings.chunk_bytes):
            yield decode_rows(table, settings.columns, rules)

    config = loaded.config
    with write_shard(job.output, shard, job.checkpoint, config.classes, config.label_type, loaded.thresholds) as writer:

        def keep(table: pa.Table, rows: TokenRows, scores: "Scores") -> None:
            writer.write(table, rows, scores.probabilities, scores.attention_weights)
            labels = column_or_partition(table, job.label_column, shard.file) if job.label_column else None
            tally.add(rows, scores.probabilities, labels)

        # Both end before the files are put in place, and before they are let go of.
        with read_ahead(pieces()) as coming, write_behind(keep) as keep_behind:
            for table, rows in coming:
                keep_behind(table, rows, loaded.engine.score(rows.values, rows.offsets))
                on_rows(table.num_rows)
    return tally.scored(shard, reason, loaded.describe(), time.perf_counter() - started)


class _Tally:
    """Counts over a shard's rows."""

    def __init__(
        self,
        classes: tuple[str, ...],
        drift_reference: dict[str, Any] | None,
        thresholds: npt.NDArray[np.float32] | None = None,
    ) -> None:
        from attnlstm.evaluation.drift import Observed

        self._classes, self._thresholds = classes, thresholds
        self._observed = Observed(drift_reference) if drift_reference else None
        self._predicted = np.zeros(len(classes), np.int64)
        self._label_counts: npt.NDArray[np.int64] | None = None
        self._errors: dict[str, int] = {}
        self._first_errors: dict[str, list[int]] = {}
        self._rows = self._tokens = self._truncated = self._num_other_labels = self._abstained = 0

    def add(self, rows: TokenRows, probabilities: npt.NDArray[np.float32], labels: pa.ChunkedArray | None) -> None:
        num_classes = len(self._classes)
        winners = probabilities.argmax(axis=1) if len(probabilities) else np.zeros(0, np.int64)
        self._add_errors(rows)
        self._rows += len(rows.usable)
        self._tokens += len(rows.values)
        self._truncated += int(rows.truncated.sum())
        given = np.ones(len(winners), bool)
        if self._thresholds is not None:
            given = ~withheld(probabilities, self._thresholds)
        self._abstained += int(np.count_nonzero(~given))
        self._predicted += np.bincount(winners[given], minlength=num_classes)
        if self._observed is not None and len(winners):
            confidence = probabilities[np.arange(len(winners)), winners]
            self._observed.add(rows.values, rows.offsets, winners, confidence)
        if labels is not None:
            names = labels.cast(pa.string()).filter(pa.array(rows.usable))
            codes = pc.index_in(names, value_set=pa.array(self._classes)).to_numpy(zero_copy_only=False)
            known = ~np.isnan(codes.astype(np.float64))
            self._num_other_labels += int(np.count_nonzero(names.is_valid().to_numpy() & ~known))
            known &= given
            counts = counts_by_class(winners[known], codes[known].astype(np.int64), num_classes)
            self._label_counts = counts if self._label_counts is None else self._label_counts + counts

    def _add_errors(self, rows: TokenRows) -> None:
        for count in pc.value_counts(rows.errors.drop_null()).to_pylist():
            error = count["values"]
            self._errors[error] = self._errors.get(error, 0) + count["counts"]
            first = self._first_errors.setdefault(error, [])
            if wanted := FIRST_ERRORS - len(first):
                places = pc.indices_nonzero(pc.equal(rows.errors, error)).slice(0, wanted)
                first += [self._rows + place for place in places.to_pylist()]

    def scored(self, shard: Shard, reason: str, engine: str, seconds: float) -> ScoredShard:
        pairs = zip(self._classes, self._predicted.tolist(), strict=True)
        predictions = {name: count for name, count in pairs if count}
        commonest = set(heapq.nlargest(CLASSES_OF_SHARD, predictions, key=lambda name: predictions[name]))
        record = ShardRecord(
            name=shard.name,
            reason=reason,
            num_rows=self._rows,
            num_tokens=self._tokens,
            num_truncated=self._truncated,
            num_abstained=self._abstained,
            errors=dict(sorted(self._errors.items())),
            predictions={name: count for name, count in predictions.items() if name in commonest},
            seconds=round(seconds, 3),
            file=shard.file,
            first_errors={
                error: [shard.first_row + place for place in places]
                for error, places in sorted(self._first_errors.items())
            },
        )
        return ScoredShard(record, engine, predictions, self._label_counts, self._observed, self._num_other_labels)


def measure_drift(reference: dict[str, Any] | None, observed: "Observed | None") -> dict[str, Any] | None:
    """How far the rows of a run are from those that its checkpoint was measured on, for the run's manifest.

    reference: that of the checkpoint's card. observed: what its scored shards counted together. The result is None if
    there is nothing to compare: no reference, as of a checkpoint from elsewhere, or no scored row.
    """
    from attnlstm.evaluation.drift import compare

    if reference is None or observed is None or not observed.num_rows:
        return None
    return compare(reference, observed).record()

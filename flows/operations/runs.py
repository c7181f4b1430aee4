"""A run of classify apart from who carries it out: what it has to do, what its shards gave, and the record of both.

So too of a backfill, whose partitions have such a run each: which they are, and what came of each and of all; and which
partitions a run has written. Knows neither how shards and partitions are handed out nor where a run is shown.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.metrics import accuracy_and_macro_f1
from flows.operations.score import ScoredShard, config_of, measure_drift
from storage.delta import Table, published_in_words
from storage.errors import SourceError, StorageError
from storage.input.hive import partition_folder
from storage.input.partitions import Partition, PartitionRange, has_later, partition_span
from storage.input.shards import unreadable_in_words
from storage.input.sources import refuse_nested
from storage.input.tokens import TokenRules
from storage.locations import Location, without_credentials
from storage.locks import only_run
from storage.output.layout import PREDICTIONS, Output
from storage.output.manifests import FIRST_PASSED_OVER, FailureRecord, RunManifest, ShardRecord
from storage.output.orphans import find_orphans, orphans_in_words
from storage.output.plan import Mode, OutputPlan, Pending, plan_output
from storage.registry.checkpoints import StoredCheckpoint

if TYPE_CHECKING:
    from attnlstm.evaluation.drift import Observed

COMPLETED, NO_INPUT, NOT_STARTED, PLANNED = "Completed", "No input", "Not started", "Planned"

_SCOPES_HELD = 50
"""Each hold looks at all others."""


@dataclass
class ScoringOutcome:
    """What the shards of a run gave, added up as they come. workers: how many there were at a time.

    seconds: from the first to the last. predictions: rows by predicted class. label_counts: as `ScoredShard` has them.
    observed: what there is to tell drift by. These two are None where no shard has any. num_other_labels: rows with a
    label that the checkpoint does not know, so that their prediction is compared with nothing.
    """

    workers: int
    engine: str = ""
    seconds: float = 0.0
    records: list[ShardRecord] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)
    predictions: Counter[str] = field(default_factory=Counter)
    label_counts: npt.NDArray[np.int64] | None = None
    observed: "Observed | None" = None
    num_other_labels: int = 0

    def add(self, results: Iterable[ScoredShard | FailureRecord]) -> None:
        """Count what some shards gave."""
        for result in results:
            if isinstance(result, FailureRecord):
                self.failures.append(result)
                continue
            self.engine = self.engine or result.engine
            self.records.append(result.record)
            self.predictions.update(result.predictions)
            self.num_other_labels += result.num_other_labels
            if result.label_counts is not None:
                self.label_counts = result.label_counts + (0 if self.label_counts is None else self.label_counts)
            if self.observed is None:
                self.observed = result.observed
            elif result.observed is not None:
                self.observed.merge(result.observed)

    def num_rows_and_errors(self) -> tuple[int, int]:
        """Rows that were scored, and those of them that have no prediction."""
        return sum(each.num_rows for each in self.records), sum(sum(each.errors.values()) for each in self.records)

    def evaluation(self) -> dict[str, float] | None:
        """Measures against the true classes; None where no row has one that the checkpoint knows."""
        if self.label_counts is None or not self.label_counts.any():
            return None
        return accuracy_and_macro_f1(self.label_counts)

    def notes(self) -> tuple[str, ...]:
        """What is worth a word although nothing fails."""
        said = f"rows with a label that the checkpoint does not know, which no figure counts: {self.num_other_labels:,}"
        return (said,) if self.num_other_labels else ()


@dataclass(frozen=True)
class PlannedRun:
    """What a run has to do. pending: the shards to score, in order.

    rows_left, errors_left: of the shards that it leaves as they are, rows in all and without a prediction.
    """

    started: datetime
    stored: StoredCheckpoint
    plan: OutputPlan
    mode: Mode
    pending: Sequence[Pending]
    rows_left: int = 0
    errors_left: int = 0

    @property
    def is_up_to_date(self) -> bool:
        """Whether there is nothing to do, and nothing that could not be looked at."""
        return not self.pending and not self.plan.unreadable

    def errors_and_rows(self, outcome: ScoringOutcome) -> tuple[int, int]:
        """What is held against the errors that are allowed: of the rows that were scored or, where none were, of those
        that are there, so that a run that failed for its errors fails again.
        """
        if self.is_up_to_date:
            return self.errors_left, self.rows_left
        num_rows, num_errors = outcome.num_rows_and_errors()
        return num_errors, num_rows

    def manifest(self, run_id: str, run_name: str, outcome: ScoringOutcome, *, is_good: bool) -> RunManifest:
        """The record of the run, which ends now. is_good: whether what went wrong is as little as was allowed."""
        source, output = self.plan.source, self.plan.output
        return RunManifest(
            run_id=run_id,
            run_name=run_name,
            state="completed" if is_good else "failed",
            started=self.started.isoformat(timespec="seconds"),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            source=str(source.root / source.scope),
            output=str(output.root),
            mode=self.mode,
            checkpoint=self.stored.version,
            checkpoint_digest=self.stored.digest,
            settings=output.settings.record(),
            engine=outcome.engine,
            workers=outcome.workers,
            num_up_to_date=len(self.plan.shards) - len(self.pending),
            seconds=round(outcome.seconds, 3),
            shards=tuple(sorted(outcome.records, key=lambda record: record.name)),
            failures=(
                *(FailureRecord(file.file, file.reason) for file in self.plan.unreadable),
                *sorted(outcome.failures, key=lambda failure: failure.name),
            ),
            evaluation=outcome.evaluation(),
            drift=measure_drift(self.stored.card.drift, outcome.observed),
            passed_over=source.passed_over[:FIRST_PASSED_OVER],
            num_passed_over=len(source.passed_over),
            notes=(*self.plan.notes, *outcome.notes()),
            predictions=dict(outcome.predictions),
        )


def plan_run(source: str, output: Output, stored: StoredCheckpoint, mode: Mode) -> PlannedRun:
    """Find out what a run has to do, from footers alone.

    Raises as `plan_output` does, and SourceError if no file of the input can be read.
    """
    started = datetime.now(UTC)
    plan = plan_output(source, output)
    if not plan.shards:
        raise SourceError(f"{unreadable_in_words(plan.source.root, plan.unreadable)}.")
    if mode == "all":
        return PlannedRun(started, stored, _noting_orphans(plan, True), mode, plan.pending(stored.id, mode))
    committed = plan.committed()
    pending = plan.selected(plan.reasons(stored.id, committed, mending_rules(stored, output, mode)), mode)
    plan = _noting_orphans(plan, bool(pending))
    left = {shard.name for shard in plan.shards} - {each.shard.name for each in pending}
    stamps = [committed[name] for name in left]
    errors_left = sum(stamp.num_errors or 0 for stamp in stamps)
    return PlannedRun(started, stored, plan, mode, pending, sum(stamp.num_rows for stamp in stamps), errors_left)


def _noting_orphans(plan: OutputPlan, will_score: bool) -> OutputPlan:
    """The plan with a note about what its input does not account for. A run that scores removes what is there twice."""
    orphans = [each for each in find_orphans(plan) if not (will_score and each.is_twice)]
    return replace(plan, notes=(*plan.notes, orphans_in_words(orphans))) if orphans else plan


def publish(
    plans: Sequence[OutputPlan], place: str, run_id: str, run_name: str, scored: Iterable[ShardRecord] = ()
) -> tuple[str, FailureRecord | None]:
    """Bring the Delta table at `place` to what the output of these plans holds; says what was done, or what failed.

    scored: shards that the run wrote. The plans' scopes are held meanwhile or, if they are many, the whole output.
    """
    try:
        with ExitStack() as stack:
            scopes = {plan.source.scope for plan in plans} if len(plans) <= _SCOPES_HELD else {""}
            for scope in sorted(scopes):
                stack.enter_context(only_run(plans[0].output.root, run_name, scope=scope))
            table = Table.of(place, plans[0].output, plans[0].source.root)
            return published_in_words(table.publish(plans, [each.name for each in scored], run_id), place), None
    except (StorageError, OSError) as error:
        return "", FailureRecord(without_credentials(place), f"it was not published: {error}")


def mending_rules(stored: StoredCheckpoint, output: Output, mode: Mode) -> TokenRules | None:
    """By what rows with errors are judged again; None in a mode that does not."""
    settings = output.settings
    if mode != "errors":
        return None
    return TokenRules(config_of(stored).padding_id, settings.max_tokens, settings.long_rows)


def name_run(source: str) -> str:
    """The name of a run that is asked for now."""
    return f"classify {without_credentials(source)} {datetime.now(UTC):%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class PartitionRun:
    """What came of one partition. rows, errors, seconds: of what was scored, or in a dry run of what would be.

    run_id: of the run that did it, "" if none did.
    """

    partition: str
    state: str
    rows: int = 0
    errors: int = 0
    seconds: float = 0.0
    message: str = ""
    run_id: str = ""

    @classmethod
    def without_input(cls, partition: Partition) -> "PartitionRun":
        return cls(partition.name, NO_INPUT, message=partition.why_not)


@dataclass(frozen=True)
class Ending:
    """What came of a backfill. table: a row for each partition, in the order in which they were asked for."""

    is_good: bool
    message: str
    table: list[dict[str, Any]]


def find_partitions(
    source: str,
    output: str,
    column: str,
    start: str | None,
    end: str | None,
    *,
    where: Sequence[str],
    newest_first: bool,
) -> tuple[Partition, ...]:
    """The partitions of the range, in the order in which they are to be taken. where: conditions such as region=eu.

    Raises SourceError if no partition of the range has any input, OutputError if source and output lie in each other.
    """
    refuse_nested(Location.parse(source), Location.parse(output))
    conditions = tuple((name, value) for name, _, value in (each.partition("=") for each in where))
    partitions = PartitionRange(column, start, end, conditions).find(source)
    if not any(each.exists for each in partitions):
        raise SourceError(f"No partition of {source} lies in the range. Check start, end and where.")
    return partitions[::-1] if newest_first else partitions


def plan_partition(output: Output, stored: StoredCheckpoint, mode: Mode, partition: Partition) -> PartitionRun:
    """What a run would do, from footers alone."""
    if not partition.exists:
        return PartitionRun.without_input(partition)
    try:
        planned = plan_output(partition.place, output)
        reasons = planned.reasons(stored.id, mending=mending_rules(stored, output, mode))
    except StorageError as error:
        return PartitionRun(partition.name, "Failed", message=str(error))
    rows = sum(each.shard.num_rows for each in planned.selected(reasons, mode))
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(Counter(reasons.values()).items()))
    return PartitionRun(partition.name, PLANNED, rows=rows, message=f"shards: {counts}")


def ending_of(runs: Sequence[PartitionRun]) -> Ending:
    """What came of all of them."""
    counts = Counter(run.state for run in runs)
    failed = [run for run in runs if run.state not in (COMPLETED, NO_INPUT, PLANNED, NOT_STARTED)]
    table = [asdict(run) for run in runs]
    if counts[PLANNED] and not failed:
        rows = sum(run.rows for run in runs)
        return Ending(True, f"{rows:,} rows of {counts[PLANNED]} partitions would be scored.", table)
    others = [f"{counts[name]} {name.lower()}" for name in (NO_INPUT, NOT_STARTED) if counts[name]]
    summary = ", ".join([f"{counts[COMPLETED]} of {len(runs)} partitions completed", *others])
    if failed:
        first = f"First: {failed[0].partition}: {failed[0].message}"
        return Ending(False, f"{summary}, {len(failed)} failed. {first}", table)
    return Ending(True, f"{summary}.", table)


@dataclass(frozen=True)
class WrittenPartition:
    """A partition that a run has scored or scored again, as far as it had to. name: "" for what lies in none.

    rows, errors: of what the run scored of it. begins: the first moment of the day, month or hour that it is of, ISO
    8601; "" if it is of none. is_newest: whether no partition of the output is of a later one.
    """

    name: str
    rows: int
    errors: int
    begins: str
    is_newest: bool


def written_partitions(
    root: Location, manifest: RunManifest, tolerates: Callable[[int, int], bool]
) -> tuple[WrittenPartition, ...]:
    """The partitions in which a run wrote something and nothing failed, by name.

    root: the output. tolerates: of rows without a prediction and rows in all, whether these are few enough.
    """
    failed = {partition_folder(failure.name) for failure in manifest.failures}
    rows: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for shard in manifest.shards:
        name = partition_folder(shard.name)
        rows[name] += shard.num_rows
        errors[name] += sum(shard.errors.values())
    spans = {name: partition_span(name) for name in rows}
    last = max((span for span in spans.values() if span is not None), key=lambda span: span.first, default=None)
    is_last_newest = last is None or not has_later(root / PREDICTIONS, last)
    written = []
    for name in sorted(rows.keys() - failed):
        if tolerates(errors[name], rows[name]):
            span = spans[name]
            is_newest = span is None or (last is not None and span.first == last.first and is_last_newest)
            begins = span.first.isoformat() if span else ""
            written.append(WrittenPartition(name, rows[name], errors[name], begins, is_newest))
    return tuple(written)

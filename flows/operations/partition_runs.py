"""Partitions apart from who runs them: which a backfill has, what came of each and of all, and which a run has written.

What a run of one partition does is what a run of classify does. Knows nothing of how many run at once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flows.operations.runs import mending_rules
from storage.errors import SourceError, StorageError
from storage.input.hive import partition_folder
from storage.input.partitions import Partition, PartitionRange, has_later, partition_span
from storage.input.sources import refuse_nested
from storage.locations import Location
from storage.output.layout import PREDICTIONS, Output
from storage.output.manifests import RunManifest
from storage.output.plan import Mode, plan_output
from storage.registry.checkpoints import StoredCheckpoint

COMPLETED, NO_INPUT, NOT_STARTED, PLANNED = "Completed", "No input", "Not started", "Planned"


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

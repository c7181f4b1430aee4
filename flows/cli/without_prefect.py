"""What runs that have nothing to do come to, found out without Prefect; and what a dry run would do.

For commands that would otherwise start a server for it, which takes longer than all else. They leave the same manifest
and say the same as the flows, whose parts they call. Whatever is to be done, or is wrong with a partition, is left for
the flows to do and to tell.
"""

from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from attnlstm.process import num_cores
from flows.operations.partition_runs import (
    COMPLETED,
    Ending,
    PartitionRun,
    ending_of,
    plan_partition,
)
from flows.operations.runs import PlannedRun, ScoringOutcome, name_run, plan_run
from flows.orchestration.scheduled import fill
from flows.settings import BackfillOptions, ClassifyOptions, RunnerOptions, ToleranceOptions
from storage.errors import StorageError
from storage.locations import Location
from storage.output.layout import Output
from storage.output.manifests import RunManifest, write_manifest
from storage.registry.checkpoints import Registry


def classify_nothing(options: ClassifyOptions) -> RunManifest | None:
    """The manifest of a run that has nothing to do, which is in the output then; None if there may be something.

    Raises as the plan of a run does.
    """
    if not _may_be_up_to_date(options):
        return None
    stored = Registry.open(options.registry).load(options.checkpoint)
    output = options.open_output(options.output, options.mode)
    run = plan_run(fill(options.source, datetime.now(UTC)), output, stored, options.mode)
    return _record(run, options.workers) if _is_nothing(run, options) else None


def backfill_nothing(options: BackfillOptions) -> Ending | None:
    """What came of a backfill that is a dry run, or that has nothing to do; None if there may be something.

    Raises as the flow does, before it starts runs.
    """
    if options.fan_out or not (_may_be_up_to_date(options) or (options.dry_run and _is_plain(options))):
        return None
    ordered = options.partitions(partial(fill, scheduled=datetime.now(UTC)))
    stored = Registry.open(options.registry).load(options.checkpoint)
    output = options.open_output(options.output, options.mode)
    if options.dry_run:
        return ending_of([plan_partition(output, stored, options.mode, each) for each in ordered])
    planned: list[PlannedRun | None] = []
    for each in ordered:
        try:
            run = plan_run(each.place, output, stored, options.mode) if each.exists else None
        except (StorageError, OSError):
            return None
        if run and not _is_nothing(run, options):
            return None
        planned.append(run)
    runs: list[PartitionRun] = []
    for partition, run in zip(ordered, planned, strict=True):
        if run is None:
            runs.append(PartitionRun.without_input(partition))
        else:
            runs.append(PartitionRun(partition.name, COMPLETED, run_id=_record(run, None).run_id))
    return ending_of(runs)


def _may_be_up_to_date(options: ClassifyOptions | BackfillOptions) -> bool:
    """Whether it is worth a look, which a new output is not, nor one with a table, which may lack something."""
    if options.publish:
        return False
    place = Location.parse(options.output)
    return _is_plain(options) and options.mode != "all" and Output.existing(place) is not None


def _is_nothing(run: PlannedRun, options: ToleranceOptions) -> bool:
    """Whether a run has nothing to do and nothing to complain about."""
    return run.is_up_to_date and options.tolerates(run.errors_left, run.rows_left)


def _is_plain(options: RunnerOptions) -> bool:
    """Whether it runs on threads. What is asked of a cluster is for the flow to check."""
    return options.runner == "threads" and options.address is None


def _record(run: PlannedRun, workers: int | None) -> RunManifest:
    """Leave the manifest of a run that had nothing to do. Its id is its own, since no flow run has it."""
    name = name_run(str(run.plan.source.root / run.plan.source.scope))
    manifest = run.manifest(str(uuid4()), name, ScoringOutcome(workers or num_cores()), is_good=True)
    write_manifest(run.plan.output.root, manifest)
    return manifest

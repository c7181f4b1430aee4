"""The backfill flow: a range of partitions, each a run of classify, some of them at once."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prefect import State, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.classify import classify
from flows.operations.runs import (
    COMPLETED,
    NO_INPUT,
    NOT_STARTED,
    Ending,
    PartitionRun,
    ending_of,
    plan_partition,
    publish,
)
from flows.orchestration.credentials import refuse_stored_credentials
from flows.orchestration.events import tags_of_parent
from flows.orchestration.progress import RunProgress
from flows.orchestration.report import leave_page
from flows.orchestration.runners import check_runner, open_workers, run_all, run_on_pool
from flows.orchestration.scheduled import at_scheduled_start
from flows.pages.report import report_run
from flows.settings import BackfillOptions, as_flow
from storage.delta import Table
from storage.input.partitions import Partition
from storage.locations import Location, without_credentials
from storage.output.layout import Output
from storage.output.manifests import read_manifest, report_path
from storage.output.plan import plan_output
from storage.registry.checkpoints import Registry, StoredCheckpoint


def _run_name() -> str:
    parameters = flow_run.parameters
    span = " to ".join(at_scheduled_start(parameters[side] or "") for side in ("start", "end"))
    source = without_credentials(parameters["source"])
    return f"backfill {source} {parameters['partition']} {span} {datetime.now(UTC):%m-%d %H:%M:%S}"


@as_flow(BackfillOptions, run_name=_run_name)
def backfill(options: BackfillOptions) -> State[list[dict[str, Any]]]:
    """Find the partitions, have each of them classified, and say what came of it."""
    refuse_stored_credentials()
    check_runner(options.runner, options.address)
    if options.fan_out and options.runner != "threads":
        raise ValueError(
            f"the runs of {options.fan_out} bring their own runner: leave out --runner {options.runner}, or --fan-out"
        )
    ordered = options.partitions(at_scheduled_start)
    stored = Registry.open(options.registry).load(options.checkpoint)
    output = options.open_output(options.output, options.mode)  # what is refused is refused here, and not by every run
    if options.table:
        Table.of(options.table, output, Location.parse(options.source))
    if options.dry_run:
        runs = [plan_partition(output, stored, options.mode, each) for each in ordered]
    else:
        parameters: dict[str, Any] = {
            "output": options.output,
            "registry": options.registry,
            # One version for all, whatever is promoted meanwhile.
            "checkpoint": stored.version if options.checkpoint == "champion" else options.checkpoint,
            "mode": options.mode,
            "max_errors": options.max_errors,
            "report_rows": options.report_rows,
            "page_rows": options.page_rows,
            **options.said(),
        }
        runs = _run_all(ordered, parameters, options)
        _leave_page(runs, output, stored, options)
    by_name = {run.partition: run for run in runs}
    ending = ending_of([by_name[each.name] for each in ordered])
    if options.table and ending.is_good and not options.dry_run:
        ending = _published(ending, options.table, ordered, runs, output)
    shown = [_shown(by_name[each.name]) for each in ordered]
    create_table_artifact(shown, key="backfill-partitions", description=f"Partitions of {flow_run.name}")
    return (Completed if ending.is_good else Failed)(message=ending.message, data=ending.table)


def _published(
    ending: Ending, table: str, partitions: tuple[Partition, ...], runs: list[PartitionRun], output: Output
) -> Ending:
    """The ending, once the Delta table has all partitions by one commit."""
    plans = [plan_output(each.place, output) for each in partitions if each.exists]
    manifests = [read_manifest(output.root, run.run_id) for run in runs if run.run_id]
    scored = [shard for manifest in manifests if manifest for shard in manifest.shards]
    said, failure = publish(plans, table, str(flow_run.id), str(flow_run.name), scored)
    message = f"{failure.name}: {failure.reason}" if failure else f"{said[:1].upper()}{said[1:]}."
    return replace(ending, is_good=failure is None, message=f"{ending.message} {message}")


def _run_all(
    partitions: tuple[Partition, ...], parameters: dict[str, Any], options: BackfillOptions
) -> list[PartitionRun]:
    """What came of each, in the order in which they ended."""
    progress = RunProgress(
        "partitions", len(partitions), artifact="backfill-progress", description="Partitions that have ended"
    )
    waiting = deque(partitions)
    runs: list[PartitionRun] = []
    with ExitStack() as stack:
        if options.fan_out:
            # However many runs there are, they are asked after no more than twenty times a second.
            run_one = partial(_on_pool, options.fan_out, parameters, max(2.0, options.parallel / 20))
        else:
            stack.enter_context(open_workers(options.runner, options.address, None, "auto", shared=True))
            run_one = partial(_here, parameters | {"runner": options.runner, "address": options.address})
        pool = stack.enter_context(ThreadPoolExecutor(options.parallel, "backfill"))
        tags_of_parent.set(tuple(flow_run.tags or ()))

        def submit(partition: Partition) -> Future[PartitionRun]:
            # Runs of classify are children of this run, which they learn from the context.
            return pool.submit(copy_context().run, _run, run_one, partition)

        def on_end(partition: Partition, future: Future[PartitionRun]) -> None:
            run = future.result()
            good = run.state in (COMPLETED, NO_INPUT)
            level = logging.INFO if good else logging.ERROR
            get_run_logger().log(level, "%s: %s. %s", run.partition, run.state, run.message)
            progress.advance(1)
            runs.append(run)
            if options.fail_fast and not good:
                runs.extend(PartitionRun(each.name, NOT_STARTED) for each in waiting)
                waiting.clear()

        run_all(waiting, submit, on_end, limit=options.parallel, progress=progress)
    return runs


def _leave_page(runs: list[PartitionRun], output: Output, stored: StoredCheckpoint, options: BackfillOptions) -> None:
    """A page about all partitions that had something to do. runs: in the order in which they ended."""
    found = [read_manifest(output.root, run.run_id) for run in reversed(runs) if run.run_id]
    if manifests := [manifest for manifest in found if manifest and manifest.report]:
        make = partial(report_run, options.output, output, None, manifests, stored.card, options.report_rows)
        leave_page(make, output.root / report_path(str(flow_run.id)), "backfill-page")


def _run(run_one: Callable[[Partition], PartitionRun], partition: Partition) -> PartitionRun:
    return run_one(partition) if partition.exists else PartitionRun.without_input(partition)


def _here(parameters: dict[str, Any], partition: Partition) -> PartitionRun:
    """A run of classify in this process."""
    state: State[Any] = classify(partition.place, **parameters, return_state=True)
    return _ended(partition, state, parameters["output"], str(state.state_details.flow_run_id))


def _on_pool(deployment: str, parameters: dict[str, Any], poll_seconds: float, partition: Partition) -> PartitionRun:
    """A run of classify on a worker of the deployment's pool."""
    run = run_on_pool(deployment, {"source": partition.place, **parameters}, partition.name, poll_seconds)
    assert run.state is not None, "it has ended"
    return _ended(partition, run.state, parameters["output"], str(run.id))


def _ended(partition: Partition, state: State[Any], output: str, run_id: str) -> PartitionRun:
    manifest = read_manifest(Location.parse(output), run_id)
    return PartitionRun(
        partition.name,
        state.name or "",
        rows=manifest.totals["rows"] if manifest else 0,
        errors=manifest.num_errors if manifest else 0,
        seconds=manifest.seconds if manifest else 0.0,
        message=(state.message or "").removeprefix("Flow run encountered an exception: "),
        run_id=run_id,
    )


def _shown(run: PartitionRun) -> dict[str, Any]:
    """For reading. What was scored needs no words, and what may be long comes last, since cells do not wrap."""
    counts = {"rows": f"{run.rows:,}", "errors": f"{run.errors:,}", "seconds": f"{run.seconds:.1f}"}
    message = "" if run.state == COMPLETED and run.rows else run.message
    return {"partition": run.partition, "state": run.state, **counts, "message": message}

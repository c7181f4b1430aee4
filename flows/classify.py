"""The classify flow: a plan from footers, task runs that score its shards, and a manifest of what came of it."""

from dataclasses import replace
from functools import partial
from typing import Any

from prefect import State, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from attnlstm.process import num_cores
from flows.operations.runs import ScoringOutcome, name_run, plan_run, publish, written_partitions
from flows.operations.score import LoadedCheckpoint, ScoringJob, check_checkpoint
from flows.orchestration.credentials import refuse_stored_credentials
from flows.orchestration.events import emit_partitions, emit_run_ended, materialise_output
from flows.orchestration.facts import counted, first_errors_in_words, run_summary
from flows.orchestration.report import leave_page, publish_report, publish_tables
from flows.orchestration.runners import check_runner, open_workers
from flows.orchestration.scheduled import at_scheduled_start
from flows.orchestration.task_runs import score_all
from flows.pages.report import report_run
from flows.settings import ClassifyOptions, as_flow
from storage.delta import Table
from storage.labelled.classes import class_values
from storage.locations import without_credentials
from storage.locks import only_run
from storage.output.manifests import RunManifest, report_path, write_manifest
from storage.output.orphans import clear_superseded
from storage.registry.checkpoints import Registry


def _run_name() -> str:
    return name_run(at_scheduled_start(flow_run.parameters["source"]))


@as_flow(ClassifyOptions, run_name=_run_name)
def classify(options: ClassifyOptions) -> State[dict[str, Any]]:
    """Plan, score, and record what came of it."""
    refuse_stored_credentials()
    check_runner(options.runner, options.address)
    stored = Registry.open(options.registry).load(options.checkpoint)
    output = options.open_output(options.output, options.mode)
    run = plan_run(at_scheduled_start(options.source), output, stored, options.mode)
    plan, source, pending = run.plan, run.plan.source, run.pending
    get_run_logger().info(
        "%s: %d of %d shards to score with %s", source.root, len(pending), len(plan.shards), stored.version
    )
    if options.table:
        Table.of(options.table, output, source.root)  # what is refused is refused before anything is scored
    num_workers = options.workers or num_cores()
    outcome = ScoringOutcome(num_workers)
    if pending:
        job = ScoringJob.of(
            stored,
            source.root,
            output,
            label_column=output.settings.also.get("label_column"),
            device=options.device,
            engine=options.engine,
            threads=num_workers,
            precision=options.precision,
        )
        # Before the output is touched: one error if the checkpoint can't be used, not one for each shard.
        loaded = LoadedCheckpoint(job, stored) if options.runner == "threads" else None
        config = loaded.config if loaded else check_checkpoint(stored, output)
        with only_run(output.root, str(flow_run.name), scope=source.scope) as hold:
            output = plan.prepare(class_values(config.classes, config.label_type))
            clear_superseded(plan)
            # Within the hold, which then outlives the last task.
            with open_workers(options.runner, options.address, options.workers, options.device) as workers:
                outcome = score_all(replace(job, output=replace(output, hold=hold)), pending, workers, loaded)
            if not workers.in_process:
                clear_superseded(plan)  # what processes left that died during the run
    is_good = not (plan.unreadable or outcome.failures) and options.tolerates(*run.errors_and_rows(outcome))
    notes: tuple[str, ...] = ()
    if options.table and not is_good:
        notes = (f"not published to {without_credentials(options.table)}, since the run did not end well",)
    elif options.table:
        said, failure = publish([plan], options.table, str(flow_run.id), str(flow_run.name), outcome.records)
        is_good = failure is None
        outcome.failures.extend([failure] if failure else [])
        notes = (said,) if said else ()
    manifest = run.manifest(str(flow_run.id), str(flow_run.name), outcome, is_good=is_good)
    manifest = replace(manifest, notes=(*manifest.notes, *notes))
    if manifest.shards or manifest.failures:  # of a run that had nothing to do there is nothing to show
        manifest = replace(manifest, report=report_path(manifest.run_id))
    write_manifest(output.root, manifest)
    tables = partial(publish_tables, manifest)
    if manifest.report:
        make = partial(report_run, options.output, output, source.root, [manifest], stored.card, options.report_rows)
        page = output.root / manifest.report
        if problem := leave_page(make, page, "classify-page", options.page_rows, meanwhile=tables):
            manifest = replace(manifest, report="", notes=(*manifest.notes, problem))
            write_manifest(output.root, manifest)
    else:
        tables()
    publish_report(manifest)
    if manifest.shards or manifest.failures:
        materialise_output(manifest, str(source.root), str(stored.location))
        emit_partitions(manifest, written_partitions(output.root, manifest, options.tolerates))
    emit_run_ended(manifest)
    return _final_state(manifest, options.max_errors, run.errors_left)


def _final_state(manifest: RunManifest, max_errors: str, errors_left: int) -> State[dict[str, Any]]:
    scored, up_to_date, summary = len(manifest.shards), manifest.num_up_to_date, run_summary(manifest)
    if manifest.failures:
        first = manifest.failures[0]
        more = f" and {len(manifest.failures) - 1} more" if len(manifest.failures) > 1 else ""
        message = f"{scored} shards scored, {len(manifest.failures)} failed: {first.name}: {first.reason}{more}"
        return Failed(message=message, data=summary)
    if not scored and manifest.state == "failed":
        message = (
            f"Nothing to do: all {up_to_date} shards are up to date, and {counted(errors_left, 'row')} of them have no "
            f"prediction, more than max_errors ({max_errors}) allows. Mend the input, or allow them."
        )
        return Failed(message=message, data=summary)
    if not scored:
        return Completed(message=f"Nothing to do: all {up_to_date} shards are up to date.", data=summary)
    rows, errors = counted(manifest.totals["rows"], "row"), manifest.num_errors
    if manifest.state == "failed":
        first_errors = first_errors_in_words(manifest)
        message = f"{errors:,} of {rows} have no prediction, more than max_errors ({max_errors}) allows: {first_errors}"
        return Failed(message=message, data=summary)
    others = f"{counted(up_to_date, 'shard')} {'was' if up_to_date == 1 else 'were'} up to date"
    abstained = f", {manifest.totals['abstained']:,} without a prediction for their score" * bool(
        manifest.totals["abstained"]
    )
    message = f"{rows} in {counted(scored, 'shard')} scored, {errors:,} with errors{abstained}; {others}."
    return Completed(message=message, data=summary)

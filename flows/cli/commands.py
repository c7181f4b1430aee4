"""The commands that run something: the three flows in this process, and the sample of real files.

Owns what is printed when they have ended. A flow's options are its own, and so is what it does. A flow is imported, and
Prefect with it, once its command is known to need it and its server is starting, which takes longer than all else. So
runs that have nothing to do, and dry runs, come to their end here without Prefect: they leave the same manifest and say
the same as the flows, whose parts they call. Whatever is to be done, or is wrong with a partition, is for the flows.
"""

import importlib
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from pydantic import Field

from attnlstm.process import num_cores
from flows.cli import DONE, FAILED, server
from flows.cli.checkpoints import card_facts
from flows.cli.printing import Printer, printer, progress
from flows.cli.sample import write_sample
from flows.operations.runs import (
    COMPLETED,
    Ending,
    PartitionRun,
    PlannedRun,
    ScoringOutcome,
    ending_of,
    name_run,
    plan_partition,
    plan_run,
)
from flows.orchestration.credentials import refuse_credentials
from flows.orchestration.facts import run_facts
from flows.orchestration.scheduled import fill
from flows.settings import (
    BackfillOptions,
    ClassifyOptions,
    Options,
    RetrainOptions,
    RunnerOptions,
    ToleranceOptions,
    takes,
)
from storage.errors import StorageError
from storage.locations import Location
from storage.output.layout import Output
from storage.output.manifests import RunManifest, read_manifest, report_path, write_manifest
from storage.registry.checkpoints import Registry

if TYPE_CHECKING:
    from prefect import State


@takes(ClassifyOptions)
def classify(options: ClassifyOptions) -> int:
    """As a flow run or, where there is nothing to do and no server is configured, without one."""
    _refuse_credentials(options)
    if not server.is_configured() and (manifest := classify_nothing(options)):
        show_run(printer(), manifest)
        return DONE
    state = _run_flow("classify", options)
    found = read_manifest(Location.parse(options.output), str(state.state_details.flow_run_id))
    if found is None:
        _show_message(state)
    else:
        show_run(printer(), found)
    return _code(state)


@takes(BackfillOptions)
def backfill(options: BackfillOptions) -> int:
    """As flow runs or, where there is nothing to do and no server is configured, without any."""
    _refuse_credentials(options)
    if not server.is_configured() and (ending := backfill_nothing(options)):
        show_partitions(printer(), ending.table)
        _show_text(ending.message, is_good=ending.is_good)
        return DONE if ending.is_good else FAILED
    state = _run_flow("backfill", options)
    runs: Any = state.result(raise_on_failure=False)
    if isinstance(runs, list):
        show_partitions(printer(), runs)
    _show_message(state)
    _show_report(Location.parse(options.output) / report_path(str(state.state_details.flow_run_id)))
    return _code(state)


@takes(RetrainOptions)
def retrain(options: RetrainOptions) -> int:
    """As a flow run."""
    _refuse_credentials(options)
    state = _run_flow("retrain", options)
    result = state.result()
    registry = Registry.open(options.registry)
    stored = registry.load(result["version"])
    decision = {"promoted": "champion"}.get(result["outcome"], result["outcome"])
    facts = card_facts(stored.card) | {"checkpoint": str(stored.location), decision: state.message or ""}
    printer().facts(facts)
    _show_report(registry.run_report(str(state.state_details.flow_run_id)))
    return _code(state)


def _show_report(place: Location) -> None:
    """Where the page about a run is, if one was made."""
    if place.is_file():
        printer().facts({"report": str(place)})


def _refuse_credentials(options: Options) -> None:
    refuse_credentials(options.model_dump())  # before a run exists


def _run_flow(name: str, options: Options) -> "State[Any]":
    """The final state of a run of a flow in this process. Raises what ended it, if the state does not tell."""
    with server.without_collecting():
        server.begin_prefect()  # it starts while the flow is imported
        flow: Any = getattr(importlib.import_module(f"flows.{name}"), name)
        server.start_prefect()
    state: State[Any] = flow(**options.model_dump(), return_state=True)
    outcome: Any = state.result(raise_on_failure=False)

    from prefect.exceptions import FailedRun

    if isinstance(outcome, Exception) and not isinstance(outcome, FailedRun):
        raise outcome
    return state


def _code(state: "State[Any]") -> int:
    return DONE if state.is_completed() else FAILED


def show_run(to: Printer, manifest: RunManifest) -> None:
    """The closing summary of a classify run: its facts, and what failed."""
    to.facts(run_facts(manifest))
    failures = [("failed", f"{failure.name}: {failure.reason}") for failure in manifest.failures]
    to.lines(failures, rest="failures", kept_in="the manifest")


def show_partitions(to: Printer, runs: list[dict[str, Any]]) -> None:
    """A row for each partition of a backfill; those that completed need no words."""
    rows = [
        (
            run["partition"],
            run["state"],
            f"{run['rows']:,}",
            f"{run['errors']:,}",
            f"{run['seconds']:.1f}",
            "" if run["state"] == COMPLETED else run["message"],
        )
        for run in runs
    ]
    to.table(("partition", "state", "rows", "errors", "seconds", ""), rows)


def _show_message(state: "State[Any]") -> None:
    _show_text(state.message or state.name or "done", is_good=state.is_completed())


def _show_text(text: str, *, is_good: bool) -> None:
    (printer().say if is_good else printer().complain)(text)


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


def sample(
    out: str,
    *,
    rows: Annotated[int, Field(ge=1)] = 20_000,
    fragment_bytes: Annotated[int, Field(ge=1)] = 512,
    days: Annotated[int, Field(ge=1)] = 7,
    start: date = date(2026, 11, 1),
) -> int:
    """Write labelled fragments of the files of this Python environment, partitioned by date.

    The same files give the same sample.

    Args:
        out: Folder to write to.
        rows: Fragments in all, the same number of each file type.
        fragment_bytes: Length of a fragment.
        days: Dates to spread them over.
        start: First date.
    """
    with progress("fragments", rows) as bar:
        counts = write_sample(
            Path(out),
            rows=rows,
            fragment_bytes=fragment_bytes,
            days=days,
            start=start,
            on_progress=lambda done: bar(completed=done),
        )
    to = printer()
    to.say(f"{rows:,} fragments of {fragment_bytes} bytes in {days} files under {out}")
    to.say(f"file types: {', '.join(f'{label} {count:,}' for label, count in counts.items())}")
    return DONE

"""The classify flow: a plan from footers, a task run for each shard, and a manifest of what came of it."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Annotated, Any, Literal

from prefect import State, flow, get_run_logger
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from attnlstm.engines import Device, EngineName, Precision
from attnlstm.evaluation.metrics import accuracy_and_macro_f1
from flows.operations.score import ScoredShard, ScoringJob, check_checkpoint, load_checkpoint, measure_drift
from flows.orchestration.credentials import Place, refuse_stored_credentials
from flows.orchestration.description import described
from flows.orchestration.events import emit_run_ended
from flows.orchestration.facts import counted
from flows.orchestration.progress import RunProgress, showing
from flows.orchestration.report import publish_report
from flows.orchestration.runners import Crew, RunnerName, check_runner, open_crew
from flows.orchestration.scheduled import at_scheduled_start
from flows.orchestration.task_runs import score_shards
from storage.errors import SourceError
from storage.input.columns import Columns
from storage.input.shards import ShardLimits
from storage.locations import Location, without_credentials
from storage.locks import only_run
from storage.output.layout import AttentionSaving, Output, OutputSettings
from storage.output.manifests import FailureRecord, RunManifest, write_manifest
from storage.output.orphans import clear_superseded
from storage.output.plan import Mode, OutputPlan, Pending, plan_output
from storage.registry.checkpoints import Registry

# Small shards share a task run until it has this much to do: about a second of work on one core. With many of
# them the share grows, since a server takes in only some tens of task runs a second.
_TASK_TOKEN_BYTES = 1 << 20
_MAX_TASK_RUNS = 200

# How soon a run that is being stopped takes notice.
_LOOK_SECONDS = 0.5


def _run_name() -> str:
    source = without_credentials(at_scheduled_start(flow_run.parameters["source"]))
    return f"classify {source} {datetime.now(UTC):%m-%d %H:%M:%S}"


@described
@flow(name="classify", flow_run_name=_run_name)
def classify(
    source: Place,
    output: Place,
    *,
    registry: Place = "registry",
    checkpoint: Place = "champion",
    mode: Mode = "missing",
    save_attention: Annotated[str, Field(pattern=r"^(full|none|top:[1-9][0-9]*)$")] = "full",
    keep: list[str] = [],  # noqa: B006  (Prefect's form shows the default)
    id_column: str = "id",
    tokens_column: str = "tokens",
    label_column: str | None = None,
    max_tokens: Annotated[int, Field(ge=1)] | None = None,
    long_rows: Literal["truncate", "error"] = "truncate",
    shard_rows: Annotated[int, Field(ge=1)] = ShardLimits().rows,
    chunk_bytes: Annotated[int, Field(ge=1)] = OutputSettings().chunk_bytes,
    device: Device = "auto",
    engine: EngineName = "auto",
    precision: Precision = "float32",
    workers: Annotated[int, Field(ge=1)] | None = None,
    runner: RunnerName = "threads",
    address: str | None = None,
) -> State[dict[str, Any]]:
    """Score every row of a Parquet dataset and write predictions and attention weights as Parquet.

    Rerunning the same command is the recovery procedure: what is already scored is left as it is.

    A scheduled start is in UTC; {scheduled-1d@Europe/Berlin:%Y-%m-%d} is the day before it in Berlin.

    Args:
        source: Parquet file, folder, glob or URI to score. {scheduled:%Y-%m-%d} in it is the run's scheduled start.
        output: Folder or URI for predictions, attention and the run's manifest.
        registry: Folder or URI of the checkpoint registry.
        checkpoint: "champion", a version in the registry, or a folder with config.json and model.safetensors.
        mode: Score what has no output ("missing"), also what another checkpoint scored ("stale"), or "all".
        save_attention: "full", "none", or "top:K" for the K largest weights of each row with their positions.
        keep: Input columns to carry through to the predictions.
        id_column: Column carried through as id. Without it, id is the row's position in its file.
        tokens_column: Column with the tokens: binary, string, or a list of integers.
        label_column: Column with the true class. It is carried through, and predictions are measured against it.
        max_tokens: Longest row that is scored whole, in tokens. No limit by default.
        long_rows: What longer rows get: a score of their first max_tokens ("truncate"), or an "error".
        shard_rows: Rows of a large file that one task scores, in whole row groups; each shard has its own output file.
        chunk_bytes: Tokens that a worker reads, scores and writes at once, in bytes. Memory grows with it.
        device: Where to compute. "auto" takes a GPU if there is one.
        engine: What computes. "auto" takes "fused-cpu" on a CPU for small networks, and "torch" for all others.
        precision: Of numbers in the torch engine's LSTM. The short ones are faster for large networks, and less exact.
        workers: Shards scored side by side, and compute threads on a CPU. By default as many as there are cores.
        runner: What scores shards: "threads" of this process, or processes of a "ray" or "dask" cluster.
        address: Where a Ray or Dask cluster runs. By default one of this many workers is started for the run.
    """
    refuse_stored_credentials()
    check_runner(runner, address)
    logger = get_run_logger()
    started = datetime.now(UTC)
    source = at_scheduled_start(source)
    label_columns = [label_column] if label_column and label_column not in keep else []
    settings = OutputSettings(
        columns=Columns(tokens_column, id_column, (*keep, *label_columns)),
        limits=ShardLimits(rows=shard_rows),
        attention=AttentionSaving.parse(save_attention),
        max_tokens=max_tokens,
        long_rows=long_rows,
        chunk_bytes=chunk_bytes,
    )
    stored = Registry.open(registry).load(checkpoint)
    place = Output(Location.parse(output), settings)
    plan = plan_output(source, place)
    _refuse_unreadable(plan)
    found = plan.source
    pending = plan.pending(stored.id, mode)
    logger.info("%s: %d of %d shards to score with %s", found.root, len(pending), len(plan.shards), stored.version)
    num_workers = workers or os.cpu_count() or 1
    job = ScoringJob.of(
        stored,
        found.root,
        place,
        label_column=label_column,
        device=device,
        engine=engine,
        threads=num_workers,
        precision=precision,
    )
    outcome = _Outcome(workers=num_workers)
    if pending:
        # Before the output is touched: one error if the checkpoint can't be used, not one a shard.
        if runner == "threads":
            outcome.engine = load_checkpoint(job, stored).describe()
        else:
            check_checkpoint(stored)
        with only_run(place.root, str(flow_run.name), scope=found.scope) as hold:
            place.prepare(str(found.root))
            clear_superseded(plan)
            # Within the hold, which then outlives the last task.
            with open_crew(runner, address, workers, device) as crew:
                held = replace(job, output=replace(place, hold=hold), threads=crew.threads)
                _score(held, pending, crew, outcome)
            if not crew.in_process:
                clear_superseded(plan)  # what processes left that died, while the run went on
    manifest = RunManifest(
        run_id=str(flow_run.id),
        run_name=str(flow_run.name),
        state="failed" if plan.unreadable or outcome.failures else "completed",
        started=started.isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        source=str(found.root / found.scope),
        output=str(place.root),
        mode=mode,
        checkpoint=stored.version,
        checkpoint_digest=stored.digest,
        settings=settings.record(),
        engine=outcome.engine,
        workers=outcome.workers,
        num_up_to_date=len(plan.shards) - len(pending),
        seconds=round(outcome.seconds, 3),
        shards=tuple(sorted((scored.record for scored in outcome.scored), key=lambda record: record.name)),
        failures=(
            *(FailureRecord(file.file, file.reason) for file in plan.unreadable),
            *sorted(outcome.failures, key=lambda failure: failure.name),
        ),
        evaluation=outcome.evaluation(),
        drift=measure_drift(stored.card, (scored.observed for scored in outcome.scored)),
    )
    write_manifest(place.root, manifest)
    publish_report(manifest)
    emit_run_ended(manifest)
    return _final_state(manifest)


def recorded_parameters(output: str) -> dict[str, Any]:
    """What an output that exists was made with, as parameters of `classify`; nothing for a new one."""
    recorded = Output.recorded_settings(Location.parse(output))
    return {name: value for name, value in recorded.items() if name in classify.parameters.properties}


def _refuse_unreadable(plan: OutputPlan) -> None:
    """Raises SourceError if no file of the input can be read."""
    if not plan.shards:
        first, others = plan.unreadable[0], len(plan.unreadable) - 1
        more = f" None of the {others} other files can be read either." if others else ""
        raise SourceError(f"{plan.source.root / first.file}: {first.reason}.{more}")


@dataclass
class _Outcome:
    """What the shards of a run gave, as task runs end. workers: how many there were at a time."""

    workers: int
    engine: str = ""
    seconds: float = 0.0
    scored: list[ScoredShard] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)

    def evaluation(self) -> dict[str, float] | None:
        tables = [scored.confusion for scored in self.scored if scored.confusion is not None]
        return accuracy_and_macro_f1(sum(tables[1:], start=tables[0])) if tables else None


def _score(job: ScoringJob, pending: tuple[Pending, ...], crew: Crew, outcome: _Outcome) -> None:
    """Score the pending shards in task runs, side by side."""
    started = time.perf_counter()
    outcome.workers = crew.at_once
    progress = RunProgress(
        "rows",
        sum(each.shard.num_rows for each in pending),
        artifact="classify-progress",
        description=f"Rows scored into {job.output.root}",
    )
    waiting = _bundles(pending)
    running: dict[PrefectFuture[Any], list[Pending]] = {}
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    with showing(progress):
        try:
            while True:
                for bundle in islice(waiting, None if crew.limit is None else crew.limit - len(running)):
                    future = crew.runner.submit(score_shards, parameters={"job": job, "pending": bundle})
                    running[future] = bundle
                    future.add_done_callback(ended.put)
                if not running:
                    break
                # In a process of its own, a task neither reports its progress nor learns that the run is ending.
                try:
                    future = ended.get(timeout=_LOOK_SECONDS)
                except Empty:
                    pass
                else:
                    bundle = running.pop(future)
                    _collect(future, bundle, outcome)
                    progress.advance(0 if crew.in_process else sum(each.shard.num_rows for each in bundle))
                progress.advance(0)
                progress.tick()
        except BaseException:
            progress.stop()
            raise
    outcome.seconds = time.perf_counter() - started


def _bundles(pending: tuple[Pending, ...]) -> Iterator[list[Pending]]:
    """Neighbouring shards, so many together that a task run is worth what it costs."""
    enough = max(_TASK_TOKEN_BYTES, sum(each.shard.token_bytes for each in pending) // _MAX_TASK_RUNS)
    bundle: list[Pending] = []
    num_bytes = 0
    for each in pending:
        bundle.append(each)
        num_bytes += each.shard.token_bytes
        if num_bytes >= enough:
            yield bundle
            bundle, num_bytes = [], 0
    if bundle:
        yield bundle


def _collect(future: PrefectFuture[Any], bundle: list[Pending], outcome: _Outcome) -> None:
    try:
        results = future.result(raise_on_failure=False)
    except Exception as error:  # of a cluster, which gave up on the task
        results = error
    if isinstance(results, BaseException):
        reason = f"{type(results).__name__}: {results}"
        outcome.failures += [FailureRecord(each.shard.name, reason) for each in bundle]
        return
    outcome.scored += [result for result in results if isinstance(result, ScoredShard)]
    outcome.failures += [result for result in results if isinstance(result, FailureRecord)]
    outcome.engine = outcome.engine or next((scored.engine for scored in outcome.scored), "")


def _final_state(manifest: RunManifest) -> State[dict[str, Any]]:
    scored, up_to_date = len(manifest.shards), manifest.num_up_to_date
    if manifest.failures:
        first = manifest.failures[0]
        more = f" and {len(manifest.failures) - 1} more" if len(manifest.failures) > 1 else ""
        return Failed(
            message=f"{scored} shards scored, {len(manifest.failures)} failed: {first.name}: {first.reason}{more}",
        )
    if not scored:
        return Completed(message=f"Nothing to do: all {up_to_date} shards are up to date.")
    rows, errors = counted(manifest.totals["rows"], "row"), manifest.num_errors
    others = f"{counted(up_to_date, 'shard')} {'was' if up_to_date == 1 else 'were'} up to date"
    return Completed(message=f"{rows} in {counted(scored, 'shard')} scored, {errors:,} with errors; {others}.")

"""The classify flow: a plan from footers, a task run for each shard, and a manifest of what came of it."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from prefect import State, flow, get_run_logger, task
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from attnlstm.engines import Device, EngineName, Precision
from attnlstm.metrics import accuracy_and_macro_f1
from flows.drift import compare_shards, publish_drift
from flows.faults import is_transient
from flows.progress import RunProgress, current_progress, showing
from flows.report import publish_report
from flows.scoring import ScoredShard, ScoringJob, ignore_rows, load_checkpoint, score_bundle
from storage.columns import Columns
from storage.errors import SourceError
from storage.location import Location, without_credentials
from storage.lock import only_run
from storage.manifest import FailureRecord, RunManifest, write_manifest
from storage.orphans import clear_superseded
from storage.output import AttentionSaving, Output, OutputSettings
from storage.pending import Mode, Pending, find_pending
from storage.registry import Registry
from storage.shards import ShardLimits, ShardPlan, plan_shards
from storage.source import Source, find_source

# Small shards share a task run until it has this much to do: about a second of work on one core. With many of
# them the share grows, since a server takes in only some tens of task runs a second.
_TASK_TOKEN_BYTES = 1 << 20
_MAX_TASK_RUNS = 200


def _run_name() -> str:
    return f"classify {without_credentials(flow_run.parameters['source'])} {datetime.now(UTC):%m-%d %H:%M:%S}"


@flow(name="classify", flow_run_name=_run_name)
def classify(
    source: str,
    output: str,
    *,
    registry: str = "registry",
    checkpoint: str = "champion",
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
) -> State[dict[str, Any]]:
    """Score every row of a Parquet dataset and write predictions and attention weights as Parquet.

    Rerunning the same command is the recovery procedure: what is already scored is left as it is.

    Args:
        source: Parquet file, folder, glob or URI with the token sequences to score.
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
        precision: Of the LSTM in the torch engine. The short ones are faster for large networks, and less exact.
        workers: Shards scored side by side, and compute threads on a CPU. By default the number of cores.
    """
    logger = get_run_logger()
    started = datetime.now(UTC)
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
    found = find_source(source)
    place = Output(Location.parse(output), settings)
    place.check(str(found.root))
    plan = _plan(found, settings)
    pending = find_pending(place, plan.shards, stored.version, stored.digest, mode)
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
    outcome = _Outcome()
    if pending:
        # Before the output is touched: one error if the checkpoint can't be used, not one a shard.
        outcome.engine = load_checkpoint(job, stored).describe()
        with only_run(place.root, str(flow_run.name), scope=found.scope) as hold:
            place.prepare(str(found.root))
            clear_superseded(place, plan, found.scope)
            _score(replace(job, output=replace(place, hold=hold)), pending, outcome)
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
        workers=num_workers,
        num_up_to_date=len(plan.shards) - len(pending),
        seconds=round(outcome.seconds, 3),
        shards=tuple(sorted((scored.record for scored in outcome.scored), key=lambda record: record.name)),
        failures=(
            *(FailureRecord(file.file, file.reason) for file in plan.unreadable),
            *outcome.failures,
        ),
        evaluation=outcome.evaluation(),
        drift=compare_shards(stored.card, (scored.observed for scored in outcome.scored)),
    )
    write_manifest(place.root, manifest)
    publish_report(manifest)
    publish_drift(manifest)
    return _final_state(manifest)


def _plan(found: Source, settings: OutputSettings) -> ShardPlan:
    plan = plan_shards(found, settings.columns, settings.limits)
    if not plan.shards:
        first, others = plan.unreadable[0], len(plan.unreadable) - 1
        more = f" None of the {others} other files can be read either." if others else ""
        raise SourceError(f"{found.root / first.file}: {first.reason}.{more}")
    return plan


@dataclass
class _Outcome:
    """What the shards of a run gave, as task runs end."""

    engine: str = ""
    seconds: float = 0.0
    scored: list[ScoredShard] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)

    def evaluation(self) -> dict[str, float] | None:
        tables = [scored.confusion for scored in self.scored if scored.confusion is not None]
        return accuracy_and_macro_f1(sum(tables[1:], start=tables[0])) if tables else None


def _score(job: ScoringJob, pending: list[Pending], outcome: _Outcome) -> None:
    """Score the pending shards in task runs, side by side."""
    started = time.perf_counter()
    progress = RunProgress(
        "rows",
        sum(each.shard.num_rows for each in pending),
        artifact="classify-progress",
        description=f"Rows scored into {job.output.root}",
    )
    task_runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=job.threads)
    with showing(progress), task_runner as runner:
        bundles: dict[PrefectFuture[Any], list[Pending]] = {
            runner.submit(score_shards, parameters={"job": job, "pending": bundle}): bundle
            for bundle in _bundles(pending)
        }
        try:
            for future in as_completed(list(bundles)):
                future.wait()
                _collect(future.state, bundles[future], outcome)
                progress.tick()
        except BaseException:
            progress.stop()
            raise
    outcome.seconds = time.perf_counter() - started


def _bundles(pending: list[Pending]) -> Iterator[list[Pending]]:
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


def _task_name() -> str:
    pending: list[Pending] = task_run.parameters["pending"]
    others = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
    return f"{pending[0].shard.name}{others}"


@task(
    name="score-shards",
    task_run_name=_task_name,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def score_shards(job: ScoringJob, pending: list[Pending]) -> Any:
    """Score a few shards. Ends Failed, with what was scored, if a file of theirs can't be read."""
    progress = current_progress.get()
    results = score_bundle(job, pending, on_rows=progress.advance if progress else ignore_rows)
    failures = [result for result in results if isinstance(result, FailureRecord)]
    if failures:
        return Failed(message="; ".join(f"{failure.name}: {failure.reason}" for failure in failures), data=results)
    return results


def _collect(state: State[Any], bundle: list[Pending], outcome: _Outcome) -> None:
    results = state.result(raise_on_failure=False)
    if isinstance(results, BaseException):
        reason = f"{type(results).__name__}: {results}"
        outcome.failures += [FailureRecord(each.shard.name, reason) for each in bundle]
        return
    outcome.scored += [result for result in results if isinstance(result, ScoredShard)]
    outcome.failures += [result for result in results if isinstance(result, FailureRecord)]


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
    rows, errors = manifest.totals["rows"], manifest.num_errors
    return Completed(
        message=f"{rows:,} rows in {scored} shards scored, {errors:,} with errors; {up_to_date} shards were up to date."
    )

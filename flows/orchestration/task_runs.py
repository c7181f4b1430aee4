"""The task runs of a classify run: how shards are bundled, how a bundle is scored, and which faults are tried again.

Ray and Dask send a task's body by value and what that names by reference: nothing at the top of this file may be
something that can't travel, and nothing may depend on how the flow was loaded.
"""

import errno
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from prefect import State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.runtime import task_run
from prefect.states import Failed

from flows.operations.runs import ScoringOutcome
from flows.operations.score import (
    LoadedCheckpoint,
    ScoredShard,
    ScoringJob,
    checkpoint_of_process,
    ignore_rows,
    score_bundle,
)
from flows.orchestration.gpu_slot import device_slot
from flows.orchestration.progress import RunProgress, current_progress
from flows.orchestration.runners import Workers, run_all
from storage.output.manifests import FailureRecord
from storage.output.plan import Pending

# Small shards share a task run until it has this much to do: about a second of work on one core. With many of
# them the share grows, since a server takes in only some tens of task runs a second.
_TASK_TOKEN_BYTES = 1 << 20
_MAX_TASK_RUNS = 200
_RETRIES = 2

# The system's own word that the next try will meet the same: no such file, no permission, disk full, read-only, a name
# that is too long or that leads in circles.
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR}
_LASTING |= {errno.ENAMETOOLONG, errno.ELOOP}

# Errors of object stores have no such number, but Arrow's words for what the store said. A refusal stays one.
_REFUSED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_|NO_SUCH_|RESOURCE_NOT_FOUND|SIGNATURE_)|HTTP status 4(?!08|29)"
)


def is_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """For `retry_condition_fn`: True for faults of the network or the disk that may pass."""
    return may_pass(state.result(raise_on_failure=False))


def may_pass(error: object) -> bool:
    """Whether an error is such a fault."""
    return isinstance(error, OSError) and error.errno not in _LASTING and not _REFUSED.search(str(error))


def _task_name() -> str:
    pending: list[Pending] = task_run.parameters["pending"]
    others = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
    return f"{pending[0].shard.name}{others}"


@task(
    name="score-shards",
    task_run_name=_task_name,
    cache_policy=NO_CACHE,  # the output itself says what is done
    retries=_RETRIES,
    retry_delay_seconds=[2, 10],
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def score_shards(job: ScoringJob, pending: list[Pending], loaded: LoadedCheckpoint | None) -> Any:
    """Score a few shards. Ends Failed, with what was scored, if a file of theirs can't be read.

    loaded: the job's checkpoint, which threads of the run share; None in a process of its own, which keeps one.
    """
    results = _score(job, pending, loaded)
    failures = [result for result in results if isinstance(result, FailureRecord)]
    if failures:
        return Failed(message="; ".join(f"{failure.name}: {failure.reason}" for failure in failures), data=results)
    return results


def _score(
    job: ScoringJob, pending: list[Pending], loaded: LoadedCheckpoint | None
) -> list[ScoredShard | FailureRecord]:
    loaded = loaded or checkpoint_of_process.get(job)
    progress = current_progress.get()  # None in another process
    on_rows = progress.advance if progress else ignore_rows
    with device_slot(loaded.engine.device, on_wait=get_run_logger().info, check=lambda: on_rows(0)):
        return score_bundle(job, pending, loaded, on_rows=on_rows, is_retried=_is_retried)


def _is_retried(error: Exception) -> bool:
    return may_pass(error) and task_run.run_count <= _RETRIES


def score_all(
    job: ScoringJob, pending: Sequence[Pending], workers: Workers, loaded: LoadedCheckpoint | None
) -> ScoringOutcome:
    """Score the pending shards in task runs, side by side.

    loaded: the job's checkpoint, if this process has it ready. It is handed to threads, and never to another process.
    """
    loaded = loaded if workers.in_process else None
    started = time.perf_counter()
    job = replace(job, threads=workers.threads)
    outcome = ScoringOutcome(workers.at_once, loaded.describe() if loaded else "")
    progress = RunProgress(
        "rows",
        sum(each.shard.num_rows for each in pending),
        artifact="classify-progress",
        description=f"Rows scored into {job.output.root}",
    )

    def submit(bundle: list[Pending]) -> PrefectFuture[Any]:
        parameters = {"job": job, "pending": bundle, "loaded": loaded}
        future: PrefectFuture[Any] = workers.runner.submit(score_shards, parameters=parameters)
        return future

    def collect(bundle: list[Pending], future: PrefectFuture[Any]) -> None:
        try:
            results = future.result(raise_on_failure=False)
        except Exception as error:  # of a cluster, which gave up on the task
            results = error
        if isinstance(results, BaseException):
            reason = f"{type(results).__name__}: {results}"
            outcome.failures += [FailureRecord(each.shard.name, reason) for each in bundle]
        else:
            outcome.add(results)
        progress.advance(0 if workers.in_process else sum(each.shard.num_rows for each in bundle))

    run_all(deque(_bundles(pending)), submit, collect, limit=workers.limit, progress=progress)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _bundles(pending: Sequence[Pending]) -> Iterator[list[Pending]]:
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

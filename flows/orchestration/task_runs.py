"""The task run that scores a few shards, in a thread of the flow's process or in a process on another machine.

A file of its own, since Ray and Dask send a task's body by value and what that names by reference: nothing here may
be something that can't travel, and nothing may depend on how the flow was loaded.
"""

from typing import Any

from prefect import get_run_logger, task
from prefect.runtime import task_run
from prefect.states import Failed

from flows.operations.score import ScoredShard, ScoringJob, ignore_rows, load_checkpoint, score_bundle
from flows.orchestration.faults import is_transient
from flows.orchestration.gpu_slot import device_slot
from flows.orchestration.progress import current_progress
from storage.output.manifests import FailureRecord
from storage.output.plan import Pending


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
    results = _score(job, pending)
    failures = [result for result in results if isinstance(result, FailureRecord)]
    if failures:
        return Failed(message="; ".join(f"{failure.name}: {failure.reason}" for failure in failures), data=results)
    return results


def _score(job: ScoringJob, pending: list[Pending]) -> list[ScoredShard | FailureRecord]:
    progress = current_progress.get()  # None in another process
    on_rows = progress.advance if progress else ignore_rows
    with device_slot(load_checkpoint(job).engine.device, on_wait=get_run_logger().info, check=lambda: on_rows(0)):
        return score_bundle(job, pending, on_rows=on_rows)

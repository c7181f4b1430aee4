"""The events that runs emit, for automations and other systems: their names, resources and payloads.

- `attnlstm.run.completed`, `attnlstm.run.failed`: a classify run has ended and left its manifest, failed if a file or
  a shard could not be scored. A run that ends by an exception leaves none; Prefect's own `prefect.flow-run.Failed` and
  `prefect.flow-run.Crashed` tell of it.
- `attnlstm.partition.completed`: it has written a partition of which nothing failed, and of whose rows no more are
  without a prediction than is allowed.
- `attnlstm.checkpoint.promoted`, `attnlstm.checkpoint.rejected`: what a retrain run decided.
- `attnlstm.drift.detected`: a classify run read other data than its checkpoint was measured on.

Prefect adds the flow run, its flow, deployment and tags as related resources. Triggers can match names and labels of
resources, not payloads: so what somebody may want to wait for is one of these. No payload holds anything of a row.
"""

from collections.abc import Iterable
from contextvars import ContextVar

from prefect.events import emit_event

from flows.operations.partition_runs import WrittenPartition
from flows.orchestration.facts import run_summary
from storage.output.manifests import RunManifest
from storage.registry.checkpoints import CHAMPION

tags_of_parent: ContextVar[tuple[str, ...]] = ContextVar("tags_of_parent", default=())
"""The tags of the run that started this one, which Prefect gives to no child: those of a deployed backfill, say."""


def emit_run_ended(manifest: RunManifest) -> None:
    """Tell that a classify run has ended and, where its manifest says so, that its input has drifted.

    The resource is the output; its label `attnlstm.wrote` says whether there is anything new in it. The resource of
    drift is the checkpoint, and its payload has the comparison.
    """
    emit_event(
        event=f"attnlstm.run.{manifest.state}",
        resource={
            "prefect.resource.id": f"attnlstm.output.{manifest.output}",
            "prefect.resource.name": manifest.output,
            "attnlstm.source": manifest.source,
            "attnlstm.wrote": "yes" if manifest.shards else "no",
        },
        related=[_checkpoint(manifest.checkpoint) | {"prefect.resource.role": "checkpoint"}],
        payload=run_summary(manifest),
    )
    if manifest.drift and manifest.drift["drifted"]:
        place = {"source": manifest.source, "output": manifest.output, "run_id": manifest.run_id}
        emit_event(
            event="attnlstm.drift.detected",
            resource=_checkpoint(manifest.checkpoint),
            payload=place | manifest.drift,
        )


def emit_partitions(manifest: RunManifest, partitions: Iterable[WrittenPartition]) -> None:
    """Tell of each partition that a classify run has written, so that others start for the day that changed.

    The resource is the output; labels say which partition it is, and whether there is none of a later day.
    """
    related = [_checkpoint(manifest.checkpoint) | {"prefect.resource.role": "checkpoint"}]
    for tag in tags_of_parent.get():
        related.append({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"})
    for each in partitions:
        emit_event(
            event="attnlstm.partition.completed",
            resource={
                "prefect.resource.id": f"attnlstm.output.{manifest.output}",
                "prefect.resource.name": manifest.output,
                "attnlstm.partition": each.name,
                "attnlstm.newest": "yes" if each.is_newest else "no",
            },
            related=related,
            payload={
                "partition": each.name,
                "begins": each.begins,
                "newest": each.is_newest,
                "output": manifest.output,
                "rows": each.rows,
                "errors": each.errors,
                "run_id": manifest.run_id,
            },
        )


def emit_promotion(version: str, outcome: str, why: str, registry: str) -> None:
    """Tell what was decided about a new checkpoint, which is the resource. outcome: "promoted" or "rejected"."""
    emit_event(
        event=f"attnlstm.checkpoint.{outcome}",
        resource=_checkpoint(version),
        payload={"version": version, "alias": CHAMPION, "why": why, "registry": registry},
    )


def _checkpoint(version: str) -> dict[str, str]:
    return {"prefect.resource.id": f"attnlstm.checkpoint.{version}", "prefect.resource.name": version}

"""What runs tell automations and other systems: their events, with names, resources and payloads; and their assets.

- `attnlstm.run.completed`, `attnlstm.run.failed`: a classify run has ended and left its manifest, failed if a file or
  a shard could not be scored. A run that ends by an exception leaves none; Prefect's own `prefect.flow-run.Failed` and
  `prefect.flow-run.Crashed` tell of it.
- `attnlstm.partition.completed`: it has written a partition of which nothing failed, and of whose rows no more are
  without a prediction than is allowed.
- `attnlstm.checkpoint.promoted`, `attnlstm.checkpoint.rejected`: what a retrain run decided.
- `attnlstm.drift.detected`: a classify run read other data than its checkpoint was measured on.

Prefect adds the flow run, its flow, deployment and tags as related resources. Triggers can match names and labels of
resources, not payloads: so what somebody may want to wait for is one of these. No payload holds anything of a row.

The asset of a run is its output, which comes from the source and the checkpoint. Prefect Cloud draws the lineage of
assets; a server of one's own has the events `prefect.asset.materialization.*` and `prefect.asset.referenced`, which
triggers can wait for. Knows nothing about what a run did but its manifest.
"""

import hashlib
import re
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from prefect import State
from prefect.assets import Asset, AssetProperties, materialize
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.states import Completed, Failed

from flows.operations.runs import WrittenPartition
from flows.orchestration.facts import counted, run_summary
from storage.locations import as_uri
from storage.output.manifests import RunManifest
from storage.registry.checkpoints import CHAMPION

_MOST_CHARACTERS = 512
# Prefect refuses spaces, quotes, brackets and the like; what can't be seen or is of another alphabet would be accepted.
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9._~:/@!$()*+,;=-]")

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


def asset_key(place: str) -> str:
    """The key of the asset that lies at a place, which is what `str` gives of a Location.

    It is the place's URI. Characters that a key may not have are `_`, and then, or where it is too long, it ends with a
    digest of the place, so that two places never have the same key.
    """
    uri = place if "://" in place else f"file://{place}"
    key = _NOT_IN_KEYS.sub("_", uri)
    if key == uri and len(key) <= _MOST_CHARACTERS:
        return key
    digest = hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{key[: _MOST_CHARACTERS - 9]}-{digest}"


def materialise_output(manifest: RunManifest, source: str, checkpoint: str) -> None:
    """Materialise the output of a run that wrote, or failed to write, something, in a task run of its own.

    source, checkpoint: the places of what it was made from: the root of the input, and the checkpoint's folder. The
    metadata is the run's summary, and holds nothing of a row. The task ends Failed if the run failed.
    """
    output = _asset(manifest.output)

    @materialize(
        output,
        by="attnlstm",
        asset_deps=[_asset(source), _asset(checkpoint)],
        name="materialise-output",
        task_run_name="materialise output",
        cache_policy=NO_CACHE,
    )
    def materialise() -> State[Any]:
        output.add_metadata(run_summary(manifest))
        ending = Completed if manifest.state == "completed" else Failed
        return ending(message=f"{counted(manifest.totals['rows'], 'row')} written, {manifest.num_errors:,} with errors")

    materialise(return_state=True)


def _asset(place: str) -> Asset:
    return Asset(key=asset_key(place), properties=AssetProperties(name=place, url=as_uri(place)))

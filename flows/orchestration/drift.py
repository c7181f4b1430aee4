"""Drift as a run tells of it: a table of how far the input is from what the checkpoint was measured on, an event past
the limit, and words for both.

Where the card of a checkpoint, the counts of shards and Prefect meet. What is compared, and how, is
`attnlstm.evaluation.drift`'s.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from prefect.artifacts import create_table_artifact

from attnlstm.evaluation import drift
from flows.orchestration.events import emit_drift
from storage.output.manifests import RunManifest

_NAMES = {
    "tokens": "which tokens there are",
    "lengths": "how long the rows are",
    "classes": "which classes are predicted",
    "confidence": "how sure the predictions are",
}


def compare_shards(card: Mapping[str, Any], observed: Iterable[drift.Observed | None]) -> dict[str, Any] | None:
    """How far the rows of a run are from those of the checkpoint's card, for the run's manifest.

    observed: what each shard counted, or None. None if there is nothing to compare: no reference, as of a
    checkpoint from elsewhere, or no scored row.
    """
    reference = card.get("drift")
    if reference is None:
        return None
    total = drift.Observed(reference)
    for counted in observed:
        if counted is not None:
            total.merge(counted)
    return drift.compare(reference, total).record() if total.num_rows else None


def describe_drift(record: Mapping[str, Any]) -> str:
    """The verdict in a line. record: as in a manifest."""
    if not record["drifted"]:
        return "none: the rows are like those that the checkpoint was measured on"
    shifts = ", ".join(f"{_NAMES[name]} (index {record['shifts'][name]['psi']:.2f})" for name in record["drifted"])
    return f"{shifts}: not as in the rows that the checkpoint was measured on"


def describe_estimate(record: Mapping[str, Any]) -> str:
    """The accuracy to expect, and what that rests on. record: as in a manifest."""
    doubt = "doubtful, since the input has drifted" if record["drifted"] else "if the checkpoint is calibrated for it"
    return f"{record['estimated_accuracy']:.4f} by mean confidence, without labels, {doubt}"


def publish_drift(manifest: RunManifest) -> None:
    """Show the comparison on the page of the flow run and, past a limit, emit `attnlstm.evaluation.drift.detected`."""
    record = manifest.drift
    if record is None:
        return
    rows = [
        {
            "aspect": _NAMES[name],
            "stability index": f"{shift['psi']:.3f}",
            "Jensen-Shannon (bits)": f"{shift['jensen_shannon']:.4f}",
            "limit (bits)": f"{shift['limit']:.4f}",
            "drifted": "yes" if shift["drifted"] else "no",
        }
        for name, shift in record["shifts"].items()
    ]
    create_table_artifact(
        rows,
        key="classify-drift",
        description=f"Drift: {describe_drift(record)}. Estimated accuracy: {describe_estimate(record)}.",
    )
    if record["drifted"]:
        emit_drift(manifest)

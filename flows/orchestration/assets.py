"""What a run has made, as an asset of Prefect: the output, which comes from the source and the checkpoint.

Prefect Cloud draws the lineage of assets; a server of one's own has the events `prefect.asset.materialization.*` and
`prefect.asset.referenced`, which triggers can wait for. Owns what a place is called as an asset. Knows nothing about
what a run did but its manifest.
"""

import hashlib
import re
from typing import Any

from prefect import State
from prefect.assets import Asset, AssetProperties, materialize
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from flows.orchestration.facts import counted, run_summary
from storage.locations import as_uri
from storage.output.manifests import RunManifest

_MOST_CHARACTERS = 512
# Prefect refuses spaces, quotes, brackets and the like; what can't be seen or is of another alphabet would be accepted.
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9._~:/@!$()*+,;=-]")


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

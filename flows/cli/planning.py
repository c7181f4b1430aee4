"""What classify would do with an input and an output, why, and for about how long.

Works from footers and the manifests of earlier runs. Knows nothing about scoring.
"""

from dataclasses import dataclass

import pyarrow.fs as pafs

from storage.locations import Location
from storage.output.examined import Examined
from storage.output.manifests import read_manifest
from storage.output.orphans import Orphan, find_orphans
from storage.output.pending import Mode, Pending, find_pending
from storage.registry.checkpoints import StoredCheckpoint


@dataclass(frozen=True)
class Judged:
    """reasons: why each shard is or would be scored, by name, "up to date" included. pending: what mode makes of it."""

    reasons: dict[str, str]
    pending: tuple[Pending, ...]
    orphans: tuple[Orphan, ...]


def judge(examined: Examined, stored: StoredCheckpoint, mode: Mode) -> Judged:
    """What a run of this mode with this checkpoint would score, and why; reads the output's footers."""
    shards = examined.plan.shards
    stale = {each.shard.name: each.reason for each in find_pending(examined.output, shards, stored.id, "stale")}
    reasons = {shard.name: stale.get(shard.name, "up to date") for shard in shards}
    left = {"missing": {"up to date", "stale"}, "stale": {"up to date"}, "all": set[str]()}[mode]
    pending = tuple(
        Pending(shard, stale.get(shard.name, "asked for")) for shard in shards if reasons[shard.name] not in left
    )
    orphans = find_orphans(examined.output, examined.source, examined.plan, is_pattern=examined.is_pattern)
    return Judged(reasons, pending, orphans)


@dataclass(frozen=True)
class ExpectedTime:
    """seconds: how long a run would take. By the speed and the tokens a row of the run `run_id`, on `engine`."""

    seconds: float
    tokens_per_second: int
    run_id: str
    engine: str


def expected_time(output: Location, num_rows: int) -> ExpectedTime | None:
    """By the newest run that scored anything; None if there is none."""
    manifests = [info for info in (output / "runs").walk() if info.base_name.endswith(".json")]
    for info in sorted(manifests, key=_changed_at, reverse=True):
        try:
            manifest = read_manifest(output, info.base_name.removesuffix(".json"))
        except (ValueError, KeyError, TypeError):
            continue
        if manifest and (speed := manifest.totals["tokens_per_second"]):
            tokens = num_rows * manifest.totals["tokens"] / manifest.totals["rows"]
            return ExpectedTime(round(tokens / speed, 1), speed, manifest.run_id, manifest.engine)
    return None


def _changed_at(info: pafs.FileInfo) -> int:
    return int(info.mtime_ns or 0)

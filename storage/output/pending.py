"""Which shards are still to be scored, and why: read from the output itself, never from a log of runs."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from storage.footers import FOOTER_READERS
from storage.input.shards import Shard
from storage.output.layout import Output, Stamp, read_stamp
from storage.registry.checkpoints import CheckpointId

Mode = Literal["missing", "stale", "all"]


@dataclass(frozen=True)
class Pending:
    """A shard and why it is to be scored: "missing", "input changed", "stale" or "asked for"."""

    shard: Shard
    reason: str


def find_pending(output: Output, shards: tuple[Shard, ...], checkpoint: CheckpointId, mode: Mode) -> list[Pending]:
    """The shards to score, in order.

    mode: "missing", those without a committed output for the input as it is now; "stale", also those that
    another checkpoint scored; "all", every one. A committed output is a predictions file, and unless no
    attention is saved an attention file, both made from the same input by the same checkpoint.
    """
    if mode == "all":
        return [Pending(shard, "asked for") for shard in shards]
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        stamps = pool.map(lambda shard: _committed(output, shard), shards)
        pairs = [
            (shard, _reason(stamp, Stamp.of(shard, checkpoint, output.settings), mode))
            for shard, stamp in zip(shards, stamps, strict=True)
        ]
    return [Pending(shard, reason) for shard, reason in pairs if reason]


def _committed(output: Output, shard: Shard) -> Stamp | None:
    stamp = read_stamp(output.predictions(shard.name))
    if stamp is None or output.settings.attention.kind == "none":
        return stamp
    # Attention is put in place first; if it is of another making, a run was stopped between the two.
    return stamp if read_stamp(output.attention(shard.name)) == stamp else None


def _reason(found: Stamp | None, wanted: Stamp, mode: Mode) -> str | None:
    if found is None:
        return "missing"
    same_checkpoint = replace(found, checkpoint=wanted.checkpoint, checkpoint_digest=wanted.checkpoint_digest)
    if same_checkpoint != wanted:
        return "input changed"
    if mode == "stale" and found.checkpoint_digest != wanted.checkpoint_digest:
        return "stale"
    return None

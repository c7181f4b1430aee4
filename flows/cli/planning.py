"""What classify would do with an input and an output, why, and for about how long; and how that is shown.

Works from footers and the manifests of earlier runs. Knows nothing about scoring.
"""

from collections import Counter
from dataclasses import asdict, dataclass

import pyarrow.fs as pafs
from rich.markup import escape
from rich.table import Table

from flows.cli.printing import MOST_LISTED, byte_size, counted, duration, out, print_facts, print_json, print_rest
from storage.locations import Location
from storage.output.examined import Examined
from storage.output.manifests import read_manifest
from storage.output.orphans import Orphan, find_orphans
from storage.output.pending import Mode, Pending, find_pending
from storage.registry.checkpoints import StoredCheckpoint

_REASONS = ("missing", "input changed", "stale", "up to date")


@dataclass(frozen=True)
class Judged:
    """reasons: why each shard is or would be scored, by name, "up to date" included. pending: what mode makes of it."""

    reasons: dict[str, str]
    pending: tuple[Pending, ...]
    orphans: tuple[Orphan, ...]


def judge(examined: Examined, stored: StoredCheckpoint, mode: Mode) -> Judged:
    """What a run of this mode with this checkpoint would score, and why; reads the output's footers."""
    shards = examined.plan.shards
    stale = {
        each.shard.name: each.reason
        for each in find_pending(examined.output, shards, stored.version, stored.digest, "stale")
    }
    reasons = {shard.name: stale.get(shard.name, "up to date") for shard in shards}
    left = {"missing": {"up to date", "stale"}, "stale": {"up to date"}, "all": set[str]()}[mode]
    pending = tuple(
        Pending(shard, stale.get(shard.name, "asked for")) for shard in shards if reasons[shard.name] not in left
    )
    orphans = find_orphans(examined.output, examined.source, examined.plan, is_pattern=examined.is_pattern)
    return Judged(reasons, pending, orphans)


@dataclass(frozen=True)
class _Expected:
    """seconds: how long a run would take. By the speed and the tokens a row of the run `run_id`, on `engine`."""

    seconds: float
    tokens_per_second: int
    run_id: str
    engine: str


def _expected_time(output: Location, num_rows: int) -> _Expected | None:
    """By the newest run that scored anything; None if there is none."""
    manifests = [info for info in (output / "runs").walk() if info.base_name.endswith(".json")]
    for info in sorted(manifests, key=_changed_at, reverse=True):
        try:
            manifest = read_manifest(output, info.base_name.removesuffix(".json"))
        except (ValueError, KeyError, TypeError):
            continue
        if manifest and (speed := manifest.totals["tokens_per_second"]):
            tokens = num_rows * manifest.totals["tokens"] / manifest.totals["rows"]
            return _Expected(round(tokens / speed, 1), speed, manifest.run_id, manifest.engine)
    return None


def _changed_at(info: pafs.FileInfo) -> int:
    return int(info.mtime_ns or 0)


def show_plan(examined: Examined, judged: Judged, stored: StoredCheckpoint, mode: Mode, as_json: bool) -> None:
    """Print what `judge` found, with the sizes of what is to be scored, and how long it may take."""
    shards = [each.shard for each in judged.pending]
    num_rows, token_bytes = sum(shard.num_rows for shard in shards), sum(shard.token_bytes for shard in shards)
    files = {shard.file for shard in shards}
    num_bytes = sum(file.num_bytes for file in examined.source.files if file.relative in files)
    counts = Counter(judged.reasons.values())
    expected = _expected_time(examined.output.root, num_rows)
    if as_json:
        print_json(
            {
                "source": str(examined.source.root / examined.source.scope),
                "output": str(examined.output.root),
                "checkpoint": stored.version,
                "mode": mode,
                "shards": {reason: counts[reason] for reason in _REASONS} | {"orphaned": len(judged.orphans)},
                "to_score": {
                    "shards": len(shards),
                    "rows": num_rows,
                    "token_bytes": token_bytes,
                    "files": len(files),
                    "bytes": num_bytes,
                },
                "expected": asdict(expected) if expected else None,
                "pending": [
                    {"name": each.shard.name, "reason": each.reason, "rows": each.shard.num_rows}
                    | {"token_bytes": each.shard.token_bytes}
                    for each in judged.pending
                ],
                "orphans": [asdict(orphan) for orphan in judged.orphans],
                "unreadable": [asdict(file) for file in examined.plan.unreadable],
            }
        )
        return
    facts = {
        "source": str(examined.source.root / examined.source.scope),
        "output": str(examined.output.root),
        "checkpoint": stored.version,
        "shards": ", ".join(f"{counts[reason]:,} {reason}" for reason in _REASONS if counts[reason]) or "none",
        "to score": f"{counted(num_rows, 'row')} in {counted(len(shards), 'shard')}, "
        f"{byte_size(token_bytes)} uncompressed, from {counted(len(files), 'file')} of {byte_size(num_bytes)}",
    }
    if counts["stale"] and mode == "missing":
        facts["to score"] += "; not what is stale, which --mode stale adds"
    if judged.orphans:
        facts["orphaned"] = f"{counted(len(judged.orphans), 'file')}, which attnlstm prune shows and removes"
    if shards:
        facts["expected"] = "unknown: no run has scored anything here yet"
        if expected:
            speed = f"{expected.tokens_per_second / 1e6:.2f} million tokens a second ({expected.engine})"
            facts["expected"] = f"{duration(expected.seconds)}, if rows are as long as in the last run, at its {speed}"
    print_facts(facts)
    if judged.pending:
        table = Table("shard", "why", "rows", "uncompressed", box=None)
        for each in judged.pending[:MOST_LISTED]:
            row = (each.shard.name, each.reason, f"{each.shard.num_rows:,}", byte_size(each.shard.token_bytes))
            table.add_row(*map(escape, row))
        out.print(table)
        print_rest(len(judged.pending), "shards")
    for file in examined.plan.unreadable[:MOST_LISTED]:
        out.print(f"[red]unreadable[/red]  {escape(file.file)}: {escape(file.reason)}")
    print_rest(len(examined.plan.unreadable), "unreadable files")

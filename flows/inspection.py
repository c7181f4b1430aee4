"""The commands that look at an output without scoring it: plan, verify and prune.

Reads storage and prints; only prune changes anything. Knows nothing about Prefect, so that these commands are quick.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from cyclopts import Parameter
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from flows.session import DONE, FAILED
from storage.columns import Columns
from storage.errors import OutputError, RegistryError
from storage.location import Location
from storage.lock import only_run
from storage.manifest import read_manifest
from storage.orphans import Orphan, find_leftovers, find_orphans, remove
from storage.output import AttentionSaving, Output, OutputSettings, Stamp, read_stamp
from storage.pending import Mode, Pending, find_pending
from storage.registry import Registry, StoredCheckpoint
from storage.shards import Shard, ShardLimits, ShardPlan, plan_shards
from storage.source import Source, find_source
from storage.tokens import TokenRules, decode_tokens
from storage.verification import Problem, VerificationReport, read_side_by_side, verify_output

if TYPE_CHECKING:
    from attnlstm.engines import Engine

AsJson = Annotated[bool, Parameter(name="--json")]

_out = Console(soft_wrap=True, highlight=False)

_FOOTER_READERS = 32
# A terminal is for reading; --json has everything.
_MOST_LISTED = 20
# Scored again on another machine or in other company, float32 results differ by roundings.
_DEEP_TOLERANCE = 1e-5
# Which rows --deep scores again must not change from one call to the next.
_DEEP_SEED = 20_261_101


def plan(
    source: str,
    output: str,
    *,
    registry: str = "registry",
    checkpoint: str = "champion",
    mode: Mode = "missing",
    save_attention: Annotated[str, Field(pattern=r"^(full|none|top:[1-9][0-9]*)$")] | None = None,
    keep: list[str] | None = None,
    id_column: str | None = None,
    tokens_column: str | None = None,
    label_column: str | None = None,
    max_tokens: Annotated[int, Field(ge=1)] | None = None,
    long_rows: Literal["truncate", "error"] | None = None,
    shard_rows: Annotated[int, Field(ge=1)] | None = None,
    chunk_bytes: Annotated[int, Field(ge=1)] | None = None,
    as_json: AsJson = False,
) -> int:
    """Say what classify would do with the same arguments, and why. Reads footers only; changes nothing.

    Options that say what the output looks like are those it was made with, if it is there, unless they are given.

    Args:
        source: Parquet file, folder, glob or URI with the token sequences to score.
        output: Folder or URI of the output.
        registry: Folder or URI of the checkpoint registry.
        checkpoint: "champion", a version in the registry, or a folder with config.json and model.safetensors.
        mode: Score what has no output ("missing"), also what another checkpoint scored ("stale"), or "all".
        save_attention: "full", "none", or "top:K".
        keep: Input columns to carry through to the predictions.
        id_column: Column carried through as id.
        tokens_column: Column with the tokens.
        label_column: Column with the true class.
        max_tokens: Longest row that is scored whole, in tokens.
        long_rows: What longer rows get: "truncate" or "error".
        shard_rows: Rows of a large file that one task scores.
        chunk_bytes: Tokens that a worker reads, scores and writes at once, in bytes.
        as_json: Print JSON, for scripts, with every shard.
    """
    place = Location.parse(output)
    recorded = Output.recorded_settings(place)
    kept = recorded.get("keep", []) if keep is None else keep
    given = {
        "save_attention": save_attention,
        "keep": [*kept, *([label_column] if label_column and label_column not in kept else [])],
        "id_column": id_column,
        "tokens_column": tokens_column,
        "max_tokens": max_tokens,
        "long_rows": long_rows,
        "shard_rows": shard_rows,
        "chunk_bytes": chunk_bytes,
    }
    settings = _settings(recorded | {name: value for name, value in given.items() if value is not None})
    stored = Registry.open(registry).load(checkpoint)
    examined = _examine(source, Output(place, settings))
    shards = _judge(examined, stored, mode)
    _show_plan(examined, shards, stored, mode, as_json)
    return DONE


def verify(
    source: str,
    output: str,
    *,
    registry: str = "registry",
    checkpoint: str | None = None,
    deep: Annotated[int, Field(ge=0)] = 0,
    as_json: AsJson = False,
) -> int:
    """Check that every input row is in the output once, in order, with the right id, counts and sums.

    Exit code 1, and where and what, if not. Reads all of the input and all of the output, and nothing else.

    Args:
        source: Parquet file, folder, glob or URI that was scored.
        output: Folder or URI of the output.
        registry: Folder or URI of the registry with the checkpoints that scored it. Without them, which token ids are
            outside the vocabulary is taken from the errors in the output.
        checkpoint: A folder with the checkpoint that scored it, if it is not in the registry.
        deep: Rows to score again and compare, the same ones each time. Needs the checkpoints.
        as_json: Print JSON, for scripts.
    """
    examined = _examine(source, _existing(output))
    checkpoints = _Checkpoints(Registry.open(registry), checkpoint)
    stamps = _stamps(examined)
    if deep:
        for stamp in stamps.values():
            checkpoints.require(stamp)  # said now, rather than after an hour of reading
    vocabularies = checkpoints.vocabularies(stamps.values())
    with _progress("rows", examined.plan.num_rows) as advance:
        report = verify_output(
            examined.output,
            examined.source,
            examined.plan,
            is_pattern=examined.is_pattern,
            vocabularies=vocabularies,
            on_rows=advance,
        )
    rescored = None
    if deep and not report.problems:
        rescored = _score_again(examined, stamps, checkpoints, deep)
    problems = [*report.problems, *(rescored.problems if rescored else ())]
    _show_verdict(report, rescored, problems, as_json)
    return FAILED if problems else DONE


def prune(source: str, output: str, *, dry_run: bool = False, as_json: AsJson = False) -> int:
    """Remove from the output what no input accounts for: orphans, and leftovers of killed runs.

    Of a slice of the input, only its part of the output is looked at. Files that do not say what they were made from
    are named and left.

    Args:
        source: Parquet file, folder or URI that was scored. With a glob, of inputs that are gone nothing is removed.
        output: Folder or URI of the output.
        dry_run: Say what would be removed, and leave it.
        as_json: Print JSON, for scripts.
    """
    existing = _existing(output)
    # Held for a dry run too: the files that a run is just writing look like leftovers.
    with only_run(existing.root, "prune"):
        examined = _examine(source, existing)
        orphans = find_orphans(existing, examined.source, examined.plan, is_pattern=examined.is_pattern)
        found = [*orphans, *find_leftovers(existing)]
        if not dry_run:
            remove(existing, found)
    _show_removed(found, existing, dry_run, as_json)
    return DONE


@dataclass(frozen=True)
class _Examined:
    """An input and its output. is_pattern: the input was named by a glob."""

    source: Source
    output: Output
    plan: ShardPlan
    is_pattern: bool


def _examine(source: str, output: Output) -> _Examined:
    found = find_source(source)
    output.check(str(found.root))
    address = source.partition("?")[0] if "://" in source else source
    is_pattern = any(wildcard in address for wildcard in "*?[") and not os.path.exists(source)
    return _Examined(found, output, plan_shards(found, output.settings.columns, output.settings.limits), is_pattern)


def _existing(output: str) -> Output:
    place = Location.parse(output)
    recorded = Output.recorded_settings(place)
    if not recorded:
        raise OutputError(f"{place} is no output of attnlstm: it has no _dataset.json. Check the path.")
    return Output(place, _settings(recorded))


def _settings(recorded: dict[str, Any]) -> OutputSettings:
    """The settings with these of the names that users know, the others as classify has them by default."""
    names = OutputSettings().record() | recorded
    return OutputSettings(
        columns=Columns(names["tokens_column"], names["id_column"], tuple(names["keep"])),
        limits=ShardLimits(names["shard_rows"], names["shard_bytes"]),
        attention=AttentionSaving.parse(names["save_attention"]),
        max_tokens=names["max_tokens"],
        long_rows=names["long_rows"],
        chunk_bytes=names["chunk_bytes"],
    )


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, indent=2, ensure_ascii=False))


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda count: bars.advance(bar, count)


# --- plan


@dataclass(frozen=True)
class _Judged:
    """reasons: why each shard is or would be scored, by name, "up to date" included. pending: what mode makes of it."""

    reasons: dict[str, str]
    pending: tuple[Pending, ...]
    orphans: tuple[Orphan, ...]


def _judge(examined: _Examined, stored: StoredCheckpoint, mode: Mode) -> _Judged:
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
    return _Judged(reasons, pending, orphans)


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


def _show_plan(examined: _Examined, judged: _Judged, stored: StoredCheckpoint, mode: Mode, as_json: bool) -> None:
    shards = [each.shard for each in judged.pending]
    num_rows, token_bytes = sum(shard.num_rows for shard in shards), sum(shard.token_bytes for shard in shards)
    files = {shard.file for shard in shards}
    num_bytes = sum(file.num_bytes for file in examined.source.files if file.relative in files)
    counts = Counter(judged.reasons.values())
    expected = _expected_time(examined.output.root, num_rows)
    if as_json:
        _print_json(
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
        "to score": f"{_count(num_rows, 'row')} in {_count(len(shards), 'shard')}, "
        f"{_bytes(token_bytes)} uncompressed, from {_count(len(files), 'file')} of {_bytes(num_bytes)}",
    }
    if counts["stale"] and mode == "missing":
        facts["to score"] += "; not what is stale, which --mode stale adds"
    if judged.orphans:
        facts["orphaned"] = f"{_count(len(judged.orphans), 'file')}, which attnlstm prune shows and removes"
    if shards:
        facts["expected"] = "unknown: no run has scored anything here yet"
        if expected:
            speed = f"{expected.tokens_per_second / 1e6:.2f} million tokens a second ({expected.engine})"
            facts["expected"] = f"{_duration(expected.seconds)}, if rows are as long as in the last run, at its {speed}"
    _print_facts(facts)
    if judged.pending:
        table = Table("shard", "why", "rows", "uncompressed", box=None)
        for each in judged.pending[:_MOST_LISTED]:
            row = (each.shard.name, each.reason, f"{each.shard.num_rows:,}", _bytes(each.shard.token_bytes))
            table.add_row(*map(escape, row))
        _out.print(table)
        _print_rest(len(judged.pending), "shards")
    for file in examined.plan.unreadable[:_MOST_LISTED]:
        _out.print(f"[red]unreadable[/red]  {escape(file.file)}: {escape(file.reason)}")
    _print_rest(len(examined.plan.unreadable), "unreadable files")


# --- verify


class _Checkpoints:
    """The checkpoints that made an output, by their digests."""

    def __init__(self, registry: Registry, checkpoint: str | None) -> None:
        self._registry = registry
        self._found: dict[str, StoredCheckpoint | None] = {}
        if checkpoint is not None:
            given = registry.load(checkpoint)
            self._found[given.digest] = given

    def find(self, stamp: Stamp) -> StoredCheckpoint | None:
        """The checkpoint that a file says it was made with; None if it is not there, or has other weights now."""
        if stamp.checkpoint_digest not in self._found:
            try:
                stored = self._registry.load(stamp.checkpoint)
            except RegistryError:
                stored = None
            right = stored is not None and stored.digest == stamp.checkpoint_digest
            self._found[stamp.checkpoint_digest] = stored if right else None
        return self._found[stamp.checkpoint_digest]

    def vocabularies(self, stamps: Iterable[Stamp]) -> dict[str, int]:
        """How many token ids each checkpoint knows, by digest; of those that are there."""
        from attnlstm.config import ModelConfig

        sizes = {}
        for stamp in stamps:
            if stored := self.find(stamp):
                text = stored.files["config.json"].decode(errors="replace")
                sizes[stored.digest] = ModelConfig.from_json(text, where=str(stored.location)).padding_id
        return sizes

    def require(self, stamp: Stamp) -> StoredCheckpoint:
        """As `find`. Raises RegistryError if the checkpoint is not there."""
        stored = self.find(stamp)
        if stored is None:
            raise RegistryError(
                f"{stamp.file} was scored by checkpoint {stamp.checkpoint} (digest {stamp.checkpoint_digest}), "
                f"which is not in {self._registry.root}. Scoring again needs it: name its registry with --registry, "
                "or its folder with --checkpoint."
            )
        return stored

    def engine(self, stamp: Stamp) -> "Engine":
        """Ready to score as the file was scored. Raises RegistryError if the checkpoint is not there."""
        from attnlstm.checkpoint import from_files
        from attnlstm.engines import open_engine

        stored = self.require(stamp)
        return open_engine(from_files(stored.files, where=str(stored.location)))


def _stamps(examined: _Examined) -> dict[str, Stamp]:
    """The stamps of the predictions files that are there, by shard."""
    names = [shard.name for shard in examined.plan.shards]
    with ThreadPoolExecutor(_FOOTER_READERS) as pool:
        stamps = pool.map(lambda name: read_stamp(examined.output.predictions(name)), names)
        return {name: stamp for name, stamp in zip(names, stamps, strict=True) if stamp}


@dataclass(frozen=True)
class _Rescored:
    """num_rows: rows that were scored again. difference: the greatest, of a probability or a weight."""

    num_rows: int
    difference: float
    problems: tuple[Problem, ...]


def _score_again(examined: _Examined, stamps: dict[str, Stamp], checkpoints: _Checkpoints, num_rows: int) -> _Rescored:
    total = examined.plan.num_rows
    sample = np.random.default_rng(_DEEP_SEED).choice(total, min(num_rows, total), replace=False)
    engines: dict[str, Engine] = {}
    problems: list[Problem] = []
    scored, greatest, first = 0, 0.0, 0
    for shard in examined.plan.shards:
        chosen = np.sort(sample[(sample >= first) & (sample < first + shard.num_rows)]) - first
        first += shard.num_rows
        if len(chosen):
            stamp = stamps[shard.name]
            if stamp.checkpoint_digest not in engines:
                engines[stamp.checkpoint_digest] = checkpoints.engine(stamp)
            for row, kind, difference in _differences(examined, shard, engines[stamp.checkpoint_digest], chosen):
                scored += kind == "predictions"
                greatest = max(greatest, difference)
                if not difference <= _DEEP_TOLERANCE:
                    what = (
                        f"differs by {difference:.2g} from what scoring again gives, expected {_DEEP_TOLERANCE} or less"
                    )
                    problems.append(Problem(f"{kind}/{shard.name}", row, what))
    return _Rescored(scored, greatest, tuple(problems))


def _differences(
    examined: _Examined, shard: Shard, engine: "Engine", chosen: npt.NDArray[np.int64]
) -> Iterator[tuple[int, str, float]]:
    """(row, "predictions" or "attention", greatest difference) of each chosen row that has scores.

    chosen: positions in the shard, sorted.
    """
    settings = examined.output.settings
    # Which rows can be scored was checked before; here those that have scores count.
    rules = TokenRules(2**31, settings.max_tokens, settings.long_rows)
    for piece in read_side_by_side(examined.source.root, examined.output, shard):
        inside = chosen[(chosen >= piece.first) & (chosen < piece.first + piece.source.num_rows)] - piece.first
        places = inside[piece.predictions["error"].is_null().to_numpy()[inside]]
        if not len(places):
            continue
        rows = decode_tokens(piece.source[settings.columns.tokens], rules)
        usable = np.cumsum(rows.usable)[places] - 1
        sequences = [rows.values[rows.offsets[row] : rows.offsets[row + 1]] for row in usable]
        offsets = np.cumsum([0, *map(len, sequences)])
        scores = engine.score(np.concatenate(sequences), offsets)
        written = pc.list_flatten(piece.predictions["probabilities"].take(pa.array(places))).to_numpy()
        differences = np.abs(written.reshape(scores.probabilities.shape) - scores.probabilities).max(axis=1)
        yield from _each(piece.first + places, "predictions", differences)
        if piece.attention is not None:
            attention = piece.attention.select(piece.attention.column_names[1:]).take(pa.array(places))
            differences = _weight_differences(attention, scores.attention_weights, offsets)
            yield from _each(piece.first + places, "attention", differences)


def _each(
    rows: npt.NDArray[np.int64], kind: str, differences: npt.NDArray[np.float32]
) -> Iterator[tuple[int, str, float]]:
    for row, difference in zip(rows.tolist(), differences.tolist(), strict=True):
        yield row, kind, difference


def _weight_differences(
    attention: pa.Table, weights: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """(N,): the greatest difference of each row. weights: (offsets[-1],), of all tokens; the table may have fewer."""
    num_kept = pc.list_value_length(attention["weights"]).to_numpy().astype(np.int64)
    starts = np.cumsum(num_kept) - num_kept
    if "positions" in attention.column_names:
        weights = weights[np.repeat(offsets[:-1], num_kept) + pc.list_flatten(attention["positions"]).to_numpy()]
    apart = np.abs(pc.list_flatten(attention["weights"]).to_numpy() - weights)
    return np.asarray(np.maximum.reduceat(apart, starts))


def _show_verdict(
    report: VerificationReport, rescored: _Rescored | None, problems: list[Problem], as_json: bool
) -> None:
    if as_json:
        again = {"rows": rescored.num_rows, "difference": rescored.difference} if rescored else None
        listed = [asdict(problem) for problem in problems]
        record = {"rows": report.num_rows, "files": report.num_files, "scored_again": again}
        _print_json(record | {"problems": listed, "num_more": report.num_more})
        return
    if not problems:
        _out.print(f"{_count(report.num_rows, 'row')} in {_count(report.num_files, 'file')} are right.")
    for problem in problems[:_MOST_LISTED]:
        _out.print(f"[red]wrong[/red]  {escape(str(problem))}")
    _print_rest(len(problems) + report.num_more, "problems")
    if rescored:
        _out.print(f"{_count(rescored.num_rows, 'row')} scored again, {rescored.difference:.1g} apart at most.")


# --- prune


def _show_removed(found: list[Orphan], output: Output, dry_run: bool, as_json: bool) -> None:
    removed = [asdict(each) for each in found if each.removable]
    left = [asdict(each) for each in found if not each.removable]
    if as_json:
        _print_json({"output": str(output.root), "dry_run": dry_run, "removed": removed, "left": left})
        return
    verb = "would remove" if dry_run else "removed"
    for each in found:
        _out.print(f"{verb if each.removable else 'left'}  {escape(f'{each.path} ({each.why})')}")
    size = _bytes(sum(each.num_bytes for each in found if each.removable))
    _out.print(f"{verb.capitalize()} {_count(len(removed), 'file')} of {size}." if found else "Nothing to remove.")


# --- words and numbers in a terminal


_REASONS = ("missing", "input changed", "stale", "up to date")


def _print_facts(facts: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    _out.print(table)


def _print_rest(count: int, what: str) -> None:
    if count > _MOST_LISTED:
        _out.print(f"and {count - _MOST_LISTED:,} more {what}; --json lists them")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"

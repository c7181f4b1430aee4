"""The manifest: what one run did, kept with the output it made; and how long the next run may take, by the last one.

A record for people and reports. What is to be scored is never decided from it, but from the output's files.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.input.sources import PassedOver
from storage.locations import Location
from storage.output.layout import RUNS

# Enough to find out what is wrong with a file; every such row has its error in the output.
FIRST_ERRORS = 5
FIRST_PASSED_OVER = 100
# Classes that are counted for each shard by itself: with thousands of both, all would be more than a record can hold.
CLASSES_OF_SHARD = 100


@dataclass(frozen=True)
class ShardRecord:
    """One scored shard. num_tokens: tokens that were scored. errors: rows without a prediction, by reason.

    predictions: rows by predicted class, of the CLASSES_OF_SHARD commonest ones. seconds: from opening the input to the
    commit. file: the input file. first_errors: of each reason, the positions in that file, from 0, of the first
    FIRST_ERRORS rows. num_abstained: rows whose prediction was withheld, since its score is too low; they are no
    errors. Manifests that older versions wrote have none of these.
    """

    name: str
    reason: str
    num_rows: int
    num_tokens: int
    num_truncated: int
    errors: dict[str, int]
    predictions: dict[str, int]
    seconds: float
    file: str = ""
    first_errors: dict[str, list[int]] = field(default_factory=dict)
    num_abstained: int = 0


@dataclass(frozen=True)
class FailureRecord:
    """An input file, or a shard of one, that could not be scored, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class RunManifest:
    """One run. Times are UTC, ISO 8601. seconds: scoring alone, without start-up.

    evaluation: accuracy and macro-F1 against the label column, where one was named. drift: how far the rows that
    were scored are from those that the checkpoint was measured on, where its card says what these looked like.
    passed_over: files and folders of the source that are not read, the first FIRST_PASSED_OVER of `num_passed_over`.
    notes: what is worth a word although nothing failed. predictions: rows by predicted class, for the totals; None if
    the shards have all of them.
    report: the name of the page about the run beside this record, "" if there is none.
    """

    run_id: str
    run_name: str
    state: str
    started: str
    ended: str
    source: str
    output: str
    mode: str
    checkpoint: str
    checkpoint_digest: str
    settings: dict[str, Any]
    engine: str
    workers: int
    num_up_to_date: int
    seconds: float
    shards: tuple[ShardRecord, ...] = ()
    failures: tuple[FailureRecord, ...] = ()
    evaluation: dict[str, float] | None = None
    drift: dict[str, Any] | None = None
    passed_over: tuple[PassedOver, ...] = ()
    num_passed_over: int = 0
    notes: tuple[str, ...] = ()
    predictions: dict[str, int] | None = None
    report: str = ""
    totals: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        tokens = sum(shard.num_tokens for shard in self.shards)
        totals = {
            "rows": sum(shard.num_rows for shard in self.shards),
            "errors": _added(shard.errors for shard in self.shards),
            "truncated": sum(shard.num_truncated for shard in self.shards),
            "abstained": sum(shard.num_abstained for shard in self.shards),
            "tokens": tokens,
            "tokens_per_second": round(tokens / self.seconds) if self.seconds and tokens else 0,
            "predictions": _added(shard.predictions for shard in self.shards)
            if self.predictions is None
            else _added([self.predictions]),
        }
        object.__setattr__(self, "totals", totals)

    @property
    def num_errors(self) -> int:
        return sum(self.totals["errors"].values())


def manifest_path(run_id: str) -> str:
    """Where the manifest of a run is, below the output's root."""
    return f"{RUNS}/{run_id}.json"


def report_path(run_id: str) -> str:
    """Where the report page of a run is, below the output's root: beside its manifest."""
    return f"{RUNS}/{run_id}.html"


def write_manifest(output: Location, manifest: RunManifest) -> None:
    """Keep the manifest in the output folder, under the run's id."""
    fields = asdict(manifest)
    del fields["predictions"]  # as in the totals
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    (output / manifest_path(manifest.run_id)).write_bytes(text.encode())


def read_manifest(output: Location, run_id: str) -> RunManifest | None:
    """The manifest of a run; None if the run left none."""
    try:
        fields = json.loads((output / manifest_path(run_id)).read_bytes())
    except FileNotFoundError:
        return None
    fields["predictions"] = fields.pop("totals")["predictions"]
    fields["shards"] = tuple(ShardRecord(**shard) for shard in fields["shards"])
    fields["failures"] = tuple(FailureRecord(**failure) for failure in fields["failures"])
    fields["passed_over"] = tuple(PassedOver(**each) for each in fields.get("passed_over", ()))
    fields["notes"] = tuple(fields.get("notes", ()))
    return RunManifest(**fields)


def read_manifests(output: Location) -> Iterator[RunManifest]:
    """The manifests of an output, the one that was written last first. Damaged ones are passed over."""
    manifests = [info for info in (output / RUNS).walk() if info.base_name.endswith(".json")]
    for info in sorted(manifests, key=lambda info: int(info.mtime_ns or 0), reverse=True):
        try:
            manifest = read_manifest(output, info.base_name.removesuffix(".json"))
        except (ValueError, KeyError, TypeError):
            continue
        if manifest:
            yield manifest


@dataclass(frozen=True)
class ExpectedTime:
    """seconds: how long a run would take. By the speed and the tokens a row of the run `run_id`, on `engine`."""

    seconds: float
    tokens_per_second: int
    run_id: str
    engine: str


def expected_time(output: Location, num_rows: int) -> ExpectedTime | None:
    """How long scoring so many rows may take, by the newest run that scored anything; None if there is none."""
    for manifest in read_manifests(output):
        if speed := manifest.totals["tokens_per_second"]:
            tokens = num_rows * manifest.totals["tokens"] / manifest.totals["rows"]
            return ExpectedTime(round(tokens / speed, 1), speed, manifest.run_id, manifest.engine)
    return None


def _added(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

"""A run of classify apart from who carries it out: what it has to do, what its shards gave, and the record of both.

Knows neither how shards are handed out nor where a run is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from attnlstm.evaluation.metrics import accuracy_and_macro_f1
from flows.operations.score import ScoredShard, measure_drift
from storage.errors import SourceError
from storage.input.shards import unreadable_in_words
from storage.locations import without_credentials
from storage.output.layout import Output
from storage.output.manifests import FIRST_PASSED_OVER, FailureRecord, RunManifest
from storage.output.plan import Mode, OutputPlan, Pending, plan_output
from storage.registry.checkpoints import StoredCheckpoint


@dataclass
class ScoringOutcome:
    """What the shards of a run gave. workers: how many there were at a time. seconds: from the first to the last."""

    workers: int
    engine: str = ""
    seconds: float = 0.0
    scored: list[ScoredShard] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)

    def num_rows_and_errors(self) -> tuple[int, int]:
        """Rows that were scored, and those of them that have no prediction."""
        records = [scored.record for scored in self.scored]
        return sum(each.num_rows for each in records), sum(sum(each.errors.values()) for each in records)

    def evaluation(self) -> dict[str, float] | None:
        """Measures against the true classes; None where no shard has any."""
        tables = [scored.confusion for scored in self.scored if scored.confusion is not None]
        return accuracy_and_macro_f1(sum(tables[1:], start=tables[0])) if tables else None


@dataclass(frozen=True)
class PlannedRun:
    """What a run has to do. pending: the shards to score, in order."""

    started: datetime
    stored: StoredCheckpoint
    plan: OutputPlan
    mode: Mode
    pending: Sequence[Pending]

    @property
    def is_up_to_date(self) -> bool:
        """Whether there is nothing to do, and nothing that could not be looked at."""
        return not self.pending and not self.plan.unreadable

    def manifest(self, run_id: str, run_name: str, outcome: ScoringOutcome, *, is_good: bool) -> RunManifest:
        """The record of the run, which ends now. is_good: whether what went wrong is as little as was allowed."""
        source, output = self.plan.source, self.plan.output
        return RunManifest(
            run_id=run_id,
            run_name=run_name,
            state="completed" if is_good else "failed",
            started=self.started.isoformat(timespec="seconds"),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            source=str(source.root / source.scope),
            output=str(output.root),
            mode=self.mode,
            checkpoint=self.stored.version,
            checkpoint_digest=self.stored.digest,
            settings=output.settings.record(),
            engine=outcome.engine,
            workers=outcome.workers,
            num_up_to_date=len(self.plan.shards) - len(self.pending),
            seconds=round(outcome.seconds, 3),
            shards=tuple(sorted((scored.record for scored in outcome.scored), key=lambda record: record.name)),
            failures=(
                *(FailureRecord(file.file, file.reason) for file in self.plan.unreadable),
                *sorted(outcome.failures, key=lambda failure: failure.name),
            ),
            evaluation=outcome.evaluation(),
            drift=measure_drift(self.stored.card.drift, (scored.observed for scored in outcome.scored)),
            passed_over=source.passed_over[:FIRST_PASSED_OVER],
            num_passed_over=len(source.passed_over),
            notes=self.plan.notes,
        )


def plan_run(source: str, output: Output, stored: StoredCheckpoint, mode: Mode) -> PlannedRun:
    """Find out what a run has to do, from footers alone.

    Raises as `plan_output` does, and SourceError if no file of the input can be read.
    """
    started = datetime.now(UTC)
    plan = plan_output(source, output)
    if not plan.shards:
        raise SourceError(f"{unreadable_in_words(plan.source.root, plan.unreadable)}.")
    return PlannedRun(started, stored, plan, mode, plan.pending(stored.id, mode))


def name_run(source: str) -> str:
    """The name of a run that is asked for now."""
    return f"classify {without_credentials(source)} {datetime.now(UTC):%m-%d %H:%M:%S}"

"""A run of classify apart from who carries it out: what it has to do, what its shards gave, and the record of both.

Knows neither how shards are handed out nor where a run is shown.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.metrics import accuracy_and_macro_f1
from flows.operations.rescore import num_tokens_known
from flows.operations.score import ScoredShard, measure_drift
from storage.delta import Table, published_in_words
from storage.errors import SourceError, StorageError
from storage.input.shards import unreadable_in_words
from storage.input.tokens import TokenRules
from storage.locations import without_credentials
from storage.locks import only_run
from storage.output.layout import Output
from storage.output.manifests import FIRST_PASSED_OVER, FailureRecord, RunManifest, ShardRecord
from storage.output.orphans import find_orphans, orphans_in_words
from storage.output.plan import Mode, OutputPlan, Pending, plan_output
from storage.registry.checkpoints import StoredCheckpoint

if TYPE_CHECKING:
    from attnlstm.evaluation.drift import Observed

_SCOPES_HELD = 50
"""Each hold looks at all others."""


@dataclass
class ScoringOutcome:
    """What the shards of a run gave, added up as they come. workers: how many there were at a time.

    seconds: from the first to the last. predictions: rows by predicted class. label_counts: as `ScoredShard` has them.
    observed: what there is to tell drift by. These two are None where no shard has any. num_other_labels: rows with a
    label that the checkpoint does not know, so that their prediction is compared with nothing.
    """

    workers: int
    engine: str = ""
    seconds: float = 0.0
    records: list[ShardRecord] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)
    predictions: Counter[str] = field(default_factory=Counter)
    label_counts: npt.NDArray[np.int64] | None = None
    observed: "Observed | None" = None
    num_other_labels: int = 0

    def add(self, results: Iterable[ScoredShard | FailureRecord]) -> None:
        """Count what some shards gave."""
        for result in results:
            if isinstance(result, FailureRecord):
                self.failures.append(result)
                continue
            self.engine = self.engine or result.engine
            self.records.append(result.record)
            self.predictions.update(result.predictions)
            self.num_other_labels += result.num_other_labels
            if result.label_counts is not None:
                self.label_counts = result.label_counts + (0 if self.label_counts is None else self.label_counts)
            if self.observed is None:
                self.observed = result.observed
            elif result.observed is not None:
                self.observed.merge(result.observed)

    def num_rows_and_errors(self) -> tuple[int, int]:
        """Rows that were scored, and those of them that have no prediction."""
        return sum(each.num_rows for each in self.records), sum(sum(each.errors.values()) for each in self.records)

    def evaluation(self) -> dict[str, float] | None:
        """Measures against the true classes; None where no row has one that the checkpoint knows."""
        if self.label_counts is None or not self.label_counts.any():
            return None
        return accuracy_and_macro_f1(self.label_counts)

    def notes(self) -> tuple[str, ...]:
        """What is worth a word although nothing fails."""
        said = f"rows with a label that the checkpoint does not know, which no figure counts: {self.num_other_labels:,}"
        return (said,) if self.num_other_labels else ()


@dataclass(frozen=True)
class PlannedRun:
    """What a run has to do. pending: the shards to score, in order.

    rows_left, errors_left: of the shards that it leaves as they are, rows in all and without a prediction.
    """

    started: datetime
    stored: StoredCheckpoint
    plan: OutputPlan
    mode: Mode
    pending: Sequence[Pending]
    rows_left: int = 0
    errors_left: int = 0

    @property
    def is_up_to_date(self) -> bool:
        """Whether there is nothing to do, and nothing that could not be looked at."""
        return not self.pending and not self.plan.unreadable

    def errors_and_rows(self, outcome: ScoringOutcome) -> tuple[int, int]:
        """What is held against the errors that are allowed: of the rows that were scored or, where none were, of those
        that are there, so that a run that failed for its errors fails again.
        """
        if self.is_up_to_date:
            return self.errors_left, self.rows_left
        num_rows, num_errors = outcome.num_rows_and_errors()
        return num_errors, num_rows

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
            shards=tuple(sorted(outcome.records, key=lambda record: record.name)),
            failures=(
                *(FailureRecord(file.file, file.reason) for file in self.plan.unreadable),
                *sorted(outcome.failures, key=lambda failure: failure.name),
            ),
            evaluation=outcome.evaluation(),
            drift=measure_drift(self.stored.card.drift, [outcome.observed]),
            passed_over=source.passed_over[:FIRST_PASSED_OVER],
            num_passed_over=len(source.passed_over),
            notes=(*self.plan.notes, *outcome.notes()),
            predictions=dict(outcome.predictions),
        )


def plan_run(source: str, output: Output, stored: StoredCheckpoint, mode: Mode) -> PlannedRun:
    """Find out what a run has to do, from footers alone.

    Raises as `plan_output` does, and SourceError if no file of the input can be read.
    """
    started = datetime.now(UTC)
    plan = plan_output(source, output)
    if not plan.shards:
        raise SourceError(f"{unreadable_in_words(plan.source.root, plan.unreadable)}.")
    if mode == "all":
        return PlannedRun(started, stored, _noting_orphans(plan, True), mode, plan.pending(stored.id, mode))
    committed = plan.committed()
    pending = plan.selected(plan.reasons(stored.id, committed, mending_rules(stored, output, mode)), mode)
    plan = _noting_orphans(plan, bool(pending))
    left = {shard.name for shard in plan.shards} - {each.shard.name for each in pending}
    stamps = [committed[name] for name in left]
    errors_left = sum(stamp.num_errors or 0 for stamp in stamps)
    return PlannedRun(started, stored, plan, mode, pending, sum(stamp.num_rows for stamp in stamps), errors_left)


def _noting_orphans(plan: OutputPlan, will_score: bool) -> OutputPlan:
    """The plan with a note about what its input does not account for. A run that scores removes what is there twice."""
    orphans = [each for each in find_orphans(plan) if not (will_score and each.is_twice)]
    return replace(plan, notes=(*plan.notes, orphans_in_words(orphans))) if orphans else plan


def publish(
    plans: Sequence[OutputPlan], place: str, run_id: str, run_name: str, scored: Iterable[ShardRecord] = ()
) -> tuple[str, FailureRecord | None]:
    """Bring the Delta table at `place` to what the output of these plans holds; says what was done, or what failed.

    scored: shards that the run wrote. The plans' scopes are held meanwhile or, if they are many, the whole output.
    """
    try:
        with ExitStack() as stack:
            scopes = {plan.source.scope for plan in plans} if len(plans) <= _SCOPES_HELD else {""}
            for scope in sorted(scopes):
                stack.enter_context(only_run(plans[0].output.root, run_name, scope=scope))
            table = Table.of(place, plans[0].output, plans[0].source.root)
            return published_in_words(table.publish(plans, [each.name for each in scored], run_id), place), None
    except (StorageError, OSError) as error:
        return "", FailureRecord(without_credentials(place), f"it was not published: {error}")


def mending_rules(stored: StoredCheckpoint, output: Output, mode: Mode) -> TokenRules | None:
    """By what rows with errors are judged again; None in a mode that does not."""
    settings = output.settings
    if mode != "errors":
        return None
    return TokenRules(num_tokens_known(stored), settings.max_tokens, settings.long_rows)


def name_run(source: str) -> str:
    """The name of a run that is asked for now."""
    return f"classify {without_credentials(source)} {datetime.now(UTC):%m-%d %H:%M:%S}"

"""The retrain flow: train a checkpoint, compare it with the champion, promote it or keep the old one."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prefect import State, Task, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.operations.promote import Promotion, PromotionRules, decide_promotion
from flows.operations.train import Listener, TrainingRequest, train_checkpoint, usual_vocabulary
from flows.orchestration.credentials import refuse_stored_credentials
from flows.orchestration.events import emit_promotion
from flows.orchestration.gpu_slot import device_slot
from flows.orchestration.progress import RunProgress, showing
from flows.orchestration.report import leave_page
from flows.orchestration.task_runs import is_transient
from flows.orchestration.training_log import TrainingLog
from flows.pages.report import report_retraining
from flows.settings import RetrainOptions, as_flow
from storage.input.partitions import DateRange
from storage.labelled.source import LabelledSource
from storage.locations import as_uri, without_credentials
from storage.registry.aliases import AliasMovedError, RegistryBusyError
from storage.registry.checkpoints import Registry

# Options that stand in place of what the preset says, where they are given.
_TRAINING_OPTIONS = ("class_weights", "epochs", "learning_rate", "batch_rows", "max_seconds", "seed")


def _run_name() -> str:
    return f"retrain {without_credentials(flow_run.parameters['source'])} {datetime.now(UTC):%m-%d %H:%M:%S}"


@as_flow(RetrainOptions, run_name=_run_name)
def retrain(options: RetrainOptions) -> State[dict[str, Any]]:
    """Train, judge, and record what was decided."""
    refuse_stored_credentials()
    started = datetime.now(UTC)
    labelled = LabelledSource(
        options.source,
        options.tokens_column,
        options.label_column,
        options.group_column,
        also=tuple(options.also),
        dates=DateRange(options.partition, options.since, options.window),
        min_class_rows=options.min_class_rows,
        num_tokens_known=(options.num_embeddings or usual_vocabulary(Registry.open(options.registry))) - 1,
    )
    given = {name: getattr(options, name) for name in _TRAINING_OPTIONS}
    request = TrainingRequest(
        labelled=labelled,
        preset=options.preset,
        attention=options.attention,
        overrides={name: value for name, value in given.items() if value is not None},
        warm_start=options.warm_start,
        vanished_classes=options.vanished_classes,
    )
    rules = PromotionRules(metric=options.metric, margin=options.margin, vanished_classes=options.vanished_classes)
    progress = RunProgress(
        "training", 1, artifact="retrain-progress", description=f"Epochs trained on {labelled.place}"
    )
    with showing(progress):
        progress.tick()
        version = train_task(request, options.registry)
    promotion = promotion_task(labelled, options.registry, version, rules)
    _publish(Registry.open(options.registry), version, promotion, started)
    outcome = {"promoted": "is champion", "rejected": "was not promoted", "unchanged": "changes nothing"}
    return Completed(
        message=f"{version} {outcome[promotion.outcome]}: {promotion.why}",
        data={"version": version, "promoted": promotion.promoted, "outcome": promotion.outcome},
    )


@task(name="train", task_run_name="train on {request.labelled.place}", retries=1, retry_condition_fn=is_transient)
def train_task(request: TrainingRequest, registry: str) -> str:
    """Train and publish a checkpoint; returns its version."""
    log = TrainingLog()
    with device_slot("auto", on_wait=log.note, check=lambda: None):
        stored = train_checkpoint(request, Registry.open(registry), Listener(log.epoch, log.note))
    log.finish()
    return stored.version


def _may_pass(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Faults that may pass, and another retraining that was quicker: then the champion to compare with is another."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, AliasMovedError | RegistryBusyError) or is_transient(task, task_run, state)


@task(name="judge", task_run_name="judge {challenger}", retries=3, retry_delay_seconds=2, retry_condition_fn=_may_pass)
def promotion_task(labelled: LabelledSource, registry: str, challenger: str, rules: PromotionRules) -> Promotion:
    """Compare the new checkpoint with the champion, and promote it if it is shown to be no worse."""
    with device_slot("auto", on_wait=get_run_logger().info, check=lambda: None):
        listener = Listener(on_note=get_run_logger().info)
        return decide_promotion(labelled, Registry.open(registry), challenger, rules, listener)


def _publish(registry: Registry, version: str, promotion: Promotion, started: datetime) -> None:
    """The record of the run in the registry, the report on Prefect's page, and the event."""
    record = {
        "run_id": str(flow_run.id),
        "run_name": str(flow_run.name),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version,
        "outcome": promotion.outcome,
        "why": promotion.why,
        "judgement": promotion.judgement.record() if promotion.judgement else {},
    }
    manifest = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    registry.run_record(str(flow_run.id)).write_bytes(manifest.encode())
    make = partial(report_retraining, record, registry.card(version))
    leave_page(make, registry.run_report(str(flow_run.id)), "retrain-page")
    folder = registry.folder(version)
    card = f"[{folder}]({as_uri(str(folder))})"
    create_markdown_artifact(
        f"**{promotion.outcome.capitalize()}**: {promotion.why}\n\n{card}\n\n{(folder / 'README.md').read_text()}",
        key="retrain-report",
        description=f"Checkpoint {version}",
    )
    if promotion.outcome != "unchanged":
        emit_promotion(version, promotion.outcome, promotion.why, str(registry.root))

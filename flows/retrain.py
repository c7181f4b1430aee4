"""The retrain flow: train a checkpoint, compare it with the champion, promote it or keep the old one."""

import json
from datetime import UTC, date, datetime
from typing import Annotated, Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from attnlstm.config import Attention
from attnlstm.evaluation.comparison import Metric
from attnlstm.training.settings import DEFAULT, ClassWeights, PresetName
from flows.operations.promote import Promotion, PromotionRules, decide_promotion
from flows.operations.train import Listener, TrainingRequest, VanishedClasses, train_checkpoint
from flows.orchestration.credentials import Place, refuse_stored_credentials
from flows.orchestration.description import described
from flows.orchestration.events import emit_promotion
from flows.orchestration.faults import is_transient
from flows.orchestration.gpu_slot import device_slot
from flows.orchestration.progress import RunProgress, showing
from flows.orchestration.training_log import TrainingLog
from storage.input.partitions import WINDOW_PATTERN, DateRange
from storage.labelled.source import LabelledSource
from storage.locations import as_uri, without_credentials
from storage.registry.aliases import AliasMovedError, RegistryBusyError
from storage.registry.checkpoints import Registry


def _run_name() -> str:
    return f"retrain {without_credentials(flow_run.parameters['source'])} {datetime.now(UTC):%m-%d %H:%M:%S}"


@described
@flow(name="retrain", flow_run_name=_run_name)
def retrain(
    source: Place,
    *,
    also: list[Place] = [],  # noqa: B006  (Prefect's form shows the default)
    since: date | None = None,
    window: Annotated[str, Field(pattern=WINDOW_PATTERN)] | None = None,
    partition: str = "date",
    registry: Place = "registry",
    preset: PresetName = DEFAULT,
    attention: Attention = "additive",
    tokens_column: str = "tokens",
    label_column: str = "label",
    group_column: str = "group",
    min_class_rows: Annotated[int, Field(ge=1)] = 1,
    vanished_classes: VanishedClasses = "refuse",
    class_weights: ClassWeights | None = None,
    warm_start: bool = False,
    epochs: Annotated[int, Field(ge=1)] | None = None,
    learning_rate: Annotated[float, Field(gt=0)] | None = None,
    batch_rows: Annotated[int, Field(ge=1)] | None = None,
    max_seconds: Annotated[float, Field(gt=0)] | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
    metric: Metric = "accuracy",
    margin: Annotated[float, Field(ge=0)] = PromotionRules().margin,
) -> State[dict[str, Any]]:
    """Train on labelled Parquet and publish a checkpoint. It becomes champion if it is shown to be no worse.

    Running the same command again goes on with a training that was stopped, and trains nothing that is trained.

    Args:
        source: Parquet file, folder, glob or URI with labelled token sequences.
        also: More places of labelled rows, such as corrections.
        since: First date of the rows that count, by their partition.
        window: How far back rows count from the newest date, such as 90d or 12w.
        partition: Name of the partition column that holds the date, for since and window.
        registry: Folder or URI of the checkpoint registry.
        preset: Sizes of the network and the settings to train it with.
        attention: How hidden states are pooled over time.
        tokens_column: Column with the tokens: binary, string, or a list of integers.
        label_column: Column with the class: strings or integers. Rows without one are left out.
        group_column: Rows of one group stay on one side of the split. Rows without one are split by content.
        min_class_rows: Classes with fewer rows than this to train on are left out, with their rows.
        vanished_classes: What to do about classes of the champion that have no rows any more: refuse, or drop them.
        class_weights: Whether rare classes weigh as much as common ones ("balanced"). By default the preset says.
        warm_start: Go on from the champion's weights, if they fit, and not from scratch.
        epochs: Most passes over the training rows. By default as many as the number of rows suggests.
        learning_rate: Highest learning rate. By default the preset's.
        batch_rows: Rows of a training step. By default the preset's.
        max_seconds: Time limit for training, in seconds. No limit by default.
        seed: Seed of weights, order and dropout; the same seed gives the same weights on the same machine.
        metric: What decides between the new checkpoint and the champion, on held-out rows.
        margin: How much worse than the champion's the metric may be, at the lower end of its interval.
    """
    refuse_stored_credentials()
    started = datetime.now(UTC)
    labelled = LabelledSource(
        source,
        tokens_column,
        label_column,
        group_column,
        also=tuple(also),
        dates=DateRange(partition, since, window),
        min_class_rows=min_class_rows,
    )
    given = {
        "class_weights": class_weights,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_rows": batch_rows,
        "max_seconds": max_seconds,
        "seed": seed,
    }
    request = TrainingRequest(
        labelled=labelled,
        preset=preset,
        attention=attention,
        overrides={name: value for name, value in given.items() if value is not None},
        warm_start=warm_start,
        vanished_classes=vanished_classes,
    )
    rules = PromotionRules(metric=metric, margin=margin, vanished_classes=vanished_classes)
    progress = RunProgress(
        "training", 1, artifact="retrain-progress", description=f"Epochs trained on {labelled.place}"
    )
    with showing(progress):
        version = train_task(request, registry)
    promotion = promotion_task(labelled, registry, version, rules)
    _publish(Registry.open(registry), version, promotion, started)
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
        return decide_promotion(labelled, Registry.open(registry), challenger, rules)


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
        "judgement": promotion.record,
    }
    manifest = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    registry.run_record(str(flow_run.id)).write_bytes(manifest.encode())
    folder = registry.folder(version)
    card = f"[{folder}]({as_uri(str(folder))})"
    create_markdown_artifact(
        f"**{promotion.outcome.capitalize()}**: {promotion.why}\n\n{card}\n\n{(folder / 'README.md').read_text()}",
        key="retrain-report",
        description=f"Checkpoint {version}",
    )
    if promotion.outcome != "unchanged":
        emit_promotion(version, promotion.outcome, promotion.why, str(registry.root))

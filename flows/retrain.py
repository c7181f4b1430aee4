"""The retrain flow: train a checkpoint, judge it against the champion, promote it or keep the old one."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from attnlstm.config import Attention
from flows.faults import is_transient
from flows.progress import RunProgress, current_progress, showing
from flows.training import LabelledSource, Verdict, judge_checkpoint, train_checkpoint
from storage.location import without_credentials
from storage.registry import CHAMPION, Registry

if TYPE_CHECKING:
    from attnlstm.training import EpochReport


def _run_name() -> str:
    return f"retrain {without_credentials(flow_run.parameters['source'])} {datetime.now(UTC):%m-%d %H:%M:%S}"


@flow(name="retrain", flow_run_name=_run_name)
def retrain(
    source: str,
    *,
    registry: str = "registry",
    attention: Attention = "additive",
    tokens_column: str = "tokens",
    label_column: str = "label",
    group_column: str = "group",
    epochs: Annotated[int, Field(ge=1)] | None = None,
    max_seconds: Annotated[float, Field(gt=0)] | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> State[dict[str, Any]]:
    """Train on labelled Parquet and publish a checkpoint. It becomes champion if it is not worse than the old one.

    Args:
        source: Parquet file, folder, glob or URI with labelled token sequences.
        registry: Folder or URI of the checkpoint registry.
        attention: How hidden states are pooled over time.
        tokens_column: Column with the tokens: binary, string, or a list of integers.
        label_column: Column with the class: strings or integers. Rows without one are left out.
        group_column: Rows of one group stay on one side of the split. Without it they are split by content.
        epochs: Most passes over the training rows. By default 12, or more of them over few rows.
        max_seconds: Time limit for training, in seconds. No limit by default.
        seed: Seed of weights, order and dropout; the same seed gives the same weights on the same machine.
    """
    labelled = LabelledSource(source, tokens_column, label_column, group_column)
    progress = RunProgress("training", 1, artifact="retrain-progress", description=f"Training on {labelled.place}")
    with showing(progress):
        version = train_task(
            labelled, registry, attention, {"epochs": epochs, "max_seconds": max_seconds, "seed": seed}
        )
    verdict = judge_task(labelled, registry, version)
    _publish(registry, version, verdict)
    outcome = "is champion" if verdict.promoted else "was not promoted"
    return Completed(
        message=f"{version} {outcome}: {verdict.why}", data={"version": version, "promoted": verdict.promoted}
    )


@task(name="train", task_run_name="train on {labelled.place}", retries=1, retry_condition_fn=is_transient)
def train_task(labelled: LabelledSource, registry: str, attention: Attention, options: dict[str, Any]) -> str:
    """Train and publish a checkpoint; returns its version."""
    from attnlstm.training import TrainingSettings

    settings = TrainingSettings(**{name: value for name, value in options.items() if value is not None})
    stored = train_checkpoint(labelled, Registry.open(registry), attention, settings, _reporting())
    return stored.version


@task(
    name="judge",
    task_run_name="judge {challenger}",
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=is_transient,
)
def judge_task(labelled: LabelledSource, registry: str, challenger: str) -> Verdict:
    """Compare the new checkpoint with the champion, and promote it if it is not worse."""
    return judge_checkpoint(labelled, Registry.open(registry), challenger)


def _reporting() -> "Callable[[EpochReport], None]":
    logger, progress = get_run_logger(), current_progress.get()

    def report(epoch: "EpochReport") -> None:
        logger.info(
            "epoch %d of %d: train loss %.4f, validation loss %.4f, validation accuracy %.4f, %.0f tokens a second%s",
            epoch.epoch,
            epoch.num_epochs,
            epoch.train_loss,
            epoch.validation_loss,
            epoch.validation_accuracy,
            epoch.tokens_per_second,
            ", best so far" if epoch.improved else "",
        )
        if progress:
            progress.set_total(epoch.num_epochs)
            progress.show(
                f"training: validation loss {epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.4f}"
            )
            progress.advance(1)
            progress.tick()

    return report


def _publish(registry: str, version: str, verdict: Verdict) -> None:
    stored = Registry.open(registry).load(version)
    state = "promoted" if verdict.promoted else "rejected"
    report = (stored.location / "README.md").read_text()
    create_markdown_artifact(
        f"**{state.capitalize()}**: {verdict.why}\n\n{report}",
        key="retrain-report",
        description=f"Checkpoint {version}",
    )
    emit_event(
        event=f"attnlstm.checkpoint.{state}",
        resource={"prefect.resource.id": f"attnlstm.checkpoint.{version}", "prefect.resource.name": version},
        payload={
            "version": version,
            "alias": CHAMPION,
            "why": verdict.why,
            "registry": str(Registry.open(registry).root),
        },
    )

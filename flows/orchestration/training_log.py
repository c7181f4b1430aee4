"""What a training task tells while it runs: lines in the log, a bar in a terminal, the loss curve on Prefect's page.

Knows the reports of epochs only, and nothing of how they come about.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.orchestration.progress import current_progress
from flows.orchestration.report import markdown_table

if TYPE_CHECKING:
    from attnlstm.training.snapshots import EpochReport

# Prefect keeps every version of an artifact, and nobody looks more often.
_CURVE_SECONDS = 15.0

_LEVELS = "▁▂▃▄▅▆▇█"
_WIDEST = 30


class TrainingLog:
    """Tells of one training. It is made inside the task run that trains."""

    def __init__(self) -> None:
        self._logger, self._progress = get_run_logger(), current_progress.get()
        self._epochs: list[EpochReport] = []
        self._shown_at = time.monotonic()

    def note(self, text: str) -> None:
        """Put a line into the run's log."""
        self._logger.info(text)

    def epoch(self, report: "EpochReport") -> None:
        """Tell of an epoch that has ended."""
        self._logger.info(
            f"epoch {report.epoch} of {report.num_epochs}: train loss {report.train_loss:.4f}, "
            f"validation loss {report.validation_loss:.4f}, validation accuracy {report.validation_accuracy:.4f}, "
            f"{report.tokens_per_second:.0f} tokens a second{', best so far' if report.improved else ''}"
        )
        # The first report of a training that goes on is not of its first epoch.
        num_new = report.epoch - (self._epochs[-1].epoch if self._epochs else 0)
        self._epochs.append(report)
        if self._progress:
            curve = sparkline([epoch.validation_loss for epoch in self._epochs])
            self._progress.set_total(report.num_epochs)
            self._progress.show(f"validation loss {report.validation_loss:.4f} {curve}")
            self._progress.advance(num_new)
            self._progress.tick()
        if time.monotonic() - self._shown_at > _CURVE_SECONDS:
            self._show_curve()

    def finish(self) -> None:
        """Tell that training is over, maybe before its last epoch; it may also have been done before."""
        if self._progress:
            self._progress.set_total(self._epochs[-1].epoch if self._epochs else 1)
            if not self._epochs:
                self._progress.advance(1)
        if self._epochs:
            self._show_curve()

    def _show_curve(self) -> None:
        self._shown_at = time.monotonic()
        create_markdown_artifact(
            curve_report(self._epochs), key="retrain-curve", description="The course of the training"
        )


def sparkline(losses: Sequence[float]) -> str:
    """A character for each loss, the lowest for the least; of many, the last ones."""
    shown = losses[-_WIDEST:]
    least, most = min(shown, default=0.0), max(shown, default=0.0)
    step = (most - least) / (len(_LEVELS) - 1) or 1.0
    return "".join(_LEVELS[round((loss - least) / step)] for loss in shown)


def curve_report(epochs: "Sequence[EpochReport]") -> str:
    """Markdown: the loss curve, and a row for each epoch, the kept one marked."""
    best = max((epoch.epoch for epoch in epochs if epoch.improved), default=0)
    rows = [
        (
            f"{epoch.epoch} of {epoch.num_epochs}",
            f"{epoch.train_loss:.4f}",
            f"{epoch.validation_loss:.4f}",
            f"{epoch.validation_accuracy:.4f}",
            f"{epoch.seconds:.0f}",
            "best" if epoch.epoch == best else "",
        )
        for epoch in epochs
    ]
    headings = ("epoch", "train loss", "validation loss", "validation accuracy", "seconds", "")
    curve = sparkline([epoch.validation_loss for epoch in epochs])
    return f"validation loss {curve}\n\n{markdown_table(headings, rows)}"

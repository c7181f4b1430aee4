"""The course of a training, as a line of characters for a terminal and as a table for Prefect's page.

Knows the reports of epochs only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnlstm.training.loop import EpochReport

_LEVELS = "▁▂▃▄▅▆▇█"
_WIDEST = 30


def sparkline(losses: Sequence[float]) -> str:
    """A character for each loss, the lowest for the least; of many, the last ones."""
    shown = losses[-_WIDEST:]
    least, most = min(shown, default=0.0), max(shown, default=0.0)
    step = (most - least) / (len(_LEVELS) - 1) or 1.0
    return "".join(_LEVELS[round((loss - least) / step)] for loss in shown)


def curve_table(epochs: "Sequence[EpochReport]") -> str:
    """Markdown: the loss curve, and a row for each epoch, the kept one marked."""
    lines = [
        f"validation loss {sparkline([epoch.validation_loss for epoch in epochs])}",
        "",
        "| epoch | train loss | validation loss | validation accuracy | seconds | |",
        "|---|---|---|---|---|---|",
    ]
    best = max((epoch.epoch for epoch in epochs if epoch.improved), default=0)
    for epoch in epochs:
        lines.append(
            f"| {epoch.epoch} of {epoch.num_epochs} | {epoch.train_loss:.4f} | {epoch.validation_loss:.4f} "
            f"| {epoch.validation_accuracy:.4f} | {epoch.seconds:.0f} | {'best' if epoch.epoch == best else ''} |"
        )
    return "\n".join(lines)

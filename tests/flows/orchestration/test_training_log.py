"""What a training tells while it runs: its loss as a line of characters and as a table."""

import pytest

from attnlstm.training.snapshots import EpochReport
from flows.orchestration.training_log import curve_report, sparkline


@pytest.mark.parametrize(
    ("losses", "line"),
    [
        ([], ""),
        ([0.5], "▁"),
        ([0.5, 0.5], "▁▁"),
        ([1.0, 0.5, 0.0], "█▅▁"),
        ([7, 6, 5, 4, 3, 2, 1, 0], "█▇▆▅▄▃▂▁"),
        ([9.0] * 5 + [1.0] * 29 + [2.0], "▁" * 29 + "█"),
    ],
)
def test_line_rises_with_the_loss_and_shows_the_last(losses: list[float], line: str) -> None:
    assert sparkline(losses) == line


def test_table_marks_the_epoch_that_is_kept() -> None:
    epochs = [
        EpochReport(
            epoch=epoch,
            num_epochs=3,
            seconds=1.5 * epoch,
            train_loss=0.9,
            validation_loss=loss,
            validation_accuracy=0.75,
            validation_macro_f1=0.7,
            calibrated_loss=loss,
            tokens_per_second=1e6,
            improved=epoch < 3,
        )
        for epoch, loss in enumerate((0.8, 0.4, 0.5), start=1)
    ]
    lines = curve_report(epochs).splitlines()
    assert lines[0] == "validation loss █▁▃"
    assert lines[4:] == [
        "| 1 of 3 | 0.9000 | 0.8000 | 0.7500 | 2 |  |",
        "| 2 of 3 | 0.9000 | 0.4000 | 0.7500 | 3 | best |",
        "| 3 of 3 | 0.9000 | 0.5000 | 0.7500 | 4 |  |",
    ]

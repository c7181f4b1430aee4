"""Which labelled rows a training takes: sources, columns, dates.

Small, so that it travels to tasks in place of the rows. Knows nothing about the model or about Prefect.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from storage.errors import SourceError
from storage.input.partitions import DateRange
from storage.labelled.reading import LabelledRows, read_labelled
from storage.labelled.rows import SIDES
from storage.labelled.split import SPLIT_NAMES
from storage.locations import without_credentials


@dataclass(frozen=True)
class LabelledSource:
    """Where labelled rows are, in which columns, and which count. See `storage.labelled.reading.read_labelled`."""

    source: str
    tokens_column: str = "tokens"
    label_column: str = "label"
    group_column: str = "group"
    also: tuple[str, ...] = ()
    dates: DateRange = field(default_factory=DateRange)
    min_class_rows: int = 1

    @property
    def place(self) -> str:
        """The sources, for names and records."""
        return ", ".join(without_credentials(each) for each in (self.source, *self.also))

    def read(self) -> LabelledRows:
        """Raises SourceError unless every side of the split has rows, and the train side those of two classes."""
        rows = read_labelled(
            (self.source, *self.also),
            tokens_column=self.tokens_column,
            label_column=self.label_column,
            group_column=self.group_column,
            dates=self.dates,
            min_class_rows=self.min_class_rows,
        )
        counts = num_rows_of_sides(rows)
        if min(counts.values()) == 0:
            sides = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise SourceError(
                f"The source {self.place} has too few labelled rows to split by {rows.split_by}: {sides}. "
                "Every side needs rows; give more of them, or more groups."
            )
        return rows

    def record(self) -> dict[str, Any]:
        """For a checkpoint's card."""
        return {
            "source": without_credentials(self.source),
            "also": [without_credentials(each) for each in self.also],
            "tokens_column": self.tokens_column,
            "label_column": self.label_column,
            "group_column": self.group_column,
            "partition": self.dates.partition,
            "window": self.dates.window,
        }


def num_rows_of_sides(rows: LabelledRows) -> dict[str, int]:
    """How many rows are on each side of the split, by its name."""
    return {name: int(np.count_nonzero(rows.splits == side)) for name, side in zip(SPLIT_NAMES, SIDES, strict=True)}

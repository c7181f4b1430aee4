"""Which files of a source belong to a range of dates, by the Hive partition that holds the date.

Looks at names only.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from storage.errors import SourceError
from storage.input.sources import partition_values

WINDOW_PATTERN = r"^[1-9][0-9]*[dw]$"
"""A number of days or weeks, such as 90d or 12w."""


@dataclass(frozen=True)
class DateRange:
    """The dates from `since` on, and of these the last ones, as many as `window` says. None: no bound.

    partition: the partition's name. since: the first date. window: counted back from the newest date that there is,
    not from today, so that the same files give the same rows on any day.
    Raises ValueError on a window of another form.
    """

    partition: str = "date"
    since: date | None = None
    window: str | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not re.fullmatch(WINDOW_PATTERN, self.window):
            raise ValueError(f"window must be a number of days or weeks, such as 90d or 12w, not {self.window!r}")

    @property
    def is_bounded(self) -> bool:
        return self.since is not None or self.window is not None

    def first_date(self, files: Iterable[str]) -> date | None:
        """The first date of the range for files of these relative names; None if it has no bound.

        Raises SourceError if no file has the partition, or one holds no date.
        """
        if not self.is_bounded:
            return None
        dates = [found for file in files if (found := self._date_of(file)) is not None]
        if not dates:
            raise SourceError(
                f"No file of the source lies in a partition {self.partition}=..., so a range of dates can't be chosen. "
                "Name the partition that holds the date, or leave out since and window."
            )
        first = self.since or date.min
        if self.window is not None:
            days = int(self.window[:-1]) * (7 if self.window.endswith("w") else 1)
            newest = max(dates)
            # The newest date counts as one of them.
            first = max(first, newest - timedelta(days=min(days - 1, newest.toordinal() - 1)))
        return first

    def includes(self, file: str, first: date | None) -> bool:
        """Whether a file is in the range that begins with `first`; one without a date is in none that is bounded."""
        if first is None:
            return True
        found = self._date_of(file)
        return found is not None and found >= first

    def _date_of(self, file: str) -> date | None:
        text = partition_values(file).get(self.partition)
        if text is None or text == "__HIVE_DEFAULT_PARTITION__":
            return None
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise SourceError(
                f"{file}: the partition {self.partition}={text} is no date (such as 2026-11-01). "
                "Name the partition that holds the date."
            ) from None

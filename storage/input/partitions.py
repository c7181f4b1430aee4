"""Which partitions of a source lie in a range: those that a backfill goes through, and the dates that a training takes.

Owns what a range means for values that are known as text only. Decides from names alone and opens no file.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from storage.errors import SourceError
from storage.input.sources import find_source, partition_values
from storage.locations import below

WINDOW_PATTERN = r"^[1-9][0-9]*[dw]$"
"""A number of days or weeks, such as 90d or 12w."""


@dataclass(frozen=True)
class Partition:
    """A folder of the source. name: below the root, such as `region=eu/date=2026-11-01`. value: of the range's column.

    place: path or URI of the folder, as the source was typed. exists: whether there is input in it.
    """

    name: str
    value: str
    place: str
    exists: bool = True


@dataclass(frozen=True)
class PartitionRange:
    """Partitions of `column` from `start` to `end`, both included, that satisfy all of `where`.

    Whole numbers are compared as such, everything else as text, which orders ISO dates and times; `end` includes what
    begins with it, so that the 7th has all of its hours. None leaves that side open. Of dates, the days without input
    are part of the range. where: other partition columns and the values they must have.

    Raises SourceError if the range is empty by itself.
    """

    column: str = "date"
    start: str | None = None
    end: str | None = None
    where: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and not self._includes(self.start):
            raise SourceError(
                f"The range ends with {self.column}={self.end}, before it starts with {self.start}. Swap start and end."
            )

    def find(self, source: str) -> tuple[Partition, ...]:
        """The partitions of a folder or URI, from the lowest value to the highest.

        Raises SourceError if no file of the source has such a partition column.
        """
        found = find_source(source)
        scope = f"{found.scope}/" if found.scope else ""
        columns = {self.column, *(name for name, _ in self.where)}
        folders: dict[str, str] = {}
        seen: set[str] = set()
        for file in found.files:
            values = partition_values(file.relative)
            seen.update(values)
            if columns <= values.keys():
                folder = _folder_with(file.relative, columns)
                if self._includes(values[self.column]) and all(values[name] == wanted for name, wanted in self.where):
                    folders[folder] = values[self.column]
        if missing := sorted(columns - seen):
            there = ", ".join(sorted(seen)) or "none"
            raise SourceError(
                f"The source {found.root / found.scope} has no partition column {missing[0]!r} (its partition columns: "
                f"{there}). Partitions are folders such as {missing[0]}=2026-11-01."
            )
        partitions = [
            Partition(name, value, below(source, name.removeprefix(scope)) if name != found.scope else source)
            for name, value in folders.items()
        ]
        if not self.where:
            partitions += self._days_without_input({partition.value for partition in partitions}, source)
        return tuple(sorted(partitions, key=lambda partition: (_order(partition.value), partition.name)))

    def _includes(self, value: str) -> bool:
        if self.start is not None and _order(value) < _order(self.start):
            return False
        return self.end is None or value.startswith(self.end) or _order(value) <= _order(self.end)

    def _days_without_input(self, there: set[str], source: str) -> list[Partition]:
        first, last = _day(self.start), _day(self.end)
        if first is None or last is None or not all(map(_day, there)):
            return []
        days = ((first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1))
        names = [(day, f"{self.column}={day}") for day in days if day not in there]
        return [Partition(name, day, below(source, name), exists=False) for day, name in names]


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


def _order(value: str) -> tuple[int, str]:
    """Numbers by size, before all text."""
    return (int(value), "") if value.isdecimal() else (2**63, value)


def _day(value: str | None) -> date | None:
    try:
        return date.fromisoformat(value) if value and len(value) == len("2026-11-01") else None
    except ValueError:
        return None


def _folder_with(relative: str, columns: set[str]) -> str:
    """The shortest leading folder of a relative name that has all of these partition columns."""
    parts = relative.split("/")
    last = max(number for number, part in enumerate(parts[:-1]) if part.partition("=")[0] in columns)
    return "/".join(parts[: last + 1])

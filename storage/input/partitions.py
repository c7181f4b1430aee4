"""Which partitions of a source lie in a range: those that a backfill goes through, and the dates that a training takes.

Owns what a range means for values that are known as text only. Decides from names alone and opens no file.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from itertools import islice, takewhile
from typing import Any

import pyarrow.fs as pafs

from storage.errors import SourceError, did_you_mean
from storage.input.dates import Span, read_span
from storage.input.hive import partition_values
from storage.input.sources import find_source
from storage.locations import Location, below

WINDOW_PATTERN = r"^[1-9][0-9]*[dw]$"
"""A number of days or weeks, such as 90d or 12w."""

# The partitions that are one date together, where none is called `date`.
_DATE_PARTS = ("year", "month", "day")
# Of a column with any other name, too little to take it for a date.
_YEAR = re.compile(r"\d{4}")

Ends = tuple[Any, Any]
"""The least and the greatest of what a value stands for: a day has all of its hours."""


@dataclass(frozen=True)
class Partition:
    """A folder of the source. name: below the root, such as `region=eu/date=2026-11-01`. value: of the range's column.

    place: path or URI of the folder, as the source was typed. why_not: why it is not scored; "" if it is.
    """

    name: str
    value: str
    place: str
    why_not: str = ""

    @property
    def exists(self) -> bool:
        return not self.why_not


@dataclass(frozen=True)
class PartitionRange:
    """Partitions of `column` from `start` to `end`, both included, that satisfy all of `where`.

    column: a partition column, or several that are one date together, such as `year,month,day`; these three are also
    found where a source has no `date`. Numbers are compared as such, dates and times as such in any common spelling,
    everything else as text. A day has all of its hours, as the start and as the end. None leaves that side open. Of
    dates, the days without input are part of the range. where: other partition columns and the values they must have.
    """

    column: str = "date"
    start: str | None = None
    end: str | None = None
    where: tuple[tuple[str, str], ...] = ()

    def find(self, source: str) -> tuple[Partition, ...]:
        """The partitions of a folder or URI, from the lowest value to the highest.

        A partition that can't be compared with the range is among them, last, and says so.
        Raises SourceError if no file of the source has such a partition column, if start or end is not of the kind
        that its values are, or if the range ends before it starts.
        """
        found = find_source(source)
        if found.is_pattern:
            raise SourceError(f"{source} is a pattern; a range of partitions is of a folder. Name the folder.")
        named = [(file.relative, partition_values(file.relative)) for file in found.files]
        seen: set[str] = {column for _, values in named for column in values}
        parts = _columns(self.column, seen)
        columns = {*parts, *(name for name, _ in self.where)}
        if missing := sorted(columns - seen):
            there = ", ".join(sorted(seen)) or "none"
            raise SourceError(
                f"The source {found.root / found.scope} has no partition column {missing[0]!r} (its partition columns: "
                f"{there}).{did_you_mean(missing[0], seen)} Partitions are folders such as {missing[0]}=2026-11-01."
            )
        for column, wanted in self.where:
            there_are = {value for _, values in named if (value := values.get(column)) is not None}
            if wanted not in there_are:
                guess = did_you_mean(wanted, there_are)
                raise SourceError(f"No partition of {found.root / found.scope} has {column}={wanted}.{guess}")
        folders: dict[str, str | None] = {}
        for relative, values in named:
            if columns <= values.keys():
                folders.setdefault(_folder_with(relative, columns), _joined(parts, values))
        there_is = {value for value in folders.values() if value is not None}
        read = self._reader(there_is)
        scope = f"{found.scope}/" if found.scope else ""
        place = {name: below(source, name.removeprefix(scope)) if name != found.scope else source for name in folders}
        partitions: list[tuple[Ends | None, Partition]] = []
        for name, value in folders.items():
            values = partition_values(f"{name}/")
            if any(values[column] != wanted for column, wanted in self.where):
                continue
            ends = read(value) if value is not None else None
            if ends is not None and self._includes(ends, read):
                partitions.append((ends, Partition(name, value or "", place[name])))
            elif ends is None and (self.start or self.end):
                why_not = f"{self.column} is {'null' if value is None else repr(value)}, so no range can include it"
                partitions.append((None, Partition(name, value or "", place[name], why_not)))
            elif ends is None:
                partitions.append((None, Partition(name, value or "", place[name])))
        if not self.where:
            partitions += [
                (read(day.value), day) for day in self._days_without_input(found.scope, parts, there_is, source)
            ]
        last = [each for ends, each in partitions if ends is None]
        ordered = sorted((ends, each.name, each) for ends, each in partitions if ends is not None)
        return (*(each for _, _, each in ordered), *sorted(last, key=lambda each: each.name))

    def _reader(self, values: Collection[str]) -> Callable[[str], Ends | None]:
        """How values are read: the first kind that all bounds are of, and that values are of."""
        bounds = {name: bound for name, bound in (("start", self.start), ("end", self.end)) if bound is not None}
        for read in (_number, _time):
            readable = sum(read(value) is not None for value in values)
            if not readable or (not bounds and readable < len(values)):
                continue
            if all(read(bound) is not None for bound in bounds.values()):
                self._refuse_reversed(read)
                return read
        for read, kind in ((_number, "number"), (_time, "date or time")):
            if values and all(read(value) is not None for value in values):
                name, bound = next((name, bound) for name, bound in bounds.items() if read(bound) is None)
                raise SourceError(
                    f"{name}={bound} can't be read as a {kind}, which the partitions of {self.column} are, such as "
                    f"{min(values)}."
                )
        self._refuse_reversed(_text)
        return _text

    def _refuse_reversed(self, read: Callable[[str], Ends | None]) -> None:
        first, last = (read(bound) if bound is not None else None for bound in (self.start, self.end))
        if first is not None and last is not None and first[0] > last[1]:
            raise SourceError(
                f"The range ends with {self.column}={self.end}, before it starts with {self.start}. Swap start and end."
            )

    def _includes(self, ends: Ends, read: Callable[[str], Ends | None]) -> bool:
        first, last = (read(bound) if bound is not None else None for bound in (self.start, self.end))
        return (first is None or ends[1] >= first[0]) and (last is None or ends[0] <= last[1])

    def _days_without_input(
        self, scope: str, parts: tuple[str, ...], values: Collection[str], source: str
    ) -> list[Partition]:
        bounds = [read_span(bound) for bound in (self.start, self.end) if bound is not None]
        spans = [read_span(value) for value in values]
        is_days = all(span is not None and span.is_day for span in (*bounds, *spans))
        spell = _spelling(parts, values)
        if len(bounds) < 2 or not is_days or spell is None:
            return []
        first, last = (span.first.date() for span in bounds if span is not None)
        there = {span.first.date() for span in spans if span is not None}
        days = (first + timedelta(days=number) for number in range((last - first).days + 1))
        found = []
        for day in days:
            if day not in there:
                name = spell(day)
                place = below(source, name.removeprefix(f"{scope}/"))
                value = name.rpartition("=")[2] if len(parts) == 1 else day.isoformat()
                found.append(Partition(name, value, place, f"{place} does not exist"))
        return found


@dataclass(frozen=True)
class DateRange:
    """The dates from `since` on, and of these the last ones, as many as `window` says. None: no bound.

    partition: the partition's name, or several that are one date together, such as `year,month,day`; these three are
    also found where a file lies in no `date`. since: the first date. window: counted back from the newest date that
    there is, not from today, so that the same files give the same rows on any day.
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
        """The date that the file's partition ends with: of a month, its last day."""
        values = partition_values(file)
        parts = _columns(self.partition, values.keys())
        text = _joined(parts, values) if set(parts) <= values.keys() else None
        if text is None:
            return None
        if span := read_span(text):
            return span.last_day
        raise SourceError(
            f"{file}: the partition {self.partition}={text} is no date (such as 2026-11-01). "
            "Name the partition that holds the date."
        )


def partition_span(name: str) -> Span | None:
    """The time that a partition such as `region=eu/date=2026-11-01/hour=5` is of; None if no column of it is a date.

    That is its `date`, or `year`, `month` and `day`, else the first column that reads as a date, and its `hour`.
    """
    values = partition_values(f"{name}/")
    parts = _columns("date", values.keys())
    if not set(parts) <= values.keys():
        dated = (key for key, value in values.items() if value and not _YEAR.fullmatch(value) and read_span(value))
        parts = tuple(islice(dated, 1))
    if not parts:
        return None
    text = _joined((*parts, "hour") if "hour" in values else parts, values)
    return read_span(text) if text else None


def has_later(folder: Location, than: Span) -> bool:
    """Whether a partition below the folder begins later. Lists only folders in which there may be one."""

    def look(place: Location) -> bool:
        selector = pafs.FileSelector(place.path, allow_not_found=True)
        for info in place.filesystem.get_file_info(selector):
            if info.type != pafs.FileType.Directory:
                continue
            span = partition_span(folder.relative(info.path))
            inner = Location(place.filesystem, info.path)
            if span is not None and span.first > than.first:
                if any(each.is_file for each in inner.walk()):
                    return True
            elif (span is None or span.end > than.first) and look(inner):
                return True
        return False

    return look(folder)


def _columns(column: str, there: Collection[str]) -> tuple[str, ...]:
    """The partition columns that `column` names: itself, several with commas between them, or the parts of a date."""
    if column in there:
        return (column,)
    if column == "date" and "year" in there:
        return tuple(takewhile(there.__contains__, _DATE_PARTS))  # a day of no month is a day of the year
    return tuple(part.strip() for part in column.split(","))


def _joined(columns: tuple[str, ...], values: Mapping[str, str | None]) -> str | None:
    """The value of one column, or the date that several are together, from the year or the whole day on; None: null."""
    parts = [values[column] for column in columns]
    if any(part is None for part in parts):
        return None
    texts = [part for part in parts if part is not None]
    if len(texts) == 1:
        return texts[0]
    span = read_span(texts[0])
    num_days = 1 if span is not None and span.is_day else 3
    padded = [text.zfill(2) for text in texts[1:]]
    days, hours = [texts[0], *padded][:num_days], [texts[0], *padded][num_days:]
    return "-".join(days) + (f"T{':'.join(hours)}" if hours else "")


def _number(value: str) -> Ends | None:
    if "_" in value:  # as Python may write thousands, and others dates
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return (number, number) if number.is_finite() else None


def _time(value: str) -> Ends | None:
    span = read_span(value)
    return (span.first, span.end - timedelta(microseconds=1)) if span else None


def _text(value: str) -> Ends:
    return (value, value)


def _spelling(parts: tuple[str, ...], values: Collection[str]) -> Callable[[date], str] | None:
    """How the name of another day would be spelled; None if the names of those that there are do not show it."""
    if len(parts) == 3:
        year, month, day = parts
        return lambda when: f"{year}={when:%Y}/{month}={when:%m}/{day}={when:%d}"
    if len(parts) > 1:
        return None
    for pattern, form in ((r"\d{4}-\d\d-\d\d", "%Y-%m-%d"), (r"\d{8}", "%Y%m%d")):
        if all(re.fullmatch(pattern, value) for value in values):
            return lambda when, form=form: f"{parts[0]}={when:{form}}"  # type: ignore[misc]
    return None


def _folder_with(relative: str, columns: set[str]) -> str:
    """The shortest leading folder of a relative name that has all of these partition columns."""
    folders = relative.split("/")[:-1]
    return next(
        folder
        for number in range(1, len(folders) + 1)
        if columns <= partition_values((folder := "/".join(folders[:number])) + "/").keys()
    )

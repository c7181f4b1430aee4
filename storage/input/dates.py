"""Dates and times as people and programs spell them: `2026-11-01`, `2026-11-1`, `20261101`, `2026-11-01 00:00:00`.

Each is a span of time: a day has all of its hours, a month all of its days. Knows nothing about partitions.
"""

import re
from calendar import isleap, monthrange
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone

_SEPARATED = re.compile(
    r"(?P<year>\d{4})[-/_](?P<month>\d{1,2})(?:[-/_](?P<day>\d{1,2})"
    r"(?:(?:[T_-]|\s+)(?P<hour>\d{1,2})(?:[:.-]?(?P<minute>\d{2})(?:[:.-]?(?P<second>\d{2})(?:[.,]\d+)?)?)?"
    r"\s*(?P<zone>Z|UTC|[+-]\d{2}(?::?\d{2})?)?)?)?",
    re.ASCII,
)
_COMPACT = re.compile(
    r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})"
    r"(?:T?(?P<hour>\d{2})(?:(?P<minute>\d{2})(?P<second>\d{2})?)?(?P<zone>Z)?)?",
    re.ASCII,
)
_YEAR = re.compile(r"(?P<year>\d{4})", re.ASCII)
_WEEK = re.compile(r"(\d{4})-?W(\d{1,2})", re.ASCII)


@dataclass(frozen=True)
class Span:
    """Naive, in UTC: from `first` up to, not including, `end`."""

    first: datetime
    end: datetime

    @property
    def last_day(self) -> date:
        return (self.end - timedelta(microseconds=1)).date()

    @property
    def is_day(self) -> bool:
        return self.end - self.first == timedelta(days=1)


def read_span(text: str) -> Span | None:
    """The time that `text` names, as exactly as it does; None if it is no date. A time without a zone is in UTC."""
    try:
        if week := _WEEK.fullmatch(text):
            return _span(datetime.fromisocalendar(int(week[1]), int(week[2]), 1), timedelta(weeks=1))
        for spelling in (_SEPARATED, _COMPACT, _YEAR):
            if match := spelling.fullmatch(text.strip()):
                return _read(match.groupdict())
    except ValueError:  # such as a 13th month
        pass
    return None


def _read(parts: dict[str, str | None]) -> Span:
    numbers = {name: int(value) for name, value in parts.items() if value and name != "zone"}
    first = datetime(**({"month": 1, "day": 1} | numbers))  # type: ignore[arg-type]
    if "month" not in numbers:
        return _span(first, timedelta(days=366 if isleap(first.year) else 365))
    if "day" not in numbers:
        return _span(first, timedelta(days=monthrange(first.year, first.month)[1]))
    finest = next(name for name in ("second", "minute", "hour", "day") if name in numbers)
    return _span(first - _offset(parts.get("zone")), timedelta(**{f"{finest}s": 1}))


def _offset(zone: str | None) -> timedelta:
    if zone is None or zone in ("Z", "UTC"):
        return timedelta()
    minutes = int(zone[1:3]) * 60 + int(zone[3:].lstrip(":") or 0)
    return timezone(timedelta(minutes=minutes if zone[0] == "+" else -minutes)).utcoffset(None)


def _span(first: datetime, length: timedelta) -> Span:
    try:
        return Span(first, first + length)
    except OverflowError:
        return Span(first, datetime.max)

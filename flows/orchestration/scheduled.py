"""The scheduled start of a run in paths and dates: which partition a run is for, however late it starts.

    data/date={scheduled:%Y-%m-%d}                   the day that the run was scheduled for, in UTC
    data/date={scheduled-1d:%Y-%m-%d}                the day before it; also m, h and w, and +
    data/date={scheduled-1d@Europe/Berlin:%Y-%m-%d}  the day before it in Berlin

Single braces: Prefect's own templates have double ones. Owns what such a field means; knows nothing about the places
that hold it. Where a run has no schedule, its scheduled start is when it was asked for. Prefect is imported late, for
commands that plan without it.
"""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_FIELD = re.compile(r"\{(scheduled\b[^{}]*)\}")
_PARTS = re.compile(
    r"scheduled(?P<offset>[+-][0-9]+)?(?(offset)(?P<unit>[mhdw]))(?:@(?P<zone>[A-Za-z0-9_+/-]+))?:(?P<format>.+)"
)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EXAMPLE = "{scheduled-1d@Europe/Berlin:%Y-%m-%d}"


def at_scheduled_start(text: str) -> str:
    """`text` with the scheduled start of the current flow run in place of its fields. Raises ValueError as `fill`."""
    from prefect.runtime import flow_run

    return fill(text, flow_run.scheduled_start_time)


def fill(text: str, scheduled: datetime) -> str:
    """`text` with `scheduled`, which has a time zone, in place of its fields.

    Minutes and hours of an offset have passed; days and weeks are of the calendar, whatever clocks did meanwhile.
    Raises ValueError if a field is not one.
    """
    return _FIELD.sub(lambda field: _format(field, scheduled), text)


def above_scheduled_start(place: str) -> str:
    """The folder above the first field of a place: `data` for `data/date={scheduled:%Y-%m-%d}`."""
    return re.sub(r"(^|/)[^/?]*\{scheduled\b[^?]*", "", place) or "."


def _format(field: re.Match[str], scheduled: datetime) -> str:
    parts = _PARTS.fullmatch(field[1])
    if parts is None:
        raise ValueError(
            f"{field[0]} is no scheduled start. Write it like {_EXAMPLE}; offset and zone may be left out."
        )
    try:
        zone = ZoneInfo(parts["zone"] or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{field[0]} names no time zone that is known here: {parts['zone']}.") from None
    counted_in = UTC if parts["unit"] in ("m", "h") else zone
    try:
        offset = timedelta(**{_UNITS[parts["unit"]]: int(parts["offset"])}) if parts["offset"] else timedelta()
        moved = (scheduled.astimezone(counted_in) + offset).astimezone(zone)
    except OverflowError:
        raise ValueError(f"{field[0]} is out of the calendar, which has years 1 to 9999.") from None
    return moved.strftime(parts["format"])

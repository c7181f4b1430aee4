"""Dates and times are read in any spelling that is common in names, and nothing else is taken for one."""

from datetime import datetime, timedelta

import pytest

from storage.input.dates import read_span

DAY, HOUR, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)


@pytest.mark.parametrize(
    ("text", "first", "length"),
    [
        ("2026", datetime(2026, 1, 1), 365 * DAY),
        ("2028", datetime(2028, 1, 1), 366 * DAY),
        ("2028-02", datetime(2028, 2, 1), 29 * DAY),
        ("2026-12", datetime(2026, 12, 1), 31 * DAY),
        ("2026-W01", datetime(2025, 12, 29), 7 * DAY),
        ("2026-11-03", datetime(2026, 11, 3), DAY),
        ("2026-11-3", datetime(2026, 11, 3), DAY),
        ("2026/11/03", datetime(2026, 11, 3), DAY),
        ("2026_11_03", datetime(2026, 11, 3), DAY),
        ("20261103", datetime(2026, 11, 3), DAY),
        ("2026110304", datetime(2026, 11, 3, 4), HOUR),
        ("20261103T040506Z", datetime(2026, 11, 3, 4, 5, 6), SECOND),
        ("2026-11-03T04", datetime(2026, 11, 3, 4), HOUR),
        ("2026-11-03-04", datetime(2026, 11, 3, 4), HOUR),
        ("2026-11-03 04:05", datetime(2026, 11, 3, 4, 5), timedelta(minutes=1)),
        ("2026-11-03 04:05:06.789", datetime(2026, 11, 3, 4, 5, 6), SECOND),
        ("2026-11-03T00:30:00+05:30", datetime(2026, 11, 2, 19), SECOND),
        ("2026-11-03T23:00:00-02", datetime(2026, 11, 4, 1), SECOND),
    ],
)
def test_what_a_text_names(text: str, first: datetime, length: timedelta) -> None:
    span = read_span(text)
    assert span is not None
    assert (span.first, span.end - span.first) == (first, length)


@pytest.mark.parametrize("text", ["", "soon", "7", "2026-13", "2026-02-30", "2026-W54", "1.11.2026", "26-11-01"])
def test_what_is_no_date(text: str) -> None:
    assert read_span(text) is None

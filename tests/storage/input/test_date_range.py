"""A range of dates chooses files by their partition, and counts back from the newest date, never from today."""

from datetime import date

import pytest

from storage.errors import SourceError
from storage.input.date_range import DateRange

FILES = [f"date=2026-11-{day:02d}/part-0.parquet" for day in (1, 2, 5, 20)]


def chosen(dates: DateRange, files: list[str] = FILES) -> list[str]:
    first = dates.first_date(files)
    return [file for file in files if dates.includes(file, first)]


@pytest.mark.parametrize(
    ("dates", "first"),
    [
        (DateRange(), 0),
        (DateRange(since=date(2026, 11, 2)), 1),
        (DateRange(since=date(2026, 11, 3)), 2),
        (DateRange(window="1d"), 3),
        (DateRange(window="16d"), 2),
        (DateRange(window="15d"), 3),
        (DateRange(window="3w"), 0),
        (DateRange(window="9999999d"), 0),
        (DateRange(since=date(2026, 11, 4), window="90d"), 2),
        (DateRange(since=date(2026, 10, 1), window="1d"), 3),
    ],
    ids=str,
)
def test_later_bound_counts_and_the_newest_date_is_the_first_of_a_window(dates: DateRange, first: int) -> None:
    assert chosen(dates) == FILES[first:]


def test_file_without_a_date_is_in_no_bounded_range() -> None:
    files = [*FILES, "part-0.parquet", "date=__HIVE_DEFAULT_PARTITION__/part-0.parquet"]
    assert chosen(DateRange(window="9w"), files) == FILES
    assert chosen(DateRange(), files) == files


def test_another_partition_may_hold_the_date() -> None:
    files = ["day=2026-11-01/kind=a/x.parquet", "day=2026-11-09/kind=b/x.parquet"]
    assert chosen(DateRange("day", window="2d"), files) == files[1:]


def test_source_without_the_partition_is_refused() -> None:
    with pytest.raises(
        SourceError, match=r"^No file of the source lies in a partition day=\.\.\., so a range of dates"
    ):
        DateRange("day", window="7d").first_date(FILES)


def test_partition_that_holds_no_date_is_refused() -> None:
    with pytest.raises(SourceError, match=r"^date=soon/x\.parquet: the partition date=soon is no date"):
        DateRange(window="7d").first_date(["date=soon/x.parquet"])


@pytest.mark.parametrize("window", ["", "7", "0d", "d", "7 d", "-7d", "7m", "1.5d"])
def test_window_of_another_form_is_refused(window: str) -> None:
    with pytest.raises(ValueError, match="window must be a number of days or weeks, such as 90d or 12w, not"):
        DateRange(window=window)

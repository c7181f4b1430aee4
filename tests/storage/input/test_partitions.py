"""Which partitions a backfill goes through, by what folders are named, and which dates a training takes."""

from datetime import date
from pathlib import Path

import pytest

from storage.errors import SourceError
from storage.input.hive import partition_folder
from storage.input.partitions import DateRange, PartitionRange, has_later, partition_span
from storage.input.sources import find_source
from storage.locations import Location


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "date=2026-11-01/region=eu",
        "date=2026-11-01/region=us",
        "date=2026-11-03/region=eu",
        "date=2026-11-05/region=us",
    ):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "part-0.parquet").touch()
    return tmp_path / "data"


def _make(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "part.parquet").touch()
    return str(root)


def test_days_of_the_range_are_in_order_and_those_without_input_are_told(folder: Path) -> None:
    found = PartitionRange(start="2026-11-01", end="2026-11-03").find(str(folder))
    assert [(each.name, each.exists) for each in found] == [
        ("date=2026-11-01", True),
        ("date=2026-11-02", False),
        ("date=2026-11-03", True),
    ]
    assert found[0].place == f"{folder}/date=2026-11-01"


def test_a_condition_on_another_column_narrows_the_folders(folder: Path) -> None:
    found = PartitionRange(start="2026-11-01", end="2026-11-05", where=(("region", "us"),)).find(str(folder))
    assert [each.name for each in found] == ["date=2026-11-01/region=us", "date=2026-11-05/region=us"]


@pytest.mark.parametrize(
    ("column", "where", "guess"),
    [("dat", (), "'date'"), ("date", (("regoin", "us"),), "'region'"), ("date", (("region", "uss"),), "'us'")],
)
def test_a_column_or_a_value_that_is_not_there_is_guessed(
    column: str, where: tuple[tuple[str, str], ...], guess: str, folder: Path
) -> None:
    with pytest.raises(SourceError, match=f"Did you mean {guess}"):
        PartitionRange(column, where=where).find(str(folder))


def test_a_range_may_be_open(folder: Path) -> None:
    assert [each.value for each in PartitionRange(start="2026-11-02").find(str(folder))] == ["2026-11-03", "2026-11-05"]
    assert [each.value for each in PartitionRange(end="2026-11-02").find(str(folder))] == ["2026-11-01"]
    assert len(PartitionRange().find(str(folder))) == 3


@pytest.mark.parametrize(
    ("column", "values", "start", "end", "found"),
    [
        (
            "hour",
            "2026-11-01T23 2026-11-02T00 2026-11-02T23 2026-11-03T00",
            "2026-11-02",
            None,
            "2026-11-02T00 2026-11-02T23",
        ),
        ("date", "2026-10 2026-11-01 2026-11-30 2026-12-01 2026-12", "2026-11", None, "2026-11-01 2026-11-30"),
        ("date", "2026-10 2026-11-01 2026-11-30", "2026-10-31", "2026-11-01", "2026-10 2026-11-01"),
        ("date", "2025_12_31 2026_1_1 2026_10_01 2026_10_02", "2026_1_1", "2026-10-01", "2026_1_1 2026_10_01"),
        ("batch", "9 10 2 11", "9", "10", "9 10"),
        ("month", "1 2 3 10 11 12", "1", None, "1"),
        ("month", "01 02 03 10 11 12", "1", None, "01"),
        ("month", "-1 1 1.5 10 100", "1", None, "1"),
        ("run", "v1 v10 v2", "v1", None, "v1"),
        ("city", "Bern Z%C3%BCrich Basel", "Bern", "Zürich", "Bern Zürich"),
    ],
)
def test_values_are_compared_as_what_they_are_and_an_end_is_within(
    tmp_path: Path, column: str, values: str, start: str, end: str | None, found: str
) -> None:
    """Dates and times with all of their parts, numbers as numbers, and words as text."""
    source = _make(tmp_path, *(f"{column}={value}" for value in values.split()))
    partitions = PartitionRange(column, start, end or start).find(source)
    assert [each.value for each in partitions if each.exists] == found.split()


def test_the_source_may_be_a_partition_itself(folder: Path) -> None:
    found = PartitionRange("region", "eu", "eu").find(f"{folder}/date=2026-11-01")
    assert [(each.name, each.place) for each in found] == [
        ("date=2026-11-01/region=eu", f"{folder}/date=2026-11-01/region=eu")
    ]


def test_unknown_column_is_named_with_those_that_are_there(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"no partition column 'day' \(its partition columns: date, region\)"):
        PartitionRange("day", "2026-11-01", "2026-11-03").find(str(folder))


@pytest.mark.parametrize(("start", "end"), [("2026-11-04", "2026-11-01"), ("2026-11-4", "2026-11-03T23:59")])
def test_range_that_ends_before_it_starts_is_refused(folder: Path, start: str, end: str) -> None:
    with pytest.raises(SourceError, match=rf"ends with date={end}, before it starts with {start}\. Swap start and end"):
        PartitionRange(start=start, end=end).find(str(folder))


@pytest.mark.parametrize(
    "bounds",
    [
        ("2026-11-01", "2026-11-02"),
        ("2026-11-1", "2026-11-2"),
        ("2026-11-01T00:00:00", "2026-11-02T00:00:00"),
        ("20261101", "2026-11-02 00:00"),
        ("2026-11-01T01:00+01:00", "2026/11/02"),
    ],
)
@pytest.mark.parametrize(
    "spelling", ["2026-11-{:02d}", "2026-11-{}", "202611{:02d}", "2026-11-{:02d} 00%3A00%3A00", "2026-11-{:02d}T00Z"]
)
def test_dates_and_times_are_read_in_any_common_spelling(
    tmp_path: Path, spelling: str, bounds: tuple[str, str]
) -> None:
    names = [f"date={spelling.format(day)}" for day in (1, 2, 3, 10)]
    found = PartitionRange("date", *bounds).find(_make(tmp_path, *names))
    assert [each.name for each in found if each.exists] == names[:2]


@pytest.mark.parametrize(
    ("values", "start", "message"),
    [
        (["2026-11-01"], "soon", r"^start=soon can't be read as a date or time, .* of part are, such as 2026-11-01\.$"),
        (["2026-11-01"], "2026-13-01", "^start=2026-13-01 can't be read as a date or time"),
        (["7", "8"], "2026-11-01", "^start=2026-11-01 can't be read as a number"),
    ],
)
def test_bound_that_is_not_of_the_partitions_kind_is_said_so(
    tmp_path: Path, values: list[str], start: str, message: str
) -> None:
    source = _make(tmp_path, *(f"part={value}" for value in values))
    with pytest.raises(SourceError, match=message):
        PartitionRange("part", start).find(source)


def test_partitions_that_no_range_can_include_are_named(tmp_path: Path) -> None:
    source = _make(tmp_path, "date=2026-11-01", "date=latest", "date=__HIVE_DEFAULT_PARTITION__", "date=2026-11-02")
    found = PartitionRange(start="2026-11-02").find(source)
    assert [(each.name, each.why_not) for each in found] == [
        ("date=2026-11-02", ""),
        ("date=__HIVE_DEFAULT_PARTITION__", "date is null, so no range can include it"),
        ("date=latest", "date is 'latest', so no range can include it"),
    ]
    assert len([each for each in PartitionRange().find(source) if each.exists]) == 4


@pytest.mark.parametrize("column", ["date", "year,month,day"])
@pytest.mark.parametrize("hours", [[""], ["/hour=0", "/hour=23"]])
def test_year_month_and_day_are_one_date(tmp_path: Path, column: str, hours: list[str]) -> None:
    days = [(11, 27), (11, 28), (11, 30), (12, 1), (12, 3), (12, 4)]
    source = _make(tmp_path, *(f"year=2026/month={month}/day={day}{hour}" for month, day in days for hour in hours))
    found = PartitionRange(column, "2026-11-28", "2026-12-03").find(source)
    assert [(each.value, each.exists) for each in found] == [
        ("2026-11-28", True),
        ("2026-11-29", False),
        ("2026-11-30", True),
        ("2026-12-01", True),
        ("2026-12-02", False),
        ("2026-12-03", True),
    ]
    assert found[3].place == f"{source}/year=2026/month=12/day=1"


def test_the_hours_of_a_date_may_be_a_partition_of_the_range(tmp_path: Path) -> None:
    source = _make(tmp_path, *(f"date=2026-11-0{day}/hour={hour}" for day in (1, 2) for hour in (5, 14)))
    found = PartitionRange("date,hour", "2026-11-01T14", "2026-11-02 05:00").find(source)
    assert [each.name for each in found] == ["date=2026-11-01/hour=14", "date=2026-11-02/hour=5"]


@pytest.mark.parametrize("value", ["Brand%2321", "a b", "a%253Ab", "a+b", "a%3Fb", "[1]", "é"])
def test_places_of_a_uri_are_uris_of_the_same_folders(tmp_path: Path, value: str) -> None:
    source = _make(tmp_path / "s", f"h={value}", "h=Brand")
    by_path, by_uri = PartitionRange("h").find(source), PartitionRange("h").find(f"file://{source}")
    assert [(each.name, each.value) for each in by_uri] == [(each.name, each.value) for each in by_path]
    for one, other in zip(by_uri, by_path, strict=True):
        found, expected = find_source(one.place), find_source(other.place)
        assert (found.root.path, found.files) == (expected.root.path, expected.files)


def test_a_pattern_has_no_range(folder: Path) -> None:
    with pytest.raises(SourceError, match="is a pattern; a range of partitions is of a folder"):
        PartitionRange().find(f"{folder}/date=*/*/*")


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


YEARS = [f"year=2026/month={month}/day={day}/x.parquet" for month, day in ((9, 30), (11, 1), (11, 9), (12, 1))]
OF_THE_YEAR = [f"year={year}/day={day}/x.parquet" for year, day in ((2025, 12), (2026, 9), (2026, 333))]
TIMES = ["date=2026-10/x.parquet", "date=2026-11-01 00%3A00%3A00/x.parquet", "date=20261102/x.parquet"]
DAYS = ["day=2026-11-01/kind=a/x.parquet", "day=2026-11-09/kind=b/x.parquet"]


@pytest.mark.parametrize(
    ("files", "dates", "first"),
    [
        (YEARS, DateRange("date", since=date(2026, 11, 9)), 2),
        (YEARS, DateRange("year,month,day", since=date(2026, 11, 9)), 2),
        (YEARS, DateRange("date", window="31d"), 1),
        (OF_THE_YEAR, DateRange(since=date(2026, 11, 1)), 1),  # the 9th of January and no 9th month: of the year alone
        (TIMES, DateRange(since=date(2026, 10, 31)), 0),  # a month counts by its last day
        (TIMES, DateRange(since=date(2026, 11, 1)), 1),
        (DAYS, DateRange("day", window="2d"), 1),
    ],
)
def test_the_date_of_a_file_is_read_from_any_common_partition(files: list[str], dates: DateRange, first: int) -> None:
    assert chosen(dates, files) == files[first:]


@pytest.mark.parametrize(
    ("dates", "files", "message"),
    [
        (
            DateRange("day", window="7d"),
            FILES,
            r"^No file of the source lies in a partition day=\.\.\., so a range of dat",
        ),
        (DateRange(window="7d"), ["date=soon/x.parquet"], r"^date=soon/x\.parquet: the partition date=soon is no date"),
    ],
)
def test_source_without_dates_is_refused(dates: DateRange, files: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        dates.first_date(files)


@pytest.mark.parametrize("window", ["", "7", "0d", "d", "7 d", "-7d", "7m", "1.5d"])
def test_window_of_another_form_is_refused(window: str) -> None:
    with pytest.raises(ValueError, match="window must be a number of days or weeks, such as 90d or 12w, not"):
        DateRange(window=window)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("region=eu/date=2026-11-01", "2026-11-01T00:00:00"),
        ("date=2026-11-01/hour=5", "2026-11-01T05:00:00"),
        ("year=2026/month=2/day=9/hour=23", "2026-02-09T23:00:00"),
        ("year=2026/month=2", "2026-02-01T00:00:00"),
        ("shop=2026/ds=20261101", "2026-11-01T00:00:00"),
        ("date=__HIVE_DEFAULT_PARTITION__", None),
        ("region=eu", None),
        ("", None),
    ],
)
def test_time_that_a_partition_is_of_is_read_from_its_columns(name: str, first: str | None) -> None:
    span = partition_span(name)
    assert (span and span.first.isoformat()) == first


def test_partition_of_a_file_goes_down_to_its_last_partition_column() -> None:
    files = ("eu/date=2026-11-01/new/part.parquet", "date=2026-11-01/hour=5/a=b.parquet", "new/part.parquet")
    assert [partition_folder(file) for file in files] == ["eu/date=2026-11-01", "date=2026-11-01/hour=5", ""]


@pytest.mark.parametrize(
    ("there", "than", "is_later"),
    [
        ("date=2026-11-01 date=2026-11-03", "date=2026-11-02", True),
        ("date=2026-11-01 date=2026-11-03", "date=2026-11-03", False),
        ("region=eu/date=2026-11-01 region=us/date=2026-11-03", "region=eu/date=2026-11-02", True),
        ("year=2025/month=12/day=31 year=2026/month=11/day=05", "year=2026/month=11/day=04", True),
        ("year=2025/month=12/day=31 year=2026/month=11/day=05", "year=2026/month=11/day=05", False),
        ("date=2026-11-03/hour=4 date=2026-11-03/hour=11", "date=2026-11-03/hour=5", True),
        ("region=eu plain", "date=2026-11-02", False),
    ],
)
def test_later_partition_is_found_wherever_it_lies(there: str, than: str, is_later: bool, tmp_path: Path) -> None:
    _make(tmp_path / "data", *there.split())
    (tmp_path / "data" / "date=2099-01-01").mkdir()  # empty, as when its files were removed
    span = partition_span(than)
    assert span is not None
    assert has_later(Location.parse(tmp_path / "data"), span) is is_later


def test_nothing_is_later_where_there_is_no_folder(tmp_path: Path) -> None:
    span = partition_span("date=2026-11-01")
    assert span is not None
    assert not has_later(Location.parse(tmp_path / "nowhere"), span)

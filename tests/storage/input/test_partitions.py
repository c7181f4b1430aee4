"""Which partitions a backfill goes through, by what folders are named, and which dates a training takes."""

from datetime import date
from pathlib import Path

import pytest

from storage.errors import SourceError
from storage.input.partitions import DateRange, PartitionRange


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


def test_a_range_may_be_open(folder: Path) -> None:
    assert [each.value for each in PartitionRange(start="2026-11-02").find(str(folder))] == ["2026-11-03", "2026-11-05"]
    assert [each.value for each in PartitionRange(end="2026-11-02").find(str(folder))] == ["2026-11-01"]
    assert len(PartitionRange().find(str(folder))) == 3


def test_the_last_day_has_all_of_its_hours(tmp_path: Path) -> None:
    source = _make(tmp_path, "hour=2026-11-01T23", "hour=2026-11-02T00", "hour=2026-11-02T23", "hour=2026-11-03T00")
    found = PartitionRange("hour", "2026-11-02", "2026-11-02").find(source)
    assert [each.value for each in found] == ["2026-11-02T00", "2026-11-02T23"]


def test_whole_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    source = _make(tmp_path, "batch=9", "batch=10", "batch=2", "batch=11")
    assert [each.value for each in PartitionRange("batch", "9", "10").find(source)] == ["9", "10"]


def test_words_are_compared_as_text_and_percent_signs_are_decoded(tmp_path: Path) -> None:
    source = _make(tmp_path, "city=Bern", "city=Z%C3%BCrich", "city=Basel")
    found = PartitionRange("city", "Bern").find(source)
    assert [(each.name, each.value) for each in found] == [("city=Bern", "Bern"), ("city=Z%C3%BCrich", "Zürich")]


def test_the_source_may_be_a_partition_itself(folder: Path) -> None:
    found = PartitionRange("region", "eu", "eu").find(f"{folder}/date=2026-11-01")
    assert [(each.name, each.place) for each in found] == [
        ("date=2026-11-01/region=eu", f"{folder}/date=2026-11-01/region=eu")
    ]


def test_unknown_column_is_named_with_those_that_are_there(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"no partition column 'day' \(its partition columns: date, region\)"):
        PartitionRange("day", "2026-11-01", "2026-11-03").find(str(folder))


def test_range_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(SourceError, match=r"ends with date=2026-11-01, before it starts with 2026-11-04\. Swap"):
        PartitionRange(start="2026-11-04", end="2026-11-01")


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

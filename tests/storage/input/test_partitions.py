"""Which partitions lie in a range, for the types of value that folders are named by."""

from pathlib import Path

import pytest

from storage.errors import SourceError
from storage.input.partitions import PartitionRange


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

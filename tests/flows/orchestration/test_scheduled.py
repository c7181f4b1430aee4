"""The scheduled start of a run in paths and dates: a late run is for the day that it was due."""

import inspect
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect import Flow, State
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import Scheduled

from flows.backfill import backfill
from flows.classify import classify
from flows.orchestration.scheduled import above_scheduled_start, fill
from storage.locations import Location
from storage.output.manifests import read_manifest

# Two hours after midnight in Berlin, where the clocks were turned back an hour later.
DUE = datetime(2026, 10, 25, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/date={scheduled:%Y-%m-%d}", "data/date=2026-10-25"),
        ("data/date={scheduled-1d:%Y-%m-%d}", "data/date=2026-10-24"),
        ("data/week={scheduled-2w:%Y-%m-%d}", "data/week=2026-10-11"),
        ("data/{scheduled:%Y/%m}/{scheduled+90m:%d-%H%M}.parquet", "data/2026/10/25-0130.parquet"),
        ("data/date={scheduled-1h:%Y-%m-%d}/hour={scheduled-1h:%H}", "data/date=2026-10-24/hour=23"),
        ("year={scheduled-9w:%Y}/month={scheduled-9w:%m}/day={scheduled-9w:%d}", "year=2026/month=08/day=23"),
        ("year={scheduled-7w:%Y}/month={scheduled-7w:%-m}/day={scheduled-7w:%-d}", "year=2026/month=9/day=6"),
        ("data/hour={scheduled@Europe/Berlin:%H}", "data/hour=02"),
        ("data/hour={scheduled+24h@Europe/Berlin:%H}", "data/hour=01"),  # the day had 25 hours
        ("data/hour={scheduled+1d@Europe/Berlin:%H}", "data/hour=02"),
        ("data/date={scheduled-1d@America/New_York:%Y-%m-%d}", "data/date=2026-10-23"),
        ("s3://bucket/{date}/{{ unscheduled }}/*.parquet", "s3://bucket/{date}/{{ unscheduled }}/*.parquet"),
    ],
)
def test_field_is_the_scheduled_start(text: str, expected: str) -> None:
    assert fill(text, DUE) == expected


@pytest.mark.parametrize(
    "field", ["{scheduled}", "{scheduled:}", "{scheduled-1:%Y}", "{scheduled-1y:%Y}", "{scheduled %Y}"]
)
def test_field_that_is_none_is_refused_and_not_taken_for_a_path(field: str) -> None:
    with pytest.raises(ValueError, match=r"is no scheduled start\. Write it like \{scheduled-1d@Europe/Berlin:"):
        fill(f"data/date={field}", DUE)


def test_hours_have_passed_whatever_zone_the_start_is_given_in() -> None:
    assert fill("{scheduled+24h@Europe/Berlin:%H}", DUE.astimezone(ZoneInfo("Europe/Berlin"))) == "01"


def test_offset_beyond_the_calendar_is_refused() -> None:
    for offset in ("-900000d", "+99999999999999999999h"):
        with pytest.raises(ValueError, match="is out of the calendar"):
            fill(f"{{scheduled{offset}:%Y}}", DUE)


def test_unknown_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="names no time zone that is known here: Mars/Olympus"):
        fill("{scheduled@Mars/Olympus:%Y}", DUE)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("data", "data"),
        ("data/date={scheduled:%Y-%m-%d}", "data"),
        ("date={scheduled:%Y-%m-%d}/hour={scheduled:%H}", "."),
        ("data/region=eu/year={scheduled:%Y}/month={scheduled:%m}/day={scheduled:%d}", "data/region=eu"),
        ("s3://bucket/data/{scheduled:%Y/%m/%d}/*.parquet?region=eu", "s3://bucket/data?region=eu"),
    ],
)
def test_folder_above_the_field(place: str, expected: str) -> None:
    assert above_scheduled_start(place) == expected


@pytest.fixture
def due(prefect_server: str) -> Callable[..., tuple[FlowRun, State[Any]]]:
    """Runs a flow now that was due at a time that is long past."""

    def run(flow: Flow[..., Any], day: int, **parameters: Any) -> tuple[FlowRun, State[Any]]:
        scheduled = Scheduled(scheduled_time=datetime(2026, 11, day, 6, 0, tzinfo=UTC))
        with get_client(sync_client=True) as client:
            created = client.create_flow_run(flow, parameters=parameters, state=scheduled)
            declared = inspect.signature(flow.fn).parameters.values()
            defaults = {each.name: each.default for each in declared if each.default is not each.empty}
            validated = flow.validate_parameters({**defaults, **parameters})
            state: Any = run_flow(flow, flow_run=created, parameters=validated, return_type="state")
            return client.read_flow_run(created.id), state

    return run


@pytest.fixture
def by_month(dataset: Path, tmp_path: Path) -> Path:
    """The dataset, its dates as Spark may have them: `year=2026/month=11/day=1`."""
    for folder in dataset.iterdir():
        year, month, day = (int(part) for part in folder.name.removeprefix("date=").split("-"))
        shutil.copytree(folder, tmp_path / f"by-month/year={year}/month={month}/day={day}")
    return tmp_path / "by-month"


def test_a_late_classify_takes_the_day_it_was_due_and_repeated_has_nothing_to_do(
    due: Callable[..., tuple[FlowRun, State[Any]]], dataset: Path, untrained: dict[str, Path], tmp_path: Path
) -> None:
    places = {
        "source": f"{dataset}/date={{scheduled-1d:%Y-%m-%d}}",
        "output": str(tmp_path / "output"),
        "checkpoint": str(untrained["additive"]),
    }

    late, state = due(classify, 3, **places)
    _, again = due(classify, 3, **places)
    _, missing = due(classify, 4, **places)

    assert state.is_completed(), state.message
    assert f"{dataset}/date=2026-11-02 " in late.name
    manifest = read_manifest(Location.parse(places["output"]), str(late.id))
    assert manifest is not None
    assert manifest.source == f"{dataset}/date=2026-11-02"
    assert [shard.name for shard in manifest.shards] == ["date=2026-11-02/part-0.parquet"]
    assert (again.name, again.message) == ("Completed", "Nothing to do: all 1 shards are up to date.")
    assert missing.is_failed()
    assert f"The source {dataset}/date=2026-11-03 does not exist." in (missing.message or "")


def test_late_runs_take_their_days_of_years_months_and_days(
    due: Callable[..., tuple[FlowRun, State[Any]]], by_month: Path, untrained: dict[str, Path], tmp_path: Path
) -> None:
    places = {"output": str(tmp_path / "output"), "checkpoint": str(untrained["additive"])}
    day_before = "year={scheduled-1d:%Y}/month={scheduled-1d:%-m}/day={scheduled-1d:%-d}"

    _, classified = due(classify, 3, source=f"{by_month}/{day_before}", **places)
    _, filled = due(
        backfill, 3, source=str(by_month), start="{scheduled-2d:%Y-%m-%d}", end="{scheduled-1d:%Y-%m-%d}", **places
    )

    assert classified.is_completed(), classified.message
    runs: Any = filled.result()
    assert [(run["partition"], run["state"], run["rows"]) for run in runs] == [
        ("year=2026/month=11/day=1", "Completed", 105),
        ("year=2026/month=11/day=2", "Completed", 0),
    ]


def test_a_late_backfill_takes_the_days_before_it_was_due(
    due: Callable[..., tuple[FlowRun, State[Any]]], dataset: Path, untrained: dict[str, Path], tmp_path: Path
) -> None:
    late, state = due(
        backfill,
        5,
        source=str(dataset),
        output=str(tmp_path / "output"),
        checkpoint=str(untrained["additive"]),
        start="{scheduled-3d:%Y-%m-%d}",
        end="{scheduled-1d:%Y-%m-%d}",
    )

    runs: Any = state.result()
    assert [(run["partition"], run["state"]) for run in runs] == [
        ("date=2026-11-02", "Completed"),
        ("date=2026-11-03", "No input"),
        ("date=2026-11-04", "Completed"),
    ]
    assert f"backfill {dataset} date 2026-11-02 to 2026-11-04 " in late.name

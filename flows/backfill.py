"""The backfill flow: classify a range of dates, one after the other."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.classify import classify
from storage.errors import SourceError
from storage.location import Location, below
from storage.output import Output
from storage.pending import Mode
from storage.source import find_source


def _run_name() -> str:
    parameters = flow_run.parameters
    return f"backfill {parameters['start']} to {parameters['end']} {datetime.now(UTC):%m-%d %H:%M:%S}"


@flow(name="backfill", flow_run_name=_run_name)
def backfill(
    source: str,
    output: str,
    *,
    start: date,
    end: date,
    registry: str = "registry",
    checkpoint: str = "champion",
    mode: Mode = "missing",
    partition: str = "date",
) -> State[dict[str, Any]]:
    """Classify every date from start to end, both included. A date that fails does not stop the others.

    An output that exists keeps the settings it was made with; a new one gets the defaults of classify.

    Args:
        source: Folder or URI with Hive partitions of dates, such as date=2026-11-01.
        output: Folder or URI for predictions, attention and manifests; the same for all dates.
        start: First date.
        end: Last date, included.
        registry: Folder or URI of the checkpoint registry.
        checkpoint: "champion", a version in the registry, or a folder with config.json and model.safetensors.
        mode: Score what has no output ("missing"), also what another checkpoint scored ("stale"), or "all".
        partition: Name of the partition column that holds the date.
    """
    if end < start:
        raise SourceError(f"The backfill ends on {end}, before it starts on {start}. Swap start and end.")
    logger = get_run_logger()
    days = [start + timedelta(days=offset) for offset in range((end - start).days + 1)]
    recorded = Output.recorded_settings(Location.parse(output))
    settings = {name: value for name, value in recorded.items() if name in classify.parameters.properties}
    table = []
    for day in days:
        place = below(source, f"{partition}={day.isoformat()}")
        try:
            find_source(place)
        except SourceError as error:
            logger.info("%s has no input: %s", day, error)
            table.append({partition: str(day), "state": "No input", "message": str(error)})
            continue
        state = classify(
            place, output, registry=registry, checkpoint=checkpoint, mode=mode, **settings, return_state=True
        )
        table.append({partition: str(day), "state": state.name or "", "message": state.message or ""})
    create_table_artifact(table, key="backfill-partitions", description=f"{len(days)} dates from {start} to {end}")
    return _final_state(table)


def _final_state(table: list[dict[str, Any]]) -> State[dict[str, Any]]:
    counts = {name: sum(row["state"] == name for row in table) for name in ("Completed", "No input")}
    failed = [row for row in table if row["state"] not in counts]
    summary = f"{counts['Completed']} of {len(table)} dates completed, {counts['No input']} without input"
    if counts["No input"] == len(table):
        return Failed(message=f"None of the {len(table)} dates has input. First: {table[0]['message']}")
    if failed:
        return Failed(message=f"{summary}, {len(failed)} failed. First: {failed[0]['message']}")
    return Completed(message=f"{summary}.")

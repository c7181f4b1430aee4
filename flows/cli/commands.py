"""The commands that run something: the three flows in this process, and the sample of real files.

Owns what is printed when they have ended. A flow's options are its own, and so is what it does.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, cast

from prefect import Flow, State
from prefect.exceptions import FailedRun
from pydantic import Field

import flows.backfill
import flows.classify
import flows.retrain
from flows.cli import DONE, FAILED
from flows.cli.checkpoints import card_facts
from flows.cli.printing import Printer, printer, progress
from flows.cli.sample import write_sample
from flows.cli.server import start_prefect
from flows.orchestration.credentials import refuse_credentials
from flows.orchestration.facts import run_facts
from storage.locations import Location
from storage.output.manifests import RunManifest, read_manifest
from storage.registry.checkpoints import Registry

Ending = Callable[[Printer, State[Any], Mapping[str, Any]], None]


def _as_command(flow: Flow[..., Any], show_ending: Ending) -> Callable[..., int]:
    """A command with the flow's own signature and help. show_ending: prints what its final state has to say."""

    @functools.wraps(flow.fn)
    def command(*args: Any, **options: Any) -> int:
        bound = inspect.signature(flow.fn).bind(*args, **options)
        bound.apply_defaults()
        refuse_credentials(bound.arguments)  # before a run exists
        start_prefect()
        state: State[Any] = cast(Any, flow)(*bound.args, **bound.kwargs, return_state=True)
        outcome: Any = state.result(raise_on_failure=False)
        if isinstance(outcome, Exception) and not isinstance(outcome, FailedRun):
            raise outcome
        show_ending(printer(), state, bound.arguments)
        return DONE if state.is_completed() else FAILED

    return command


def _show_classified(to: Printer, state: State[Any], options: Mapping[str, Any]) -> None:
    manifest = read_manifest(Location.parse(options["output"]), str(state.state_details.flow_run_id))
    if manifest is None:
        _show_message(to, state)
    else:
        show_run(to, manifest)


def show_run(to: Printer, manifest: RunManifest) -> None:
    """The closing summary of a classify run: its facts, and what failed."""
    to.facts(run_facts(manifest))
    failures = [("failed", f"{failure.name}: {failure.reason}") for failure in manifest.failures]
    to.lines(failures, rest="failures", kept_in="the manifest")


def _show_backfilled(to: Printer, state: State[Any], options: Mapping[str, Any]) -> None:
    runs: Any = state.result(raise_on_failure=False)
    if isinstance(runs, list):
        show_partitions(to, runs)
    _show_message(to, state)


def show_partitions(to: Printer, runs: list[dict[str, Any]]) -> None:
    """A row for each partition of a backfill; those that completed need no words."""
    rows = [
        (
            run["partition"],
            run["state"],
            f"{run['rows']:,}",
            f"{run['errors']:,}",
            f"{run['seconds']:.1f}",
            "" if run["state"] == "Completed" else run["message"],
        )
        for run in runs
    ]
    to.table(("partition", "state", "rows", "errors", "seconds", ""), rows)


def _show_retrained(to: Printer, state: State[Any], options: Mapping[str, Any]) -> None:
    result = state.result()
    stored = Registry.open(options["registry"]).load(result["version"])
    decision = {"promoted": "champion"}.get(result["outcome"], result["outcome"])
    to.facts(card_facts(stored.card) | {"checkpoint": str(stored.location), decision: state.message or ""})


def _show_message(to: Printer, state: State[Any]) -> None:
    show = to.say if state.is_completed() else to.complain
    show(state.message or state.name or "done")


classify = _as_command(flows.classify.classify, _show_classified)
backfill = _as_command(flows.backfill.backfill, _show_backfilled)
retrain = _as_command(flows.retrain.retrain, _show_retrained)


def sample(
    out: str,
    *,
    rows: Annotated[int, Field(ge=1)] = 20_000,
    fragment_bytes: Annotated[int, Field(ge=1)] = 512,
    days: Annotated[int, Field(ge=1)] = 7,
    start: date = date(2026, 11, 1),
) -> int:
    """Write labelled fragments of the files of this Python environment, partitioned by date.

    The same files give the same sample.

    Args:
        out: Folder to write to.
        rows: Fragments in all, the same number of each file type.
        fragment_bytes: Length of a fragment.
        days: Dates to spread them over.
        start: First date.
    """
    with progress("fragments", rows) as bar:
        counts = write_sample(
            Path(out),
            rows=rows,
            fragment_bytes=fragment_bytes,
            days=days,
            start=start,
            on_progress=lambda done, total: bar(completed=done),
        )
    to = printer()
    to.say(f"{rows:,} fragments of {fragment_bytes} bytes in {days} files under {out}")
    to.say(f"file types: {', '.join(f'{label} {count:,}' for label, count in counts.items())}")
    return DONE

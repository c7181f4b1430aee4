"""The commands of the command line: each runs a flow in this process, or prints what storage says."""

import functools
import inspect
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, cast

from prefect import Flow, State
from prefect.exceptions import FailedRun
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import flows.backfill
import flows.classify
import flows.retrain
from flows.cli.sample import write_sample
from flows.cli.session import DONE, FAILED, start_prefect
from flows.orchestration.credentials import refuse_credentials
from flows.orchestration.report import print_summary
from storage.locations import Location
from storage.output.manifests import read_manifest
from storage.registry.checkpoints import Registry

_out = Console(soft_wrap=True, highlight=False)
_errors = Console(stderr=True, soft_wrap=True, highlight=False)

Summary = Callable[[State[Any], dict[str, Any]], None]

_HEADINGS = {"promoted": "champion", "rejected": "rejected", "unchanged": "unchanged"}


def _as_command(flow: Flow[..., Any], summarise: Summary) -> Callable[..., int]:
    """A command with the flow's own signature and help. summarise: prints what a final state has to say."""

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
        summarise(state, bound.arguments)
        return DONE if state.is_completed() else FAILED

    return command


def _classified(state: State[Any], options: dict[str, Any]) -> None:
    manifest = read_manifest(Location.parse(options["output"]), str(state.state_details.flow_run_id))
    if manifest is None:
        _print_message(state)
    else:
        print_summary(manifest, _out)


def _print_message(state: State[Any], options: dict[str, Any] | None = None) -> None:
    console = _out if state.is_completed() else _errors
    console.print(escape(state.message or state.name or "done"))


def _backfilled(state: State[Any], options: dict[str, Any]) -> None:
    runs: Any = state.result(raise_on_failure=False)
    if isinstance(runs, list):
        table = Table("partition", "state", "rows", "errors", "seconds", "", box=None)
        for run in runs:
            counts = (f"{run['rows']:,}", f"{run['errors']:,}", f"{run['seconds']:.1f}")
            message = "" if run["state"] == "Completed" else run["message"]
            table.add_row(*map(escape, (run["partition"], run["state"], *counts, message)))
        _out.print(table)
    _print_message(state)


def _retrained(state: State[Any], options: dict[str, Any]) -> None:
    result = state.result()
    stored = Registry.open(options["registry"]).load(result["version"])
    test, training = stored.card["test"], stored.card["training"]
    table = Table.grid(padding=(0, 2))
    epochs = f"{len(training['epochs'])} epochs in {training['seconds']:.0f} s, the best was {training['best_epoch']}"
    measures = f"accuracy {test['accuracy']:.4f}, macro-F1 {test['macro_f1']:.4f}, calibration error {test['ece']:.4f}"
    for name, value in (
        ("training", f"{epochs}; stopped by {training['stopped_by']}, from {training['started_from']}"),
        (
            "test",
            f"{measures}, on {test['num_rows']:,} rows (commonest class {test['majority_accuracy']:.4f})",
        ),
        ("checkpoint", str(stored.location)),
        (_HEADINGS[result["outcome"]], state.message or ""),
    ):
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    _out.print(table)


classify = _as_command(flows.classify.classify, _classified)
backfill = _as_command(flows.backfill.backfill, _backfilled)
retrain = _as_command(flows.retrain.retrain, _retrained)


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
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bars:
        bar = bars.add_task("fragments", total=rows)
        counts = write_sample(
            Path(out),
            rows=rows,
            fragment_bytes=fragment_bytes,
            days=days,
            start=start,
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    _out.print(f"{rows:,} fragments of {fragment_bytes} bytes in {days} files under {out}")
    _out.print(f"file types: {', '.join(f'{label} {count:,}' for label, count in counts.items())}")
    return DONE

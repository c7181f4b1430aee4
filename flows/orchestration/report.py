"""What a run shows of itself: a report, a table and lines in the log in Prefect, a summary in the terminal.

Everything here is drawn from the run's manifest, which holds nothing of a row but its position.
"""

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.printing import counted
from flows.orchestration.drift import describe_drift, describe_estimate
from storage.locations import as_uri
from storage.output.manifests import FIRST_ERRORS, RunManifest

# Longer lists are in the manifest; a page or a terminal is for reading.
_MOST_CLASSES = 20
_MOST_FAILURES = 10
_MOST_SHARDS = 1000

_MEASURES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
_COUNTED_FROM = "Rows are counted from 0, in the input file."
_COUNTS = ("rows", "errors", "tokens", "seconds")


def publish_report(manifest: RunManifest) -> None:
    """Put the run's report, its table of shards, a link to the output and a few log lines on the flow run's page."""
    _log(manifest)
    create_markdown_artifact(_markdown(manifest), key="classify-report", description=f"Run {manifest.run_name}")
    create_link_artifact(
        as_uri(manifest.output),
        link_text=manifest.output,
        key="classify-output",
        description="Predictions and attention",
    )
    if rows := list(islice(_shard_rows(manifest), _MOST_SHARDS)):
        num_rows = len(manifest.failures) + len(manifest.shards)
        left_out = f": the first {_MOST_SHARDS:,} of {num_rows:,}" if num_rows > _MOST_SHARDS else ""
        create_table_artifact(
            rows, key="classify-shards", description=f"Shards that this run scored or could not score{left_out}"
        )


def _log(manifest: RunManifest) -> None:
    """What somebody who is called at night looks for."""
    logger = get_run_logger()
    for failure in manifest.failures[:_MOST_FAILURES]:
        logger.error("%s could not be scored: %s", failure.name, failure.reason)
    has_errors = manifest.num_errors > 0
    has_drifted = bool(manifest.drift and manifest.drift["drifted"])
    warnings = {"errors": has_errors, "first errors": has_errors, "drift": has_drifted}
    for name, fact in _facts(manifest):
        logger.log(logging.WARNING if warnings.get(name) else logging.INFO, "%s: %s", name, fact)


def _place(file: str, row: int) -> str:
    return f"{file}, row {row}"


def _shard_rows(manifest: RunManifest) -> Iterator[dict[str, Any]]:
    """Those that failed come first. What may be long comes last, since cells do not wrap."""
    for failure in manifest.failures:
        yield {"shard": failure.name, "state": "failed", **dict.fromkeys(_COUNTS, ""), "why": failure.reason}
    for shard in manifest.shards:
        counts = (
            f"{shard.num_rows:,}",
            f"{sum(shard.errors.values()):,}",
            f"{shard.num_tokens:,}",
            f"{shard.seconds:.2f}",
        )
        named = dict(zip(_COUNTS, counts, strict=True))
        yield {"shard": shard.name, "state": "scored", **named, "why": shard.reason}


def print_summary(manifest: RunManifest, console: Console) -> None:
    """The closing summary in a terminal."""
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(manifest):
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table)
    for failure in manifest.failures[:_MOST_FAILURES]:
        console.print(f"[red]failed[/red]  {escape(failure.name)}: {escape(failure.reason)}", soft_wrap=True)
    if len(manifest.failures) > _MOST_FAILURES:
        console.print(f"[red]failed[/red]  {len(manifest.failures) - _MOST_FAILURES} more, all in the manifest")


def _facts(manifest: RunManifest) -> Iterator[tuple[str, str]]:
    totals = manifest.totals
    if not manifest.shards and not manifest.failures:
        yield "result", f"nothing to do: all {manifest.num_up_to_date} shards are up to date"
    if manifest.failures:
        failures = counted(len(manifest.failures), "failure")
        yield "not scored", f"{failures}; when what is wrong is mended, the same command scores them"
    if manifest.shards:
        shards = counted(len(manifest.shards), "shard")
        yield "rows", f"{totals['rows']:,} in {shards} ({manifest.num_up_to_date} more were up to date)"
        yield "errors", _counts(totals["errors"]) or "none"
        if places := first_errors(manifest):
            first = "; ".join(f"{error} in {_place(*found[0])}" for error, found in places.items())
            yield "first errors", f"{first} (rows from 0)"
        if totals["truncated"]:
            yield (
                "truncated",
                f"{totals['truncated']:,} rows longer than {manifest.settings['max_tokens']:,} tokens",
            )
        speed = f"{totals['tokens_per_second'] / 1e6:.2f} million a second"
        yield "tokens", f"{totals['tokens']:,} in {manifest.seconds:.1f} s, {speed} ({manifest.engine})"
        yield "predictions", _counts(totals["predictions"]) or "none"
    if manifest.evaluation:
        yield "against labels", _measures(manifest.evaluation)
    if manifest.drift:
        yield "drift", describe_drift(manifest.drift)
        yield "estimated accuracy", describe_estimate(manifest.drift)
    yield "checkpoint", manifest.checkpoint
    yield "output", manifest.output
    yield "manifest", f"{manifest.output}/runs/{manifest.run_id}.json"


def _measures(evaluation: dict[str, float]) -> str:
    return ", ".join(f"{_MEASURES[name]} {value:.4f}" for name, value in evaluation.items())


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_MOST_CLASSES]]
    if len(counts) > _MOST_CLASSES:
        shown.append(f"{len(counts) - _MOST_CLASSES} more")
    return ", ".join(shown)


def _markdown(manifest: RunManifest) -> str:
    sections = [_headline(manifest), _counts_table(manifest), _findings(manifest), _failed(manifest)]
    return "\n\n".join(section for section in (*sections, _errors(manifest), _classes(manifest)) if section) + "\n"


def _headline(manifest: RunManifest) -> str:
    if not manifest.shards and not manifest.failures:
        return f"## Nothing to do: all {manifest.num_up_to_date:,} shards are up to date"
    failed = f", {counted(len(manifest.failures), 'failure')}" if manifest.failures else ""
    return f"## {counted(manifest.totals['rows'], 'row')} scored, {manifest.num_errors:,} with errors{failed}"


def _counts_table(manifest: RunManifest) -> str:
    if not manifest.shards:
        return ""
    totals = manifest.totals
    counts = {
        "shards": f"{len(manifest.shards):,}",
        "up to date before": f"{manifest.num_up_to_date:,}",
        "rows": f"{totals['rows']:,}",
        "errors": f"{manifest.num_errors:,}",
        "truncated": f"{totals['truncated']:,}",
        "tokens": f"{totals['tokens']:,}",
        "seconds": f"{manifest.seconds:.1f}",
        "tokens a second": f"{totals['tokens_per_second'] / 1e6:.2f} million",
    }
    return _table([tuple(counts), tuple(counts.values())])


def _findings(manifest: RunManifest) -> str:
    facts = {}
    if manifest.evaluation:
        facts["Against labels"] = _measures(manifest.evaluation)
    if manifest.drift:
        facts["Drift"] = describe_drift(manifest.drift)
        facts["Estimated accuracy"] = describe_estimate(manifest.drift)
    computed = f", {manifest.engine}" if manifest.engine else ""
    facts["Checkpoint"] = f"`{manifest.checkpoint}`{computed}"
    facts["Source"] = f"`{manifest.source}`"
    record = f"{manifest.output}/runs/{manifest.run_id}.json"
    facts["Output"] = f"[{manifest.output}]({as_uri(manifest.output)}), [this run's manifest]({as_uri(record)})"
    return "\n".join(f"- **{name}**: {fact}" for name, fact in facts.items())


def _failed(manifest: RunManifest) -> str:
    shown = [f"- `{failure.name}`: {_cell(failure.reason)}" for failure in manifest.failures[:_MOST_FAILURES]]
    if left := len(manifest.failures) - len(shown):
        shown.append(f"- {left:,} more, in the table of shards and in the manifest")
    return "\n".join(["### Not scored", "", *shown]) if shown else ""


def _errors(manifest: RunManifest) -> str:
    """By kind, with where such rows are first found; never what is in them."""
    places = first_errors(manifest)
    lines = []
    for error, count in manifest.totals["errors"].items():
        rows_by_file: dict[str, list[str]] = {}
        for file, row in places.get(error, []):
            rows_by_file.setdefault(file, []).append(str(row))
        found = "; ".join(
            f"`{file}` row{'s' * (len(rows) > 1)} {', '.join(rows)}" for file, rows in rows_by_file.items()
        )
        lines.append(f"- **{error}**: {counted(count, 'row')}{f', first in {found}' if found else ''}")
    return "\n".join(["### Rows without a prediction", "", *lines, "", _COUNTED_FROM]) if lines else ""


def first_errors(manifest: RunManifest) -> dict[str, list[tuple[str, int]]]:
    """Of each error, the input file and position of the first FIRST_ERRORS rows that have it."""
    places: dict[str, list[tuple[str, int]]] = {error: [] for error in manifest.totals["errors"]}
    for shard in manifest.shards:
        for error, rows in shard.first_errors.items():
            found = places[error]
            found += [(shard.file, row) for row in rows[: FIRST_ERRORS - len(found)]]
    return {error: found for error, found in places.items() if found}


def _classes(manifest: RunManifest) -> str:
    predictions: dict[str, int] = manifest.totals["predictions"]
    if not predictions:
        return ""
    total = sum(predictions.values())
    rows = [(name, count) for name, count in list(predictions.items())[:_MOST_CLASSES]]
    if len(predictions) > _MOST_CLASSES:
        rest = total - sum(count for _, count in rows)
        rows.append((f"{len(predictions) - _MOST_CLASSES:,} more classes", rest))
    shares = [(name, f"{count:,}", f"{count / total:.1%}") for name, count in rows]
    return "### Predicted classes\n\n" + _table([("class", "rows", "share"), *shares])


def _table(rows: list[tuple[str, ...]]) -> str:
    """Markdown; the first row is the heading."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

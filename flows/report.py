"""What a run shows of itself: a Markdown report and a table in Prefect, a summary in the terminal.

Everything here is drawn from the run's manifest.
"""

from collections.abc import Iterator

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.drift import describe_drift, describe_estimate
from storage.manifest import RunManifest

# Longer lists are in the manifest; a page or a terminal is for reading.
_MOST_CLASSES = 20
_MOST_FAILURES = 10


def publish_report(manifest: RunManifest) -> None:
    """Put the run's report, its table of shards and a link to the output on the page of the flow run."""
    create_markdown_artifact(_markdown(manifest), key="classify-report", description=f"Run {manifest.run_name}")
    create_link_artifact(
        _link(manifest.output),
        link_text=manifest.output,
        key="classify-output",
        description="Predictions and attention",
    )
    if manifest.shards:
        rows = [
            {
                "shard": shard.name,
                "why": shard.reason,
                "rows": shard.num_rows,
                "errors": sum(shard.errors.values()),
                "tokens": shard.num_tokens,
                "seconds": shard.seconds,
            }
            for shard in manifest.shards
        ]
        create_table_artifact(rows, key="classify-shards", description="The shards that this run scored")


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
    else:
        yield (
            "rows",
            f"{totals['rows']:,} in {len(manifest.shards)} shards ({manifest.num_up_to_date} more were up to date)",
        )
        yield "errors", _counts(totals["errors"]) or "none"
        if totals["truncated"]:
            yield (
                "truncated",
                f"{totals['truncated']:,} rows longer than {manifest.settings['max_tokens']:,} tokens",
            )
        speed = f"{totals['tokens_per_second'] / 1e6:.2f} million a second"
        yield "tokens", f"{totals['tokens']:,} in {manifest.seconds:.1f} s, {speed} ({manifest.engine})"
        yield "predictions", _counts(totals["predictions"]) or "none"
    if manifest.evaluation:
        measures = (f"{name.replace('_', '-')} {value:.4f}" for name, value in manifest.evaluation.items())
        yield "against labels", ", ".join(measures)
    if manifest.drift:
        yield "drift", describe_drift(manifest.drift)
        yield "estimated accuracy", describe_estimate(manifest.drift)
    yield "checkpoint", manifest.checkpoint
    yield "output", manifest.output
    yield "manifest", f"{manifest.output}/runs/{manifest.run_id}.json"


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_MOST_CLASSES]]
    if len(counts) > _MOST_CLASSES:
        shown.append(f"{len(counts) - _MOST_CLASSES} more")
    return ", ".join(shown)


def _markdown(manifest: RunManifest) -> str:
    facts = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(manifest))
    lines = [f"# {manifest.state.capitalize()}", "", "| | |", "|---|---|", facts]
    if manifest.failures:
        lines += ["", "## Failed", ""]
        lines += [f"- `{failure.name}`: {_cell(failure.reason)}" for failure in manifest.failures[:_MOST_FAILURES]]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _link(output: str) -> str:
    return output if "://" in output else f"file://{output}"

"""What Prefect shows of a classify run: a report, tables, a link to the output, and lines in the log.

Everything here is drawn from the run's manifest. How the facts of a run are worded is in `facts`; what a terminal shows
of them is the command line's business.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import polars as pl
from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.orchestration.facts import (
    DRIFT_ASPECTS,
    MOST_CLASSES,
    counted,
    describe_drift,
    describe_estimate,
    first_errors,
    run_facts,
)
from flows.pages.figures import LEAST_SURE
from flows.pages.page import write_page
from flows.pages.report import Report
from flows.pages.rows import Row
from flows.pages.shading import Piece, harmless
from storage.errors import first_line
from storage.locations import Location, as_uri
from storage.output.manifests import RunManifest

# Longer lists are in the manifest; a page is for reading.
_MOST_FAILURES = 10
MOST_SHARDS = 1000

_OTHER_SECTIONS = {"result", "not scored", "errors", "first errors", "predictions"}
# Characters of a line of tokens on Prefect's page, and what such a line is made of.
_PAGE_WIDTH = 80
_UNIT = re.compile(r"</?mark>|&#[0-9]+;|.")
_COUNTED_FROM = "Rows are counted from 0, in the input file."


def leave_page(
    make: Callable[[], Report],
    place: Location,
    key: str,
    num_rows: int = 0,
    meanwhile: Callable[[], None] | None = None,
) -> str:
    """Write the page about a run in its place and link to it on Prefect's page; why that failed, "" if it did not.

    num_rows: how many of its least sure rows Prefect's page shows as well. meanwhile: what is to be done beside the
    making of the page, such as waiting for Prefect's server; what it raises is raised.
    What was scored is scored, whatever becomes of a page about it: so no error of its making fails the run.
    """
    with ThreadPoolExecutor(1, "page") as pool:
        page = pool.submit(_write_page, make, place)
        if meanwhile:
            meanwhile()
    try:
        report = page.result()
        least_sure = [row for row in report.rows if LEAST_SURE in row.why and row.score is not None]
        if rows := sorted(least_sure, key=lambda row: row.score or 0.0)[:num_rows]:
            description = "The least sure rows; what is attended to most is marked"
            create_markdown_artifact(rows_in_markdown(rows), key=f"{key}-rows", description=description)
    except (Exception, pl.exceptions.PanicException) as error:
        get_run_logger().warning("No report was made of this run", exc_info=error)
        return f"no report was made: {type(error).__name__}: {first_line(error)}"
    link = as_uri(str(place))
    create_link_artifact(link, link_text=str(place), key=key, description="The report, a page to open in a browser")
    return ""


def _write_page(make: Callable[[], Report], place: Location) -> Report:
    report = make()
    write_page(report, place)
    return report


def publish_report(manifest: RunManifest) -> None:
    """Put the run's report and a few log lines on the flow run's page."""
    _log(manifest)
    create_markdown_artifact(run_report(manifest), key="classify-report", description=f"Run {manifest.run_name}")


def publish_tables(manifest: RunManifest) -> None:
    """Put the run's tables and a link to the output on the flow run's page: what can be said before there is a page."""
    create_link_artifact(
        as_uri(manifest.output),
        link_text=manifest.output,
        key="classify-output",
        description="Predictions and attention",
    )
    if rows := shard_rows(manifest):
        left_out = f": the first {MOST_SHARDS:,} of {len(rows):,}" if len(rows) > MOST_SHARDS else ""
        create_table_artifact(
            rows[:MOST_SHARDS],
            key="classify-shards",
            description=f"Shards that this run scored or could not score{left_out}",
        )
    if manifest.drift:
        verdict = f"Drift: {describe_drift(manifest.drift)}. Estimated accuracy: {describe_estimate(manifest.drift)}."
        create_table_artifact(drift_rows(manifest.drift), key="classify-drift", description=verdict)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. Cells may hold any text."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (headings, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def rows_in_markdown(rows: Sequence[Row]) -> str:
    """Rows with their tokens, those that are attended to marked. Whatever they hold is shown and does nothing.

    Prefect's page (3.9.1) draws marks in a block of HTML, and neither marks nor characters by number in a line of
    Markdown. Its second page, which is to be switched to, draws the block without the marks.
    """
    return "\n\n".join(map(_row_in_markdown, rows)) + "\n"


def _row_in_markdown(row: Row) -> str:
    score = "" if row.score is None else f", {row.score:.1%}"
    label = "" if row.label is None else f", labelled {row.label}"
    prediction = "no prediction" if row.prediction is None else row.prediction
    heading = f"**{_plain(f'{row.file}, row {row.row:,}')}**: {_plain(f'{prediction}{score}{label}')}"
    if row.tokens is None:
        return f"{heading}\n\n{_plain(row.note)}"
    lines = []
    for gap, stretch in zip_longest(row.tokens.gaps, row.tokens.stretches, fillvalue=()):
        if gap:
            lines.append(f"... {gap:,} more tokens ...")
        for line in stretch or ():
            sides = (line.pieces, line.ascii) if line.ascii else (line.pieces,)
            between = "" if row.tokens.kind == "text" else " "
            lines += _lines("  ".join(between.join(map(_marked, side)) for side in sides))
    return f"{heading}\n\n<pre>{'<br>'.join(lines)}</pre>"


def _lines(html: str) -> Iterator[str]:
    """Marked text cut into lines that the page has room for, since it would hide what goes beyond."""
    line, width, is_marked = "", 0, False
    for found in _UNIT.findall(html):
        if found.startswith("<"):
            is_marked = found == "<mark>"
        elif width == _PAGE_WIDTH:
            yield line + "</mark>" * is_marked
            line, width = "<mark>" * is_marked, 0
        line, width = line + found, width + (not found.startswith("<"))
    yield line


def _marked(piece: Piece) -> str:
    return f"<mark>{_inert(piece.text)}</mark>" if piece.level else _inert(piece.text)


def _inert(text: str) -> str:
    """Text in which HTML finds nothing: all but letters and digits by number."""
    return "".join(char if char.isalnum() and char.isascii() else f"&#{ord(char)};" for char in text)


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", harmless(text))


def _log(manifest: RunManifest) -> None:
    """What somebody who is called at night looks for."""
    logger = get_run_logger()
    for failure in manifest.failures[:_MOST_FAILURES]:
        logger.error("%s could not be scored: %s", failure.name, failure.reason)
    has_errors = manifest.num_errors > 0
    has_drifted = bool(manifest.drift and manifest.drift["drifted"])
    warnings = {"errors": has_errors, "first errors": has_errors, "drift": has_drifted}
    for name, fact in run_facts(manifest).items():
        logger.log(logging.WARNING if warnings.get(name) else logging.INFO, "%s: %s", name, fact)


def shard_rows(manifest: RunManifest) -> list[dict[str, Any]]:
    """A row for each shard, those that failed first. What may be long comes last, since cells do not wrap."""
    no_counts = dict.fromkeys(("rows", "errors", "tokens", "seconds"), "")
    rows: list[dict[str, Any]] = [
        {"shard": failure.name, "state": "failed", **no_counts, "why": failure.reason} for failure in manifest.failures
    ]
    for shard in manifest.shards:
        counts = {"rows": shard.num_rows, "errors": sum(shard.errors.values()), "tokens": shard.num_tokens}
        shown = {name: f"{count:,}" for name, count in counts.items()} | {"seconds": f"{shard.seconds:.2f}"}
        rows.append({"shard": shard.name, "state": "scored", **shown, "why": shard.reason})
    return rows


def drift_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table of drift, one for each aspect. record: as in a manifest."""
    return [
        {
            "aspect": DRIFT_ASPECTS[name],
            "stability index": f"{shift['psi']:.3f}",
            "Jensen-Shannon (bits)": f"{shift['jensen_shannon']:.4f}",
            "limit (bits)": f"{shift['limit']:.4f}",
            "drifted": "yes" if shift["drifted"] else "no",
        }
        for name, shift in record["shifts"].items()
    ]


def run_report(manifest: RunManifest) -> str:
    """The report in Markdown."""
    sections = (_headline(manifest), _facts(manifest), _failed(manifest), _errors(manifest), _classes(manifest))
    return "\n\n".join(section for section in sections if section) + "\n"


def _headline(manifest: RunManifest) -> str:
    if not manifest.shards and not manifest.failures:
        return f"## Nothing to do: all {manifest.num_up_to_date:,} shards are up to date"
    failed = f", {counted(len(manifest.failures), 'failure')}" if manifest.failures else ""
    return f"## {counted(manifest.totals['rows'], 'row')} scored, {manifest.num_errors:,} with errors{failed}"


def _facts(manifest: RunManifest) -> str:
    """What the headline and the other sections do not say, places as links."""
    facts = {name: fact for name, fact in run_facts(manifest).items() if name not in _OTHER_SECTIONS}
    facts |= {name: f"`{facts[name]}`" for name in ("checkpoint", "source")}
    places = [name for name in ("output", "manifest", "report") if name in facts]
    facts |= {name: f"[{facts[name]}]({as_uri(facts[name])})" for name in places}
    return "\n".join(f"- **{name.capitalize()}**: {fact}" for name, fact in facts.items())


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


def _classes(manifest: RunManifest) -> str:
    counts: dict[str, int] = manifest.totals["predictions"]
    if not counts:
        return ""
    total = sum(counts.values())
    shown = dict(list(counts.items())[:MOST_CLASSES])
    if left := len(counts) - len(shown):
        shown[f"{left:,} more classes"] = total - sum(shown.values())
    rows = [(name, f"{count:,}", f"{count / total:.1%}") for name, count in shown.items()]
    return "### Predicted classes\n\n" + markdown_table(("class", "rows", "share"), rows)

"""What a run has to say for itself, as facts: a name and a text each, drawn from its manifest.

The run's log, its page in Prefect and the terminal show the same facts. This file owns their names and wording and
knows nothing about how they are shown. A manifest holds nothing of a row but its position, and so do the facts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from storage.input.sources import PassedOver
from storage.output.manifests import FIRST_ERRORS, RunManifest, manifest_path
from storage.registry.cards import MEASURE_NAMES

MOST_CLASSES = 20
"""Classes, or kinds of error, that are named one by one. The manifest has all of them."""

DRIFT_ASPECTS = {
    "tokens": "which tokens there are",
    "lengths": "how long the rows are",
    "classes": "which classes are predicted",
    "confidence": "how sure the predictions are",
}

# Of a manifest, as they stand there.
_TOLD = ("run_id", "run_name", "state", "source", "output", "mode", "checkpoint", "seconds", "evaluation")
_MOST_PASSED_OVER = 5


def counted(number: int, noun: str) -> str:
    """Such as "1 file" or "5,714 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def run_facts(manifest: RunManifest) -> dict[str, str]:
    """The facts of a classify run, in the order in which they are read."""
    facts = {}
    totals = manifest.totals
    if not manifest.shards and not manifest.failures:
        facts["result"] = f"nothing to do: all {manifest.num_up_to_date} shards are up to date"
        if manifest.state == "failed":
            facts["result"] += ", and more of their rows have no prediction than max_errors allows"
    elif manifest.state == "failed" and not manifest.failures:
        facts["result"] = "failed: more rows have no prediction than max_errors allows"
    if manifest.failures:
        failures = counted(len(manifest.failures), "failure")
        facts["not scored"] = f"{failures}; when what is wrong is mended, the same command scores them"
    if manifest.shards:
        shards = counted(len(manifest.shards), "shard")
        facts["rows"] = f"{totals['rows']:,} in {shards} ({manifest.num_up_to_date} more were up to date)"
        facts["errors"] = _counts(totals["errors"])
        if first := first_errors_in_words(manifest):
            facts["first errors"] = first
        if "abstain_below" in manifest.settings:
            limit = str(manifest.settings["abstain_below"])
            facts["abstained"] = f"{totals['abstained']:,} rows have a score too low for a prediction ({limit})"
        if totals["truncated"]:
            limit = manifest.settings["max_tokens"]
            facts["truncated"] = f"{totals['truncated']:,} rows longer than {limit:,} tokens"
        speed = f"{totals['tokens_per_second'] / 1e6:.2f} million a second"
        facts["tokens"] = f"{totals['tokens']:,} in {manifest.seconds:.1f} s, {speed} ({manifest.engine})"
        facts["predictions"] = _counts(totals["predictions"])
    if manifest.evaluation:
        measures = (f"{MEASURE_NAMES[name]} {value:.4f}" for name, value in manifest.evaluation.items())
        facts["against labels"] = ", ".join(measures)
    if manifest.drift:
        facts["drift"] = describe_drift(manifest.drift)
        facts["estimated accuracy"] = describe_estimate(manifest.drift)
    if manifest.num_passed_over:
        facts["passed over"] = describe_passed_over(manifest.passed_over, manifest.num_passed_over)
    if manifest.notes:
        facts["note"] = "; ".join(manifest.notes)
    places = {"source": manifest.source, "output": manifest.output, "manifest": manifest_place(manifest)}
    if manifest.report:
        places["report"] = report_place(manifest)
    return facts | {"checkpoint": manifest.checkpoint} | places


def describe_passed_over(passed_over: Sequence[PassedOver], number: int) -> str:
    """How many files and folders of a source are not read, with the first of them. number: how many there are."""
    shown = [f"{each.name} ({each.reason})" for each in passed_over[:_MOST_PASSED_OVER]]
    more = f" and {number - len(shown):,} more" if number > len(shown) else ""
    return f"{counted(number, 'name')} of the source: {', '.join(shown)}{more}"


def manifest_place(manifest: RunManifest) -> str:
    """The path or URI at which the manifest lies."""
    return f"{manifest.output}/{manifest_path(manifest.run_id)}"


def report_place(manifest: RunManifest) -> str:
    """The path or URI at which the page about the run lies; "" if it has none."""
    return f"{manifest.output}/{manifest.report}" if manifest.report else ""


def describe_drift(record: Mapping[str, Any]) -> str:
    """In one line, whether the input is like what the checkpoint was measured on. record: as in a manifest."""
    if not record["drifted"]:
        return "none: the rows are like those that the checkpoint was measured on"
    shifts = ", ".join(
        f"{DRIFT_ASPECTS[name]} (index {record['shifts'][name]['psi']:.2f})" for name in record["drifted"]
    )
    return f"{shifts}: not as in the rows that the checkpoint was measured on"


def describe_estimate(record: Mapping[str, Any]) -> str:
    """The accuracy to expect, and what that rests on. record: as in a manifest."""
    doubt = "doubtful, since the input has drifted" if record["drifted"] else "if the checkpoint is calibrated for it"
    return f"{record['estimated_accuracy']:.4f} by mean confidence, without labels, {doubt}"


def first_errors(manifest: RunManifest) -> dict[str, list[tuple[str, int]]]:
    """Of each error, the input file and position of the first FIRST_ERRORS rows that have it."""
    places: dict[str, list[tuple[str, int]]] = {error: [] for error in manifest.totals["errors"]}
    for shard in manifest.shards:
        for error, rows in shard.first_errors.items():
            found = places[error]
            found += [(shard.file, row) for row in rows[: FIRST_ERRORS - len(found)]]
    return {error: found for error, found in places.items() if found}


def first_errors_in_words(manifest: RunManifest) -> str:
    """Where each error is first met, in one line; "" without errors."""
    places = first_errors(manifest).items()
    first = "; ".join(f"{error} in {found[0][0]}, row {found[0][1]}" for error, found in places)
    return f"{first} (rows from 0)" if first else ""


def run_summary(manifest: RunManifest) -> dict[str, Any]:
    """What a program is told of a run: its state, its places and its counts. It holds nothing of a row."""
    return {
        **{name: getattr(manifest, name) for name in _TOLD},
        **{
            name: manifest.totals[name]
            for name in ("rows", "errors", "abstained", "truncated", "tokens", "tokens_per_second")
        },
        "shards": len(manifest.shards),
        "up_to_date": manifest.num_up_to_date,
        "failed": len(manifest.failures),
        "passed_over": manifest.num_passed_over,
        "drifted": manifest.drift["drifted"] if manifest.drift else [],
        "report": report_place(manifest),
    }


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:MOST_CLASSES]]
    if len(counts) > MOST_CLASSES:
        shown.append(f"{len(counts) - MOST_CLASSES} more")
    return ", ".join(shown) or "none"

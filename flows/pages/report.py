"""The facts of a report: what one run, all runs of an output, or a retraining did, and whether all is well.

Owns what a report is made of and what is worth a word of praise or of warning. It is drawn from manifests, cards and
Parquet alone, so it can be made again at any time. Knows nothing about how it looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Any, Literal

from attnlstm.evaluation.chance import FEWEST_ROWS
from attnlstm.evaluation.drift import ASPECTS
from flows.operations.measure import how_sure
from flows.orchestration.facts import DRIFT_ASPECTS, counted, describe_drift, first_errors, run_facts
from flows.pages.figures import Figures, count_predictions
from flows.pages.rows import Row, read_rows
from storage.errors import StorageError
from storage.locations import Location
from storage.output.layout import PREDICTIONS, Output
from storage.output.manifests import FIRST_ERRORS, RunManifest, read_manifests
from storage.output.plan import existing_output
from storage.registry.cards import Card
from storage.registry.checkpoints import Registry

# A page is for reading, and the newest runs are what is read.
_MOST_RUNS = 1000
# Below these an accuracy or a calibration is as it was in the test.
_ACCURACY_SLACK = 0.03
_CALIBRATION_SLACK = 0.05
# What the rest of a page says better.
_SAID_ELSEWHERE = (
    "errors",
    "first errors",
    "predictions",
    "against labels",
    "drift",
    "estimated accuracy",
    "not scored",
)

State = Literal["good", "look", "bad"]
_WORST_FIRST: tuple[State, ...] = ("bad", "look", "good")


@dataclass(frozen=True)
class Check:
    """Something that was looked at. section: the part of the page with more of it."""

    state: State
    text: str
    section: str


@dataclass(frozen=True)
class Overlay:
    """An aspect of the rows as the checkpoint was measured on them, and as they were scored; shares of each bin."""

    aspect: str
    title: str
    labels: tuple[str, ...]
    reference: tuple[float, ...]
    observed: tuple[float, ...]
    drifted: bool
    index: float


@dataclass(frozen=True)
class Report:
    """Everything that a page shows. made: when the facts were gathered, UTC.

    facts: what was run and with what. runs: newest first. errors: by reason, how many rows and the first places.
    drift: of the newest run that measured it. card: the checkpoint's; an empty one where it has none.
    rows_note: why no row is shown, or not all that were asked for.
    """

    title: str
    made: str
    checks: tuple[Check, ...]
    facts: dict[str, str]
    runs: tuple[RunManifest, ...] = ()
    figures: Figures | None = None
    errors: dict[str, tuple[int, tuple[tuple[str, int], ...]]] = field(default_factory=dict)
    drift: tuple[Overlay, ...] = ()
    card: Card = field(default_factory=Card)
    rows: tuple[Row, ...] = ()
    rows_note: str = ""

    @property
    def state(self) -> State:
        """The worst of what was found."""
        return min((check.state for check in self.checks), key=_WORST_FIRST.index, default="good")

    @property
    def headline(self) -> str:
        """Whether all is well, in words."""
        number = sum(check.state != "good" for check in self.checks)
        if self.state == "bad":
            return "Something went wrong"
        return "All is well" if self.state == "good" else f"{number} thing{'s' * (number > 1)} worth a look"


def report_run(
    address: str,
    output: Output,
    source: Location | None,
    manifests: Sequence[RunManifest],
    card: Card,
    num_rows: int,
) -> Report:
    """About what these runs scored, and nothing else of the output: one run, or those of a backfill, newest first.

    address: the output as typed. source: the root of the input, or None for what the output recorded. card: of the
    checkpoint that scored. num_rows: rows to look at, 0 for none.
    """
    names = {shard.name for manifest in manifests for shard in manifest.shards}
    newest = manifests[0]
    title = newest.run_name if len(manifests) == 1 else f"{len(manifests)} runs"
    facts = {name: text for name, text in run_facts(newest).items() if name not in _SAID_ELSEWHERE}
    if len(manifests) > 1:
        facts = _facts_of_output(output, newest.source, manifests)
    facts = {"run": title, "started": spoken_time(newest.started), **facts} if len(manifests) == 1 else facts
    return _gather(title, address, output, source or _recorded_source(address), facts, names, manifests, card, num_rows)


def report_output(address: str, registry: str, num_rows: int) -> Report:
    """About all that an output holds.

    address: path or URI. registry: where the cards of its checkpoints are, if they are anywhere.
    Raises OutputError if there is no output.
    """
    output = existing_output(address)
    folder = output.root / PREDICTIONS
    names = {folder.relative(place.path) for place in output.predictions_files()}
    manifests = list(islice(read_manifests(output.root), _MOST_RUNS))
    source = manifests[0].source if manifests else "unknown"
    facts = _facts_of_output(output, source, manifests)
    card = _find_card(registry, next((each.checkpoint for each in manifests), None))
    return _gather(
        f"output {output.root}", address, output, _recorded_source(address), facts, names, manifests, card, num_rows
    )


def report_retraining(record: Mapping[str, Any], card: Card) -> Report:
    """About a retraining and what became of it. record: as the registry keeps it."""
    outcome, why = record["outcome"], record["why"]
    state: State = "look" if outcome == "rejected" else "good"
    word = {"promoted": "Promoted", "rejected": "Not promoted", "unchanged": "Nothing changed"}.get(outcome, outcome)
    checks = [Check(state, f"{word}: {why}", "card")]
    if test := card.test:
        better = test.accuracy > test.majority_accuracy
        text = f"Test accuracy {test.accuracy:.1%}; the commonest class alone gives {test.majority_accuracy:.1%}"
        checks.append(Check("good" if better else "look", text, "card"))
        if test.num_rows < FEWEST_ROWS:
            checks.append(Check("look", f"{counted(test.num_rows, 'test row')}: {how_sure(test)}", "card"))
        calibrated = test.ece <= _CALIBRATION_SLACK
        checks.append(Check("good" if calibrated else "look", f"Calibration error {test.ece:.3f}", "card"))
    facts = {
        "run": record["run_name"],
        "started": spoken_time(record["started"]),
        "ended": spoken_time(record["ended"]),
        "checkpoint": record["version"],
        "source": card.data.source if card.data else "",
    }
    return Report(record["run_name"], _now(), tuple(checks), facts, card=card)


def _gather(
    title: str,
    address: str,
    output: Output,
    source: Location,
    facts: dict[str, str],
    names: Iterable[str],
    manifests: Sequence[RunManifest],
    card: Card,
    num_rows: int,
) -> Report:
    figures = count_predictions(
        address, names, label_column=output.settings.also.get("label_column"), num_picks=num_rows
    )
    rows: tuple[Row, ...] = ()
    note = "No row is shown, as was asked for." if not num_rows else ""
    if num_rows and figures.files:
        rows = read_rows(output, source, figures.files, figures.picks)
    drift = next((each.drift for each in manifests if each.drift), None)
    checks = [
        *_run_checks(manifests),
        *_count_checks(figures, manifests, may_abstain=output.settings.abstain_below is not None),
        *_label_checks(figures, card),
        *_drift_checks(drift),
    ]
    return Report(
        title=title,
        made=_now(),
        checks=tuple(sorted(checks, key=lambda check: _WORST_FIRST.index(check.state))),
        facts=facts,
        runs=tuple(manifests),
        figures=figures if figures.files or figures.unreadable else None,
        errors=_errors(figures, manifests),
        drift=_overlays(drift, card),
        card=card,
        rows=rows,
        rows_note=note,
    )


def _recorded_source(address: str) -> Location:
    return Location.parse(Output.recorded_source(address))


def _facts_of_output(output: Output, source: str, manifests: Sequence[RunManifest]) -> dict[str, str]:
    settings = output.settings.record()
    facts = {"output": str(output.root), "source": source, "runs": f"{len(manifests):,}"}
    if manifests:
        newest, oldest = manifests[0], manifests[-1]
        facts["from"], facts["to"] = spoken_time(oldest.started), spoken_time(newest.ended)
        facts["checkpoint"] = newest.checkpoint
        seconds = sum(each.seconds for each in manifests)
        tokens = sum(each.totals["tokens"] for each in manifests)
        if seconds and tokens:
            facts["tokens"] = f"{tokens:,} in {seconds:,.1f} s, {tokens / seconds / 1e6:.2f} million a second"
    facts["attention"] = str(settings["save_attention"])
    return facts


def _find_card(registry: str, version: str | None) -> Card:
    """A checkpoint may come from elsewhere, or its registry may be out of reach: then there is no card."""
    try:
        return Registry.open(registry).card(version) if version else Card()
    except (StorageError, OSError):
        return Card()


def _run_checks(manifests: Sequence[RunManifest]) -> list[Check]:
    checks = []
    if not manifests:
        return [Check("look", "No record of a run is left", "runs")]
    scored: set[str] = set()
    failed: dict[str, str] = {}
    for manifest in manifests:  # newest first: what a later run has scored is no failure any more
        for failure in manifest.failures:
            if failure.name not in scored:
                failed.setdefault(failure.name, failure.reason)
        scored |= {shard.name for shard in manifest.shards}
    newest = manifests[0]
    if failed:
        name, reason = next(iter(failed.items()))
        more = f", and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        checks.append(Check("bad", f"Not scored: {name}: {reason}{more}", "runs"))
    elif newest.state == "failed":
        checks.append(Check("bad", "More rows have no prediction than the run allows", "errors"))
    elif not newest.shards and len(manifests) == 1:
        checks.append(Check("good", f"Nothing to do: all {newest.num_up_to_date:,} shards were up to date", "runs"))
    else:
        checks.append(Check("good", f"{counted(len(scored), 'shard')} scored, and none failed", "runs"))
    if newest.num_passed_over:
        verb = "is" if newest.num_passed_over == 1 else "are"
        text = f"{counted(newest.num_passed_over, 'name')} of the source {verb} not read"
        checks.append(Check("look", text, "runs"))
    return checks


def _count_checks(figures: Figures, manifests: Sequence[RunManifest], *, may_abstain: bool) -> list[Check]:
    if not figures.files and not figures.unreadable:
        return []
    checks = []
    for name, reason in figures.unreadable.items():
        checks.append(Check("bad", f"{PREDICTIONS}/{name}: {reason}", "counts"))
    recorded: dict[str, int] = {}
    for manifest in reversed(manifests):
        recorded |= {shard.name: shard.num_rows for shard in manifest.shards}
    differing = [each for each in figures.files if recorded.get(each.name, each.num_rows) != each.num_rows]
    predicted = sum(figures.predictions.values())
    total = f"{counted(figures.num_rows, 'row')} in {counted(len(figures.files), 'file')}"
    abstained = figures.num_abstained if may_abstain else 0
    if differing or predicted + abstained + figures.num_errors != figures.num_rows:
        where = f", first {differing[0].name}" if differing else ""
        checks.append(Check("bad", f"Counts do not add up: {total}, not as the runs recorded{where}", "counts"))
    else:
        sums = f"{predicted:,} with a prediction and {figures.num_errors:,} without"
        if may_abstain:
            low = f"{abstained:,} whose score is too low for one"
            sums = f"{predicted:,} with a prediction, {low}, and {figures.num_errors:,} with an error"
        checks.append(Check("good", f"Counts add up: {total}, {sums}", "counts"))
    if figures.num_errors:
        share = figures.num_errors / figures.num_rows
        commonest = next(iter(figures.errors))
        what = "with an error" if may_abstain else "without a prediction"
        text = f"{counted(figures.num_errors, 'row')} ({share:.2%}) {what}, most often: {commonest}"
        checks.append(Check("look", text, "errors"))
    if figures.num_truncated:
        checks.append(
            Check("look", f"{counted(figures.num_truncated, 'row')} cut to the longest that is scored", "counts")
        )
    if len(figures.checkpoints) > 1:
        checks.append(Check("look", f"Rows of {len(figures.checkpoints)} checkpoints stand side by side", "counts"))
    return checks


def _label_checks(figures: Figures, card: Card) -> list[Check]:
    accuracy, error = figures.accuracy, figures.calibration_error
    if accuracy is None or error is None:
        return []
    tested = card.test.accuracy if card.test else None
    text, good = f"Accuracy {accuracy:.1%} on {counted(figures.num_labelled, 'labelled row')}", True
    if tested is not None:
        text, good = f"{text}; {tested:.1%} in the checkpoint's test", accuracy >= tested - _ACCURACY_SLACK
    calibrated = error <= _CALIBRATION_SLACK
    word = "Scores can be taken for probabilities" if calibrated else "Scores are no probabilities"
    return [
        Check("good" if good else "look", text, "labels"),
        Check("good" if calibrated else "look", f"{word}: calibration error {error:.3f}", "labels"),
    ]


def _drift_checks(drift: Mapping[str, Any] | None) -> list[Check]:
    if drift is None:
        return []
    words = describe_drift(drift)
    if drift["drifted"]:
        return [Check("look", f"Drift: {words}", "drift")]
    return [Check("good", f"No drift: {words.removeprefix('none: ')}", "drift")]


def _errors(figures: Figures, manifests: Sequence[RunManifest]) -> dict[str, tuple[int, tuple[tuple[str, int], ...]]]:
    """Counts are of the output; the first places are those that runs recorded, newest first."""
    places: dict[str, dict[tuple[str, int], None]] = {}
    for manifest in manifests:
        for error, found in first_errors(manifest).items():
            places.setdefault(error, {}).update(dict.fromkeys(found))
    return {
        error: (number, tuple(islice(places.get(error, {}), FIRST_ERRORS))) for error, number in figures.errors.items()
    }


def _overlays(drift: Mapping[str, Any] | None, card: Card) -> tuple[Overlay, ...]:
    """Empty where nothing was measured, or where an older version kept the index alone."""
    reference = card.drift
    if not drift or not reference or "shares" not in drift:
        return ()
    classes = tuple(card.test.per_class) if card.test else ()
    overlays = []
    for aspect in ASPECTS:
        shares, observed, shift = reference[aspect]["shares"], drift["shares"][aspect], drift["shifts"][aspect]
        if len(shares) == len(observed):  # or the card is of another checkpoint
            labels = _bin_labels(aspect, reference[aspect], classes)
            overlays.append(
                Overlay(
                    aspect,
                    DRIFT_ASPECTS[aspect],
                    labels,
                    tuple(shares),
                    tuple(observed),
                    shift["drifted"],
                    shift["psi"],
                )
            )
    return tuple(overlays)


def _bin_labels(aspect: str, reference: Mapping[str, Any], classes: tuple[str, ...]) -> tuple[str, ...]:
    number = len(reference["shares"])
    if aspect == "tokens":
        return (*map(str, reference["ids"]), "others")
    if aspect == "lengths":
        edges = reference["edges"]
        between = [f"{a:,} to {b - 1:,}" if b - 1 > a else f"{a:,}" for a, b in pairwise(edges)]
        return (f"below {edges[0]:,}", *between, f"{edges[-1]:,} or more")
    if aspect == "confidence":
        return tuple(f"{i / number:.0%} to {(i + 1) / number:.0%}" for i in range(number))
    return classes if len(classes) == number else tuple(f"class {i + 1}" for i in range(number))


def spoken_time(text: str) -> str:
    """A time as manifests have it, for reading: without the zone, which is UTC."""
    return text.replace("T", " ").removesuffix("+00:00")


def _now() -> str:
    return spoken_time(datetime.now(UTC).isoformat(timespec="minutes"))

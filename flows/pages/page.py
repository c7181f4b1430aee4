"""A report as one HTML file, which needs nothing else: no network, no script to be read, no colours to be understood.

Owns the charts that are drawn and how large a page may become. Every text passes through `harmless` and is escaped;
what slips through all the same is not run, since the page's policy allows its own script, by its hash, and no loading.
Knows nothing about where facts come from.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from attnlstm.evaluation.faithfulness import sentence
from flows.operations.explain import Explanation
from flows.orchestration.facts import counted
from flows.pages.charts import Chart, Series, spark, thinned
from flows.pages.figures import NUM_BINS, OTHER, Figures
from flows.pages.report import Overlay, Report, spoken_time
from flows.pages.shading import LEVELS, harmless, shade
from storage.locations import Location
from storage.registry.cards import MEASURE_NAMES, Card

MOST_BYTES = 2_000_000
"""Of a page. Rows are left out before it is larger."""

_MOST_POINTS = 120  # of a line over partitions
_MOST_CLASSES = 30  # in tables; a chart of more says nothing
_MOST_MATRIX = 14
_MOST_LISTED = 30  # runs, failures, partitions
_MEASURES = {key: name for key, name in MEASURE_NAMES.items() if key != "ece_before_scaling"}
_TENTHS = tuple(f"{i / 10:.0%} to {(i + 1) / 10:.0%}" for i in range(10))


def write_page(report: Report, place: Location) -> int:
    """Put the page of a report in its place, whole or not at all; how many bytes it has."""
    content = render_page(report).encode()
    place.write_bytes(content)
    return len(content)


def render_page(report: Report) -> str:
    """The page, smaller than MOST_BYTES."""
    template = _environment().get_template("report.html")
    figures, script = report.figures, _source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shared: dict[str, Any] = {
        "report": report,
        "script": Markup(script),
        "style": Markup(_source("tokens.css") + _source("page.css")),
        "digest": digest,
        "highlights": _highlights(report),
        "classes": _class_rows(figures) if figures else [],
        "charts": _charts(figures) if figures else {},
        "matrix": _matrix(figures) if figures and figures.confusion else None,
        "overlays": [(overlay, _overlay_chart(overlay)) for overlay in report.drift],
        "card": _card(report.card) if report.card != Card() else None,
        "levels": LEVELS,
        "key": shade(b"attention", None),
        "most_listed": _MOST_LISTED,
    }
    without_rows = len(template.render(shared, rows=[], left_out=0).encode())
    rows, room = [], MOST_BYTES - without_rows - 50_000
    row_html = _environment().get_template("rows.html").module
    for row in report.rows:
        html = row_html.article(row)  # type: ignore[attr-defined]  # a macro of the template
        room -= len(html.encode())
        if room < 0:
            break
        rows.append(html)
    return template.render(shared, rows=rows, left_out=len(report.rows) - len(rows))


def explanation_html(explanation: Explanation) -> str:
    """A row explained, as a piece of HTML for a notebook, or for a page of its own."""
    article = _environment().get_template("explanation.html").module.article  # type: ignore[attr-defined]
    tokens = shade(explanation.tokens, explanation.weights)
    return f"<style>{_source('tokens.css')}</style>{article(explanation, tokens)}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("flows.pages"),
        autoescape=True,
        trim_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else harmless(value),
    )
    environment.filters |= {"number": _number, "percent": _percent, "zip": zip, "time": spoken_time}
    return environment


def _source(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _number(value: float) -> str:
    return f"{value:,}"


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{share:.1%}" if share == 0 or share >= 0.001 else "< 0.1%"


def _highlights(report: Report) -> list[tuple[str, str, str]]:
    """Name, figure and a word on it, for the first screen."""
    figures, test = report.figures, report.card.test
    found = []
    if figures and figures.files:
        found.append(("Rows", f"{figures.num_rows:,}", f"{figures.num_tokens:,} tokens"))
        without = figures.num_errors + figures.num_abstained
        note = _percent(without / max(1, figures.num_rows))
        if figures.num_abstained:
            note += f": {figures.num_abstained:,} for a low score, {counted(figures.num_errors, 'error')}"
        found.append(("Without a prediction", f"{without:,}", note))
        if figures.accuracy is not None:
            found.append(("Accuracy", _percent(figures.accuracy), f"on {figures.num_labelled:,} labelled rows"))
        if figures.confidence is not None:
            found.append(("Mean score", _percent(figures.confidence), "estimates accuracy, without drift"))
        if speed := report.runs[0].totals["tokens_per_second"] if report.runs else 0:
            found.append(("Tokens a second", f"{speed / 1e6:.2f} M", report.runs[0].engine.partition(",")[0]))
    elif test:
        low_high = test.accuracy_interval  # None on a card of an earlier version
        sure = f"{low_high[0]:.0%} to {low_high[1]:.0%}, by {test.num_rows:,} rows" if low_high else ""
        found += [("Test accuracy", _percent(test.accuracy), sure), ("Macro-F1", _percent(test.macro_f1), "")]
        found += [("Log loss", f"{test.log_loss:.4f}", ""), ("Calibration error", f"{test.ece:.4f}", "")]
    return found


def _class_rows(figures: Figures) -> list[tuple[str, int, float, str, float, float]]:
    """Of each predicted class, most first: rows, share, and its share over partitions: path, least, most."""
    total = max(1, sum(figures.predictions.values()))
    parts = [part for part in figures.parts if part.num_predicted]
    rows = []
    for name, number in list(figures.predictions.items())[:_MOST_CLASSES]:
        shares = [part.predictions.get(name, 0) / part.num_predicted for part in parts]
        rows.append((name, number, number / total, spark(thinned(shares, _MOST_POINTS)), min(shares), max(shares)))
    if left := list(figures.predictions.values())[_MOST_CLASSES:]:
        rows.append((f"{len(left):,} more classes", sum(left), sum(left) / total, "", 0.0, 0.0))
    return rows


def _charts(figures: Figures) -> dict[str, Chart]:
    """By name: rows, and those without a prediction, over partitions; scores, and how often scores are right."""
    charts = {}
    parts = [part for part in figures.parts if part.name]
    if len(parts) > 1:
        step = -(-len(parts) // _MOST_POINTS)
        groups = [parts[i : i + step] for i in range(0, len(parts), step)]
        labels = [group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name}" for group in groups]
        counts = [[sum(part.num_rows for part in group) for group in groups]]
        counts.append([sum(part.num_rows - part.num_predicted for part in group) for group in groups])
        rows = [Series("rows", counts[0], "bars", muted=True), Series("without a prediction", counts[1], "bars")]
        charts["partitions"] = Chart("Rows by partition", labels, rows, x_name="partition")
    if number := sum(each.num_rows for each in figures.bins):
        labels = [f"{i / NUM_BINS:.0%} to {(i + 1) / NUM_BINS:.0%}" for i in range(NUM_BINS)]
        shares = Series("share of rows", [each.num_rows / number for each in figures.bins], "bars")
        note = "The probability of the predicted class. Few rows on the left are few doubtful ones."
        charts["scores"] = Chart("How sure the predictions are", labels, [shares], note, "score", "%")
    if figures.num_labelled:
        pairs = [figures.bins[i : i + 2] for i in range(0, NUM_BINS, 2)]
        totals = [
            [sum(getattr(each, name) for each in pair) for pair in pairs]
            for name in ("num_labelled", "num_right", "labelled_scores")
        ]
        right = [r / n if n else None for n, r, _ in zip(*totals, strict=True)]
        said = [s / n if n else None for n, _, s in zip(*totals, strict=True)]
        series = [Series("mean score", said, "bars", muted=True), Series("share that is right", right, "dots")]
        note = "A dot at the top of its bar: of rows with that score, as many are right as it says."
        charts["calibration"] = Chart("Scores against labels", _TENTHS, series, note, "score", "%", top=1.0)
    return charts


def _matrix(figures: Figures) -> dict[str, Any]:
    """The confusion matrix of the commonest classes, and the figures of each class."""
    totals: dict[str, int] = dict.fromkeys(figures.classes, 0)
    for (label, prediction), number in figures.confusion.items():
        totals[label] = totals.get(label, 0) + number
        totals.setdefault(prediction, 0)
    other = totals.pop(OTHER, 0)
    order = sorted(totals, key=lambda name: -totals[name])
    shown = order[:_MOST_MATRIX]
    count = figures.confusion.get
    rows = []
    for label in [*shown, *([OTHER] if other else [])]:
        counts = [count((label, prediction), 0) for prediction in shown]
        of_label = max(1, other if label == OTHER else totals[label])
        rows.append((label, [(number, round(100 * number / of_label)) for number in counts]))
    per_class = []
    for name in order[:_MOST_CLASSES]:
        right, labelled = count((name, name), 0), totals[name]
        predicted = sum(number for (_, prediction), number in figures.confusion.items() if prediction == name)
        recall, precision = right / max(1, labelled), right / max(1, predicted)
        f1 = 2 * right / max(1, labelled + predicted)
        per_class.append([name, f"{labelled:,}", *(f"{value:.3f}" for value in (precision, recall, f1))])
    return {"shown": shown, "rows": rows, "left_out": len(order) - len(shown), "per_class": per_class}


def _overlay_chart(overlay: Overlay) -> Chart:
    labels, reference, observed = overlay.labels, overlay.reference, overlay.observed
    if len(labels) > _MOST_POINTS and overlay.aspect == "classes":
        labels, reference, observed = labels[:_MOST_POINTS], reference[:_MOST_POINTS], observed[:_MOST_POINTS]
    series = [Series("checkpoint's test rows", reference, "area", muted=True), Series("rows scored", observed, "area")]
    verdict = "beyond its limit" if overlay.drifted else "within its limit"
    note = f"Stability index {overlay.index:.3f}, {verdict}"
    title = overlay.title[:1].upper() + overlay.title[1:]
    names = {"tokens": "token", "lengths": "tokens in a row", "classes": "class", "confidence": "score"}
    return Chart(title, labels, series, note, names[overlay.aspect], "%")


def _card(card: Card) -> dict[str, Any]:
    """The checkpoint's card: facts, figures of each class, charts, and what was decided."""
    test, training, data, judgement = card.test, card.training, card.data, card.judgement
    facts = {"checkpoint": card.version}
    if data:
        rows = ", ".join(f"{side} {number:,}" for side, number in data.rows.items())
        facts["trained on"] = f"{', '.join((data.source, *data.also))}: {rows} rows, split by {data.split_by}"
    if training:
        epochs = f"{len(training.epochs)} epochs in {training.seconds:,.0f} s, the best was {training.best_epoch}"
        facts["training"] = f"{epochs}; {training.preset}, from {training.started_from}"
    if test:
        measured = {name: getattr(test, key) for key, name in _MEASURES.items()}
        words = [f"{name} {value:.4f}" for name, value in measured.items() if value is not None]
        facts["test"] = f"{', '.join(words)}, on {test.num_rows:,} rows"
    charts = [_loss_chart(training.epochs if training else ()), _faithfulness_chart(card.faithfulness)]
    examples = judgement.examples.items() if judgement else ()
    return {
        "facts": facts,
        "per_class": [
            [name, f"{of.num_rows:,}", f"{of.precision:.3f}", f"{of.recall:.3f}", f"{of.f1:.3f}"]
            for name, of in list((test.per_class if test else {}).items())[:_MOST_CLASSES]
        ],
        "abstention": [
            [f"{kind} {at.wanted:g}", _percent(at.coverage), _percent(at.accuracy)]
            for kind, found in (("score", card.abstention.scores), ("precision", card.abstention.precisions))
            for at in found
        ]
        if card.abstention
        else [],
        "charts": [chart for chart in charts if chart],
        "faithfulness": sentence(card.faithfulness) if card.faithfulness else "",
        "outcome": {"promoted": "Promoted", "rejected": "Not promoted"}.get(judgement.outcome, "") if judgement else "",
        "judgement": judgement,
        "examples": [
            (kind, [[each.get(name, "") for name in ("row", "label", "champion", "challenger")] for each in rows])
            for kind, rows in examples
            if rows
        ],
    }


def _loss_chart(epochs: Sequence[Mapping[str, Any]]) -> Chart | None:
    if len(epochs) < 2:
        return None
    labels = [f"{each['epoch']}" for each in epochs]
    names = {"train_loss": "training", "validation_loss": "validation"}
    series = [
        Series(name, [each[key] for each in epochs], "line", muted=key == "train_loss") for key, name in names.items()
    ]
    return Chart("Loss", labels, series, "Log loss in nats; the weights of the best epoch are kept.", "epoch")


def _faithfulness_chart(found: Mapping[str, Any] | None) -> Chart | None:
    if not found:
        return None
    fall = found["comprehensiveness"]
    names = {"most": "most attended", "random": "random"}
    series = [Series(name, fall[key]["by_share"], "line", muted=key == "random") for key, name in names.items()]
    labels = [f"{share:.0%}" for share in found["shares"]]
    note = "How far the probability falls when that share of a row's tokens is erased."
    return Chart("What attended tokens are worth", labels, series, note, "tokens erased")

"""A study in words: a verdict on the two claims, and the tables that it rests on, as Markdown.

Knows what the figures are; how they came about is not its business.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from flows.study_summary import (
    A_LOT,
    CONFIDENCE,
    FAR_SLOWER,
    WAY_TO_BEST,
    Comparison,
    Finding,
    SetFigures,
    VariantFigures,
)

if TYPE_CHECKING:
    from attnlstm.variants import Variant

NAMES: "dict[Variant, str]" = {
    "last_state": "last state",
    "mean": "mean",
    "additive": "additive",
    "multihead": "multihead",
    "multihead_published": "multihead as published",
}

_LIFT_WORDS: dict[Finding, str] = {
    "a lot": "a lot",
    "a little": "a little",
    "not beyond chance": "nothing beyond chance",
    "the other way round": "a loss",
}
_SLOWDOWN_WORDS: dict[Finding, str] = {
    "a lot": "far slower",
    "a little": "slower",
    "not beyond chance": "not slower beyond chance",
    "the other way round": "faster",
}


def verdict(figures: Sequence[SetFigures]) -> dict[str, str]:
    """For each claim what is to be said of it, from the figures alone."""
    lifts = [comparison for each in figures for comparison in each.lifts]
    ours = [each.slowdowns[0] for each in figures]
    published = [each.slowdowns[1] for each in figures]
    return {
        "Attention lifts the accuracy of an LSTM a lot": (
            f"{_overall(lifts)}. Of {len(lifts)} comparisons of an attention with a pooling without: "
            f"{_tally(lifts, _LIFT_WORDS)}. A lot is {100 * A_LOT:g} points or more."
        ),
        "The multihead twin converges far slower": (
            f"As published, {_overall(published).lower()}; with attention over time, as it was meant, "
            f"{_overall(ours).lower()}. Against additive attention, of {len(figures)} sets: "
            f"as published {_tally(published, _SLOWDOWN_WORDS)}; over time {_tally(ours, _SLOWDOWN_WORDS)}. "
            f"Far slower is {FAR_SLOWER:g} times the epochs to the loss or more, or never to reach it where most "
            f"trainings with additive attention do. {_unreached(figures)}"
        ),
    }


def _unreached(figures: Sequence[SetFigures]) -> str:
    """How many trainings of each pooling never got to the loss."""
    counts = ", ".join(
        f"{sum(each.num_unreached for each in of_sets)} {name}" for name, _, of_sets in _by_variant(figures)
    )
    num_trainings = sum(each.num_seeds for each in figures)
    return f"Of {num_trainings} trainings each, these never reached it: {counts}."


def _overall(comparisons: Sequence[Comparison]) -> str:
    num_a_lot = sum(comparison.finding == "a lot" for comparison in comparisons)
    if num_a_lot == len(comparisons):
        return "True here"
    return "True in part" if num_a_lot else "Not true here"


def _tally(comparisons: Sequence[Comparison], words: dict[Finding, str]) -> str:
    counts = Counter(comparison.finding for comparison in comparisons)
    return ", ".join(f"{counts[finding]} {word}" for finding, word in words.items() if counts[finding])


def markdown(figures: Sequence[SetFigures], descriptions: dict[str, str], picture: str) -> str:
    """The whole report. descriptions: of each set, its rows in a line. picture: the file's name."""
    num_seeds = figures[0].num_seeds
    return "\n".join(
        [
            "# Does attention help?",
            "",
            "Five ways to pool the states of the same bidirectional LSTM (the reference sizes), trained with the same "
            f"settings for the same epochs on whole rows, {num_seeds} seeds each. No training stops early. The weights "
            "that are best on the validation rows are measured on the test rows.",
            "",
            *(f"- **{claim}.** {text}" for claim, text in verdict(figures).items()),
            "",
            f"![Validation loss by epoch: mean and range over {num_seeds} seeds]({picture})",
            "",
            "## Accuracy on the test rows",
            "",
            *_accuracy_table(figures),
            "",
            "Mean ± standard deviation over seeds, in percent.",
            "",
            "## Epochs to the loss",
            "",
            *_epochs_table(figures),
            "",
            f"The loss to reach is, for each set, {100 * WAY_TO_BEST:g}% of the way from the loss of knowing only the "
            "classes' shares to the least that any training came to: "
            f"{', '.join(f'{each.name} {each.loss:.3f}' for each in figures)}. In brackets how many seeds never "
            "reached it; they count as one epoch more than there were, so a multiple below may be too low.",
            "",
            "## Differences",
            "",
            *_comparison_table(figures, lambda each: each.lifts, _points),
            "",
            "Points of accuracy gained.",
            "",
            *_comparison_table(figures, lambda each: each.slowdowns, _multiple),
            "",
            "Epochs to the loss, as a multiple.",
            "",
            f"Both between trainings of the same seed, with the {100 * CONFIDENCE:g}% interval of the mean over seeds "
            "(Student's t), each on its own. It says how much the seeds leave open; another draw of rows is not in it.",
            "",
            "## What was trained on what",
            "",
            *(f"- {name}: {text}" for name, text in descriptions.items()),
            "",
            "Multihead as published lacks `batch_first=True`, so rows attend to the rows beside them, and what shares "
            "a batch matters. It is measured in batches like those that it was trained in: up to 32 rows of like "
            "length. Alone, or in other company, its rows would come out otherwise. In all else it is the multihead "
            "above it, from the same initial weights.",
            "",
        ]
    )


def _accuracy_table(figures: Sequence[SetFigures]) -> list[str]:
    """The number of parameters is that on the first set: between sets it differs by the classes."""
    rows = [
        [name, f"{first.num_parameters:,}", *map(_accuracy, of_sets)] for name, first, of_sets in _by_variant(figures)
    ]
    return _table(["pooling", f"parameters on {figures[0].name}", *(each.name for each in figures)], rows)


def _epochs_table(figures: Sequence[SetFigures]) -> list[str]:
    rows = [[name, *map(_epochs, of_sets)] for name, _, of_sets in _by_variant(figures)]
    return _table(["pooling", *(each.name for each in figures)], rows)


def _by_variant(figures: Sequence[SetFigures]) -> Iterator[tuple[str, VariantFigures, list[VariantFigures]]]:
    """Each variant's name, its figures on the first set, and those on all."""
    for place, first in enumerate(figures[0].variants):
        yield NAMES[first.variant], first, [each.variants[place] for each in figures]


def _comparison_table(
    figures: Sequence[SetFigures],
    choose: Callable[[SetFigures], Sequence[Comparison]],
    show: Callable[[Comparison], str],
) -> list[str]:
    rows = [
        [f"{NAMES[first.variant]} against {NAMES[first.against]}", *(show(choose(each)[place]) for each in figures)]
        for place, first in enumerate(choose(figures[0]))
    ]
    return _table(["", *(each.name for each in figures)], rows)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(header)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]


def _accuracy(figures: VariantFigures) -> str:
    return f"{100 * figures.accuracy.mean:.1f} ± {100 * figures.accuracy.deviation:.1f}"


def _epochs(figures: VariantFigures) -> str:
    unreached = f" ({figures.num_unreached} never)" if figures.num_unreached else ""
    return f"{figures.epochs.mean:.1f} ± {figures.epochs.deviation:.1f}{unreached}"


def _points(comparison: Comparison) -> str:
    mean, low, high = (100 * value for value in (comparison.mean, comparison.low, comparison.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}): {_LIFT_WORDS[comparison.finding]}"


def _multiple(comparison: Comparison) -> str:
    words = _SLOWDOWN_WORDS[comparison.finding]
    return f"{comparison.mean:.2f} ({comparison.low:.2f} to {comparison.high:.2f}): {words}"

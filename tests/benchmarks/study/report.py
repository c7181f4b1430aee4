"""A study for readers: a verdict on the two claims, the tables that it rests on, and the convergence curves.

Knows what the figures are; how they came about is not its business.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from figures import (
    A_LOT,
    CONFIDENCE,
    FAR_SLOWER,
    FINDINGS,
    WAY_TO_BEST,
    Comparison,
    Finding,
    PoolingFigures,
    SetFigures,
)
from poolings import Pooling
from trainings import Outcome

NAMES: dict[Pooling, str] = {
    "last_state": "last state",
    "mean": "mean",
    "additive": "additive",
    "multihead": "multihead",
    "multihead_published": "multihead as published",
}
# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes where attention is missing or broken.
_COLOURS = dict(zip(NAMES, ("#999999", "#56B4E9", "#0072B2", "#D55E00", "#CC79A7"), strict=True))
_DASHES = dict(zip(NAMES, ("--", "--", "-", "-", ":"), strict=True))

# What a finding is called where accuracy is gained, and where epochs are needed.
_GAIN_WORDS: dict[Finding, str] = dict(
    zip(FINDINGS, ("a lot", "a little", "nothing beyond chance", "a loss"), strict=True)
)
_EPOCH_WORDS: dict[Finding, str] = dict(
    zip(FINDINGS, ("far slower", "slower", "not slower beyond chance", "faster"), strict=True)
)
_PANELS_A_ROW, _PANEL_INCHES = 2, (4.5, 3.2)


def verdict(sets: Sequence[SetFigures]) -> dict[str, str]:
    """For each claim what is to be said of it, from the figures alone."""
    lifts = [comparison for each in sets for comparison in each.lifts]
    ours, published = ([each.slowdowns[place] for each in sets] for place in (0, 1))
    unreached = ", ".join(
        f"{sum(each.variants[place].num_unreached for each in sets)} {name}"
        for place, name in enumerate(NAMES.values())
    )
    return {
        "Attention lifts the accuracy of an LSTM a lot": (
            f"{_overall(lifts)}. Of {len(lifts)} comparisons of an attention with a pooling without: "
            f"{_tally(lifts, _GAIN_WORDS)}. A lot is {100 * A_LOT:g} points or more."
        ),
        "The multihead twin converges far slower": (
            f"As published, {_overall(published).lower()}; with attention over time, as it was meant, "
            f"{_overall(ours).lower()}. Against additive attention, of {len(sets)} sets: "
            f"as published {_tally(published, _EPOCH_WORDS)}; over time {_tally(ours, _EPOCH_WORDS)}. "
            f"Far slower is {FAR_SLOWER:g} times the epochs to the loss or more, or never to reach it where most "
            f"trainings with additive attention do. Of {sum(each.num_seeds for each in sets)} trainings each, these "
            f"never reached it: {unreached}."
        ),
    }


def _overall(comparisons: Sequence[Comparison]) -> str:
    num_a_lot = sum(comparison.finding == "a lot" for comparison in comparisons)
    if num_a_lot == len(comparisons):
        return "True here"
    return "True in part" if num_a_lot else "Not true here"


def _tally(comparisons: Sequence[Comparison], words: dict[Finding, str]) -> str:
    counts = Counter(comparison.finding for comparison in comparisons)
    return ", ".join(f"{counts[finding]} {word}" for finding, word in words.items() if counts[finding])


def markdown(sets: Sequence[SetFigures], descriptions: dict[str, str], preset: str, picture: str) -> str:
    """The whole report. descriptions: the rows of each set in a line. picture: the file's name."""
    num_seeds = sets[0].num_seeds
    claims = "\n".join(f"- **{claim}.** {text}" for claim, text in verdict(sets).items())
    accuracies = _pooling_table(f"parameters on {sets[0].name}", sets, _accuracy)
    losses = ", ".join(f"{each.name} {each.loss:.3f}" for each in sets)
    return f"""\
# Does attention help?

Five ways to pool the states of the same bidirectional LSTM (preset {preset}), trained with the same \
settings for the same epochs on whole rows, {num_seeds} seeds each. No training stops early. The weights \
that are best on the validation rows are measured on the test rows.

{claims}

![Validation loss by epoch: mean and range over {num_seeds} seeds]({picture})

## Accuracy on the test rows

{accuracies}

Mean ± standard deviation over seeds, in percent.

## Epochs to the loss

{_pooling_table("", sets, _epochs)}

The loss to reach is, for each set, {100 * WAY_TO_BEST:g}% of the way from the loss of knowing only the \
classes' shares to the least that any training came to: {losses}. In brackets how many seeds never \
reached it; they count as one epoch more than there were, so a multiple below may be too low.

## Differences

{_comparison_table(sets, lambda each: each.lifts, _points)}

Points of accuracy gained.

{_comparison_table(sets, lambda each: each.slowdowns, _multiple)}

Epochs to the loss, as a multiple.

Both between trainings of the same seed, with the {100 * CONFIDENCE:g}% interval of the mean over seeds \
(Student's t), each on its own. It says how much the seeds leave open; another draw of rows is not in it.

## What was trained on what

{chr(10).join(f"- {name}: {text}" for name, text in descriptions.items())}

Multihead as published lacks `batch_first=True`, so rows attend to the rows beside them, and what shares \
a batch matters. It is measured in batches like those that it was trained in: up to 32 rows of like \
length. Alone, or in other company, its rows would come out otherwise. In all else it is the multihead \
above it, from the same initial weights.
"""


def _pooling_table(parameters: str, sets: Sequence[SetFigures], show: Callable[[PoolingFigures], str]) -> str:
    """A row for each pooling. parameters: heads a column with their number on the first set; "" for no such column."""
    rows = []
    for place, (pooling, name) in enumerate(NAMES.items()):
        found = [each.variants[place] for each in sets]
        assert found[0].variant == pooling, "figures are in the order of the names"
        rows.append([name, *([f"{found[0].num_parameters:,}"] if parameters else []), *map(show, found)])
    return _table(["pooling", *([parameters] if parameters else []), *(each.name for each in sets)], rows)


def _comparison_table(
    sets: Sequence[SetFigures],
    choose: Callable[[SetFigures], Sequence[Comparison]],
    show: Callable[[Comparison], str],
) -> str:
    rows = [
        [f"{NAMES[found[0].variant]} against {NAMES[found[0].against]}", *map(show, found)]
        for found in zip(*map(choose, sets), strict=True)
    ]
    return _table(["", *(each.name for each in sets)], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = "|".join(["---", *["---:"] * (len(header) - 1)])
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def _accuracy(figures: PoolingFigures) -> str:
    return f"{100 * figures.accuracy.mean:.1f} ± {100 * figures.accuracy.deviation:.1f}"


def _epochs(figures: PoolingFigures) -> str:
    unreached = f" ({figures.num_unreached} never)" if figures.num_unreached else ""
    return f"{figures.epochs.mean:.1f} ± {figures.epochs.deviation:.1f}{unreached}"


def _points(comparison: Comparison) -> str:
    mean, low, high = (100 * value for value in (comparison.mean, comparison.low, comparison.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}): {_GAIN_WORDS[comparison.finding]}"


def _multiple(comparison: Comparison) -> str:
    words = _EPOCH_WORDS[comparison.finding]
    return f"{comparison.mean:.2f} ({comparison.low:.2f} to {comparison.high:.2f}): {words}"


def draw_curves(sets: Sequence[SetFigures], outcomes: dict[str, list[Outcome]], path: Path) -> None:
    """Write an SVG: for each set the validation loss after each epoch, mean and range over seeds.

    outcomes: of each set, by its name. The same outcomes give the same bytes.
    """
    num_rows, num_columns = -(-len(sets) // _PANELS_A_ROW), min(len(sets), _PANELS_A_ROW)
    # Text stays text in whatever sans-serif font the reader has, and ids follow from the content.
    style = {"svg.fonttype": "none", "svg.hashsalt": "attnlstm", "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        size = (_PANEL_INCHES[0] * num_columns, _PANEL_INCHES[1] * num_rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
        for panel, of_set in zip(panels, sets, strict=False):
            _draw_panel(panel, of_set, outcomes[of_set.name])
        for panel in panels[len(sets) :]:
            panel.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _draw_panel(panel: Any, of_set: SetFigures, outcomes: list[Outcome]) -> None:
    epochs = np.arange(1, of_set.num_epochs + 1)
    for pooling, colour in _COLOURS.items():
        losses = np.array([outcome.validation_loss for outcome in outcomes if outcome.variant == pooling])
        panel.fill_between(epochs, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        panel.plot(epochs, losses.mean(axis=0), _DASHES[pooling], color=colour, label=NAMES[pooling])
    panel.axhline(of_set.loss, color="black", linewidth=0.8, alpha=0.5, label="the loss to reach")
    panel.set(title=of_set.name, xlabel="epoch", ylabel="validation loss (nats)")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.2)

"""What the outcomes of a study come to: means and spreads, differences with their intervals, and a finding for each.

Owns the definitions: the loss to reach, what counts as a lot and as far slower. Knows nothing about files, training or
how it is shown. Seeds are what is drawn at random here, so every difference is taken between trainings of one seed, and
an interval says where its mean over all seeds would be: on this set, with this budget.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from attnlstm.study import Outcome
    from attnlstm.variants import Variant

CONFIDENCE = 0.95

A_LOT = 0.05
"""Accuracy gained from which on it is a lot."""

FAR_SLOWER = 2.0
"""Times as many epochs from which on it is far slower; so is what never reached the loss where most others did."""

WAY_TO_BEST = 0.8
"""The loss to reach lies this far on the way from the loss of knowing only the classes' shares to the least one that
any training of the set came to."""

Finding = Literal["a lot", "a little", "not beyond chance", "the other way round"]


@dataclass(frozen=True)
class Spread:
    """Over seeds. deviation: the sample's standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class VariantFigures:
    """epochs: to the loss, where a training that never reached it counts as if it had one epoch after its last."""

    variant: "Variant"
    num_parameters: int
    accuracy: Spread
    epochs: Spread
    num_unreached: int


@dataclass(frozen=True)
class Comparison:
    """One variant less another in accuracy, or its epochs to the loss as a multiple of the other's.

    low, high: the interval of the mean over seeds (Student's t), with CONFIDENCE. A multiple's mean is geometric.
    """

    variant: "Variant"
    against: "Variant"
    mean: float
    low: float
    high: float
    finding: Finding


@dataclass(frozen=True)
class SetFigures:
    """Of one labelled set. lifts: in accuracy. slowdowns: in epochs to `loss`."""

    name: str
    num_seeds: int
    num_epochs: int
    loss: float
    variants: tuple[VariantFigures, ...]
    lifts: tuple[Comparison, ...]
    slowdowns: tuple[Comparison, ...]


LIFTS: "tuple[tuple[Variant, Variant], ...]" = (
    ("additive", "last_state"),
    ("additive", "mean"),
    ("multihead", "last_state"),
    ("multihead", "mean"),
)
SLOWDOWNS: "tuple[tuple[Variant, Variant], ...]" = (("multihead", "additive"), ("multihead_published", "additive"))


def summarise(name: str, outcomes: "Sequence[Outcome]", shares_loss: float) -> SetFigures:
    """The figures of a set.

    outcomes: of every variant with every seed, all with as many epochs. shares_loss: `StudyRows.shares_loss`.
    """
    from attnlstm.variants import VARIANTS

    by_seed = sorted(outcomes, key=lambda outcome: outcome.seed)
    by_variant = {variant: [outcome for outcome in by_seed if outcome.variant == variant] for variant in VARIANTS}
    num_epochs = len(outcomes[0].validation_loss)
    least = min(min(outcome.validation_loss) for outcome in outcomes)
    loss = shares_loss - WAY_TO_BEST * (shares_loss - least)
    accuracy = {variant: [outcome.accuracy for outcome in found] for variant, found in by_variant.items()}
    reached = {variant: [outcome.epochs_to(loss) for outcome in found] for variant, found in by_variant.items()}
    counted = {variant: [epoch or num_epochs + 1 for epoch in found] for variant, found in reached.items()}
    return SetFigures(
        name=name,
        num_seeds=len({outcome.seed for outcome in outcomes}),
        num_epochs=num_epochs,
        loss=loss,
        variants=tuple(
            VariantFigures(
                variant=variant,
                num_parameters=found[0].num_parameters,
                accuracy=_spread(accuracy[variant]),
                epochs=_spread(counted[variant]),
                num_unreached=reached[variant].count(None),
            )
            for variant, found in by_variant.items()
        ),
        lifts=tuple(_lift(one, other, accuracy[one], accuracy[other]) for one, other in LIFTS),
        slowdowns=tuple(
            _slowdown(one, other, reached[one], reached[other], num_epochs + 1) for one, other in SLOWDOWNS
        ),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values))


def _lift(one: "Variant", other: "Variant", higher: Sequence[float], lower: Sequence[float]) -> Comparison:
    mean, low, high = _interval([a - b for a, b in zip(higher, lower, strict=True)])
    return Comparison(one, other, mean, low, high, _finding(mean, low, high, A_LOT))


def _slowdown(
    one: "Variant", other: "Variant", more: Sequence[int | None], fewer: Sequence[int | None], never: int
) -> Comparison:
    """never: what counts for a training that did not get there, which makes the multiple a lower bound."""
    logs = _interval([math.log((a or never) / (b or never)) for a, b in zip(more, fewer, strict=True)])
    mean, low, high = map(math.exp, logs)
    never_but_other_does = not any(more) and 2 * fewer.count(None) < len(fewer)
    finding: Finding = "a lot" if never_but_other_does else _finding(*logs, math.log(FAR_SLOWER))
    return Comparison(one, other, mean, low, high, finding)


def _finding(mean: float, low: float, high: float, a_lot: float) -> Finding:
    if low > 0:
        return "a lot" if mean >= a_lot else "a little"
    return "the other way round" if high < 0 else "not beyond chance"


def _interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Their mean, and the bounds of its interval."""
    from scipy.stats import t  # type: ignore[import-untyped]

    spread = _spread(differences)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * spread.deviation / math.sqrt(len(differences))
    return spread.mean, spread.mean - half, spread.mean + half

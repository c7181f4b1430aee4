"""What the outcomes of a study come to: means and spreads, differences with their intervals, and a finding for each.

Owns the definitions: the loss to reach, what counts as a lot and as far slower. Knows nothing about files, training or
presentation. Only seeds are drawn at random here, so every difference is taken between trainings of the same seed, and
an interval says where its mean over all seeds would be, on this set and with this budget.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from attnlstm.evaluation.comparison import student_quantile
from poolings import POOLINGS, Pooling
from trainings import Outcome

CONFIDENCE = 0.95

A_LOT = 0.05
"""Gain of accuracy from which on it is a lot."""

FAR_SLOWER = 2.0
"""Times as many epochs from which on it is far slower; never reaching a loss that most others reach is so too."""

WAY_TO_BEST = 0.8
"""The loss to reach lies this far on the way from the loss of knowing only the classes' shares to the least loss of
any training of the set."""

Finding = Literal["a lot", "a little", "not beyond chance", "the other way round"]
FINDINGS: tuple[Finding, ...] = get_args(Finding)


@dataclass(frozen=True)
class Spread:
    """Over seeds. deviation: the sample's standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class PoolingFigures:
    """epochs: to the loss; a training that never reached it counts as if it had one epoch after its last."""

    variant: Pooling
    num_parameters: int
    accuracy: Spread
    epochs: Spread
    num_unreached: int


@dataclass(frozen=True)
class Comparison:
    """One pooling less another in accuracy, or its epochs to the loss as a multiple of the other's.

    low, high: the interval of the mean over seeds (Student's t), with CONFIDENCE. A multiple's mean is geometric.
    """

    variant: Pooling
    against: Pooling
    mean: float
    low: float
    high: float
    finding: Finding


@dataclass(frozen=True)
class SetFigures:
    """Of one labelled set. lifts: in accuracy. slowdowns: in epochs to `loss`, over time first, as published second."""

    name: str
    num_seeds: int
    num_epochs: int
    loss: float
    variants: tuple[PoolingFigures, ...]
    lifts: tuple[Comparison, ...]
    slowdowns: tuple[Comparison, ...]


def summarise(name: str, outcomes: Sequence[Outcome], shares_loss: float) -> SetFigures:
    """The figures of a set.

    outcomes: of every pooling with every seed, all with as many epochs. shares_loss: `LabelledSet.shares_loss`.
    """
    by_seed = sorted(outcomes, key=lambda outcome: outcome.seed)
    of = {pooling: [outcome for outcome in by_seed if outcome.variant == pooling] for pooling in POOLINGS}
    never = len(outcomes[0].validation_loss) + 1
    least = min(min(outcome.validation_loss) for outcome in outcomes)
    loss = shares_loss - WAY_TO_BEST * (shares_loss - least)
    accuracy = {pooling: [outcome.accuracy for outcome in found] for pooling, found in of.items()}
    epochs = {pooling: [outcome.epochs_to(loss) or never for outcome in found] for pooling, found in of.items()}
    lifts: list[tuple[Pooling, Pooling]] = [
        (attention, without) for attention in ("additive", "multihead") for without in ("last_state", "mean")
    ]
    slower: list[Pooling] = ["multihead", "multihead_published"]
    return SetFigures(
        name=name,
        num_seeds=len({outcome.seed for outcome in outcomes}),
        num_epochs=never - 1,
        loss=loss,
        variants=tuple(
            PoolingFigures(
                variant=pooling,
                num_parameters=found[0].num_parameters,
                accuracy=_spread(accuracy[pooling]),
                epochs=_spread(epochs[pooling]),
                num_unreached=epochs[pooling].count(never),
            )
            for pooling, found in of.items()
        ),
        lifts=tuple(_lift(one, other, accuracy[one], accuracy[other]) for one, other in lifts),
        slowdowns=tuple(_slowdown(one, "additive", epochs[one], epochs["additive"], never) for one in slower),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values))


def _lift(one: Pooling, other: Pooling, higher: Sequence[float], lower: Sequence[float]) -> Comparison:
    interval = _interval([a - b for a, b in zip(higher, lower, strict=True)])
    return Comparison(one, other, *interval, _finding(*interval, A_LOT))


def _slowdown(one: Pooling, other: Pooling, more: Sequence[int], fewer: Sequence[int], never: int) -> Comparison:
    """never: what counts for a training that did not get there, which makes the multiple a lower bound."""
    logs = _interval([math.log(a / b) for a, b in zip(more, fewer, strict=True)])
    mean, low, high = map(math.exp, logs)
    never_but_other_does = all(epoch == never for epoch in more) and 2 * fewer.count(never) < len(fewer)
    finding: Finding = "a lot" if never_but_other_does else _finding(*logs, math.log(FAR_SLOWER))
    return Comparison(one, other, mean, low, high, finding)


def _finding(mean: float, low: float, high: float, a_lot: float) -> Finding:
    if low > 0:
        return "a lot" if mean >= a_lot else "a little"
    return "the other way round" if high < 0 else "not beyond chance"


def _interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Their mean, and the bounds of its interval."""
    spread = _spread(differences)
    half = student_quantile(CONFIDENCE, len(differences) - 1) * spread.deviation / math.sqrt(len(differences))
    return spread.mean, spread.mean - half, spread.mean + half

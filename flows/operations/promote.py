"""Whether a new checkpoint becomes champion, and why: the body of the retrain flow's second task.

The rule: the challenger is promoted if its metric on the held-out rows is shown to be at most `margin` below the
champion's. Shown means by the lower bound of the paired interval, so chance promotes a challenger that is worse by
more than the margin once in twenty times at most; one about which the rows say too little stays where it is, and
better rows or a better challenger come with the next run. A small margin keeps losses from adding up over many runs,
and lets pass what is as good and only looks worse by a few rows. Besides, no single class may be lost beyond chance,
since the mean over all rows hides a rare one, and `classify` must give the scores that training saw.

The first checkpoint is judged in the same way against a champion that knows nothing but how frequent each class is,
and must be shown to be better.

Few held-out rows show nothing of the kind. Below `FEWEST_ROWS` of them the recipes of both are cross-validated over
groups, on all rows, and that decides; the held-out rows can then only speak against the challenger.

Knows nothing about Prefect.
"""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.chance import FEWEST_ROWS
from attnlstm.evaluation.comparison import Difference, Flips, Metric
from attnlstm.evaluation.metrics import probabilities_of
from flows.operations.cross_validate import cross_validate, has_few_held_out
from flows.operations.measure import figures_of, how_sure
from flows.operations.rescore import replay_through_classify
from flows.operations.score import config_of, network_of
from flows.operations.train import Listener, VanishedClasses
from storage.labelled.rows import LabelledRows
from storage.labelled.source import LabelledSource
from storage.labelled.split import TEST, TRAIN
from storage.registry.aliases import Alias
from storage.registry.cards import Figures, Judgement
from storage.registry.checkpoints import Registry, StoredCheckpoint

Outcome = Literal["promoted", "rejected", "unchanged"]
NAMES: dict[Metric, str] = {"accuracy": "accuracy", "macro_f1": "macro-F1", "log_loss": "log loss"}

_FLIPS_SHOWN = 10
_COMMONEST = "naming the commonest class"
_ROUNDING = 1e-9  # of differences of shares, which are sums


@dataclass(frozen=True, kw_only=True)
class PromotionRules:
    """metric: what decides. margin: how much worse than the champion's it may be, in the metric's own unit.

    Accuracy is the default: every row counts alike, so it is the least noisy on few rows of many classes, and what is
    lost of a class is looked at apart.
    """

    metric: Metric = "accuracy"
    margin: float = 0.01
    vanished_classes: VanishedClasses = "refuse"

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ValueError(f"margin must be at least 0, not {self.margin}")


@dataclass(frozen=True)
class Compared:
    """Champion and challenger on the same held-out rows; the figures of each are those of `metrics.evaluate`.

    lost_classes: classes that the challenger names worse beyond chance. examples: where some rows are that flipped.
    num_folds: of a cross-validation of their recipes; None if they themselves scored test rows.
    """

    num_rows: int
    champion: Figures
    challenger: Figures
    difference: Difference
    flips: Flips
    lost_classes: tuple[str, ...]
    examples: dict[str, list[dict[str, str]]]
    num_folds: int | None = None

    def record(self) -> dict[str, Any]:
        """For a card or a script."""
        return {
            "num_rows": self.num_rows,
            "champion": self.champion.record(),
            "challenger": self.challenger.record(),
            "difference": asdict(self.difference),
            "flips": asdict(self.flips) | {"p_value": self.flips.p_value, "p_worse": self.flips.p_worse},
            "lost_classes": list(self.lost_classes),
            "examples": self.examples,
            **({"num_folds": self.num_folds} if self.num_folds else {}),
        }


@dataclass(frozen=True)
class Promotion:
    """What became of a new checkpoint, and why. judgement: all of it, as on its card; None if nothing was compared."""

    outcome: Outcome
    why: str
    judgement: Judgement | None = None

    @property
    def promoted(self) -> bool:
        return self.outcome == "promoted"


def decide_promotion(
    labelled: LabelledSource,
    registry: Registry,
    challenger: str,
    rules: PromotionRules | None = None,
    listener: Listener | None = None,
) -> Promotion:
    """Compare a new checkpoint with the champion; promote it if it is shown to be no worse.

    listener: is told of trainings, which few test rows make necessary. The decision is on the challenger's card before
    the alias moves. Raises AliasMovedError if the champion changed meanwhile: then nothing has moved, and the decision
    is to be made again.
    """
    rules = rules or PromotionRules()
    stored, alias = registry.load(challenger), registry.alias()
    champion = registry.load(alias.version) if alias else None
    if champion and champion.digest == stored.digest:
        what = "is champion already" if champion.version == stored.version else "has the champion's own weights"
        return Promotion("unchanged", f"it {what}, since {alias.since}: {alias.why}" if alias else what)
    rows = read_for(labelled, *(each for each in (champion, stored) if each))
    compared = compare_checkpoints(champion, stored, rows, rules.metric)
    objections = _objections_to(compared, champion, rules)
    words = [_in_words(compared, champion, rules)]
    if has_few_held_out(rows) and (
        judged := _cross_validated(champion, stored, rows, registry, rules, listener or Listener())
    ):
        # Few rows can speak against it, beyond chance, and not for it.
        against = [each for each in objections if compared.difference.high < 0 or compared.lost_classes]
        compared, by_folds = judged
        objections = [*by_folds, *against]
        words = [_in_words(compared, champion, rules), *words]
    objections += _other_objections(champion, stored, alias, rows, rules)
    if champion is None:
        words[0] = f"the first checkpoint, {words[0]}"
    why = "; ".join([*objections, *words])
    outcome: Outcome = "rejected" if objections else "promoted"
    judgement = Judgement.of(
        {
            "outcome": outcome,
            "why": why,
            "objections": objections,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "against": champion.version if champion else None,
            "metric": rules.metric,
            "margin": rules.margin,
            "classes": _class_changes(champion, stored),
            **compared.record(),
        }
    )
    registry.annotate(challenger, judgement=judgement)
    if not objections:
        registry.succeed(alias.version if alias else None, challenger, why)
    return Promotion(outcome, why, judgement)


def read_for(labelled: LabelledSource, *checkpoints: StoredCheckpoint) -> LabelledRows:
    """The rows that any of the checkpoints can score, so that the one with more token ids gets what it is worth."""
    return replace(labelled, num_tokens_known=max(config_of(each).padding_id for each in checkpoints)).read()


def compare_checkpoints(
    champion: StoredCheckpoint | None, challenger: StoredCheckpoint, rows: LabelledRows, metric: Metric
) -> Compared:
    """Score the test rows with both in one pass, and compare.

    champion: the old checkpoint; None for a classifier that only knows how frequent each class is.
    """
    # Classes that no row has come last: a prediction of one is wrong, and must not be taken for the second best.
    known = [*(config_of(champion).classes if champion else ()), *config_of(challenger).classes]
    classes = (*rows.classes, *dict.fromkeys(name for name in known if name not in rows.classes))
    values, offsets, labels = rows.side(TEST)
    networks = [network_of(each) for each in (champion, challenger) if each]
    *of_champion, p_challenger = [
        _wrong_where_unscored(each, labels) for each in probabilities_of(networks, classes, values, offsets)
    ]
    p_champion = of_champion[0] if of_champion else _class_shares(rows, len(classes))
    test_rows = np.flatnonzero(rows.splits == TEST)
    return _compare(rows, test_rows, classes, p_champion, p_challenger, metric, is_first=champion is None)


def _compare(
    rows: LabelledRows,
    which: npt.NDArray[np.int64],
    classes: tuple[str, ...],
    p_champion: npt.NDArray[np.float32],
    p_challenger: npt.NDArray[np.float32],
    metric: Metric,
    *,
    is_first: bool,
) -> Compared:
    """which: (N,), the rows that both have scored. p_champion, p_challenger: (N, C). is_first: there is no champion."""
    from attnlstm.evaluation.comparison import difference, flips, lost_classes

    labels, groups = rows.labels[which], rows.groups[which]
    champion_right, challenger_right = (p.argmax(axis=1) == labels for p in (p_champion, p_challenger))
    return Compared(
        num_rows=len(labels),
        champion=figures_of(p_champion, labels, classes, groups),
        challenger=figures_of(p_challenger, labels, classes, groups),
        difference=difference(metric, labels, p_champion, p_challenger, groups),
        flips=flips(champion_right, challenger_right, groups),
        lost_classes=()
        if is_first
        else tuple(classes[c] for c in lost_classes(labels, champion_right, challenger_right, groups)),
        examples={}
        if is_first
        else _examples(rows, which, classes, p_champion, p_challenger, champion_right, challenger_right),
    )


def _cross_validated(
    champion: StoredCheckpoint | None,
    stored: StoredCheckpoint,
    rows: LabelledRows,
    registry: Registry,
    rules: PromotionRules,
    listener: Listener,
) -> tuple[Compared, list[str]] | None:
    """Their recipes compared on all rows, and what that says against the challenger's; None if it can't be done."""
    from attnlstm.evaluation.comparison import difference

    num_rows = int(np.count_nonzero(rows.splits == TEST))
    listener.on_note(f"{num_rows:,} test rows are too few to decide by (fewer than {FEWEST_ROWS}): cross-validating")
    found = cross_validate(champion, stored, rows, registry, listener)
    if found is None:
        listener.on_note("cross-validation is not possible: the test rows decide, however little they show")
        return None
    compared = _compare(
        rows, found.rows, rows.classes, found.champion, found.challenger, rules.metric, is_first=champion is None
    )
    compared = replace(compared, num_folds=found.num_folds)
    objections = _objections_to(compared, champion, rules)
    labels, groups = rows.labels[found.rows], rows.groups[found.rows]
    if champion and not difference(rules.metric, labels, found.shares, found.challenger, groups).low > 0:
        objections.append(f"its cross-validated {NAMES[rules.metric]} is not shown to beat {_COMMONEST}")
    return compared, objections


def _wrong_where_unscored(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """A row with token ids that a checkpoint does not know is one that it gets wrong, whichever its class.

    probabilities: (N, C), of which the rows without any get some. labels: (N,), in 0 .. C - 1.
    """
    rows = np.flatnonzero(~probabilities.any(axis=1))
    probabilities[rows, (labels[rows] + 1) % probabilities.shape[1]] = np.finfo(np.float32).tiny
    return probabilities


def _class_shares(rows: LabelledRows, num_classes: int) -> npt.NDArray[np.float32]:
    """float32 (num_test_rows, num_classes): for every row the share of each class among the training rows."""
    counts = np.bincount(rows.labels[rows.splits == TRAIN], minlength=num_classes)
    num_rows = int(np.count_nonzero(rows.splits == TEST))
    return np.tile((counts / counts.sum()).astype(np.float32), (num_rows, 1))


def _examples(
    rows: LabelledRows,
    which: npt.NDArray[np.int64],
    classes: tuple[str, ...],
    p_champion: npt.NDArray[np.float32],
    p_challenger: npt.NDArray[np.float32],
    champion_right: npt.NDArray[np.bool_],
    challenger_right: npt.NDArray[np.bool_],
) -> dict[str, list[dict[str, str]]]:
    """Where the first rows of each direction are; never what they hold."""

    def some(chosen: npt.NDArray[np.bool_]) -> list[dict[str, str]]:
        return [
            {
                "row": rows.place(which[i]),
                "label": classes[rows.labels[which[i]]],
                "champion": classes[p_champion[i].argmax()],
                "challenger": classes[p_challenger[i].argmax()],
            }
            for i in np.flatnonzero(chosen)[:_FLIPS_SHOWN].tolist()
        ]

    return {"lost": some(champion_right & ~challenger_right), "won": some(~champion_right & challenger_right)}


def _objections_to(compared: Compared, champion: StoredCheckpoint | None, rules: PromotionRules) -> list[str]:
    """What the rows say against promotion, in words."""
    objections = []
    found, name = compared.difference, f"{_measured(compared)} {NAMES[rules.metric]}"
    if champion is None:
        if not found.low > 0:
            objections.append(f"its {name} is not shown to beat {_COMMONEST}")
    elif found.low < -rules.margin - _ROUNDING:
        if found.high < 0:
            objections.append(f"its {name} is worse than the champion's")
        else:
            objections.append(f"its {name} is not shown to be within {rules.margin:g} of the champion's")
    if compared.lost_classes:
        objections.append(f"it names these classes worse than the champion: {', '.join(compared.lost_classes)}")
    return objections


def _measured(compared: Compared) -> str:
    return "cross-validated" if compared.num_folds else "test"


def _other_objections(
    champion: StoredCheckpoint | None,
    stored: StoredCheckpoint,
    alias: Alias | None,
    rows: LabelledRows,
    rules: PromotionRules,
) -> list[str]:
    """What else speaks against promotion."""
    objections = []
    vanished = _class_changes(champion, stored)["vanished"]
    if vanished and rules.vanished_classes == "refuse":
        objections.append(f"it does not know these classes of the champion's: {', '.join(vanished)}")
    # A version ends with the first characters of its weights' digest, also once its folder is gone.
    undone = [each.version for each in alias.undone] if alias else []
    if any(version.rstrip("+").endswith(f"-{stored.digest[:8]}") for version in undone):
        objections.append("its weights were champion before and were rolled back")
    if wrong := replay_through_classify(stored, rows):
        objections.append(wrong)
    return objections


def _class_changes(champion: StoredCheckpoint | None, stored: StoredCheckpoint) -> dict[str, list[str]]:
    """Classes that only one of the two knows. On rows of one that appeared the champion is wrong."""
    before, now = config_of(champion).classes if champion else config_of(stored).classes, config_of(stored).classes
    return {
        "appeared": [name for name in now if name not in before],
        "vanished": [name for name in before if name not in now],
    }


def _in_words(compared: Compared, champion: StoredCheckpoint | None, rules: PromotionRules) -> str:
    found, name = compared.difference, f"{_measured(compared)} {NAMES[rules.metric]}"
    theirs, its = (getattr(each, rules.metric) for each in (compared.champion, compared.challenger))
    interval = f"{found.confidence:.0%} interval of the gain {found.low:+.4f} to {found.high:+.4f}"
    rows = f"{compared.num_rows:,} rows"
    if compared.num_folds:
        rows += f" in {compared.num_folds} folds"
    elif compared.num_rows < FEWEST_ROWS:
        rows += f": {how_sure(compared.challenger)}"
    if champion is None:
        return f"{name} {its:.4f} (commonest class {theirs:.4f}; {interval}, {rows})"
    flipped = f"{compared.flips.num_won:,} rows won, {compared.flips.num_lost:,} lost, p {compared.flips.p_value:.2g}"
    return (
        f"{name} {its:.4f}; champion {champion.version} has {theirs:.4f} on the same {rows} ({interval}, "
        f"margin {rules.margin:g}; {flipped})"
    )

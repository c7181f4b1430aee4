"""How good the recipes of two checkpoints are by cross-validation, where held-out rows are too few to decide by.

A recipe is what a checkpoint's card and config say of how it was trained. Each row is scored by networks that were
trained by the recipes without its group, so all rows can be compared on, those that the checkpoints were trained on as
well. The trainings leave snapshots in the registry: what was stopped goes on, and what is done is not done again.
Knows nothing about Prefect.
"""

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.chance import FEWEST_ROWS
from flows.operations.score import config_of
from flows.operations.train import Listener, Snapshots, train_on, training_digest
from storage.labelled.rows import SIDES, LabelledRows
from storage.labelled.split import TEST
from storage.registry.checkpoints import Registry, StoredCheckpoint

if TYPE_CHECKING:
    from attnlstm.config import ModelConfig
    from attnlstm.training.settings import TrainingSettings

FOLD_STEPS = 600
"""Most steps of the training of a fold."""


@dataclass(frozen=True)
class CrossValidated:
    """N rows, and what networks that never saw them make of them.

    rows: int64 (N,), which of the labelled rows. shares: float32 (N, C), of each class among the rows of the training.
    champion, challenger: (N, C), by their recipes; without a champion, the shares.
    """

    num_folds: int
    rows: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float32]
    champion: npt.NDArray[np.float32]
    challenger: npt.NDArray[np.float32]


def has_few_held_out(rows: LabelledRows) -> bool:
    """Whether one split has too few test rows to decide by."""
    return int(np.count_nonzero(rows.splits == TEST)) < FEWEST_ROWS


def cross_validate(
    champion: StoredCheckpoint | None,
    challenger: StoredCheckpoint,
    rows: LabelledRows,
    registry: Registry,
    listener: Listener,
) -> CrossValidated | None:
    """Train both recipes anew on parts of the rows; None if the rows have too few groups, or a recipe is not known."""
    from attnlstm.training.cross_validation import chosen, folds_of
    from attnlstm.training.rows import LabelledSequences

    recipes = [_recipe(each, rows) for each in (champion, challenger) if each]
    if None in recipes or len(np.unique(rows.groups)) < 3:
        return None
    order, values, offsets = rows.sides(SIDES)
    every = LabelledSequences(values, offsets, rows.labels[order])
    folds = list(folds_of(rows.groups[order]))
    by_recipe: dict[str, npt.NDArray[np.float32]] = {}

    def scored(config: "ModelConfig", settings: "TrainingSettings") -> npt.NDArray[np.float32]:
        """float32 (N, C). What two checkpoints have in common is trained once."""
        from attnlstm.evaluation.metrics import probabilities_of

        key = repr((config, settings))
        if key in by_recipe:
            return by_recipe[key]
        found = np.zeros((len(order), len(rows.classes)), np.float32)
        for number, fold in enumerate(folds):
            listener.on_note(f"fold {number + 1} of {len(folds)}")
            which = f"fold {number} of {len(folds)} of {hashlib.sha256(rows.groups.tobytes()).hexdigest()}"
            snapshots = Snapshots(registry, training_digest(rows, config, settings, which))
            train, validation, held_out = (chosen(every, part) for part in (fold.train, fold.validation, fold.held_out))
            result = train_on(train, validation, config, settings, None, snapshots, listener)
            snapshots.keep_last()
            (found[fold.held_out],) = probabilities_of(
                [result.calibrated()], rows.classes, held_out.values, held_out.offsets
            )
        by_recipe[key] = found
        return found

    shares = np.zeros((len(order), len(rows.classes)), np.float32)
    for fold in folds:
        counts = np.bincount(every.labels[fold.train], minlength=len(rows.classes))
        shares[fold.held_out] = counts / counts.sum()
    *of_champion, p_challenger = [scored(*recipe) for recipe in recipes if recipe]
    p_champion = of_champion[0] if of_champion else shares
    return CrossValidated(len(folds), order, shares, p_champion, p_challenger)


def _recipe(stored: StoredCheckpoint, rows: LabelledRows) -> "tuple[ModelConfig, TrainingSettings] | None":
    """How a checkpoint was trained, for these rows; None where nobody knows, as of one from elsewhere."""
    from attnlstm.training.cross_validation import NUM_FOLDS
    from attnlstm.training.settings import TrainingSettings

    training = stored.card.training
    if training is None:
        return None
    known = {name: training.settings[name] for name in asdict(TrainingSettings()) if name in training.settings}
    settings = TrainingSettings(**known)
    # A few hundred steps show what few rows have to teach, and all folds together are to take no longer than the
    # training that they are about.
    epochs = math.ceil(FOLD_STEPS / math.ceil(len(rows) / settings.batch_rows))
    settings = replace(
        settings,
        epochs=min(epochs, settings.epochs or epochs),
        max_seconds=settings.max_seconds and settings.max_seconds / NUM_FOLDS,
    )
    config = config_of(stored)
    highest = max((int(values.max()) for values in rows.values if len(values)), default=0)
    config = replace(
        config,
        classes=rows.classes,
        num_classes=0,
        label_type=rows.label_type,
        temperature=1.0,
        num_embeddings=max(config.num_embeddings, highest + 2),
    )
    return config, settings

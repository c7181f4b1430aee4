"""One training of the study: a variant and a seed on a labelled set, with the same budget for all variants.

Owns what the budget is and what is kept of a training, as plain data. Knows nothing about files, nor about what the
figures are taken to mean.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from attnlstm.config import ModelConfig
from attnlstm.engines.torch_engine import TorchEngine
from attnlstm.evaluation.calibration import log_loss
from attnlstm.evaluation.metrics import accuracy_and_macro_f1, confusion_of
from attnlstm.threads import num_cores
from attnlstm.training.loop import EpochReport, Labelled, TrainingSettings, train
from attnlstm.training.presets import preset
from attnlstm.training.rows import crop
from attnlstm.training.schedule import usual_epochs
from attnlstm.training.snapshots import FORMAT
from attnlstm.variants import VARIANTS, Variant, make_variant

SIZES = preset("reference")


@dataclass(frozen=True)
class StudyRows:
    """A labelled set. classes: names, in the order of the labels. train, validation, test: apart, none empty."""

    classes: tuple[str, ...]
    train: Labelled
    validation: Labelled
    test: Labelled

    def __len__(self) -> int:
        return len(self.train) + len(self.validation) + len(self.test)

    def thinned(self, num_rows: int) -> "StudyRows":
        """About this many of the rows, the same share of each side and always the same ones; all if there are fewer."""
        if num_rows >= len(self):
            return self
        rng = np.random.default_rng(0)

        def some(side: Labelled) -> Labelled:
            kept = max(1, round(len(side) * num_rows / len(self)))
            rows = np.sort(rng.permutation(len(side))[:kept])
            return crop(side, rows, int(side.lengths.max()), rng)

        return StudyRows(self.classes, some(self.train), some(self.validation), some(self.test))

    def shares_loss(self) -> float:
        """The log loss on the validation rows, in nats, of knowing no more than the classes' shares of the train rows.

        A class without train rows counts as if it had one.
        """
        counts = np.bincount(self.train.labels, minlength=len(self.classes)).clip(min=1)
        return float(-np.log(counts[self.validation.labels] / counts.sum()).mean())


@dataclass(frozen=True)
class Outcome:
    """What a training came to. It fits into JSON and is the same again on the same machine, save for `seconds`.

    accuracy, macro_f1, log_loss: of the kept weights, on the test rows. best_epoch: whose weights were kept, by the
    validation rows. train_loss, validation_loss, validation_accuracy: after each epoch.
    """

    variant: Variant
    seed: int
    num_parameters: int
    accuracy: float
    macro_f1: float
    log_loss: float
    best_epoch: int
    train_loss: Sequence[float]
    validation_loss: Sequence[float]
    validation_accuracy: Sequence[float]
    seconds: float

    def epochs_to(self, loss: float) -> int | None:
        """The first epoch that ended with this validation loss or less; None if none did."""
        return next((epoch for epoch, found in enumerate(self.validation_loss, 1) if found <= loss), None)


def budget(rows: StudyRows, *, seed: int, epochs: int | None, threads: int | None) -> TrainingSettings:
    """The same for all variants: whole rows, and all of the epochs. epochs: None for as many as suit the rows."""
    settings = SIZES.settings(seed=seed, threads=threads, crop_tokens=None)
    num_epochs = epochs or usual_epochs(math.ceil(len(rows.train) / settings.batch_rows))
    return replace(settings, epochs=num_epochs, patience=num_epochs)


def train_variant(
    variant: Variant,
    rows: StudyRows,
    settings: TrainingSettings,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> Outcome:
    """Train a fresh network, keep the weights that are best on the validation rows, and measure them on the test rows.

    Scores come from the torch engine, whose batches hold rows of like length: the only engine that runs a network's
    own pooling.
    """
    config = _config(variant, rows)
    network = make_variant(variant, config, settings.seed)
    result = train(config, settings, rows.train, rows.validation, on_epoch, network=network)
    engine = TorchEngine(result.network, settings.device, settings.threads or num_cores())
    logits = engine.logits(rows.test.values, rows.test.offsets)
    figures = accuracy_and_macro_f1(confusion_of(logits.argmax(axis=1), rows.test.labels, len(rows.classes)))
    return Outcome(
        variant=variant,
        seed=settings.seed,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        accuracy=figures["accuracy"],
        macro_f1=figures["macro_f1"],
        log_loss=log_loss(logits, rows.test.labels),
        best_epoch=result.best_epoch,
        train_loss=tuple(report.train_loss for report in result.epochs),
        validation_loss=tuple(report.validation_loss for report in result.epochs),
        validation_accuracy=tuple(report.validation_accuracy for report in result.epochs),
        seconds=result.seconds,
    )


def training_digest(variant: Variant, rows: StudyRows, settings: TrainingSettings) -> str:
    """Of everything that an outcome follows from: equal digests, equal outcomes."""
    chosen = asdict(replace(settings, threads=None))
    parts = [FORMAT, torch.__version__, variant, _config(variant, rows).to_json(), chosen]
    sides = [side.digest() for side in (rows.train, rows.validation, rows.test)]
    return hashlib.sha256(json.dumps([*parts, *sides], sort_keys=True).encode()).hexdigest()[:32]


def _config(variant: Variant, rows: StudyRows) -> ModelConfig:
    return SIZES.config(rows.classes, attention=VARIANTS[variant][1])

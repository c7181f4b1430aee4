"""One training of the study: a pooling and a seed on a labelled set, with the same budget for every pooling.

Owns the budget, what is kept of a training as plain data, and when an earlier training still counts. Does not know
what the figures mean.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from attnlstm.config import ModelConfig
from attnlstm.engines.torch_engine import TorchEngine
from attnlstm.evaluation.calibration import log_losses_of_logits
from attnlstm.evaluation.metrics import accuracy_and_macro_f1, counts_by_class
from attnlstm.process import num_cores
from attnlstm.training.loop import train
from attnlstm.training.rows import LabelledSequences, crop
from attnlstm.training.schedule import usual_epochs
from attnlstm.training.settings import Preset, TrainingSettings
from poolings import POOLINGS, Pooling, make_network
from storage.labelled.source import LabelledSource
from storage.labelled.split import TEST, TRAIN, VALIDATION


@dataclass(frozen=True)
class LabelledSet:
    """classes: names, in the order of the labels. sides: train, validation and test rows, none empty."""

    classes: tuple[str, ...]
    sides: tuple[LabelledSequences, LabelledSequences, LabelledSequences]

    def shares_loss(self) -> float:
        """The log loss on the validation rows, in nats, of knowing only the classes' shares of the train rows.

        A class without train rows counts as if it had one.
        """
        train, validation, _ = self.sides
        counts = np.bincount(train.labels, minlength=len(self.classes)).clip(min=1)
        return float(-np.log(counts[validation.labels] / counts.sum()).mean())


def read_set(source: str, num_rows: int | None) -> LabelledSet:
    """The labelled rows of a source: about `num_rows`, the same share of each side and always the same rows."""
    found = LabelledSource(source).read()
    train, validation, test = (LabelledSequences(*found.side(side)) for side in (TRAIN, VALIDATION, TEST))
    share = min(1.0, (num_rows or len(found)) / len(found))
    rng = np.random.default_rng(0)

    def some(side: LabelledSequences) -> LabelledSequences:
        rows = np.sort(rng.permutation(len(side))[: max(1, round(len(side) * share))])
        return crop(side, rows, int(side.lengths.max()), rng)

    return LabelledSet(found.classes, (some(train), some(validation), some(test)))


@dataclass(frozen=True)
class Outcome:
    """What a training came to, ready for JSON. The same again on the same machine, except for `seconds`.

    accuracy, macro_f1, log_loss: of the kept weights on the test rows. best_epoch: whose weights were kept, by the
    validation rows. train_loss, validation_loss, validation_accuracy: after each epoch.
    """

    variant: Pooling
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


def budget(chosen: Preset, rows: LabelledSet, seed: int, epochs: int | None) -> TrainingSettings:
    """Whole rows and all of the epochs. epochs: None for as many as suit the number of rows."""
    num_epochs = epochs or usual_epochs(math.ceil(len(rows.sides[0]) / chosen.settings().batch_rows))
    return chosen.settings(seed=seed, crop_tokens=None, epochs=num_epochs, patience=num_epochs)


def train_once(pooling: Pooling, chosen: Preset, rows: LabelledSet, settings: TrainingSettings) -> Outcome:
    """Train a fresh network, keep the weights that are best on the validation rows, and measure them on the test rows.

    The torch engine scores, since it runs a network's own pooling; its batches hold rows of similar length.
    """
    config = _config(pooling, chosen, rows)
    network = make_network(pooling, config, settings.seed)
    train_rows, validation_rows, test_rows = rows.sides
    result = train(config, settings, train_rows, validation_rows, network=network)
    logits = TorchEngine(result.network, settings.device, num_cores()).logits(test_rows.values, test_rows.offsets)
    figures = accuracy_and_macro_f1(counts_by_class(logits.argmax(axis=1), test_rows.labels, len(rows.classes)))
    return Outcome(
        variant=pooling,
        seed=settings.seed,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        accuracy=figures["accuracy"],
        macro_f1=figures["macro_f1"],
        log_loss=float(log_losses_of_logits(logits, test_rows.labels).mean()),
        best_epoch=result.best_epoch,
        train_loss=tuple(report.train_loss for report in result.epochs),
        validation_loss=tuple(report.validation_loss for report in result.epochs),
        validation_accuracy=tuple(report.validation_accuracy for report in result.epochs),
        seconds=result.seconds,
    )


def digest_of(rows: LabelledSequences) -> str:
    """The same for equal rows in the same order, whatever the width of their integers."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (rows.offsets, rows.labels, rows.values):
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()


def trained(pooling: Pooling, chosen: Preset, rows: LabelledSet, settings: TrainingSettings, file: Path) -> Outcome:
    """The outcome that `file` holds, if it is of the same rows and settings; otherwise that of a training, now."""
    parts = [
        torch.__version__,
        pooling,
        _config(pooling, chosen, rows).to_json(),
        asdict(replace(settings, threads=None)),
    ]
    parts += [digest_of(side) for side in rows.sides]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    try:
        record = json.loads(file.read_bytes())
        if record["digest"] == digest:
            return Outcome(**record["outcome"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # there is none yet, or a kill left half of it
    outcome = train_once(pooling, chosen, rows, settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"digest": digest, "outcome": asdict(outcome)}, indent=1))
    return outcome


def _config(pooling: Pooling, chosen: Preset, rows: LabelledSet) -> ModelConfig:
    return chosen.config(rows.classes, attention=POOLINGS[pooling][1])

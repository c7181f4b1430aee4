"""Training a checkpoint from labelled Parquet and judging it: the bodies of the retrain tasks.

Where storage and the model meet in training. Knows nothing about Prefect.
"""

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import SourceError
from storage.labelled import LabelledRows, read_labelled
from storage.location import without_credentials
from storage.registry import Registry, StoredCheckpoint
from storage.split import SPLIT_NAMES, TEST, TRAIN, VALIDATION

if TYPE_CHECKING:
    from attnlstm.config import Attention
    from attnlstm.training import EpochReport, TrainingSettings

_VERSIONS = ("attnlstm", "torch", "numpy", "pyarrow", "safetensors")


@dataclass(frozen=True)
class LabelledSource:
    """Where labelled rows are, and in which columns."""

    source: str
    tokens_column: str = "tokens"
    label_column: str = "label"
    group_column: str = "group"

    @property
    def place(self) -> str:
        """The source, for names and records."""
        return without_credentials(self.source)

    def read(self) -> LabelledRows:
        """Raises SourceError unless every side of the split has rows, and the train side every class."""
        rows = read_labelled(
            self.source,
            tokens_column=self.tokens_column,
            label_column=self.label_column,
            group_column=self.group_column,
        )
        counts = [int(np.count_nonzero(rows.splits == side)) for side in (TRAIN, VALIDATION, TEST)]
        if min(counts) == 0:
            sides = ", ".join(f"{name} {count}" for name, count in zip(SPLIT_NAMES, counts, strict=True))
            raise SourceError(
                f"The source {self.place} has too few labelled rows to split by {rows.split_by}: {sides}. "
                "Every side needs rows; give more of them, or more groups."
            )
        return rows


def train_checkpoint(
    labelled: LabelledSource,
    registry: Registry,
    attention: "Attention",
    settings: "TrainingSettings",
    on_epoch: "Callable[[EpochReport], None]",
) -> StoredCheckpoint:
    """Train on the train side, stop by and calibrate on the validation side, measure on the test side, publish."""
    from attnlstm.calibration import fit_temperature
    from attnlstm.checkpoint import to_files
    from attnlstm.config import ModelConfig
    from attnlstm.engines import open_engine
    from attnlstm.metrics import evaluate
    from attnlstm.training import Labelled, train

    rows = labelled.read()
    validation = Labelled(*rows.side(VALIDATION))
    config = ModelConfig(attention=attention, classes=rows.classes)
    result = train(config, settings, Labelled(*rows.side(TRAIN)), validation, on_epoch)
    network = result.network
    network.config = replace(config, temperature=fit_temperature(result.validation_logits, validation.labels))

    values, offsets, labels = rows.side(TEST)
    scores = open_engine(network, threads=settings.threads or 1).score(values, offsets)
    card = {
        "test": evaluate(scores.probabilities, labels, rows.classes),
        "training": {
            "settings": asdict(settings),
            "stopped_by": result.stopped_by,
            "best_epoch": result.best_epoch,
            "seconds": round(result.seconds, 1),
            "epochs": [asdict(epoch) for epoch in result.epochs],
        },
        "data": _describe(labelled, rows),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
    }
    return registry.publish(to_files(network), card, _readme(card, rows.classes))


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint becomes champion, and why."""

    promoted: bool
    why: str


def judge_checkpoint(labelled: LabelledSource, registry: Registry, challenger: str) -> Verdict:
    """Compare a new checkpoint with the champion on the same held-out rows; promote it if it is not worse.

    The first checkpoint of a registry is promoted if it beats always naming the commonest class.
    """
    from attnlstm.metrics import evaluate

    card = registry.load(challenger).card
    accuracy = card["test"]["accuracy"]
    alias = registry.alias()
    if alias is None:
        majority = card["test"]["majority_accuracy"]
        if accuracy <= majority:
            return Verdict(
                False, f"its test accuracy {accuracy:.4f} does not beat the commonest class's {majority:.4f}"
            )
        why = f"the first checkpoint, test accuracy {accuracy:.4f} (commonest class {majority:.4f})"
    else:
        rows = labelled.read()
        values, offsets, labels = rows.side(TEST)
        champion = registry.load(alias.version)
        probabilities = _by_class(champion, rows.classes, values, offsets)
        theirs = float(evaluate(probabilities, labels, rows.classes)["accuracy"])  # type: ignore[arg-type]
        compared = f"test accuracy {accuracy:.4f}; champion {alias.version} has {theirs:.4f} on the same rows"
        if accuracy < theirs:
            return Verdict(False, compared)
        why = compared
    registry.promote(challenger, why)
    return Verdict(True, why)


def _by_class(stored: StoredCheckpoint, classes: tuple[str, ...], values: Any, offsets: Any) -> Any:
    """A checkpoint's probabilities (N, len(classes)) in the order of other classes; 0 for one it does not know."""
    from attnlstm.checkpoint import from_files
    from attnlstm.engines import open_engine

    network = from_files(stored.files, where=str(stored.location))
    scores = open_engine(network).score(values, offsets)
    probabilities = np.zeros((len(offsets) - 1, len(classes)), np.float32)
    for place, name in enumerate(network.config.classes):
        if name in classes:
            probabilities[:, classes.index(name)] = scores.probabilities[:, place]
    return probabilities


def _describe(labelled: LabelledSource, rows: LabelledRows) -> dict[str, Any]:
    sides = (TRAIN, VALIDATION, TEST)
    return {
        **asdict(labelled),
        "source": labelled.place,
        "num_files": rows.num_files,
        "num_unlabelled": rows.num_unlabelled,
        "num_unusable": rows.num_unusable,
        "split_by": rows.split_by,
        "rows": {
            name: int(np.count_nonzero(rows.splits == side)) for name, side in zip(SPLIT_NAMES, sides, strict=True)
        },
        "rows_per_class": dict(zip(rows.classes, np.bincount(rows.labels).tolist(), strict=True)),
    }


def _readme(card: dict[str, Any], classes: tuple[str, ...]) -> str:
    test, data = card["test"], card["data"]
    return (
        "# An attnlstm checkpoint\n\n"
        f"An attention-LSTM over byte sequences with {len(classes)} classes: {', '.join(classes)}.\n\n"
        f"Trained on {data['rows']['train']:,} rows of `{data['source']}`, stopped on {data['rows']['validation']:,}, "
        f"measured on {test['num_rows']:,} that it never saw:\n\n"
        "| test accuracy | macro-F1 | log loss | calibration error | commonest class |\n|---|---|---|---|---|\n"
        f"| {test['accuracy']:.4f} | {test['macro_f1']:.4f} | {test['log_loss']:.4f} | {test['ece']:.4f} "
        f"| {test['majority_accuracy']:.4f} |\n\n"
        "`card.json` has all figures, the settings and the versions. Score with "
        "`attnlstm classify SOURCE OUTPUT --checkpoint THIS_FOLDER`.\n"
    )

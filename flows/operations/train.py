"""Training a checkpoint from labelled Parquet: the body of the retrain flow's first task.

Where storage and the model meet in training. A training is known by a digest of its rows and settings, so that one
that was killed goes on where it was, and one that is done is not done again. Knows nothing about Prefect.
"""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from flows.operations.measure import make_card, make_readme
from flows.operations.score import config_of, network_of
from storage.errors import RegistryError, SourceError
from storage.labelled.rows import LabelledRows
from storage.labelled.source import LabelledSource
from storage.labelled.split import TRAIN, VALIDATION
from storage.registry.cards import Training
from storage.registry.checkpoints import CHAMPION, Registry, StoredCheckpoint
from storage.registry.retention import read_snapshot, remove_snapshot, remove_stale_snapshots, write_snapshot

if TYPE_CHECKING:
    from attnlstm.config import Attention, ModelConfig
    from attnlstm.network import AttentionLSTM
    from attnlstm.training.loop import TrainingResult
    from attnlstm.training.rows import LabelledSequences
    from attnlstm.training.settings import PresetName, TrainingSettings
    from attnlstm.training.snapshots import EpochReport

VanishedClasses = Literal["refuse", "drop"]

# Writing snapshots may cost this share of the time: on a disk one goes out after most epochs, to a slow store fewer.
_SNAPSHOT_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What to train, and on what. Small, so that it travels to tasks.

    overrides: settings that go before the preset's, by name. warm_start: go on from the champion's weights where they
    fit. vanished_classes: what to do about classes that the champion knows and no row has.
    """

    labelled: LabelledSource
    preset: "PresetName"
    attention: "Attention" = "additive"
    overrides: dict[str, Any] = field(default_factory=dict)
    warm_start: bool = False
    vanished_classes: VanishedClasses = "refuse"


@dataclass(frozen=True)
class Listener:
    """Whom a training tells how it goes. on_epoch: after each epoch. on_note: what a reader of a log should know."""

    on_epoch: "Callable[[EpochReport], None]" = lambda epoch: None
    on_note: Callable[[str], None] = lambda note: None


def train_checkpoint(request: TrainingRequest, registry: Registry, listener: Listener) -> StoredCheckpoint:
    """Train on the train side, stop by and calibrate on the validation side, measure on the test side, publish.

    A checkpoint that was published for the same rows and settings is returned as it is.
    Raises SourceError if a class of the champion has vanished and that is to be refused.
    """
    from attnlstm.checkpoint import to_files
    from attnlstm.training.rows import LabelledSequences
    from attnlstm.training.settings import preset

    rows = request.labelled.read()
    if name := rows.overlooked_group:
        listener.on_note(f"there is a column {name!r} and none called 'group': --group-column {name} takes it")
    chosen = preset(request.preset)
    config = chosen.config(rows.classes, attention=request.attention)
    config = replace(config, num_embeddings=request.labelled.num_tokens_known + 1, label_type=rows.label_type)
    settings = chosen.settings(**request.overrides)
    champion = registry.load(CHAMPION) if registry.alias() else None
    if champion and request.vanished_classes == "refuse":
        _refuse_vanished_classes(champion, rows, request.labelled)
    start, started_from = _start(request, champion, config, settings.seed, rows)
    digest = training_digest(rows, config, settings, champion.digest if champion and start else "")
    if done := _published(registry, digest, settings):
        listener.on_note(f"{done.version} was trained on the same rows with the same settings: nothing to train")
        return done
    listener.on_note(f"training starts from {started_from}")

    remove_stale_snapshots(registry)
    train, validation = (LabelledSequences(*rows.side(side)) for side in (TRAIN, VALIDATION))
    result = train_on(train, validation, config, settings, start, Snapshots(registry, digest), listener)
    network = result.calibrated()
    training = Training(
        settings=asdict(settings),
        stopped_by=result.stopped_by,
        best_epoch=result.best_epoch,
        seconds=round(result.seconds, 1),
        epochs=tuple(asdict(epoch) for epoch in result.epochs),
        digest=digest,
        preset=request.preset,
        started_from=started_from,
    )
    card = make_card(network, request.labelled, rows, training, settings)
    stored = registry.publish(to_files(network), card, make_readme(card, network.config))
    remove_snapshot(registry, digest)
    return stored


def usual_vocabulary(registry: Registry) -> int:
    """Token ids that a network knows if nobody says how many: those of bytes, or the champion's if these are more."""
    from attnlstm.config import ModelConfig

    champion = registry.load(CHAMPION) if registry.alias() else None
    return max(ModelConfig.num_embeddings, config_of(champion).num_embeddings if champion else 0)


def _refuse_vanished_classes(champion: StoredCheckpoint, rows: LabelledRows, labelled: LabelledSource) -> None:
    """Held-out rows can't show this loss, since they have no row of the class either; so it is met here."""
    vanished = [name for name in config_of(champion).classes if name not in rows.classes]
    if vanished:
        named = ", ".join(f"{name} (too few)" if name in rows.left_out else name for name in vanished)
        raise SourceError(
            f"The champion {champion.version} knows classes that {labelled.place} has no rows to train on of: {named}. "
            "A new checkpoint could never name them. Give more sources or a longer window, or let them go with "
            "--vanished-classes drop."
        )


def _start(
    request: TrainingRequest, champion: StoredCheckpoint | None, config: "ModelConfig", seed: int, rows: LabelledRows
) -> "tuple[AttentionLSTM | None, str]":
    """The network to go on from, or None for a fresh one; and which, in words."""
    from attnlstm.training.loop import warm_started

    if not request.warm_start:
        return None, "scratch"
    if champion is None:
        return None, "scratch: there is no champion yet"
    data = champion.card.data
    if data is None or (data.split_by, data.group_column) != (rows.split_by, request.labelled.group_column):
        # Some of what the champion was trained on would be among the test rows.
        return None, f"scratch: the rows of champion {champion.version} were split otherwise"
    try:
        return warm_started(network_of(champion), config, seed), f"champion {champion.version}"
    except ValueError as error:
        return None, f"scratch: champion {champion.version} does not fit, {error}"


def training_digest(rows: LabelledRows, config: "ModelConfig", settings: "TrainingSettings", start: str) -> str:
    """Of everything that the published figures follow from, save for a time limit.

    start: the digest of the checkpoint that training goes on from, "" for none.
    """
    from attnlstm.training.snapshots import FORMAT

    chosen = asdict(replace(settings, threads=None, max_seconds=None))
    if not settings.averaging:
        del chosen["averaging"]  # as before there was such a setting
    versions = [importlib.metadata.version(name) for name in ("attnlstm", "torch")]
    digest = hashlib.sha256(json.dumps([FORMAT, versions, config.to_json(), chosen, start], sort_keys=True).encode())
    for array in (rows.splits, rows.labels, rows.contents):
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


def _published(registry: Registry, digest: str, settings: "TrainingSettings") -> StoredCheckpoint | None:
    """The newest whole checkpoint of this training; not one that another time limit has cut short."""
    for version in reversed(registry.versions()):
        try:
            training = registry.card(version).training
            if training is None or training.digest != digest:
                continue
            if training.stopped_by == "time" and training.settings.get("max_seconds") != settings.max_seconds:
                continue
            return registry.load(version)
        except RegistryError:
            continue  # damaged or pruned meanwhile: as good as not there
    return None


def train_on(
    rows: "LabelledSequences",
    validation: "LabelledSequences",
    config: "ModelConfig",
    settings: "TrainingSettings",
    start: "AttentionLSTM | None",
    snapshots: "Snapshots",
    listener: Listener,
) -> "TrainingResult":
    """Train on rows, going on from the snapshot of the same training if there is one. start: see `train`."""
    from attnlstm.training.loop import train

    def run(resume_from: bytes | None) -> "TrainingResult":
        return train(
            config,
            settings,
            rows,
            validation,
            listener.on_epoch,
            network=start,
            digest=snapshots.digest,
            resume_from=resume_from,
            on_snapshot=snapshots.keep,
        )

    if (snapshot := read_snapshot(snapshots.registry, snapshots.digest)) is None:
        return run(None)
    listener.on_note("training goes on where it was stopped")
    try:
        return run(snapshot)
    except ValueError as error:
        # Bad rows would be refused again; a bad snapshot must not stand in the way of every later retraining.
        listener.on_note(f"training starts again: {error}")
        return run(None)


class Snapshots:
    """Keeps snapshots of one training, no more often than they are cheap."""

    def __init__(self, registry: Registry, digest: str) -> None:
        self.registry, self.digest = registry, digest
        self._next = 0.0
        self._left: bytes | None = None

    def keep(self, content: bytes) -> None:
        began = time.monotonic()
        self._left = content
        if began >= self._next:
            self.keep_last()
            ended = time.monotonic()
            self._next = ended + (ended - began) / _SNAPSHOT_SHARE

    def keep_last(self) -> None:
        """Keep the last one as well, of a training that is to be found done."""
        if self._left is not None:
            write_snapshot(self.registry, self.digest, self._left)
            self._left = None

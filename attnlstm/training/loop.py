"""Training on labelled rows: epochs, validation, which weights to keep, and when to stop.

Owns everything between labelled arrays and the best weights. Knows nothing about where rows come from, how
they were split, or what becomes of the network. On a CPU the same seed gives the same weights on the same machine,
on any number of threads and over any number of kills; a time limit that cuts training short is the one thing that
can change them.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from attnlstm.config import ModelConfig, differences
from attnlstm.engines.fused_cpu import FusedCpuEngine
from attnlstm.engines.torch_engine import TorchEngine, resolve_device
from attnlstm.evaluation.calibration import fit_biases, fit_temperature
from attnlstm.network import AttentionLSTM
from attnlstm.process import keep_freed_memory, num_cores, worker_threads
from attnlstm.training.fused import why_not_fused
from attnlstm.training.optimizer import AdamW
from attnlstm.training.rows import (
    LabelledSequences,
    balancing_weights,
    check_labelled,
    crop,
    hide_tokens,
    shuffled_batches,
)
from attnlstm.training.schedule import NGRAM_DECAY, Schedule, StoppedBy, weight_decay
from attnlstm.training.settings import TrainingSettings
from attnlstm.training.snapshots import Best, EpochReport, EpochSums, Snapshot, restore, to_bytes
from attnlstm.training.step import Stepper
from attnlstm.training.validation import calibration_weights, count_repeats, validate

SNAPSHOT_SECONDS = 60.0
"""Longest time between two snapshots: what a kill may cost, next to the start of a process."""

STEPS_BETWEEN_LOSSES = 50
"""Steps after which the losses are looked at. Every look makes a CUDA device wait."""


CLASS_WEIGHTS, CLASS_BIASES = "mlp.2.weight", "mlp.2.bias"
"""Parameters of the outputs, one for each class."""


@dataclass(frozen=True)
class TrainingResult:
    """The network with the best weights, in evaluation mode, on the CPU, and how they came about.

    epochs: one report each. best_epoch: whose weights were kept. seconds: of all of it.
    stopped_by: "epochs" (all done), "patience" or "time".
    validation_logits: float32 (N, C) of the kept weights on the validation rows. biases: float64 (C,), to add to the
    classes' logits, and temperature, which calibrate the network by these rows; its own are as they were.
    """

    network: AttentionLSTM
    epochs: tuple[EpochReport, ...]
    best_epoch: int
    seconds: float
    stopped_by: StoppedBy
    validation_logits: npt.NDArray[np.float32]
    biases: npt.NDArray[np.float64]
    temperature: float

    def calibrated(self) -> AttentionLSTM:
        """A copy of the network with the biases, in its classifier, and the temperature."""
        network = copy.deepcopy(self.network)
        network.config = replace(network.config, temperature=self.temperature)
        with torch.no_grad():
            network.get_parameter(CLASS_BIASES).add_(torch.from_numpy(self.biases))
        return network


def train(
    config: ModelConfig,
    settings: TrainingSettings,
    train: LabelledSequences,
    validation: LabelledSequences,
    on_epoch: Callable[[EpochReport], None] | None = None,
    *,
    network: AttentionLSTM | None = None,
    digest: str = "",
    resume_from: bytes | None = None,
    on_snapshot: Callable[[bytes], None] | None = None,
) -> TrainingResult:
    """A network trained with AdamW on the mean cross-entropy.

    train, validation: at least one row each. on_epoch: called after each epoch.
    network: whose copy is trained: a champion's to go on from, or any module with a `config` and
        `AttentionLSTM.forward`. Its sizes and classes must be the config's. None: a fresh one.
    on_snapshot: called with bytes after each epoch, and every SNAPSHOT_SECONDS within one. resume_from: such bytes;
        the same rows, settings and network then end with the weights that they would have ended with. The number
        of threads and the time limit may differ.
    digest: of rows, settings and network, by whoever keeps snapshots: one with another digest is not gone on from.
    Raises ValueError on rows that do not fit the config and on a snapshot of another training, FloatingPointError
    if the loss stops being finite.
    """
    check_labelled("train", train, config)
    check_labelled("validation", validation, config)
    device = resolve_device(settings.device)
    threads = settings.threads or num_cores()
    network = _start(config, network, settings.seed)
    network.to(device).train()
    steps_per_epoch = math.ceil(len(train) / settings.batch_rows)
    decay = weight_decay(settings, steps_per_epoch)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    optimizer = AdamW(
        list(trained.values()),
        weight_decay=[decay * (NGRAM_DECAY if name == "ngrams" else 1) for name in trained],
        averaging=settings.averaging,
    )
    judged_network = _sharing(network, dict(zip(trained, optimizer.averages(), strict=True)))

    schedule = Schedule(settings, steps_per_epoch)
    sums = EpochSums()
    reports: list[EpochReport] = []
    best: Best | None = None
    fused = why_not_fused(network) is None
    if resume_from is not None:
        resumed = restore(resume_from, network, optimizer, digest)
        schedule = Schedule(settings, steps_per_epoch, resumed.pace)
        sums, reports, best = resumed.sums, list(resumed.reports), resumed.best
        fused = fused and resumed.fused

    def snapshot() -> None:
        if on_snapshot:
            now = Snapshot(schedule.pace(), sums, tuple(reports), best, fused)
            on_snapshot(to_bytes(now, network, optimizer, digest))

    weights = np.ones(config.num_classes, np.float32)
    if settings.class_weights == "balanced":
        weights = balancing_weights(train.labels, config.num_classes)
    repeats = count_repeats(validation.values, validation.offsets)
    keep_freed_memory()
    with worker_threads(threads, "training") as workers:
        stepper = Stepper(
            network,
            optimizer,
            class_weights=weights,
            clip_norm=settings.clip_norm,
            precision=settings.precision,
            seed=settings.seed,
            workers=workers,
            fused=fused,
        )
        while (stopped_by := schedule.stopped_by) is None:
            _train_epoch(stepper, schedule, settings, train, config.padding_id, len(reports), sums, snapshot)
            validation_began = time.monotonic()
            engine: FusedCpuEngine | TorchEngine
            if fused:
                engine = FusedCpuEngine(judged_network, threads)
            else:
                engine = TorchEngine(judged_network, settings.device, threads)
            logits = engine.logits(validation.values, validation.offsets)
            judged = validate(logits, validation.labels, 1 / repeats)
            schedule.validated(time.monotonic() - validation_began)
            improved = best is None or judged.calibrated_loss < best.score
            if improved:
                kept = {name: tensor.detach().clone() for name, tensor in judged_network.state_dict().items()}
                best = Best(kept, judged.calibrated_loss, torch.from_numpy(logits))
            epoch = len(reports) + 1
            if not improved and epoch - _best_epoch(reports) >= schedule.patience and not schedule.is_winding_down:
                schedule.wind_down()
            reports.append(
                EpochReport(
                    epoch=epoch,
                    num_epochs=schedule.num_epochs,
                    seconds=schedule.seconds,
                    train_loss=sums.loss / sums.num_rows,
                    validation_loss=judged.loss,
                    validation_accuracy=judged.accuracy,
                    validation_macro_f1=judged.macro_f1,
                    calibrated_loss=judged.calibrated_loss,
                    tokens_per_second=sums.num_tokens / sums.seconds,
                    improved=improved,
                )
            )
            sums = EpochSums()
            snapshot()
            if on_epoch:
                on_epoch(reports[-1])
    assert best is not None, "a schedule has at least one step, and so one epoch"
    network.load_state_dict(best.weights)
    logits, counts = best.logits.numpy(), calibration_weights(repeats)
    biases = np.zeros(config.num_classes)
    if settings.class_weights == "none":  # otherwise they would take back the say that rare classes were given
        biases = fit_biases(logits, validation.labels, counts)
    return TrainingResult(
        network=network.to("cpu").eval(),
        epochs=tuple(reports),
        best_epoch=_best_epoch(reports),
        seconds=schedule.seconds,
        stopped_by=stopped_by,
        validation_logits=logits,
        biases=biases,
        temperature=fit_temperature(logits + biases, validation.labels, counts),
    )


def _start(config: ModelConfig, network: AttentionLSTM | None, seed: int) -> AttentionLSTM:
    """What to train: a fresh network, or a copy of this one with the config's dropout and temperature."""
    if network is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AttentionLSTM(config)
    if differing := differences(network.config, config, apart_from=("dropout", "temperature")):
        raise ValueError(f"the network to go on from has {differing}")
    network = copy.deepcopy(network).cpu()
    network.config = config
    return network


def _sharing(network: AttentionLSTM, averages: dict[str, torch.Tensor]) -> AttentionLSTM:
    """The network with these tensors in place of its parameters; it follows both as they change."""
    if all(tensor is network.get_parameter(name) for name, tensor in averages.items()):
        return network
    shared = copy.deepcopy(network)
    shared.load_state_dict(network.state_dict() | averages, assign=True)
    return shared


def _train_epoch(
    stepper: Stepper,
    schedule: Schedule,
    settings: TrainingSettings,
    train: LabelledSequences,
    hidden_id: int,
    epoch: int,
    sums: EpochSums,
    snapshot: Callable[[], None],
) -> None:
    """The steps of an epoch that are left, until it ends or the schedule does; what they add up to goes to sums.

    epoch: from 0. hidden_id: the token that stands for a hidden one.
    """
    lengths = train.lengths
    batches = shuffled_batches(lengths, settings.batch_rows, np.random.default_rng((settings.seed, 0, epoch)))
    seconds_before, began = sums.seconds, time.monotonic()
    last_snapshot = began
    losses: list[torch.Tensor] = []

    def add_up() -> None:
        sums.loss += torch.stack(losses).double().sum().item() if losses else 0.0
        sums.seconds = seconds_before + time.monotonic() - began
        losses.clear()
        if not math.isfinite(sums.loss):
            raise FloatingPointError(
                f"the loss is {sums.loss} in epoch {epoch + 1}; a learning_rate below {settings.learning_rate} may help"
            )

    for rows in batches[schedule.step - epoch * schedule.steps_per_epoch :]:
        rng = np.random.default_rng((settings.seed, 1, schedule.step))
        batch = crop(train, rows, schedule.crop_tokens(int(lengths[rows].max())), rng)
        shown = hide_tokens(batch, settings.token_dropout, hidden_id, rng)
        learning_rate = settings.learning_rate * schedule.learning_rate_share()
        losses.append(stepper.take(shown, schedule.step, learning_rate) * len(rows))
        sums.num_rows += len(rows)
        sums.num_tokens += len(batch.values)
        schedule.step_done()
        if schedule.stopped_by:
            break
        if len(losses) >= STEPS_BETWEEN_LOSSES:
            add_up()
        if time.monotonic() - last_snapshot >= SNAPSHOT_SECONDS:
            add_up()
            snapshot()
            last_snapshot = time.monotonic()
    add_up()


def _best_epoch(reports: list[EpochReport]) -> int:
    return max(report.epoch for report in reports if report.improved)


def warm_started(old: AttentionLSTM, config: ModelConfig, seed: int) -> AttentionLSTM:
    """A network of this config with `old`'s weights; of its outputs, each class gets those of the class of its name.

    seed: of the initial weights of classes that `old` does not know, and of all if it knows none.
    Raises ValueError, which says why, if attention, sizes or vocabulary are not the same.
    """
    may_differ = ("classes", "num_classes", "label_type", "dropout", "temperature")
    if differing := differences(old.config, config, apart_from=may_differ):
        raise ValueError(f"it has {differing}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AttentionLSTM(config)
    known = [name for name in config.classes if name in old.config.classes]
    here = [config.classes.index(name) for name in known]
    there = [old.config.classes.index(name) for name in known]
    weights, fresh = old.state_dict(), network.state_dict()
    for name in (CLASS_WEIGHTS, CLASS_BIASES):
        mapped = fresh[name].clone()
        mapped[here] = weights[name][there]
        weights[name] = mapped
    network.load_state_dict(weights)
    return network

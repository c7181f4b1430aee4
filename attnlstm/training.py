"""Training on labelled rows: batches, gradients, the schedule, and when to stop.

Owns everything between labelled arrays and the best weights. Knows nothing about where rows come from, how
they were split, or what becomes of the network. The same seed gives the same weights on the same machine, on
any number of threads; a time limit that cuts training short is the one thing that can change them.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlstm.batching import check_ragged, pad, plan_batches
from attnlstm.config import ModelConfig
from attnlstm.engines.torch_engine import TorchEngine
from attnlstm.network import AttentionLSTM
from attnlstm.threads import num_cores, worker_threads

ROWS_PER_SLICE = 32
"""Most rows of a batch that one thread takes. Fixed, so that sums come out the same on any number of threads."""

TOKENS_PER_SLICE = 1 << 15
"""Most padded tokens of a slice, a bound on memory: training keeps 3 to 7 KB a token at the reference sizes."""

USUAL_EPOCHS = 12
FEWEST_STEPS = 1500
"""How long to train unless told: so many passes, or more of them over few rows, which need steps all the same."""

DECAY_EPOCHS = 10
HIGHEST_DECAY = 0.3
"""AdamW's weights are an average over the last 1 / (learning rate x weight decay) steps. What is best for it is a
number of passes, whatever the number of rows (Wang and Aitchison 2024, arXiv 2405.13698); on very few rows it would
leave nothing to learn with, hence the bound."""

BATCHES_PER_WINDOW = 16
"""Batches drawn at random together, then sorted by length so that each has rows of like length."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train. Raises ValueError on bad values. Dropout is the network's: `ModelConfig.dropout`.

    learning_rate: AdamW's peak, reached after the warm-up.
    batch_rows: rows of one step.
    epochs: most passes over the training rows; the learning rate reaches 0 at the end of the last. None: USUAL_EPOCHS,
        or as many as it takes for FEWEST_STEPS.
    crop_tokens: at first rows are cropped to this many tokens, at random places, and then to more and more, until the
        last steps see them whole. Short crops cost little and say much about long rows. None: always whole.
    patience: epochs without a better validation loss before training stops.
    weight_decay: AdamW's, on all weights. None: as much as makes weights forget over DECAY_EPOCHS passes.
    clip_norm: longest gradient that is applied as it is.
    warmup_share: share of all steps in which the learning rate rises from 0.
    max_seconds: time limit, validation included; fewer epochs are planned if they would take longer. None:
    no limit.
    seed: of the initial weights, the order of rows and the dropout.
    threads: slices of a batch computed side by side; None for one a core. It does not change the weights.
    """

    learning_rate: float = 1e-2
    batch_rows: int = 64
    epochs: int | None = None
    crop_tokens: int | None = 64
    patience: int = 10
    weight_decay: float | None = None
    clip_norm: float = 1.0
    warmup_share: float = 0.1
    max_seconds: float | None = None
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_rows", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("epochs", "crop_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {self.weight_decay}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share must be at least 0 and below 1, not {self.warmup_share}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0 or None, not {self.max_seconds}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1 or None, not {self.threads}")


@dataclass(frozen=True)
class Labelled:
    """N ragged rows with their classes.

    values: integer, tokens of all rows end to end. offsets: int64 (N + 1,). labels: int64 (N,), in 0 .. C -
    1.
    """

    values: npt.NDArray[np.integer]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N,), tokens of each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class EpochReport:
    """One pass over the training rows and the validation after it.

    epoch: from 1. num_epochs: planned now; a time limit lowers it, patience does not. seconds: since training began.
    train_loss: mean over the pass, as the weights and the crops were then.
    validation_loss, validation_accuracy: after the pass. tokens_per_second: of the pass, padding not counted.
    improved: the best validation loss so far, so these weights are the ones kept.
    """

    epoch: int
    num_epochs: int
    seconds: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    tokens_per_second: float
    improved: bool


@dataclass(frozen=True)
class TrainingResult:
    """The network with the best weights, in evaluation mode, and how they came about.

    epochs: one report each. best_epoch: whose weights were kept. seconds: of all of it.
    stopped_by: "epochs" (all done), "patience" or "time".
    validation_logits: float32 (N, C) of the kept weights on the validation rows, for calibration.
    """

    network: AttentionLSTM
    epochs: tuple[EpochReport, ...]
    best_epoch: int
    seconds: float
    stopped_by: Literal["epochs", "patience", "time"]
    validation_logits: npt.NDArray[np.float32]


def train(
    config: ModelConfig,
    settings: TrainingSettings,
    train: Labelled,
    validation: Labelled,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainingResult:
    """A network trained from scratch on the CPU, with AdamW, on the mean cross-entropy of all rows alike.

    train, validation: at least one row each. on_epoch: called after each epoch.
    Raises ValueError on rows that do not fit the config, FloatingPointError if the loss stops being finite.
    """
    began = time.monotonic()
    _check("train", train, config)
    _check("validation", validation, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = AttentionLSTM(config)
    order = np.random.default_rng(settings.seed)
    steps_per_epoch = math.ceil(len(train) / settings.batch_rows)
    decay = _weight_decay(settings, steps_per_epoch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=decay, fused=True)
    threads = settings.threads or num_cores()

    plan = _Plan(settings, steps_per_epoch, began)
    best_loss = math.inf
    best: dict[str, Tensor] = {}
    best_logits = np.empty(0, np.float32)
    reports: list[EpochReport] = []
    stopped_by: Literal["epochs", "patience", "time"] = "epochs"

    with worker_threads(threads, "training") as workers:
        while True:
            epoch = len(reports) + 1
            epoch_began = time.monotonic()
            network.train()
            loss_sum, num_rows, num_tokens = 0.0, 0, 0
            for rows in _shuffled_batches(train.lengths, settings.batch_rows, order):
                optimizer.param_groups[0]["lr"] = settings.learning_rate * plan.learning_rate_share()
                batch = _crop(train, rows, plan.crop_tokens(int(train.lengths[rows].max())), order)
                loss = _step(network, optimizer, batch, settings, plan.step, workers)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss is {loss} in epoch {epoch}; a learning_rate below {settings.learning_rate} may help"
                    )
                loss_sum += loss * len(rows)
                num_rows += len(rows)
                num_tokens += len(batch.values)
                plan.step_done()
                if plan.is_over:
                    break
            epoch_seconds = time.monotonic() - epoch_began
            validation_began = time.monotonic()
            logits = TorchEngine(network, "cpu", threads).logits(validation.values, validation.offsets)
            validation_loss, validation_accuracy = _judge(logits, validation.labels)
            plan.validated(time.monotonic() - validation_began)
            improved = validation_loss < best_loss
            if improved:
                best_loss, best_logits = validation_loss, logits
                best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            report = EpochReport(
                epoch=epoch,
                num_epochs=plan.num_epochs,
                seconds=time.monotonic() - began,
                train_loss=loss_sum / num_rows,
                validation_loss=validation_loss,
                validation_accuracy=validation_accuracy,
                tokens_per_second=num_tokens / epoch_seconds,
                improved=improved,
            )
            reports.append(report)
            if on_epoch:
                on_epoch(report)
            best_epoch = max(report.epoch for report in reports if report.improved)
            if plan.is_over:
                stopped_by = "time" if plan.was_cut else "epochs"
                break
            if epoch - best_epoch >= settings.patience:
                stopped_by = "patience"
                break
    network.load_state_dict(best)
    return TrainingResult(network.eval(), tuple(reports), best_epoch, time.monotonic() - began, stopped_by, best_logits)


def _weight_decay(settings: TrainingSettings, steps_per_epoch: int) -> float:
    if settings.weight_decay is not None:
        return settings.weight_decay
    return min(HIGHEST_DECAY, 1 / (settings.learning_rate * DECAY_EPOCHS * steps_per_epoch))


class _Plan:
    """How many steps there will be, and so where in the schedule a step is.

    The plan is all epochs, until the pace shows that the time limit comes first; then it is what fits, and
    the learning rate falls to 0 by then. A limit that is not met leaves no trace in the weights.
    """

    STEPS_BETWEEN_LOOKS = 20
    """Steps between looks at the clock: enough to average out the first, which is slow."""

    def __init__(self, settings: TrainingSettings, steps_per_epoch: int, began: float) -> None:
        self._settings = settings
        self._began = began
        self._steps_per_epoch = steps_per_epoch
        epochs = settings.epochs or max(USUAL_EPOCHS, math.ceil(FEWEST_STEPS / steps_per_epoch))
        self._all_steps = epochs * steps_per_epoch
        self._planned = self._all_steps
        self._validation_seconds = 0.0
        self.step = 0

    @property
    def is_over(self) -> bool:
        return self.step >= self._planned

    @property
    def num_epochs(self) -> int:
        return math.ceil(self._planned / self._steps_per_epoch)

    @property
    def was_cut(self) -> bool:
        return self._planned < self._all_steps

    def learning_rate_share(self) -> float:
        """Share of the peak learning rate: a straight rise, then half a cosine down to 0."""
        progress = (self.step + 1) / (self._planned + 1)
        warmup = self._settings.warmup_share
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    def crop_tokens(self, longest: int) -> int:
        """Most tokens of a row in this step, of rows with up to `longest`.

        They grow by a constant factor for each equal rise of the cubed progress: half of all steps are nearly as cheap
        as the first, and the last fifth see most of every row.
        """
        shortest = self._settings.crop_tokens
        if shortest is None or shortest >= longest:
            return longest
        progress = (self.step + 1) / self._planned
        return min(longest, int(shortest * (longest / shortest) ** progress**3))

    def step_done(self) -> None:
        self.step += 1
        if self.step % self.STEPS_BETWEEN_LOOKS == 0:
            self._look_at_clock()

    def validated(self, seconds: float) -> None:
        self._validation_seconds = seconds
        self._look_at_clock()

    def _look_at_clock(self) -> None:
        if self._settings.max_seconds is None:
            return
        elapsed = time.monotonic() - self._began
        # The pace has the validations so far in it; the last one is still to come.
        left = self._settings.max_seconds - elapsed - self._validation_seconds
        self._planned = min(self._all_steps, self.step + max(0, int(left * self.step / elapsed)))


def _step(
    network: AttentionLSTM,
    optimizer: torch.optim.Optimizer,
    batch: Labelled,
    settings: TrainingSettings,
    step: int,
    workers: Executor,
) -> float:
    """One step of the optimizer on a batch. Returns its mean loss, before the step."""
    parameters = list(network.parameters())

    def gradients(number: int, part: npt.NDArray[np.int64]) -> tuple[float, tuple[Tensor, ...]]:
        token_ids, lengths = pad(batch.values, batch.offsets, part, network.config.padding_id)
        # A generator for each slice: threads that shared one would draw from it in no fixed order.
        generator = torch.Generator().manual_seed(_seed(settings.seed, step, number))
        logits, _ = network(torch.from_numpy(token_ids), torch.from_numpy(lengths), generator)
        loss = F.cross_entropy(logits, torch.from_numpy(batch.labels[part]), reduction="sum") / len(batch)
        return loss.item(), torch.autograd.grad(loss, parameters)

    slices = list(plan_batches(batch.lengths, max_tokens=TOKENS_PER_SLICE, max_rows=ROWS_PER_SLICE))
    losses, slice_gradients = zip(*workers.map(gradients, range(len(slices)), slices), strict=True)
    for parameter, *parts in zip(parameters, *slice_gradients, strict=True):
        parameter.grad = torch.stack(parts).sum(0)
    torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
    optimizer.step()
    return math.fsum(losses)


def _crop(labelled: Labelled, rows: npt.NDArray[np.int64], longest: int, order: np.random.Generator) -> Labelled:
    """These rows, each with at most `longest` tokens, from a random place."""
    lengths = labelled.lengths[rows]
    kept = np.minimum(lengths, longest)
    starts = labelled.offsets[rows] + order.integers(0, lengths - kept + 1)
    offsets = np.concatenate(([0], np.cumsum(kept)))
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], kept)
    return Labelled(labelled.values[positions], offsets, labelled.labels[rows])


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _shuffled_batches(
    lengths: npt.NDArray[np.int64], batch_rows: int, order: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """Every row once, in random batches of rows of like length."""
    rows = order.permutation(len(lengths))
    window_rows = batch_rows * BATCHES_PER_WINDOW
    for start in range(0, len(rows), window_rows):
        window = rows[start : start + window_rows]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches = [window[i : i + batch_rows] for i in range(0, len(window), batch_rows)]
        for i in order.permutation(len(batches)):
            yield batches[i]


def _judge(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean loss and accuracy."""
    loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return loss, float((logits.argmax(1) == labels).mean())


def _check(what: str, labelled: Labelled, config: ModelConfig) -> None:
    num_rows = len(labelled.offsets) - 1
    if not num_rows or labelled.labels.shape != (num_rows,):
        raise ValueError(
            f"{what}: one label a row and at least one row are needed; "
            f"got {num_rows} rows and {len(labelled.labels)} labels"
        )
    check_ragged(labelled.values, labelled.offsets, config.padding_id)
    lowest, highest = labelled.labels.min(), labelled.labels.max()
    if lowest < 0 or highest >= config.num_classes:
        raise ValueError(f"{what}: labels must be in 0..{config.num_classes - 1}; found {lowest}..{highest}")

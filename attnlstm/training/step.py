"""One step of the optimizer: a batch's gradients, compiled (see `fused`) or torch's, slice by slice, and the update.

Owns what runs on the device. Knows nothing about schedules, epochs, or which rows make a batch.
"""

import math
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlstm.batching import pad, plan_batches
from attnlstm.network import AttentionLSTM
from attnlstm.training.fused import FusedGradients
from attnlstm.training.optimizer import AdamW
from attnlstm.training.rows import LabelledSequences
from attnlstm.training.settings import Precision

SLICES_PER_BATCH, ROWS_PER_SLICE, MOST_ROWS_PER_SLICE = 2, 32, 64
"""How a batch is shared out on a CPU: into this many slices or more, of at least and at most so many rows. More rows
in a slice are faster for each core, more slices keep more cores busy. It depends on the rows alone, so that sums come
out the same on any number of threads."""

TOKENS_WORTH_A_THREAD = 1024
"""Slices that would have fewer tokens than these get more rows: short rows cost little next to the calls."""

TOKENS_PER_SLICE = {"cpu": 1 << 15, "cuda": 1 << 20}
"""Most padded tokens of a slice, a bound on memory: training keeps 3 to 7 KB a token at the reference sizes."""


class Stepper:
    """A network and its optimizer, which share the device.

    network: trained in place; already on its device. class_weights: float32 (C,), what a row of each class is worth.
    seed: of the dropout. workers: compute the slices of a batch on a CPU; a CUDA device takes them one by one.
    fused: whether gradients are computed by `fused`, which must know the network, or by torch.
    """

    def __init__(
        self,
        network: AttentionLSTM,
        optimizer: AdamW,
        *,
        class_weights: npt.NDArray[np.float32],
        clip_norm: float,
        precision: Precision,
        seed: int,
        workers: Executor,
        fused: bool,
    ) -> None:
        self._fused = None
        if fused:
            self._fused = FusedGradients(
                network, class_weights=class_weights, clip_norm=clip_norm, seed=seed, workers=workers
            )
        self._network = network
        self._optimizer = optimizer
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._device = self._parameters[0].device
        self._class_weights = torch.from_numpy(class_weights).to(self._device)
        self._clip_norm = clip_norm
        self._mixed = precision == "bfloat16" and self._device.type == "cuda"
        self._seed = seed
        self._workers = workers

    def take(self, batch: LabelledSequences, step: int, learning_rate: float) -> Tensor:
        """One step. Returns the batch's mean loss before it, on the device, so that nobody waits for it."""
        self._optimizer.learning_rate = learning_rate
        if self._fused:
            total = torch.tensor(self._fused.compute(batch, step), dtype=torch.float64)
        else:
            total = self._gradients_by_torch(batch, step)
        self._optimizer.step()
        return total

    def _gradients_by_torch(self, batch: LabelledSequences, step: int) -> Tensor:
        """The batch's mean loss. Every parameter gets its gradient, clipped."""
        on_cpu = self._device.type == "cpu"
        max_rows = _rows_per_slice(len(batch), int(batch.lengths.max())) if on_cpu else len(batch)
        max_tokens = TOKENS_PER_SLICE[self._device.type]
        slices = list(plan_batches(batch.lengths, max_tokens=max_tokens, max_rows=max_rows))
        # A single slice goes to a worker too: only there is torch set to one thread, and to flush denormals.
        apply = self._workers.map if on_cpu else map
        results = list(apply(lambda part: self._gradients_of_slice(batch, step, *part), enumerate(slices)))
        total, gradients = results[0]
        for loss, others in results[1:]:
            total = total + loss
            gradients = tuple(map(torch.add, gradients, others))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        return total

    def _gradients_of_slice(
        self, batch: LabelledSequences, step: int, number: int, part: npt.NDArray[np.int64]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A slice's share of the mean loss, and its gradients."""
        token_ids, lengths = pad(batch.values, batch.offsets, part, self._network.config.padding_id)
        labels = self._put(batch.labels[part])
        # A generator for each slice: threads that shared one would draw from it in no fixed order.
        seed = int(np.random.SeedSequence((self._seed, step, number)).generate_state(1)[0])
        generator = torch.Generator(self._device).manual_seed(seed)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            logits, _ = self._network(self._put(token_ids), self._put(lengths), generator)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        loss = (losses * self._class_weights[labels]).sum() / len(batch)
        # A network of one's own may have parameters that the logits don't depend on.
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        return loss.detach(), gradients

    def _put(self, array: npt.NDArray[np.integer]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _rows_per_slice(num_rows: int, longest: int) -> int:
    """Most rows of a slice, of a batch whose longest row has so many tokens."""
    shared_out = min(MOST_ROWS_PER_SLICE, max(ROWS_PER_SLICE, math.ceil(num_rows / SLICES_PER_BATCH)))
    return max(shared_out, TOKENS_WORTH_A_THREAD // longest)

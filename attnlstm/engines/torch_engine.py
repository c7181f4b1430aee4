"""The engine that runs the network itself, on a CPU or on a CUDA device.

Owns the size of batches and the threads that share them. Knows nothing about the network but its forward
pass.
"""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attnlstm.batching import check_ragged, pad, plan_batches, unpad
from attnlstm.engines import Device, Scores
from attnlstm.network import AttentionLSTM
from attnlstm.threads import worker_threads

MAX_TOKENS = {"cpu": 1 << 15, "cuda": 1 << 22}
"""Padded tokens of a batch. On a CPU more is no faster and pads more; a GPU needs many rows to be busy."""

MAX_ROWS = {"cpu": 1024, "cuda": 1 << 14}
"""Rows of a batch, which matters where rows are short."""


class TorchEngine:
    """A copy of a network, in evaluation mode, with threads of its own. Later changes to the network don't
    reach it.

    network: stays the caller's. device: "auto" takes a CUDA device if there is one. threads: batches
    computed side by side on a CPU, each on one core; which rows share a batch depends on the data alone, so
    results are the same bits for any number. On a CUDA device one thread feeds one stream. Raises ValueError
    if the device is not there or threads is below 1.
    """

    name = "torch"

    def __init__(self, network: AttentionLSTM, device: Device = "auto", threads: int = 1) -> None:
        self.device = resolve_device(device)
        self._network = copy.deepcopy(network).eval().to(self.device)
        self._workers = worker_threads(threads if self.device == "cpu" else 1, "torch-engine")

    def score(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> Scores:
        """See `Engine.score`."""
        config = self._network.config
        probabilities = np.empty((len(offsets) - 1, config.num_classes), np.float32)
        attention_weights = np.empty(len(values), np.float32)

        def keep(rows: npt.NDArray[np.int64], logits: Tensor, weights: Tensor) -> None:
            probabilities[rows] = (logits / config.temperature).softmax(-1).cpu().numpy()
            unpad(weights.cpu().numpy(), offsets, rows, attention_weights)

        self._run(values, offsets, keep)
        return Scores(probabilities, attention_weights)

    def logits(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits (N, C) of ragged rows before the temperature, which is what calibration needs. As `score`."""
        logits_of_all = np.empty((len(offsets) - 1, self._network.config.num_classes), np.float32)

        def keep(rows: npt.NDArray[np.int64], logits: Tensor, weights: Tensor) -> None:
            logits_of_all[rows] = logits.cpu().numpy()

        self._run(values, offsets, keep)
        return logits_of_all

    def _run(
        self,
        values: npt.NDArray[np.integer],
        offsets: npt.NDArray[np.int64],
        keep: Callable[[npt.NDArray[np.int64], Tensor, Tensor], None],
    ) -> None:
        """Give `keep` the rows, logits and attention weights of every batch, from the worker threads."""
        padding_id = self._network.config.padding_id
        check_ragged(values, offsets, padding_id)

        def forward(rows: npt.NDArray[np.int64]) -> None:
            token_ids, lengths = pad(values, offsets, rows, padding_id)
            with torch.inference_mode():
                keep(rows, *self._network(self._to_device(token_ids), self._to_device(lengths)))

        batches = plan_batches(np.diff(offsets), max_tokens=MAX_TOKENS[self.device], max_rows=MAX_ROWS[self.device])
        for _ in self._workers.map(forward, batches):
            pass

    def _to_device(self, array: npt.NDArray[np.integer]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def resolve_device(device: Device) -> str:
    """ "cpu" or "cuda". Raises ValueError if the device is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', not {device!r}")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("device is 'cuda', but torch finds no CUDA device here; use 'auto' or 'cpu'")
    if device == "cpu" or not has_cuda:
        return "cpu"
    # Each direction of a layer is a call of its own, so cuDNN packs a few KB of weights each time and warns
    # of it.
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
    # cuDNN computes LSTMs in TF32 unless told otherwise (pytorch#179445); probabilities are to agree with
    # the CPU's.
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    return "cuda"

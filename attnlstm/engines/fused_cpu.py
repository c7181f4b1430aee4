"""The engine for small networks on a CPU: the whole forward pass in one kernel over ragged rows.

Owns what is prepared for the kernel: which networks fit, groups of rows, threads. Knows nothing about how one
step is computed, which is `fused_kernel`'s, or how weights fold, which is `folding`'s. Numba is imported when
an engine is made, not with this file.

Shape letters: H hidden size padded to a power of two, L layers, V vocabulary, N rows, C classes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlstm.batching import check_ragged
from attnlstm.config import ModelConfig
from attnlstm.engines import Precision, Scores
from attnlstm.engines.folding import Doubles, fold, fold_classifier, padded, weights_of
from attnlstm.process import worker_threads

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM

SMALLEST_HIDDEN_SIZE = 8
"""What smaller ones are padded to."""

LARGEST_HIDDEN_SIZE = 32
"""From 64 on, torch's own kernel is near the processor's peak, and the weights outgrow the nearest cache."""

LARGEST_TABLE_BYTES = 1 << 26
"""Of the folded embedding, 64 MiB: 65,536 tokens at hidden size 32."""

GROUP_TOKENS = 1 << 14
"""Tokens that a thread computes at once: the states of two layers, 4 MiB at hidden size 16, stay in cache."""

SCRATCH_TOKENS = 1 << 18
"""Tokens that a thread computes at once if that takes so many to fill the kernel's slots with long rows. A row
that is longer still has the kernel to itself."""

Floats = npt.NDArray[np.float32]


def fits(config: ModelConfig) -> str | None:
    """None if this engine can run such a network, otherwise why it can't."""
    if config.attention != "additive":
        return "multihead attention compares all pairs of tokens: matrix products, which torch is best at"
    if config.hidden_size > LARGEST_HIDDEN_SIZE:
        return (
            f"hidden_size is {config.hidden_size}; above {LARGEST_HIDDEN_SIZE} torch's own kernel is at least as fast"
        )
    table_bytes = 2 * config.num_embeddings * 4 * padded(config.hidden_size, SMALLEST_HIDDEN_SIZE) * 4
    if table_bytes > LARGEST_TABLE_BYTES:
        return (
            f"num_embeddings is {config.num_embeddings}, which makes a folded table of {table_bytes >> 20} MiB; "
            f"at most {LARGEST_TABLE_BYTES >> 20} are used"
        )
    try:
        import numba  # noqa: F401
    except ImportError as error:  # not installed, or at odds with this numpy
        return f"numba can't be imported ({error})"
    return None


class FusedCpuEngine:
    """A network's weights, folded for the kernel. Later changes to the network don't reach them.

    network: stays the caller's. threads: groups of rows computed side by side, each on one core. A row's
    results are the same bits whatever rows stand beside it, in any order, for any number of threads.
    Probabilities and attention weights are within 1e-6 of float64. What amplifies float32's rounding errors loses
    more here as elsewhere: recurrent weights so large that states are chaotic, scores in the hundreds, or cells
    that add up tiny inputs over 100,000 steps (1e-5).
    Memory, for each thread: 16 * H + 4 bytes a token of a group (8 * H + 4 if there is one layer).

    The first engine of a size on a machine compiles for some seconds. Later ones, in any process, read what was
    compiled from Numba's cache on disk (__pycache__, or the user's cache folder if that is read-only).
    Raises ValueError if the network does not fit or threads is below 1.
    """

    name = "fused-cpu"
    device = "cpu"
    precision: Precision = "float32"

    def __init__(self, network: "AttentionLSTM", threads: int = 1) -> None:
        config = network.config
        reason = fits(config)
        if reason is not None:
            raise ValueError(f"the {self.name} engine can't run this network: {reason}")
        from attnlstm.engines import fused_kernel

        self._config = config
        self._workers = worker_threads(threads, self.name)
        self._num_threads = threads
        self._hidden_size = padded(config.hidden_size, SMALLEST_HIDDEN_SIZE)
        self._num_slots = max(1, fused_kernel.lanes_in_registers() // self._hidden_size)
        self._pool_rows = fused_kernel.compile_pool_rows(self._num_slots, self._hidden_size)
        self._classify = fused_kernel.compile_classify()
        weights = weights_of(network)
        # The kernel's sigmoid is a tanh: (1 + tanh(x / 2)) / 2.
        self._kernel_weights = tuple(map(_flat, fold(weights, config, self._hidden_size, sigmoid_scale=0.5)))
        self._classifier = fold_classifier(weights, config, self._hidden_size)

    def score(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> Scores:
        """See `Engine.score`."""
        check_ragged(values, offsets, self._config.padding_id)
        values = np.ascontiguousarray(values, np.int32)
        offsets = np.ascontiguousarray(offsets, np.int64)
        probabilities = np.empty((len(offsets) - 1, self._config.num_classes), np.float32)
        attention_weights = np.empty(len(values), np.float32)

        def forward(rows: npt.NDArray[np.int64]) -> None:
            num_tokens = int((offsets[rows + 1] - offsets[rows]).sum())
            num_buffers = min(self._config.num_layers, 2)
            states = _aligned((num_buffers, (num_tokens + 1) * 2 * self._hidden_size))
            contexts = np.empty((len(rows), 2 * self._hidden_size))
            self._pool_rows(values, offsets, rows, *self._kernel_weights, states, contexts, attention_weights)
            probabilities_of_rows = np.empty((len(rows), self._config.num_classes), np.float32)
            self._classify(contexts, *self._classifier, probabilities_of_rows)
            probabilities[rows] = probabilities_of_rows

        # The list runs the threads to the end; a failure in one is raised here.
        list(self._workers.map(forward, self._groups(np.diff(offsets))))
        return Scores(probabilities, attention_weights)

    def _groups(self, lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of each call of the kernel, longest first: of like lengths, so that the slots end together."""
        # A few groups for each thread, so that all have work to the end.
        group_tokens = min(GROUP_TOKENS, int(lengths.sum()) // (4 * self._num_threads))
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            longest = int(lengths[order[start]])
            num_rows = self._num_slots * max(1, group_tokens // (self._num_slots * longest))
            num_rows = max(1, min(num_rows, SCRATCH_TOKENS // longest))
            yield order[start : start + num_rows]
            start += num_rows


def _flat(matrices: Doubles) -> Floats:
    flat = _aligned((matrices.size,))
    flat[:] = matrices.ravel()
    return flat


def _aligned(shape: tuple[int, ...]) -> Floats:
    """An empty array at an address that is a multiple of 64, so that no vector lies across two cache lines."""
    size = 4 * int(np.prod(shape))
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)

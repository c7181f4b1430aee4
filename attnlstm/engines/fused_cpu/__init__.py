"""The engine for a CPU: the whole forward pass in one kernel over ragged rows.

Owns which networks fit, groups of rows, threads, and that equal rows are computed once. Knows nothing about how
weights are laid out, which is `layers`'s, or how rows are computed, which is `kernel`'s. Numba is imported when an
engine is made, not with this file.

Shape letters: H hidden size, D that padded to whole vectors, L layers, V vocabulary, N rows, C classes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlstm.batching import check_ragged
from attnlstm.config import ModelConfig
from attnlstm.engines import Precision, Scores
from attnlstm.engines.folding import Doubles
from attnlstm.process import worker_threads

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM

LARGEST_HIDDEN_SIZE = 256
"""Above it, the weights outgrow the caches, and torch's matrix products are at least as fast."""

STATE_LANES = 16
"""States are padded to a multiple of this, on any processor; what is padding is not computed with."""

LARGEST_TABLE_BYTES = 1 << 26
"""Of the folded embedding, 64 MiB: 65,536 tokens at hidden size 32."""

NUM_SLOTS = 24
"""Rows that a thread computes side by side, each time step of all of them before the next: they share the weights
that lie in the nearest cache. It is a multiple of every tile's rows."""

GROUP_BYTES = 1 << 21
"""Of states, for the rows that a thread is given at once: 2 MiB stay in cache."""

SCRATCH_BYTES = 1 << 26
"""Of states, if it takes so many to fill the slots with long rows, 64 MiB. A row that is longer still has the kernel
to itself."""

Floats = npt.NDArray[np.float32]


def fits(config: ModelConfig) -> str | None:
    """None if this engine can run such a network, otherwise why it can't."""
    if config.attention != "additive":
        return "multihead attention compares all pairs of tokens: matrix products, which torch is best at"
    return layers_fit(config)


def layers_fit(config: ModelConfig) -> str | None:
    """As `fits`, of a network's LSTM layers, whatever its attention."""
    if config.hidden_size > LARGEST_HIDDEN_SIZE:
        return (
            f"hidden_size is {config.hidden_size}; above {LARGEST_HIDDEN_SIZE} torch's own kernel is at least as fast"
        )
    if config.longest_ngram > 1 and config.embedding_dim > config.hidden_size:
        return f"embedding_dim is {config.embedding_dim}; those of n-grams fit up to hidden_size, {config.hidden_size}"
    table_bytes = 2 * config.num_embeddings * 4 * padded(config.hidden_size) * 4
    if table_bytes > LARGEST_TABLE_BYTES:
        return (
            f"num_embeddings is {config.num_embeddings}, which makes a folded table of {table_bytes >> 20} MiB; "
            f"at most {LARGEST_TABLE_BYTES >> 20} are used"
        )
    try:
        import numba  # noqa: F401
    except ImportError as error:  # not installed, or at odds with this numpy
        return f"numba can't be imported ({error})"
    from attnlstm.engines.fused_cpu.tile import tile_of_processor

    if tile_of_processor() is None:
        return "the processor has no instruction that multiplies and adds with one rounding"
    return None


class FusedCpuEngine:
    """A network's weights, folded for the kernel. Later changes to the network don't reach them.

    network: stays the caller's. threads: groups of rows computed side by side, each on one core. A row's results are
    the same bits whatever rows stand beside it, in any order, for any number of threads, on any processor that can
    multiply and add with one rounding. Rows with equal tokens are computed once.
    Probabilities and attention weights are within 1e-6 of float64. What amplifies float32's rounding errors loses
    more here as elsewhere: recurrent weights so large that states are chaotic, scores in the hundreds, or cells
    that add up tiny inputs over 100,000 steps (1e-5).
    Memory, for each thread: 16 * D + 4 bytes a token of a group (8 * D + 4 if there is one layer), and kept. Beyond
    256 MiB, of a single long row, they are in a file in TMPDIR: the system takes it out of memory as it needs.

    The first engine on a machine compiles for some seconds, once for all sizes. Later ones, in any process, read what
    was compiled from Numba's cache on disk (__pycache__, or the user's cache folder if that is read-only).
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
        from attnlstm.engines.fused_cpu.equal_rows import EqualRows
        from attnlstm.engines.fused_cpu.layers import FusedLayers

        self._config = config
        self._workers = worker_threads(threads, self.name)
        self._num_threads = threads
        self._equal_rows = EqualRows
        self._layers = FusedLayers(network)

    def score(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> Scores:
        """See `Engine.score`."""
        scores, _ = self._run(values, offsets)
        return scores

    def logits(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> Floats:
        """Logits (N, C) of ragged rows before the temperature, which is what calibration needs. As `score`."""
        return (self._run(values, offsets)[1] * self._config.temperature).astype(np.float32)

    def _run(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> tuple[Scores, Doubles]:
        """Scores, and logits (N, C) divided by the temperature."""
        check_ragged(values, offsets, self._config.padding_id)
        tokens = np.ascontiguousarray(values, np.int32)
        offsets = np.ascontiguousarray(offsets, np.int64)
        logits = np.empty((len(offsets) - 1, self._config.num_classes))
        probabilities = np.empty(logits.shape, np.float32)
        attention_weights = np.empty(len(values), np.float32)
        equal_rows = self._equal_rows(tokens, offsets)

        groups = iter(list(self._groups(np.diff(offsets), equal_rows.first_rows)))

        def forward(_: int) -> None:
            """Computes groups until none is left, so that the calling thread is woken once, not for each."""
            for rows in groups:
                logits_of_rows = np.empty((len(rows), self._config.num_classes))
                of_rows = np.empty(logits_of_rows.shape, np.float32)
                self._layers.score(tokens, offsets, rows, logits_of_rows, of_rows, attention_weights)
                logits[rows], probabilities[rows] = logits_of_rows, of_rows

        # The outer list runs the threads to the end; a failure in one is raised here.
        list(self._workers.map(forward, range(self._num_threads)))
        equal_rows.copy_scores(logits, probabilities, attention_weights)
        return Scores(probabilities, attention_weights), logits

    def _groups(self, lengths: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of each call of the kernel, longest first: of like lengths, so that the slots end together."""
        token_bytes = self._layers.token_bytes
        # A few groups for each thread, so that all have work to the end.
        num_tokens = int(lengths[rows].sum())
        group_tokens = min(GROUP_BYTES // token_bytes, num_tokens // (4 * self._num_threads))
        order = rows[np.argsort(-lengths[rows], kind="stable")]
        start = 0
        while start < len(order):
            longest = int(lengths[order[start]])
            num_rows = NUM_SLOTS * max(1, group_tokens // (NUM_SLOTS * longest))
            num_rows = max(1, min(num_rows, SCRATCH_BYTES // (token_bytes * longest)))
            yield order[start : start + num_rows]
            start += num_rows


def padded(hidden_size: int) -> int:
    """What one direction of a state takes, in floats."""
    return -(-hidden_size // STATE_LANES) * STATE_LANES


def aligned(shape: tuple[int, ...]) -> Floats:
    """float32 zeros at an address that is a multiple of 64, so that no vector lies across two cache lines."""
    size = 4 * int(np.prod(shape))
    memory = np.zeros(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)

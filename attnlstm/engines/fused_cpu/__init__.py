"""The engine for a CPU: the whole forward pass in one kernel over ragged rows.

Owns what is prepared for the kernel: which networks fit, how weights are laid out, groups of rows, threads, and that
equal rows are computed once. Knows nothing about how rows are computed, which is `kernel`'s, or how weights fold,
which is `folding`'s. Numba is imported when an engine is made, not with this file.

Shape letters: H hidden size, D that padded to whole vectors, L layers, V vocabulary, N rows, C classes.
"""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlstm.batching import check_ragged
from attnlstm.config import ModelConfig
from attnlstm.engines import Precision, Scores
from attnlstm.engines.folding import Doubles, Folded, fold, fold_classifier, weights_of
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
    if config.hidden_size > LARGEST_HIDDEN_SIZE:
        return (
            f"hidden_size is {config.hidden_size}; above {LARGEST_HIDDEN_SIZE} torch's own kernel is at least as fast"
        )
    table_bytes = 2 * config.num_embeddings * 4 * _padded(config.hidden_size) * 4
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
    Memory, for each thread: 16 * D + 4 bytes a token of a group (8 * D + 4 if there is one layer), and kept.

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
        from attnlstm.engines.fused_cpu import kernel
        from attnlstm.engines.fused_cpu.equal_rows import EqualRows
        from attnlstm.engines.fused_cpu.tile import SLOT_FIELDS

        self._config = config
        self._workers = worker_threads(threads, self.name)
        self._num_threads = threads
        self._size = _padded(config.hidden_size)
        self._lanes = kernel.LANES
        self._slot_fields = SLOT_FIELDS
        self._score_rows = kernel.compile_score_rows()
        self._equal_rows = EqualRows
        weights = weights_of(network)
        # The kernel's sigmoid is a tanh: (1 + tanh(x / 2)) / 2.
        folded = fold(weights, config, self._size, sigmoid_scale=0.5)
        self._kernel_weights = _lay_out(folded, config.hidden_size, self._lanes)
        self._classifier = fold_classifier(weights, config, self._size)
        self._scratch = threading.local()

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
        values = np.ascontiguousarray(values, np.int32)
        offsets = np.ascontiguousarray(offsets, np.int64)
        logits = np.empty((len(offsets) - 1, self._config.num_classes))
        probabilities = np.empty(logits.shape, np.float32)
        attention_weights = np.empty(len(values), np.float32)
        equal_rows = self._equal_rows(values, offsets)

        def forward(rows: npt.NDArray[np.int64]) -> None:
            num_tokens = int((offsets[rows + 1] - offsets[rows]).sum())
            logits_of_rows = np.empty((len(rows), self._config.num_classes))
            of_rows = np.empty(logits_of_rows.shape, np.float32)
            self._score_rows(
                values, offsets, rows, self._config.hidden_size, *self._kernel_weights, *self._classifier,
                *self._scratch_of_thread(num_tokens), logits_of_rows, of_rows, attention_weights,
            )  # fmt: skip
            logits[rows], probabilities[rows] = logits_of_rows, of_rows

        # The list runs the threads to the end; a failure in one is raised here.
        list(self._workers.map(forward, self._groups(np.diff(offsets), equal_rows.first_rows)))
        equal_rows.copy_scores(logits, probabilities, attention_weights)
        return Scores(probabilities, attention_weights), logits

    def _groups(self, lengths: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of each call of the kernel, longest first: of like lengths, so that the slots end together."""
        token_bytes = self._num_buffers() * 2 * self._size * 4
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

    def _num_buffers(self) -> int:
        """Of states: one layer reads what the other writes."""
        return min(self._config.num_layers, 2)

    def _scratch_of_thread(self, num_tokens: int) -> tuple[npt.NDArray[np.int64], Floats, Floats, Floats]:
        """Slots, states, cells and partial sums, kept by each thread: fresh memory costs more than it seems."""
        states: Floats | None = getattr(self._scratch, "states", None)
        size = num_tokens * 2 * self._size
        if states is None or states.shape[1] < size:
            self._scratch.states = aligned((self._num_buffers(), size))
            self._scratch.rest = (
                np.zeros((NUM_SLOTS, self._slot_fields), np.int64),
                aligned((NUM_SLOTS, self._size)),
                aligned((NUM_SLOTS, 4 * self._lanes)),
            )
        slots, cells, sums = self._scratch.rest
        return slots, self._scratch.states, cells, sums


def _padded(hidden_size: int) -> int:
    return -(-hidden_size // STATE_LANES) * STATE_LANES


def _lay_out(folded: Folded, hidden_size: int, lanes: int) -> tuple[Floats, ...]:
    """Folded weights as the kernel takes them: by panels of `lanes` hidden units, without inputs that are padding."""
    num_panels = -(-hidden_size // lanes)

    def panels(matrix: Doubles) -> Doubles:  # (..., 4, D) to (..., panels, 4, lanes)
        by_panel = matrix[..., : num_panels * lanes].reshape(*matrix.shape[:-1], num_panels, lanes)
        return by_panel.swapaxes(-3, -2)

    def by_inputs(matrix: Doubles) -> Doubles:  # (layers, 2, inputs, 4, D) to (layers, 2, panels, inputs * 4 * lanes)
        moved = np.moveaxis(panels(matrix), 3, 2)
        return moved.reshape(*moved.shape[:3], np.prod(moved.shape[3:]))

    size = folded.recurrents.shape[-1]
    below = folded.projections[:, :, 1:].reshape(len(folded.projections), 2, 2, size, 4, size)[:, :, :, :hidden_size]
    below = below.reshape(len(below), 2, 2 * hidden_size, 4, size)
    recurrents = folded.recurrents[:, :, :hidden_size]
    biases = panels(folded.projections[:, :, 0])
    table = panels(folded.table)
    matrices = (
        table.reshape(*table.shape[:2], num_panels * 4 * lanes),
        biases.reshape(*biases.shape[:2], num_panels * 4 * lanes),
        by_inputs(recurrents[:1]),
        by_inputs(np.concatenate([below, recurrents[1:]], axis=2)),
        folded.score,
    )
    return tuple(map(_single, matrices))


def _single(matrix: Doubles) -> Floats:
    single = aligned(matrix.shape)
    single[...] = matrix
    return single


def aligned(shape: tuple[int, ...]) -> Floats:
    """float32 zeros at an address that is a multiple of 64, so that no vector lies across two cache lines."""
    size = 4 * int(np.prod(shape))
    memory = np.zeros(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)

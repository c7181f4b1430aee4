"""A network's LSTM layers, laid out for the kernel, and the memory that each thread needs to run them.

Owns how folded weights become panels and what a call of the kernel is given. Knows nothing about which rows are
computed together. It imports Numba: import it late.

Shape letters: H hidden size, D that padded to whole vectors, T tokens, N rows, C classes.
"""

import os
import tempfile
import threading
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlstm.engines.folding import Doubles, Folded, fold, fold_classifier, weights_of
from attnlstm.engines.fused_cpu import NUM_SLOTS, Floats, aligned, padded
from attnlstm.engines.fused_cpu.kernel import LANES, compile_score_rows
from attnlstm.engines.fused_cpu.ngrams import LANES as FEATURE_LANES
from attnlstm.engines.fused_cpu.tile import SLOT_FIELDS

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM

Indices = npt.NDArray[np.int64]

BYTES_IN_MEMORY = 1 << 28
"""Of states, 256 MiB: a million tokens of the reference network. Those of a longer row lie in a temporary file."""


class FusedLayers:
    """The layers of a network, and what follows them if its attention is additive. Several threads may call it at once.

    Later changes to the network don't reach it. A row's results are the same bits whatever rows stand beside it.
    Memory, for each thread: token_bytes a token of a call, and kept: fresh memory costs more than it seems. What is
    more than BYTES_IN_MEMORY lies in a file, for the call alone.
    """

    def __init__(self, network: "AttentionLSTM") -> None:
        config = network.config
        self._hidden_size, self._size = config.hidden_size, padded(config.hidden_size)
        # Of states: one layer reads what the other writes.
        self._num_layers, self._num_buffers = config.num_layers, min(config.num_layers, 2)
        if config.longest_ngram > 1:
            self._num_buffers = 2
        self._score_rows = compile_score_rows()
        weights = weights_of(network)
        # The kernel's sigmoid is a tanh: (1 + tanh(x / 2)) / 2.
        folded = fold(weights, config, self._size, sigmoid_scale=0.5)
        table, *others = _lay_out(folded, config.hidden_size, LANES)
        tables = weights.get("ngrams", np.zeros((0, 0, 0)))
        tables = np.pad(tables, ((0, 0), (0, 0), (0, -tables.shape[2] % FEATURE_LANES)))
        self._kernel_weights = table, _single(tables), folded.ngram_context, *others
        self._classifier = fold_classifier(weights, config, self._size)
        self._scratch = threading.local()

    @property
    def token_bytes(self) -> int:
        return self._num_buffers * 2 * self._size * 4

    def score(
        self, values: npt.NDArray[np.int32], offsets: Indices, rows: Indices, *results: npt.NDArray[np.floating]
    ) -> Floats:
        """Compute some rows of a ragged batch, and what follows them.

        results: logits float64 (N, C), divided by the temperature, and probabilities float32 (N, C), both of these
        rows, and attention weights float32, one for each of the values. Returns the thread's states, which the next
        call overwrites.
        """
        num_tokens = int((offsets[rows + 1] - offsets[rows]).sum())
        scratch = self._scratch_of_thread(num_tokens + len(rows) + 1)
        self._score_rows(
            values, offsets, rows, self._hidden_size, *self._kernel_weights, *self._classifier, *scratch, *results
        )
        return scratch[1]

    def states(self, values: npt.NDArray[np.int32], offsets: Indices) -> Floats:
        """The last layer's states of all rows, (T, 2 H), for an attention that is computed elsewhere."""
        num_rows, num_tokens, num_classes = len(offsets) - 1, len(values), len(self._classifier[3])
        logits, probabilities = np.empty((num_rows, num_classes)), np.empty((num_rows, num_classes), np.float32)
        nowhere = logits, probabilities, np.empty(num_tokens, np.float32)
        states = self.score(values, offsets, np.arange(num_rows), *nowhere)[(self._num_layers - 1) % self._num_buffers]
        by_direction = states[: (num_tokens + num_rows + 1) * 2 * self._size].reshape(-1, 2, self._size)
        positions = np.arange(num_tokens) + np.repeat(np.arange(num_rows), np.diff(offsets)) + 1
        of_units: Floats = by_direction[positions, :, : self._hidden_size]
        return of_units.reshape(num_tokens, 2 * self._hidden_size)

    def _scratch_of_thread(self, num_positions: int) -> tuple[Indices, Floats, Floats, Floats]:
        """Slots, states, cells and partial sums."""
        if not hasattr(self._scratch, "rest"):
            self._scratch.states = aligned((self._num_buffers, 0))
            self._scratch.rest = (
                np.zeros((SLOT_FIELDS, NUM_SLOTS), np.int64),
                aligned((NUM_SLOTS, self._size)),
                aligned((NUM_SLOTS, 4 * LANES)),
            )
        slots, cells, sums = self._scratch.rest
        shape = (self._num_buffers, num_positions * 2 * self._size)
        if num_positions * self.token_bytes > BYTES_IN_MEMORY:
            return slots, in_file(shape), cells, sums
        if self._scratch.states.shape[1] < shape[1]:
            self._scratch.states = aligned(shape)
        return slots, self._scratch.states, cells, sums


def in_file(shape: tuple[int, ...]) -> Floats:
    """float32 zeros in a file without a name, which is gone with them. Raises OSError if the disk has no room."""
    with tempfile.TemporaryFile(prefix="attnlstm-states-") as file:
        size = 4 * int(np.prod(shape))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # or a full disk would end the process, where it writes
        else:
            file.truncate(size)
        return np.asarray(np.memmap(file, np.float32, "r+", shape=shape))


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
        by_inputs(np.concatenate([folded.of_ngrams[None], recurrents[:1]], axis=2)),
        by_inputs(np.concatenate([below, recurrents[1:]], axis=2)),
        folded.score,
    )
    return tuple(map(_single, matrices))


def _single(matrix: Doubles) -> Floats:
    single = aligned(matrix.shape)
    single[...] = matrix
    return single

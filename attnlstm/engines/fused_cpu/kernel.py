"""The fused kernel: from tokens of ragged rows to attention weights and probabilities, compiled by Numba.

Owns the order in which layers, directions and rows take their turns. Knows nothing about the arithmetic of a step,
which is `tile`'s, or of what follows the last layer, which is `pooling`'s, nor about torch or threads; the engine
prepares its inputs. It imports Numba: import it late.

Rows are computed side by side, each in a slot, and a row that ends makes room for the next, so nothing is padded. At
each step the slots are shared out to tiles. One panel of weights, those of a vector of hidden units, serves all tiles
before the next one is looked at, so that it stays in the nearest cache.

Shape letters: H hidden size, N rows of a call, T their tokens, D the size of one direction's state, H padded to
a multiple of `pooling.LANES`; a panel is a vector of hidden units, `lanes` of them.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

import functools
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numba import njit
from numba.core import types

from attnlstm.engines.fused_cpu import ngrams, pooling, tile, vectors
from attnlstm.engines.fused_cpu.ngrams import embed_ngrams
from attnlstm.engines.fused_cpu.pooling import classify, pool
from attnlstm.engines.fused_cpu.tile import GATES, POSITION, STEPS_LEFT, Tile, step_tile, tile_of_processor
from attnlstm.engines.numba_cache import compiled

ROWS, LANES = tile_of_processor() or Tile(1, 4)

FLOAT_BYTES = 4

PANEL_BYTES = 1 << 15
"""Weights that stay in the nearest cache while all tiles use them, 32 KiB."""

PART_BYTES = 1 << 14
"""What a larger panel is cut into, 16 KiB: sums are put aside between parts."""

# All inputs are taken as read-only, which writable arrays may stand for: one compilation serves both.
_read = functools.partial(types.Array, layout="C", readonly=True)
_write = functools.partial(types.Array, layout="C")
SIGNATURE = types.void(
    _read(types.int32, 1), _read(types.int64, 1), _read(types.int64, 1), types.int64,
    _read(types.float32, 3), _read(types.float32, 3), _read(types.float64, 2), _read(types.float32, 3),
    _read(types.float32, 4), _read(types.float32, 4),
    _read(types.float32, 1),
    _read(types.float64, 2), _read(types.float64, 1), _read(types.float64, 2), _read(types.float64, 1),
    _write(types.int64, 2), _write(types.float32, 2), _write(types.float32, 2), _write(types.float32, 2),
    _write(types.float64, 2), _write(types.float32, 2), _write(types.float32, 1),
)  # fmt: skip


@njit(forceinline=True)
def step(frame, num_active, weights, num_panels, counts):
    """One step of all active slots. weights: address of float32 (panels, inputs, 4, lanes). counts: of inputs, of each
    half of the state below and of the state before."""
    below, both, num_inputs = counts[0], counts[0] + counts[1], counts[0] + counts[1] + counts[2]
    input_bytes = GATES * LANES * FLOAT_BYTES
    part_size = num_inputs if num_inputs * input_bytes <= PANEL_BYTES else PART_BYTES // input_bytes
    for panel in range(num_panels):
        for begin in range(0, num_inputs, part_size):
            end = min(begin + part_size, num_inputs)
            firsts = min(begin, below), min(max(begin - below, 0), counts[1]), max(begin - both, 0)
            of_part = (
                min(end, below) - firsts[0], min(max(end - below, 0), counts[1]) - firsts[1],
                max(end - both, 0) - firsts[2],
            )  # fmt: skip
            is_first, is_last = begin == 0, end == num_inputs
            if num_active == 1:  # a row alone is not computed as often as a tile has rows
                step_tile(frame, 0, weights, panel * LANES, firsts, of_part, is_first, is_last, 1, LANES)
            else:
                for slot in range(0, num_active, ROWS):
                    step_tile(frame, slot, weights, panel * LANES, firsts, of_part, is_first, is_last, ROWS, LANES)
            weights += (end - begin) * input_bytes


@njit
def copy_slot(slots, cells, source, target):
    slots[:, target] = slots[:, source]
    cells[target] = cells[source]


@njit
def run_direction(
    slots, cells, partial_sums, begins, tokens, sums, sums_bytes, weights, num_panels, below, above, size, counts,
    is_reverse,
):  # fmt: skip
    """One direction of one layer over all rows.

    begins: the position of each row's first token. Before it is a position without a token, whose states are 0, and
    so is one after the last row. sums: address of where gate sums begin, (panels, 4, lanes), of token 0; each token
    has its own, sums_bytes on. weights: address of float32 (panels, inputs, 4, lanes). below: address of
    (positions, 2, D). counts: how many numbers of its first and second half, and of this direction's states, are
    inputs. above: address of (positions, 2, D) where this direction's states of position 0 go.
    """
    state_bytes = 2 * size * FLOAT_BYTES
    ahead = -1 if is_reverse else 1
    next_row, num_rows, num_active = 0, len(begins) - 1, 0
    positions, left = slots[POSITION], slots[STEPS_LEFT]
    while True:
        # Rows that have ended make room for the next ones; with none left, the last slot takes the place.
        s = 0
        while s < num_active or (num_active < len(positions) and next_row < num_rows):
            is_new = s == num_active
            if is_new:
                num_active += 1
            if is_new or left[s] == 0:
                if next_row == num_rows:
                    num_active -= 1
                    copy_slot(slots, cells, num_active, s)
                    continue
                first = begins[next_row + 1] - 2 if is_reverse else begins[next_row]
                positions[s], left[s] = first, begins[next_row + 1] - begins[next_row] - 1
                cells[s] = 0
                next_row += 1
            s += 1
        if num_active == 0:
            return
        # All go on until the first of their rows ends.
        num_steps = left[:num_active].min()
        # What is left of the last tile computes its last row once more, and writes the same numbers to the same place.
        for s in range(num_active, -(-num_active // ROWS) * ROWS):
            copy_slot(slots, cells, num_active - 1, s)
        for t in range(num_steps):
            on = ahead * t
            frame = (
                positions.ctypes.data,
                tokens.ctypes.data + on * 4,
                sums,
                sums_bytes,
                below + on * state_bytes,
                above + (on - ahead) * state_bytes,
                above + on * state_bytes,
                cells.ctypes.data,
                partial_sums.ctypes.data,
                size,
            )
            step(frame, num_active, weights, num_panels, counts)
        for s in range(num_active):
            positions[s] += ahead * num_steps
            left[s] -= num_steps


@functools.cache
def compile_score_rows() -> Callable[..., None]:
    """The kernel for any network, compiled for this processor, or read from Numba's cache on disk.

    score_rows(values, offsets, rows, hidden_size, table, tables, ngram_context, biases, first_weights, upper_weights,
    score_weights, hidden_weights, hidden_biases, class_weights, class_biases, states, cells, partial_sums, logits,
    probabilities, attention_weights) computes some rows of a ragged batch.
    values, offsets: as `Engine.score` has them, values int32. rows: int64 (N,), indices of the rows.
    table: float32 (2, V, panels * 4 * lanes), what each token adds to the gates of layer 0, by direction.
    tables: float32 (longest - 1, buckets, F), of n-grams, perhaps none: E features in whole vectors. ngram_context:
    float64 (E, 2 D).
    biases: float32 (L - 1, 2, panels * 4 * lanes), of the layers above. first_weights: float32 (1, 2, panels,
    (E + H) * 4 * lanes), or H instead of E + H without n-grams, and upper_weights: (L - 1, 2, panels, 3 H * 4 * lanes),
    both halves of the layer below first.
    score_weights: float32 (2 D,). The classifier's: float64, as `pooling.classify` takes them.
    slots: int64 (SLOT_FIELDS, slots), states: float32 (2, at least (T + N + 1) * 2 D), or (1, ...) for a single layer,
    with 0 in what is padding; cells: (slots, D), partial_sums: (slots, 4 * lanes): scratch.
    logits: float64 (N, C), and probabilities: float32 (N, C), of these rows, and attention_weights: float32, one for
    each value: the results.
    """
    # Numba compiles again when this file changes; the digest, closed over, makes it watch the others too.
    digest = zlib.crc32(b"".join(Path(module.__file__).read_bytes() for module in (ngrams, pooling, tile, vectors)))

    def score_rows(
        values, offsets, rows, hidden_size, table, tables, ngram_context, biases, first_weights, upper_weights,
        score_weights, hidden_weights, hidden_biases, class_weights, class_biases, slots, states, cells, partial_sums,
        logits, probabilities, attention_weights,
    ):  # fmt: skip
        assert digest >= 0
        # Before each row, and after the last, is a position without a token: states of 0, which a row begins with.
        # It also keeps rows of 2^n tokens from sharing the few places of a cache that addresses 2^m bytes apart have.
        begins = np.ones(len(rows) + 1, np.int64)
        for n in range(len(rows)):
            begins[n + 1] = begins[n] + offsets[rows[n] + 1] - offsets[rows[n]] + 1
        tokens = np.zeros(begins[-1], np.int32)
        for n in range(len(rows)):
            for t in range(begins[n + 1] - begins[n] - 1):
                tokens[begins[n] + t] = values[offsets[rows[n]] + t]

        size = cells.shape[1]
        for n in range(len(begins)):
            states[:, (begins[n] - 1) * 2 * size : begins[n] * 2 * size] = 0
        num_panels = first_weights.shape[2]
        below = above = states[0].ctypes.data
        num_features = len(ngram_context)
        of_rows = np.zeros((len(rows), num_features))  # what the n-grams of a row add up to
        if num_features > 0:
            # They lie where the second layer's states will.
            above = states[1].ctypes.data
            of_ngrams = states[1, : begins[-1] * 2 * size].reshape((begins[-1], 2 * size))
            for n in range(len(rows)):
                of_row = of_ngrams[begins[n] : begins[n + 1] - 1]
                embed_ngrams(tokens[begins[n] : begins[n + 1] - 1], table.shape[1], tables, of_row)
                for t in range(len(of_row)):
                    for e in range(num_features):
                        of_rows[n, e] += of_row[t, e]
        for layer in range(1 + len(upper_weights)):
            below, above = above, states[layer % len(states)].ctypes.data
            for direction in range(2):
                if layer == 0:
                    counts = num_features, 0, hidden_size
                    sums, sums_bytes = table[direction].ctypes.data, table.shape[2] * FLOAT_BYTES
                    weights = first_weights[0, direction].ctypes.data
                else:
                    counts = hidden_size, hidden_size, hidden_size
                    sums, sums_bytes = biases[layer - 1, direction].ctypes.data, 0
                    weights = upper_weights[layer - 1, direction].ctypes.data
                run_direction(
                    slots, cells, partial_sums, begins, tokens, sums, sums_bytes, weights, num_panels, below,
                    above + direction * size * FLOAT_BYTES, size, counts, direction == 1,
                )  # fmt: skip

        context = np.empty(2 * size)
        for n in range(len(rows)):
            weights = attention_weights[offsets[rows[n]] : offsets[rows[n] + 1]]
            pool(above + begins[n] * 2 * size * FLOAT_BYTES, score_weights, weights, context)
            for e in range(num_features):
                share = of_rows[n, e] / math.sqrt(begins[n + 1] - begins[n] - 1)
                for d in range(2 * size):
                    context[d] += share * ngram_context[e, d]
            classify(context, hidden_weights, hidden_biases, class_weights, class_biases, logits[n], probabilities[n])

    return compiled(score_rows, SIGNATURE)

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
from attnlstm.engines.fused_cpu.tile import (
    BEFORE,
    BELOW,
    CELL,
    GATES,
    NOW,
    PARTIAL,
    SLOT_FIELDS,
    STEPS_LEFT,
    SUMS,
    TOKEN,
    Tile,
    step_tile,
    tile_of_processor,
)
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
def part_of_step(slots, num_active, weights, first_unit, size, first_input, counts, is_first, is_last):
    """`step_tile` for all active slots, in tiles of nearly equal numbers of rows."""
    num_tiles = (num_active + ROWS - 1) // ROWS
    begin = 0
    for n in range(num_tiles):
        end = num_active * (n + 1) // num_tiles
        num_rows = end - begin
        at = slots.ctypes.data + begin * SLOT_FIELDS * 8
        # Each branch is compiled for its number of rows.
        if num_rows == ROWS:
            step_tile(at, weights, first_unit, size, first_input, counts, is_first, is_last, ROWS, LANES)
        elif num_rows == 3:
            step_tile(at, weights, first_unit, size, first_input, counts, is_first, is_last, 3, LANES)
        elif num_rows == 2:
            step_tile(at, weights, first_unit, size, first_input, counts, is_first, is_last, 2, LANES)
        else:
            step_tile(at, weights, first_unit, size, first_input, counts, is_first, is_last, 1, LANES)
        begin = end


@njit
def step(slots, num_active, weights, num_panels, counts, size):
    """One step of all active slots. weights: address of float32 (panels, inputs, 4, lanes). counts: of inputs, as
    `step_tile` takes them."""
    input_bytes = GATES * LANES * FLOAT_BYTES
    panel_bytes = (counts[0] + counts[1] + counts[2]) * input_bytes
    for panel in range(num_panels):
        unit = panel * LANES
        if panel_bytes <= PANEL_BYTES:
            part_of_step(slots, num_active, weights, unit, size, 0, counts, True, True)
            weights += panel_bytes
            continue
        part_size = PART_BYTES // input_bytes
        is_first = True
        for half in range(3):
            for begin in range(0, counts[half], part_size):
                count = min(part_size, counts[half] - begin)
                of_part = (count * (half == 0), count * (half == 1), count * (half == 2))
                is_last = half == 2 and begin + count == counts[2]
                part_of_step(slots, num_active, weights, unit, size, begin, of_part, is_first, is_last)
                weights += count * input_bytes
                is_first = False


@njit
def begin_row(slot, cells, first, num_tokens, below, above, state_bytes, zeros, size):
    """Put a row into a slot: `first` is the token that comes next."""
    slot[TOKEN], slot[STEPS_LEFT] = first, num_tokens
    slot[BELOW], slot[NOW], slot[BEFORE] = below + first * state_bytes, above + first * state_bytes, zeros
    begin = (slot[CELL] - cells.ctypes.data) // FLOAT_BYTES
    cells.ravel()[begin : begin + size] = 0


@njit
def run_direction(
    slots, cells, zeros, begins, tokens, sums, sums_bytes, weights, num_panels, below, above, size, counts, is_reverse
):  # fmt: skip
    """One direction of one layer over all rows.

    sums: address of where gate sums begin, (panels, 4, lanes), of token 0; each token has its own, sums_bytes on.
    weights: address of float32 (panels, inputs, 4, lanes). below: address of (T, 2, D). counts: how many numbers of
    its first and second half, and of this direction's states, are inputs. above: address of (T, 2, D) where this
    direction's states of token 0 go.
    """
    state_bytes = 2 * size * FLOAT_BYTES
    ahead = -1 if is_reverse else 1
    next_row, num_rows, num_active = 0, len(begins) - 1, 0
    while True:
        # Rows that have ended make room for the next ones; with none left, the last slot takes the place.
        s = 0
        while s < num_active or (num_active < len(slots) and next_row < num_rows):
            is_new = s == num_active
            if is_new:
                num_active += 1
            if is_new or slots[s, STEPS_LEFT] == 0:
                if next_row == num_rows:
                    num_active -= 1
                    for field in range(SLOT_FIELDS):
                        slots[s, field], slots[num_active, field] = slots[num_active, field], slots[s, field]
                    continue
                first = begins[next_row + 1] - 1 if is_reverse else begins[next_row]
                num_tokens = begins[next_row + 1] - begins[next_row]
                begin_row(slots[s], cells, first, num_tokens, below, above, state_bytes, zeros.ctypes.data, size)
                next_row += 1
            s += 1
        if num_active == 0:
            return
        # All go on until the first of their rows ends.
        num_steps = slots[0, STEPS_LEFT]
        for s in range(1, num_active):
            num_steps = min(num_steps, slots[s, STEPS_LEFT])
        for _ in range(num_steps):
            for s in range(num_active):
                slots[s, SUMS] = sums + sums_bytes * tokens[slots[s, TOKEN]]
            step(slots, num_active, weights, num_panels, counts, size)
            for s in range(num_active):
                slots[s, TOKEN] += ahead
                slots[s, BELOW] += ahead * state_bytes
                slots[s, BEFORE] = slots[s, NOW]
                slots[s, NOW] += ahead * state_bytes
        for s in range(num_active):
            slots[s, STEPS_LEFT] -= num_steps


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
    slots: int64 (slots, SLOT_FIELDS), states: float32 (2, at least T * 2 D), or (1, ...) for a single layer, with 0
    in what is padding; cells: (slots, D), partial_sums: (slots, 4 * lanes): scratch.
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
        begins = np.zeros(len(rows) + 1, np.int64)
        for n in range(len(rows)):
            begins[n + 1] = begins[n] + offsets[rows[n] + 1] - offsets[rows[n]]
        tokens = np.zeros(begins[-1], np.int32)
        for n in range(len(rows)):
            for t in range(begins[n + 1] - begins[n]):
                tokens[begins[n] + t] = values[offsets[rows[n]] + t]

        size = cells.shape[1]
        zeros = np.zeros(size, np.float32)
        for s in range(len(slots)):
            slots[s, CELL], slots[s, PARTIAL] = cells[s].ctypes.data, partial_sums[s].ctypes.data
        num_panels = first_weights.shape[2]
        below = above = states[0].ctypes.data
        num_features = len(ngram_context)
        of_rows = np.zeros((len(rows), num_features))  # what the n-grams of a row add up to
        if num_features > 0:
            # They lie where the second layer's states will.
            above = states[1].ctypes.data
            of_ngrams = states[1, : begins[-1] * 2 * size].reshape((begins[-1], 2 * size))
            for n in range(len(rows)):
                of_row = of_ngrams[begins[n] : begins[n + 1]]
                embed_ngrams(tokens[begins[n] : begins[n + 1]], table.shape[1], tables, of_row)
                for t in range(len(of_row)):
                    for e in range(num_features):
                        of_rows[n, e] += of_row[t, e]
        for layer in range(1 + len(upper_weights)):
            below, above = above, states[layer % len(states)].ctypes.data
            for direction in range(2):
                to = above + direction * size * FLOAT_BYTES
                if layer == 0:
                    run_direction(
                        slots, cells, zeros, begins, tokens, table[direction].ctypes.data,
                        table.shape[2] * FLOAT_BYTES, first_weights[0, direction].ctypes.data, num_panels, below, to,
                        size, (num_features, 0, hidden_size), direction == 1,
                    )  # fmt: skip
                else:
                    run_direction(
                        slots, cells, zeros, begins, tokens, biases[layer - 1, direction].ctypes.data, 0,
                        upper_weights[layer - 1, direction].ctypes.data, num_panels, below, to, size,
                        (hidden_size, hidden_size, hidden_size), direction == 1,
                    )  # fmt: skip

        context = np.empty(2 * size)
        for n in range(len(rows)):
            weights = attention_weights[offsets[rows[n]] : offsets[rows[n] + 1]]
            pool(above + begins[n] * 2 * size * FLOAT_BYTES, score_weights, weights, context)
            for e in range(num_features):
                share = of_rows[n, e] / math.sqrt(begins[n + 1] - begins[n])
                for d in range(2 * size):
                    context[d] += share * ngram_context[e, d]
            classify(context, hidden_weights, hidden_biases, class_weights, class_biases, logits[n], probabilities[n])

    return compiled(score_rows, SIGNATURE)

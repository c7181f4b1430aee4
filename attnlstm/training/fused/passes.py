"""What a group of rows goes through, pass by pass: recurrences, products, attention and classifier, there and back.

Owns each pass over rows, steps and positions. Knows nothing about the arithmetic of a tile, which is `tiles`', nor
about the order of passes, which is `kernel`'s. It imports Numba: import it late. Words and letters are `kernel`'s.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

import math

import numpy as np
from numba import njit

from attnlstm.engines.fused_cpu.ngrams import fetch_to_write
from attnlstm.engines.fused_cpu.pooling import LANES as POOLED_LANES
from attnlstm.engines.fused_cpu.pooling import add_weighted, exponential, pool, score_tokens
from attnlstm.engines.fused_cpu.tile import GATES, Tile, tile_of_processor
from attnlstm.training.fused.tiles import (
    FROM,
    POSITION,
    RECORD,
    SLOT_FIELDS,
    START,
    STEPS_AHEAD,
    TO,
    backward_cell,
    forward_tile,
    outer_tile,
    product_tile,
)

ROWS, LANES = tile_of_processor() or Tile(1, 4)

MOST_ROWS = 6 if LANES == 8 else 8
"""Of a tile of a product, two vectors wide: its sums leave registers for what is loaded."""

OUTER_ROWS = 3 if LANES == 8 else 4
"""Inputs of a tile of a weight gradient, four vectors wide."""

CHUNK = 64
"""Positions of a product that share weights in the nearest cache."""

GRADIENT_CHUNK = 128
"""Positions whose gradients stay in the nearest cache while all inputs are multiplied with them."""

FLOAT_BYTES = 4
SLOT_BYTES = 8 * SLOT_FIELDS


@njit
def step_forward(slots, num_active, weights, num_panels, size, ahead, states, records):
    """One step of the first `num_active` slots, tile by tile."""
    for panel in range(num_panels):
        unit = panel * LANES
        n = 0
        while n < num_active:
            at, left = slots.ctypes.data + n * SLOT_BYTES, num_active - n
            # Each branch is compiled for its number of rows.
            if left >= ROWS:
                forward_tile(at, weights, unit, size, ahead, states, records, ROWS, LANES)
                n += ROWS
            elif left >= 2:
                forward_tile(at, weights, unit, size, ahead, states, records, 2, LANES)
                n += 2
            else:
                forward_tile(at, weights, unit, size, ahead, states, records, 1, LANES)
                n += 1
        weights += size * GATES * LANES * FLOAT_BYTES


@njit
def multiply(slots, num_slots, weights, count, num_columns):
    """TO = START + FROM @ weights for the first slots. weights: address of float32 (blocks, count, columns of one),
    where a block is two vectors of columns, or one if their number is odd."""
    width = 2 if num_columns % (2 * LANES) == 0 else 1
    for block in range(num_columns // (width * LANES)):
        column = block * width * LANES
        n = 0
        while n < num_slots:
            at, left = slots.ctypes.data + n * SLOT_BYTES, num_slots - n
            if width == 2 and left >= MOST_ROWS:
                product_tile(at, weights, count, column, MOST_ROWS, 2, LANES)
                n += MOST_ROWS
            elif width == 2 and left >= 4:
                product_tile(at, weights, count, column, 4, 2, LANES)
                n += 4
            elif width == 2 and left >= 2:
                product_tile(at, weights, count, column, 2, 2, LANES)
                n += 2
            elif width == 2:
                product_tile(at, weights, count, column, 1, 2, LANES)
                n += 1
            elif left >= 16:
                product_tile(at, weights, count, column, 16, 1, LANES)
                n += 16
            elif left >= 4:
                product_tile(at, weights, count, column, 4, 1, LANES)
                n += 4
            else:
                product_tile(at, weights, count, column, 1, 1, LANES)
                n += 1
        weights += count * width * LANES * FLOAT_BYTES


@njit
def multiply_all(
    slots, num_rows, inputs, num_inputs, input_width, weights, starts, start_width, results, num_columns, width
):  # fmt: skip
    """results = starts + inputs @ weights. Addresses; input_width, start_width, width: numbers from one row of inputs,
    starts, perhaps 0, and results to the next."""
    begin = 0
    while begin < num_rows:
        count = min(len(slots), num_rows - begin)
        for n in range(count):
            slots[n, FROM] = inputs + (begin + n) * input_width * FLOAT_BYTES
            slots[n, START] = starts + (begin + n) * start_width * FLOAT_BYTES
            slots[n, TO] = results + (begin + n) * width * FLOAT_BYTES
        multiply(slots, count, weights, num_inputs, num_columns)
        begin += count


@njit
def add_outer(inputs, num_inputs, input_width, gradients, gradient_width, num_panels, count, to):
    """to[k, c] += the sum over positions of inputs[k] * gradients[c]. to: address of float32 (num_inputs, columns)."""
    num_columns = num_panels * GATES * LANES
    for panel in range(num_panels):
        column = panel * GATES * LANES * FLOAT_BYTES
        k = 0
        while k < num_inputs:
            at = inputs + k * FLOAT_BYTES
            place = to + k * num_columns * FLOAT_BYTES + column
            if num_inputs - k >= OUTER_ROWS:
                outer_tile(
                    at, input_width, gradients + column, gradient_width, count, place, num_columns, OUTER_ROWS, LANES
                )
                k += OUTER_ROWS
            else:
                outer_tile(at, input_width, gradients + column, gradient_width, count, place, num_columns, 1, LANES)
                k += 1


@njit
def forward_direction(slots, begins, lengths, tokens, table, weights, num_panels, size, ahead, states, records):
    """One direction of one layer over all rows. tokens: of each position, whose sums begin with its numbers in the
    table; empty: sums begin where the position's gates will be."""
    row_bytes = size * FLOAT_BYTES
    beyond = ahead * STEPS_AHEAD * RECORD * row_bytes
    num_active = len(begins)
    for t in range(lengths[0]):
        while lengths[num_active - 1] <= t:
            num_active -= 1
        for n in range(num_active):
            position = begins[n] + (t if ahead > 0 else lengths[n] - 1 - t)
            slots[n, POSITION] = position
            record = records + position * RECORD * row_bytes
            slots[n, START] = table + tokens[position] * GATES * row_bytes if len(tokens) else record
            fetch_to_write(record + beyond, RECORD * size)
        step_forward(slots, num_active, weights, num_panels, size, ahead, states, records)


@njit
def backward_direction(
    slots, begins, lengths, weights, num_panels, size, ahead, records, from_above, zeros, carried
):  # fmt: skip
    """The same backward: gates become gradients of their sums. carried: float32 (2, at least N, D), scratch."""
    num_active = 0
    carried[:, : len(begins)] = 0
    row_bytes = size * FLOAT_BYTES
    from_next, of_cells = carried[0].ctypes.data, carried[1].ctypes.data
    for t in range(lengths[0] - 1, -1, -1):
        while num_active < len(begins) and lengths[num_active] > t:
            num_active += 1
        for n in range(num_active):
            position = begins[n] + (t if ahead > 0 else lengths[n] - 1 - t)
            record = records + position * RECORD * row_bytes
            fetch_to_write(record - ahead * STEPS_AHEAD * RECORD * row_bytes, RECORD * size)
            fetch_to_write(from_above + (position - ahead * STEPS_AHEAD) * 2 * row_bytes, size)
            slots[n, FROM] = record
            slots[n, START] = zeros
            slots[n, TO] = from_next + n * row_bytes
            for panel in range(num_panels):
                backward_cell(
                    position, panel * LANES, size, ahead, records, from_above, from_next + n * row_bytes,
                    of_cells + n * row_bytes, LANES,
                )  # fmt: skip
        if t > 0:
            multiply(slots, num_active, weights, GATES * size, size)


@njit
def attend(begins, lengths, states, scores, score_weights, contexts):
    """Attention weights, one a position, and contexts (N, 2 D) of the last layer's states."""
    width = len(score_weights)
    for n in range(len(begins)):
        begin = begins[n]
        attention = scores[begin : begin + lengths[n]]
        pool(states + begin * width * FLOAT_BYTES, score_weights, attention, contexts[n])


@njit
def attend_backward(
    begin, length, states, scores, score_weights, context, d_context, to, scratch, sums, d_score_weights
):  # fmt: skip
    """One row: `to` gets the gradients of its states (float32, address of position 0), d_score_weights what it adds."""
    width = len(score_weights)
    num_blocks = width // POOLED_LANES
    first = states + begin * width * FLOAT_BYTES
    of_scores = scratch[:length]
    score_tokens(first, d_context.ctypes.data, num_blocks, length, of_scores.ctypes.data)
    mean = 0.0
    for d in range(width):
        mean += d_context[d] * context[d]
    for t in range(length):
        weight = scores[begin + t]
        of_scores[t] = weight * (of_scores[t] - np.float32(mean))
        for d in range(width):
            to[begin + t, d] = weight * d_context[d] + of_scores[t] * score_weights[d]
    add_weighted(first, of_scores.ctypes.data, num_blocks, length, sums.ctypes.data)
    for d in range(width):
        d_score_weights[d] += sums[d]


@njit
def classify_backward(
    context, label, worth, hidden_in, hidden_out, hidden_bias, class_in, class_out, class_bias,
    d_hidden, d_hidden_bias, d_class, d_class_bias, d_context,
):  # fmt: skip
    """One row's loss, in nats times `worth`, and what it adds to gradients; d_context is overwritten.

    hidden_in: (2 D, H), by inputs, and class_in: (H, C); *_out: the same transposed, and so are gradients.
    """
    hidden = np.empty(len(hidden_bias))
    hidden[:] = hidden_bias
    for k in range(len(hidden_in)):
        for j in range(len(hidden)):
            hidden[j] += context[k] * hidden_in[k, j]
    logits = np.empty(len(class_bias))
    logits[:] = class_bias
    for k in range(len(class_in)):
        active = 0.0 if hidden[k] < 0 else hidden[k]  # unlike max, it keeps NaN
        for j in range(len(logits)):
            logits[j] += active * class_in[k, j]
    highest = logits.max()
    total = 0.0
    of_label = logits[label]
    for j in range(len(logits)):
        logits[j] = exponential(logits[j] - highest)
        total += logits[j]
    loss = worth * (highest - of_label + math.log(total))

    of_hidden = np.zeros(len(hidden))
    for j in range(len(logits)):
        gradient = worth * (logits[j] / total - (1.0 if j == label else 0.0))
        d_class_bias[j] += gradient
        for k in range(len(hidden)):
            active = 0.0 if hidden[k] < 0 else hidden[k]
            d_class[j, k] += gradient * active
            of_hidden[k] += gradient * class_out[j, k]
    of_context = np.zeros(len(context))
    for j in range(len(hidden)):
        gradient = 0.0 if hidden[j] <= 0 else of_hidden[j]
        d_hidden_bias[j] += gradient
        for k in range(len(context)):
            d_hidden[j, k] += gradient * context[k]
            of_context[k] += gradient * hidden_out[j, k]
    for k in range(len(context)):
        d_context[k] = of_context[k]
    return loss


def new_slots(num_rows: int) -> np.ndarray:
    """Places for the rows of a group, and for the positions of a product."""
    return np.zeros((max(num_rows, CHUNK), SLOT_FIELDS), np.int64)

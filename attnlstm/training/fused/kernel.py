"""One group of rows forward and backward, from tokens to the gradients of all weights, compiled by Numba.

Owns the order in which layers, directions, steps and rows take their turns, attention and classifier included. Knows
nothing about the arithmetic of a tile, which is `tiles`', how weights are laid out, which is `layout`'s, nor about
torch or threads. It imports Numba: import it late.

Rows of a group are longest first, so those that still run are always the first ones, and nothing is padded. They lie
end to end, with an empty position before, between and after them, at which states, cells and gradients are 0: so a
sum over positions, of states times the gradients of the step after, needs no exception where a row begins.

Shape letters: N rows, P their positions (tokens and one more than rows), D the size of one direction's state, V
vocabulary, L layers, C classes.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

import functools
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core import types

from attnlstm.engines.fused_cpu import ngrams, pooling, tile, vectors
from attnlstm.engines.fused_cpu.ngrams import (
    add_run,
    begin_hashes,
    bucket_of,
    embed_ngrams,
    fetch_to_write,
    roll_hashes,
)
from attnlstm.engines.fused_cpu.pooling import LANES as POOLED_LANES
from attnlstm.engines.fused_cpu.pooling import add_weighted, exponential, pool, score_tokens
from attnlstm.engines.fused_cpu.tile import GATES, Tile, tile_of_processor
from attnlstm.engines.numba_cache import compiled
from attnlstm.training.fused import tiles
from attnlstm.training.fused.tiles import (
    FROM,
    POSITION,
    RECORD,
    SLOT_FIELDS,
    START,
    STEPS_AHEAD,
    TO,
    backward_cell,
    drop,
    forward_tile,
    outer_tile,
    product_tile,
)

ROWS, LANES = tile_of_processor() or Tile(1, 4)

MOST_ROWS = 4 if LANES == 8 else 8
"""Of a tile of a product, two vectors wide: sums for half of the registers."""

OUTER_ROWS = 2 if LANES == 8 else 4
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


@functools.cache
def compile_step() -> tuple[Callable[..., Any], ...]:
    """What comes of a batch, compiled for this processor, or read from Numba's cache on disk: `run_group` for each
    group of its rows, `prepare` before, and `add_to_tables`, if there are n-grams, and `finish` after them."""
    # Numba compiles again when this file changes; the digest, closed over, makes it watch the others too.
    digest = zlib.crc32(
        b"".join(Path(module.__file__).read_bytes() for module in (ngrams, pooling, tile, tiles, vectors))
    )
    f32, f64, i32, i64, u32 = types.float32, types.float64, types.int32, types.int64, types.uint32
    read = functools.partial(types.Array, layout="C", readonly=True)
    write = functools.partial(types.Array, layout="C")

    def prepare(
        parameters, source, scale, weights, embedding, first_forward, bias_ih, bias_hh, keys, query,
        biases, table, score_weights,
    ):  # fmt: skip
        """Lay out the weights, and fold what no token changes.

        parameters: float32, end to end, and a 0. source, scale: see `layout`. weights: all of them, of which the next
        six are a part. biases: (L, 2, 4 D); table: (2, V, 4 D), what each token adds to the sums of the first layer,
        biases included, or (2, 0, 4 D) if there are n-grams; score_weights: (2 D,), whose product with a state is its
        attention score: the results.
        """
        assert digest >= 0
        for n in range(len(weights)):
            weights[n] = parameters[source[n]] * scale[n]
        for layer in range(len(biases)):
            for direction in range(2):
                for n in range(biases.shape[2]):
                    biases[layer, direction, n] = bias_ih[layer, direction, n] + bias_hh[layer, direction, n]
        slots = np.zeros((CHUNK, SLOT_FIELDS), np.int64)
        for direction in range(2 if table.shape[1] else 0):
            multiply_all(
                slots, len(embedding), embedding.ctypes.data, embedding.shape[1], embedding.shape[1],
                first_forward[direction].ctypes.data, biases[0, direction].ctypes.data, np.int64(0),
                table[direction].ctypes.data, table.shape[2], table.shape[2],
            )  # fmt: skip
        folded = np.zeros(len(score_weights))
        for a in range(len(query)):
            for d in range(len(folded)):
                folded[d] += np.float64(query[a]) * keys[a, d]
        for d in range(len(folded)):
            score_weights[d] = folded[d]

    def run_group(
        values, offsets, rows, labels, worths, drop_keys, drop_threshold, drop_scale, ngram_threshold, ngram_scale,
        embedding, tables, first_forward, first_backward, ngram_context,
        table, biases, in_forward, in_backward, own_forward, own_backward, score_weights,
        hidden_in, hidden_out, hidden_bias, class_in, class_out, class_bias,
        records, states, inputs, firsts, of_ngrams, of_states, scores, carried, slots,
        d_embedded, d_of_ngrams, d_first, d_first_bias, d_ngram_context,
        d_table, d_biases, d_in, d_own, d_score_weights, d_hidden, d_hidden_bias, d_class, d_class_bias, losses,
    ):  # fmt: skip
        """Forward and backward through one group of rows.

        values, offsets, labels, worths: a batch, int32, int64 (N + 1,), int64 and float64 (N,), what a row's loss
        counts for. rows: int64, of this group, longest first. drop_keys: uint32 (L, N), the last of n-grams.
        drop_threshold: the share that is dropped, of 2^32. drop_scale: what is kept is multiplied by it. ngram_...: the
        same, of n-grams. tables: (longest - 1, buckets, E).
        table, biases, score_weights: as `prepare` makes them; other weights: see `layout`.
        records: (L, 2, at least P * RECORD * D), states: (L, P * 2 D), inputs: (L - 1, P * 2 D), empty without
        dropout, firsts and of_ngrams: (P, F), empty without n-grams, of_states: (P, 2 D), scores: (2, P), carried:
        (2, N, D), and slots, see `new_slots`: scratch.
        d_...: gradients, which are overwritten. d_embedded, d_of_ngrams: (T, F), of the batch's tokens, those of this
        group: for each what its embedding gets, and what those of all its n-grams get. losses: float64 (1,), the sum of
        the rows' losses.
        """
        assert digest >= 0
        num_layers, num_rows = len(own_forward), len(rows)
        size = len(score_weights) // 2
        num_panels = size // LANES
        width = 2 * size
        begins, lengths = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
        record = RECORD * size
        position = 1
        for n in range(num_rows):
            begins[n], lengths[n] = position, offsets[rows[n] + 1] - offsets[rows[n]]
            position += lengths[n] + 1
        num_positions = position
        tokens = np.zeros(num_positions, np.int32)
        for n in range(num_rows):
            for t in range(lengths[n]):
                tokens[begins[n] + t] = values[offsets[rows[n]] + t]
        no_tokens = tokens[:0]
        has_ngrams = len(tables) > 0
        num_features = embedding.shape[1]
        of_rows = np.zeros((num_rows, num_features))  # what the n-grams of a row add up to
        zeros = np.zeros(max(width, 4 * size), np.float32)
        ones = np.ones(1, np.float32)

        # Forward. Nothing is written to the empty positions but here.
        for n in range(num_rows + 1):
            empty = begins[n] - 1 if n < num_rows else num_positions - 1
            for layer in range(num_layers):
                states[layer, empty * width : (empty + 1) * width] = 0
                records[layer, :, empty * record : (empty + 1) * record] = 0
        if has_ngrams:
            for n in range(num_rows + 1):
                firsts[begins[n] - 1 if n < num_rows else num_positions - 1] = 0
            for n in range(num_rows):
                of_row = slice(begins[n], begins[n] + lengths[n])
                of_ngrams[of_row] = 0
                embed_ngrams(tokens[of_row], len(embedding), tables, of_ngrams[of_row])
                first = of_ngrams.ctypes.data + begins[n] * num_features * FLOAT_BYTES
                if ngram_threshold > 0:
                    drop(
                        first, first, lengths[n] * num_features // LANES, np.int64(drop_keys[-1, rows[n]]),
                        ngram_threshold, ngram_scale, LANES,
                    )  # fmt: skip
                for p in range(begins[n], begins[n] + lengths[n]):
                    for e in range(num_features):
                        firsts[p, e] = embedding[tokens[p], e] + of_ngrams[p, e]
                        of_rows[n, e] += of_ngrams[p, e]
                for e in range(num_features):
                    of_rows[n, e] /= math.sqrt(lengths[n])
        for layer in range(num_layers):
            below = states[layer - 1].ctypes.data
            if layer > 0 and drop_threshold > 0:
                below = inputs[layer - 1].ctypes.data
                inputs[layer - 1, : num_positions * width] = 0
                for n in range(num_rows):
                    first = begins[n] * width * FLOAT_BYTES
                    drop(
                        states[layer - 1].ctypes.data + first, below + first, lengths[n] * width // LANES,
                        np.int64(drop_keys[layer - 1, rows[n]]), drop_threshold, drop_scale, LANES,
                    )  # fmt: skip
            for direction in range(2):
                of_direction = records[layer, direction].ctypes.data
                if layer > 0:
                    multiply_all(
                        slots, num_positions, below, width, width, in_forward[layer - 1, direction].ctypes.data,
                        biases[layer, direction].ctypes.data, np.int64(0), of_direction, 4 * size, record,
                    )  # fmt: skip
                elif has_ngrams:
                    multiply_all(
                        slots, num_positions, firsts.ctypes.data, num_features, num_features,
                        first_forward[direction].ctypes.data, biases[0, direction].ctypes.data, np.int64(0),
                        of_direction, 4 * size, record,
                    )  # fmt: skip
                forward_direction(
                    slots, begins, lengths, no_tokens if layer > 0 or has_ngrams else tokens,
                    table[direction].ctypes.data, own_forward[layer, direction].ctypes.data, num_panels, size,
                    1 - 2 * direction, states[layer].ctypes.data + direction * size * FLOAT_BYTES, of_direction,
                )  # fmt: skip

        last = states[num_layers - 1].ctypes.data
        contexts = np.empty((num_rows, width))
        attend(begins, lengths, last, scores[0], score_weights, contexts)

        # Backward. What the group adds to the gradients of few weights is added up in float64.
        d_first[:] = 0
        d_first_bias[:] = 0
        d_ngram_context[:] = 0
        d_table[:] = 0
        d_biases[:] = 0
        d_in[:] = 0
        d_own[:] = 0
        d_hidden[:] = 0
        d_hidden_bias[:] = 0
        d_class[:] = 0
        d_class_bias[:] = 0
        d_score_weights[:] = 0
        sums, d_context = np.empty(width), np.empty(width, np.float32)
        context = np.empty(width)
        loss = 0.0
        for n in range(num_rows):
            context[:] = contexts[n]
            if has_ngrams:
                for e in range(num_features):
                    for d in range(width):
                        context[d] += of_rows[n, e] * ngram_context[e, d]
            loss += classify_backward(
                context, labels[rows[n]], worths[rows[n]], hidden_in, hidden_out, hidden_bias, class_in, class_out,
                class_bias, d_hidden, d_hidden_bias, d_class, d_class_bias, d_context,
            )  # fmt: skip
            if has_ngrams:
                for e in range(num_features):
                    total = 0.0
                    for d in range(width):
                        total += ngram_context[e, d] * np.float64(d_context[d])
                        d_ngram_context[e, d] += of_rows[n, e] * d_context[d]
                    of_rows[n, e] = total / math.sqrt(lengths[n])  # from here on the gradient for each of its tokens
            attend_backward(
                begins[n], lengths[n], last, scores[0], score_weights, contexts[n], d_context, of_states,
                scores[1], sums, d_score_weights,
            )  # fmt: skip
        losses[0] = loss

        from_above = of_states.ctypes.data
        for layer in range(num_layers - 1, -1, -1):
            of_layer = states[layer].ctypes.data
            below = inputs[layer - 1].ctypes.data if drop_threshold > 0 else states[layer - 1].ctypes.data
            for direction in range(2):
                ahead = 1 - 2 * direction
                of_direction = records[layer, direction].ctypes.data
                offset = direction * size * FLOAT_BYTES
                backward_direction(
                    slots, begins, lengths, own_backward[layer, direction].ctypes.data, num_panels, size, ahead,
                    of_direction, from_above + offset, zeros.ctypes.data, carried,
                )  # fmt: skip
                for n in range(num_rows + 1):
                    empty = begins[n] - 1 if n < num_rows else num_positions - 1
                    records[layer, direction, empty * record : (empty + 1) * record] = 0
                # Gradients of weights, over a few positions at a time; the first and the last are empty.
                begin = 1
                while begin < num_positions - 1:
                    count = min(GRADIENT_CHUNK, num_positions - 1 - begin)
                    of_chunk = of_direction + begin * record * FLOAT_BYTES
                    add_outer(
                        of_layer + offset + (begin - ahead) * width * FLOAT_BYTES, size, width, of_chunk, record,
                        num_panels, count, d_own[layer, direction].ctypes.data,
                    )  # fmt: skip
                    if layer > 0:
                        add_outer(
                            below + begin * width * FLOAT_BYTES, width, width, of_chunk, record, num_panels, count,
                            d_in[layer - 1, direction].ctypes.data,
                        )  # fmt: skip
                        add_outer(
                            ones.ctypes.data, 1, 0, of_chunk, record, num_panels, count,
                            d_biases[layer - 1, direction].ctypes.data,
                        )  # fmt: skip
                    elif has_ngrams:
                        add_outer(
                            firsts.ctypes.data + begin * num_features * FLOAT_BYTES, num_features, num_features,
                            of_chunk, record, num_panels, count, d_first[direction].ctypes.data,
                        )  # fmt: skip
                        add_outer(
                            ones.ctypes.data, 1, 0, of_chunk, record, num_panels, count,
                            d_first_bias[direction].ctypes.data,
                        )  # fmt: skip
                    else:
                        to = d_table[direction].ctypes.data
                        for p in range(begin, begin + count):
                            add_run(
                                to + tokens[p] * 4 * size * FLOAT_BYTES, of_direction + p * record * FLOAT_BYTES,
                                4 * num_panels, LANES,
                            )  # fmt: skip
                    begin += count
            if layer > 0:
                for direction in range(2):
                    multiply_all(
                        slots, num_positions, records[layer, direction].ctypes.data, 4 * size, record,
                        in_backward[layer - 1, direction].ctypes.data,
                        from_above if direction else zeros.ctypes.data, width if direction else 0, from_above, width,
                        width,
                    )  # fmt: skip
                if drop_threshold > 0:
                    for n in range(num_rows):
                        first = from_above + begins[n] * width * FLOAT_BYTES
                        drop(
                            first, first, lengths[n] * width // LANES, np.int64(drop_keys[layer - 1, rows[n]]),
                            drop_threshold, drop_scale, LANES,
                        )  # fmt: skip
        if has_ngrams:
            for direction in range(2):
                to = of_ngrams.ctypes.data
                multiply_all(
                    slots, num_positions, records[0, direction].ctypes.data, 4 * size, record,
                    first_backward[direction].ctypes.data, to if direction else zeros.ctypes.data,
                    num_features if direction else 0, to, num_features, num_features,
                )  # fmt: skip
            for n in range(num_rows):
                for t in range(lengths[n]):
                    at = offsets[rows[n]] + t
                    for e in range(num_features):
                        d_embedded[at, e] = of_ngrams[begins[n] + t, e]
                        d_of_ngrams[at, e] = of_ngrams[begins[n] + t, e] + np.float32(of_rows[n, e])
                if ngram_threshold > 0:
                    first = d_of_ngrams.ctypes.data + offsets[rows[n]] * num_features * FLOAT_BYTES
                    drop(
                        first, first, lengths[n] * num_features // LANES, np.int64(drop_keys[-1, rows[n]]),
                        ngram_threshold, ngram_scale, LANES,
                    )  # fmt: skip

    def add_to_tables(values, offsets, d_embedded, d_of_ngrams, d_embedding, d_ngrams, square):
        """From the gradients of tokens to those of the tables, which are overwritten.

        values, offsets: a batch. d_embedded, d_of_ngrams: (T, F), see `run_group`. d_embedding: (V, F). d_ngrams:
        (longest - 1, buckets, E). square: float64 (1,), the sum of the squares of d_ngrams.
        """
        assert digest >= 0
        d_embedding[:] = 0
        d_ngrams[:] = 0
        hashes = np.empty(len(d_ngrams) + 1, np.int64)
        num_features = d_ngrams.shape[2]
        for row in range(len(offsets) - 1):
            begin_hashes(hashes, len(d_embedding))
            for t in range(offsets[row], offsets[row + 1]):
                roll_hashes(hashes, values[t], len(d_embedding))
                for e in range(num_features):
                    d_embedding[values[t], e] += d_embedded[t, e]
                for n in range(1, len(hashes)):
                    if hashes[n] >= 0:
                        to = d_ngrams[n - 1, bucket_of(hashes[n], d_ngrams.shape[1])]
                        for e in range(num_features):
                            to[e] += d_of_ngrams[t, e]
        total = 0.0
        for number in d_ngrams.ravel():
            total += np.float64(number) * number
        square[0] = total

    def finish(
        gradients, d_table, d_score_weights, embedding, first_backward, keys, query,
        d_embedding, d_first, d_first_bias, d_keys, d_query, target, clip_norm, square, of_parameters,
    ):  # fmt: skip
        """From the sum over groups to the parameters' gradients.

        gradients: all of them, of which those called d_... are a part. d_table, d_score_weights: of the tokens' sums
        and of the folded attention. target: int64, the place of each parameter's. clip_norm: longest gradient that is
        left as it is. square: of the length of what is not among these gradients. of_parameters: float32, the result.
        Returns what the gradients were multiplied by.
        """
        assert digest >= 0
        slots = np.zeros((CHUNK, SLOT_FIELDS), np.int64)
        zeros, ones = np.zeros(embedding.shape[1], np.float32), np.ones(1, np.float32)
        num_tokens, num_features, num_columns = len(embedding), embedding.shape[1], d_table.shape[2]
        num_panels = num_columns // (GATES * LANES)
        has_table = d_table.shape[1] > 0  # otherwise the groups have done this
        if has_table:
            d_first[:] = 0
            d_first_bias[:] = 0
        for direction in range(2 if has_table else 0):
            of_table, to = d_table[direction].ctypes.data, d_embedding.ctypes.data
            multiply_all(
                slots, num_tokens, of_table, num_columns, num_columns, first_backward[direction].ctypes.data,
                to if direction else zeros.ctypes.data, num_features if direction else 0, to, num_features,
                num_features,
            )  # fmt: skip
            add_outer(
                embedding.ctypes.data, num_features, num_features, of_table, num_columns, num_panels, num_tokens,
                d_first[direction].ctypes.data,
            )  # fmt: skip
            add_outer(
                ones.ctypes.data, 1, 0, of_table, num_columns, num_panels, num_tokens,
                d_first_bias[direction].ctypes.data,
            )  # fmt: skip
        for a in range(len(query)):
            total = 0.0
            for d in range(len(d_score_weights)):
                total += np.float64(keys[a, d]) * d_score_weights[d]
                d_keys[a, d] = query[a] * d_score_weights[d]
            d_query[a] = total
        for n in range(len(target)):
            of_parameters[n] = gradients[target[n]]
            square += np.float64(of_parameters[n]) * of_parameters[n]
        # As torch clips; a norm that is not finite makes all gradients so.
        share = clip_norm / (math.sqrt(square) + 1e-6)
        if not share >= 1:
            for n in range(len(target)):
                of_parameters[n] *= np.float32(share)
            return share
        return 1.0

    return (
        compiled(
            run_group,
            types.void(
                read(i32, 1), read(i64, 1), read(i64, 1), read(i64, 1), read(f64, 1), read(u32, 2), i64, f32, i64, f32,
                read(f32, 2), read(f32, 3), read(f32, 2), read(f32, 2), read(f32, 2),
                read(f32, 3), read(f32, 3), read(f32, 3), read(f32, 3), read(f32, 3), read(f32, 3), read(f32, 1),
                read(f32, 2), read(f32, 2), read(f32, 1), read(f32, 2), read(f32, 2), read(f32, 1),
                write(f32, 3), write(f32, 2), write(f32, 2), write(f32, 2), write(f32, 2), write(f32, 2), write(f32, 2),
                write(f32, 3), write(i64, 2),
                write(f32, 2), write(f32, 2), write(f32, 3), write(f32, 2), write(f32, 2),
                write(f32, 3), write(f32, 3), write(f32, 4), write(f32, 4), write(f32, 1),
                write(f32, 2), write(f32, 1), write(f32, 2), write(f32, 1), write(f64, 1),
            ),
        ),
        compiled(
            prepare,
            types.void(
                read(f32, 1), read(i64, 1), read(f32, 1), write(f32, 1), read(f32, 2), read(f32, 2), read(f32, 3),
                read(f32, 3), read(f32, 2), read(f32, 1), write(f32, 3), write(f32, 3), write(f32, 1),
            ),
        ),
        compiled(
            add_to_tables,
            types.void(
                read(i32, 1), read(i64, 1), read(f32, 2), read(f32, 2), write(f32, 2), write(f32, 3), write(f64, 1),
            ),
        ),
        compiled(
            finish,
            f64(
                read(f32, 1), read(f32, 3), read(f32, 1), read(f32, 2), read(f32, 2), read(f32, 2), read(f32, 1),
                write(f32, 2), write(f32, 3), write(f32, 2), write(f32, 2), write(f32, 1), read(i64, 1), f64, f64,
                write(f32, 1),
            ),
        ),
    )  # fmt: skip

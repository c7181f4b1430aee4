"""One group of rows forward and backward, from tokens to the gradients of all weights, compiled by Numba.

Owns the order in which layers, directions, attention and classifier take their turns. Knows nothing about what each
pass does, which is `passes`', the arithmetic of a tile, which is `tiles`', how weights are laid out, which is
`layout`'s, nor about torch or threads. It imports Numba: import it late.

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
from numba.core import types

from attnlstm.engines.fused_cpu import ngrams, pooling, tile, vectors
from attnlstm.engines.fused_cpu.ngrams import add_run, begin_hashes, bucket_of, embed_ngrams, roll_hashes
from attnlstm.engines.fused_cpu.tile import GATES
from attnlstm.engines.numba_cache import compiled
from attnlstm.training.fused import passes, tiles
from attnlstm.training.fused.passes import (
    CHUNK,
    FLOAT_BYTES,
    GRADIENT_CHUNK,
    LANES,
    add_outer,
    attend,
    attend_backward,
    backward_direction,
    classify_backward,
    forward_direction,
    multiply_all,
)
from attnlstm.training.fused.tiles import RECORD, SLOT_FIELDS, drop


@functools.cache
def compile_step() -> tuple[Callable[..., Any], ...]:
    """What comes of a batch, compiled for this processor, or read from Numba's cache on disk: `run_group` for each
    group of its rows, `prepare` before, and `add_to_tables`, if there are n-grams, and `finish` after them."""
    # Numba compiles again when this file changes; the digest, closed over, makes it watch the others too.
    digest = zlib.crc32(
        b"".join(Path(module.__file__).read_bytes() for module in (ngrams, passes, pooling, tile, tiles, vectors))
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

"""The fused kernel: from tokens of ragged rows to attention weights and context, compiled by Numba.

Owns the arithmetic and the order in which rows take their turns. Knows nothing about torch, threads or what
the context is for; `fused_cpu` prepares its inputs. It imports Numba: import it late.

S rows are computed side by side, each in a slot, and a row that ends makes room for the next, so nothing is
padded. A vector holds the H hidden units of every slot: whatever is loaded of the weights serves S rows. Both
directions of a layer run in the same loop; while the sigmoids of one wait for their divisions, the processor
is busy with the products of the other.

Shape letters: H hidden size (padded), S slots, L layers, V vocabulary, T tokens of all rows of a call.
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
from numba.core import registry, types

from attnlstm.engines import vectors
from attnlstm.engines.numba_cache import compiled
from attnlstm.engines.vectors import add_up, clamp, fma, load, load_runs, load_spread, store_runs, to_double

# tanh(x) = x P(x^2) / Q(x^2), a minimax fit on |x| <= LIMIT. Computed in float32 it is within 3.3e-7, and the
# sigmoid within 2.1e-7. At LIMIT, numerator and denominator are the same float: saturated gates are exactly 0 and
# 1, so a cell that is to keep its state does so for any number of steps.
LIMIT = np.float32(9)
P0, P1, P2, P3, P4 = map(np.float32, (0.99999994, 0.13389006, 0.0035053326, 2.0780222e-05, 1.3613181e-08))
Q1, Q2, Q3, Q4 = map(np.float32, (0.4672231, 0.025913369, 0.00033020318, 7.877767e-07))

FOREVER = np.iinfo(np.int64).max

# All inputs are taken as read-only, which writable arrays may stand for: one compilation serves both.
_read = functools.partial(types.Array, layout="C", readonly=True)
_write = functools.partial(types.Array, layout="C")
POOL_SIGNATURE = types.void(
    _read(types.int32, 1), _read(types.int64, 1), _read(types.int64, 1),
    _read(types.float32, 1), _read(types.float32, 1), _read(types.float32, 1), _read(types.float32, 1),
    _write(types.float32, 2), _write(types.float64, 2), _write(types.float32, 1),
)  # fmt: skip
CLASSIFY_SIGNATURE = types.void(
    _read(types.float64, 2), _read(types.float64, 2), _read(types.float64, 1), _read(types.float64, 2),
    _read(types.float64, 1), _write(types.float32, 2),
)  # fmt: skip

# Functions that pass S and H on are inlined by Numba, which keeps the two constant; the others by LLVM, which
# compiles faster.
with_constants = njit(inline="always")
inlined = njit(forceinline=True)


@inlined
def tanh_fraction(x):
    """Numerator and denominator of tanh(x)."""
    x = clamp(x, -LIMIT, LIMIT)
    z = x * x
    numerator = x * fma(fma(fma(fma(z, P4, P3), z, P2), z, P1), z, P0)
    denominator = fma(fma(fma(fma(z, Q4, Q3), z, Q2), z, Q1), z, np.float32(1))
    return numerator, denominator


@inlined
def sigmoid_fraction(x):
    """Numerator and denominator of sigmoid(2 x) = (1 + tanh(x)) / 2."""
    p, q = tanh_fraction(x)
    return p + q, q + q


@inlined
def cell(i, f, g, o, c):
    """One LSTM step from the sums that reach the gates, with those of i, f and o halved: new h and c."""
    i_top, i_bottom = sigmoid_fraction(i)
    f_top, f_bottom = sigmoid_fraction(f)
    g_top, g_bottom = tanh_fraction(g)
    # Division is slow: products of fractions are divided once. f stays apart, where it can be exactly 1.
    c = fma(f_top / f_bottom, c, (i_top * g_top) / (i_bottom * g_bottom))
    o_top, o_bottom = sigmoid_fraction(o)
    c_top, c_bottom = tanh_fraction(c)
    return (o_top * c_top) / (o_bottom * c_bottom), c


@with_constants
def add_products(weights, start, num_inputs, inputs, starts, offset, i, f, g, o, S, H):
    """Gate sums, plus a matrix times the `num_inputs` numbers that each slot has at inputs[starts[s] + offset].

    weights: has the matrix as (num_inputs, 4, H) from `start` on.
    """
    for k in range(num_inputs):
        x = load_spread(inputs, starts, offset + k, S, H)
        row = start + 4 * H * k
        i = fma(load(weights, row, S, H), x, i)
        f = fma(load(weights, row + H, S, H), x, f)
        g = fma(load(weights, row + 2 * H, S, H), x, g)
        o = fma(load(weights, row + 3 * H, S, H), x, o)
    return i, f, g, o


@with_constants
def sums_from_tokens(weights, start, tokens, states, starts, S, H):
    """What the input adds to the gates of layer 0, for the tokens that `starts` points to.

    weights: has a table (V, 4, H) from `start` on. starts: (S,), overwritten. states: not looked at.
    """
    for s in range(S):
        starts[s] = 4 * H * tokens[starts[s]]
    i = load_runs(weights, starts, start, S, H)
    f = load_runs(weights, starts, start + H, S, H)
    g = load_runs(weights, starts, start + 2 * H, S, H)
    o = load_runs(weights, starts, start + 3 * H, S, H)
    return i, f, g, o


@with_constants
def sums_from_states(weights, start, tokens, states, starts, S, H):
    """The same for the layers above, from the states (T + 1, 2, H) of the layer below. tokens: not looked at.

    weights: has biases (4, H) and then a matrix (2 H, 4, H) from `start` on.
    """
    for s in range(S):
        starts[s] *= 2 * H
    i = load(weights, start, S, H)
    f = load(weights, start + H, S, H)
    g = load(weights, start + 2 * H, S, H)
    o = load(weights, start + 3 * H, S, H)
    return add_products(weights, start + 4 * H, 2 * H, states, starts, 0, i, f, g, o, S, H)


@with_constants
def run_layer(
    input_sums, weights, input_start, input_size, recurrents, recurrent_start, begins, tokens, below, above, S, H
):
    """One layer over all rows, both directions: fills `above`, (T + 1, 2, H), from `tokens` or from `below`.

    input_sums: `sums_from_tokens` or `sums_from_states`. input_start, input_size: where its weights begin, and
    how many each direction has. recurrent_start: where the layer's recurrent weights (2, H, 4, H) begin.
    begins: row r has the tokens begins[r] .. begins[r + 1] - 1. Token T is spare: idle slots compute it.
    """
    num_rows = len(begins) - 1
    h = np.zeros(2 * S * H, np.float32)  # (2, S, H), and so c
    c = np.zeros(2 * S * H, np.float32)
    units = np.array([s * H for s in range(S)])  # where each slot has its own in h and c
    at = np.zeros(2 * S, np.int64)  # (2, S), the token of each direction and slot
    stride = np.zeros(2 * S, np.int64)
    steps_left = np.zeros(S, np.int64)
    starts = np.zeros(S, np.int64)
    next_row = 0
    while True:
        # Slots whose row has ended take the next one, or idle.
        for s in range(S):
            if steps_left[s] == 0 and next_row < num_rows:
                at[s], at[S + s] = begins[next_row], begins[next_row + 1] - 1
                stride[s], stride[S + s] = 1, -1
                steps_left[s] = begins[next_row + 1] - begins[next_row]
                for d in range(2):
                    for unit in range((d * S + s) * H, (d * S + s + 1) * H):
                        h[unit] = c[unit] = 0
                next_row += 1
            elif steps_left[s] == 0:
                at[s] = at[S + s] = begins[num_rows]
                stride[s] = stride[S + s] = 0
                steps_left[s] = FOREVER
        # All slots go on until the first of their rows ends.
        num_steps = FOREVER
        for s in range(S):
            num_steps = min(num_steps, steps_left[s])
        if num_steps == FOREVER:
            return
        for _ in range(num_steps):
            for d in range(2):
                for s in range(S):
                    starts[s] = at[d * S + s]
                i, f, g, o = input_sums(weights, input_start + d * input_size, tokens, below, starts, S, H)
                i, f, g, o = add_products(
                    recurrents, recurrent_start + d * 4 * H * H, H, h, units, d * S * H, i, f, g, o, S, H
                )
                new_h, new_c = cell(i, f, g, o, load_runs(c, units, d * S * H, S, H))
                store_runs(h, units, d * S * H, S, H, new_h)
                store_runs(c, units, d * S * H, S, H, new_c)
                for s in range(S):
                    starts[s] = 2 * H * at[d * S + s]
                    at[d * S + s] += stride[d * S + s]
                store_runs(above, starts, d * H, S, H, new_h)
        for s in range(S):
            if steps_left[s] != FOREVER:
                steps_left[s] -= num_steps


@with_constants
def pool(states, first, score_weights, attention_weights, context, D):
    """Softmax attention over one row's states: its weights, and the sum of its states by weight.

    Sums over time are float64: a row may be long.
    """
    by = load(score_weights, 0, 1, D)
    highest = np.float32(-np.inf)
    for t in range(len(attention_weights)):
        score = add_up(load(states, D * (first + t), 1, D) * by)
        attention_weights[t] = score
        highest = max(highest, score)
    total = 0.0
    sums = to_double(by) * 0.0
    for t in range(len(attention_weights)):
        weight = math.exp(attention_weights[t] - highest)
        attention_weights[t] = weight
        total += weight
        sums = fma(to_double(load(states, D * (first + t), 1, D)), weight, sums)
    for t in range(len(attention_weights)):
        attention_weights[t] /= total
    store_runs(context, np.zeros(1, np.int64), 0, 1, D, sums / total)


@functools.cache
def compile_pool_rows(S: int, H: int) -> Callable[..., None]:
    """The kernel for S slots and H hidden units, powers of two: compiled, or read from Numba's cache on disk.

    pool_rows(values, offsets, rows, table, projections, recurrents, score_weights, states, contexts,
    attention_weights) computes some rows of a ragged batch.
    values, offsets: as `Engine.score` has them, values int32. rows: int64 (N,), indices of the rows.
    table: float32 (2, V, 4, H), what each token adds to the gates of layer 0, by direction.
    projections: float32 (L - 1, 2, 1 + 2 H, 4, H), biases and input weights of the layers above.
    recurrents: float32 (L, 2, H, 4, H). score_weights: float32 (2 H,). These four are passed flat.
    states: float32 (2, (T + 1) * 2 H), or (1, ...) for a single layer: scratch.
    contexts: float64 (N, 2 H), and attention_weights: float32, one for each value: the results.
    """
    D = 2 * H
    # Numba compiles again when this file changes; the digest, closed over, makes it watch the other one too.
    digest = zlib.crc32(Path(vectors.__file__).read_bytes())

    def pool_rows(
        values, offsets, rows, table, projections, recurrents, score_weights, states, contexts, attention_weights
    ):
        assert digest >= 0
        begins = np.zeros(len(rows) + 1, np.int64)
        for n in range(len(rows)):
            begins[n + 1] = begins[n] + offsets[rows[n] + 1] - offsets[rows[n]]
        tokens = np.zeros(begins[-1] + 1, np.int32)
        for n in range(len(rows)):
            for t in range(begins[n + 1] - begins[n]):
                tokens[begins[n] + t] = values[offsets[rows[n]] + t]

        num_layers = len(recurrents) // (2 * H * 4 * H)
        above = states[0]
        run_layer(sums_from_tokens, table, 0, len(table) // 2, recurrents, 0, begins, tokens, above, above, S, H)
        for layer in range(1, num_layers):
            below, above = above, states[layer % 2]
            size = (1 + 2 * H) * 4 * H  # of one direction's projection
            run_layer(
                sums_from_states, projections, (layer - 1) * 2 * size, size, recurrents, layer * 2 * H * 4 * H,
                begins, tokens, below, above, S, H,
            )  # fmt: skip

        for n in range(len(rows)):
            weights = attention_weights[offsets[rows[n]] : offsets[rows[n] + 1]]
            pool(above, begins[n], score_weights, weights, contexts[n], D)

    return compiled(pool_rows, POOL_SIGNATURE)


@functools.cache
def compile_classify() -> Callable[..., None]:
    """The classifier: classify(contexts, hidden_weights, hidden_biases, class_weights, class_biases, probabilities).

    Linear, ReLU, linear and softmax, all in float64. Weights as (inputs, outputs); probabilities float32 (N, C).
    It is written out since a BLAS may add a row up in another order when it stands beside other rows.
    """

    def classify(contexts, hidden_weights, hidden_biases, class_weights, class_biases, probabilities):
        hidden = np.empty(len(hidden_biases))
        logits = np.empty(len(class_biases))
        for n in range(len(contexts)):
            hidden[:] = hidden_biases
            for k in range(len(hidden_weights)):
                for j in range(len(hidden)):
                    hidden[j] += contexts[n, k] * hidden_weights[k, j]
            logits[:] = class_biases
            for k in range(len(class_weights)):
                active = 0.0 if hidden[k] < 0 else hidden[k]  # unlike max, it keeps NaN
                for j in range(len(logits)):
                    logits[j] += active * class_weights[k, j]
            highest = logits.max()
            total = 0.0
            for j in range(len(logits)):
                logits[j] = math.exp(logits[j] - highest)
                total += logits[j]
            for j in range(len(logits)):
                probabilities[n, j] = logits[j] / total

    return compiled(classify, CLASSIFY_SIGNATURE)


def lanes_in_registers() -> int:
    """How many floats of a gate, over all slots, keep the four gates' sums within half of the registers."""
    features = registry.cpu_target.target_context.codegen().magic_tuple()[2]
    return 64 if "+avx512f" in features else 16

"""From a row's states to attention weights, context and probabilities.

Owns the exponential, the softmax over time and the classifier. Sums over time and all that follows are float64: a row
may be long. Every sum has one order, that of 16 partial sums for a score, and of tokens or inputs for all others, on
any processor. Knows nothing about how states come about. It imports Numba: import it late.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from attnlstm.engines.fused_cpu.vectors import DOUBLE, FLOAT, INT64, Vectors, at, pointer_to, repeat

LANES = 16
"""Of a vector in here, on any processor: states are padded to a multiple of it."""

LOG2_E = 1.4426950408889634
# ln 2 in two parts; the first has so few bits that its product with an integer is exact.
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
# A float64 that is this large has no digits after the point: adding it rounds to an integer, in the lowest bits.
ROUNDER = 6755399441055744.0
TAYLOR = tuple(float(1 / np.prod(np.arange(1.0, n + 1))) for n in range(13, -1, -1))


@intrinsic
def _bits(typing, number):
    def emit(context, builder, signature, args):
        return builder.bitcast(args[0], INT64)

    return types.int64(types.float64), emit


@intrinsic
def _from_bits(typing, bits):
    def emit(context, builder, signature, args):
        return builder.bitcast(args[0], DOUBLE)

    return types.float64(types.int64), emit


@njit(forceinline=True)
def exponential(x):
    """e to the power of x, float64, for x of at most 0, within 3e-16; 0 below -700. A library's rounds as it likes."""
    x = -700.0 if x < -700.0 else x
    shifted = x * LOG2_E + ROUNDER
    n = shifted - ROUNDER
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    total = TAYLOR[0]
    for coefficient in TAYLOR[1:]:
        total = total * r + coefficient
    return total * _from_bits((_bits(shifted) << 52) + (1023 << 52))


@intrinsic
def score_tokens(typing, states, score_weights, num_blocks, num_tokens, scores):
    """scores[t] = states[t] . score_weights, float32; vectors of num_blocks * LANES numbers; addresses.

    Returns the highest score; of those that are NaN it knows nothing, -inf if there is no other.
    """

    def emit(context, builder, signature, args):
        states, score_weights, scores = (pointer_to(builder, args[n], FLOAT) for n in (0, 1, 4))
        num_blocks, num_tokens = args[2:4]
        vectors = Vectors(builder, LANES)

        def one_token(t, carried):
            state = at(builder, states, builder.mul(t, builder.mul(num_blocks, INT64(LANES))))

            def one_block(block, totals):
                first = builder.mul(block, INT64(LANES))
                loaded = (vectors.load(at(builder, each, first)) for each in (state, score_weights))
                return [vectors.fma(*loaded, totals[0])]

            (totals,) = repeat(builder, num_blocks, [vectors.constant(0.0)], one_block)
            score = vectors.sum_of_lanes(totals)
            builder.store(score, at(builder, scores, t))
            return [builder.select(builder.fcmp_ordered(">", score, carried[0]), score, carried[0])]

        return repeat(builder, num_tokens, [FLOAT(float("-inf"))], one_token)[0]

    number = types.int64
    return types.float32(number, number, number, number, number), emit


@intrinsic
def add_weighted(typing, states, weights, num_blocks, num_tokens, sums):
    """sums = the sum of weights[t] * states[t] over tokens; float32 states and weights, float64 sums; addresses.

    num_blocks: of LANES numbers in a state, an even number.
    """

    def emit(context, builder, signature, args):
        states, weights = (pointer_to(builder, args[n], FLOAT) for n in (0, 1))
        num_blocks, num_tokens = args[2:4]
        floats, doubles = Vectors(builder, LANES), Vectors(builder, LANES, DOUBLE)
        size = builder.mul(num_blocks, INT64(LANES))

        def two_blocks(pair, carried):
            # As many sums as hide the time that one takes.
            firsts = [builder.add(builder.mul(pair, INT64(2 * LANES)), INT64(n * LANES)) for n in range(2)]

            def one_token(t, totals):
                weight = doubles.splat(builder.fpext(builder.load(at(builder, weights, t)), DOUBLE))
                start = builder.mul(t, size)
                loaded = [floats.load(at(builder, states, builder.add(start, first))) for first in firsts]
                return [
                    doubles.fma(builder.fpext(state, doubles.type), weight, total)
                    for state, total in zip(loaded, totals, strict=True)
                ]

            totals = repeat(builder, num_tokens, [doubles.constant(0.0)] * 2, one_token)
            for first, total in zip(firsts, totals, strict=True):
                doubles.store(total, at(builder, pointer_to(builder, args[4], DOUBLE), first))
            return []

        repeat(builder, builder.sdiv(num_blocks, INT64(2)), [], two_blocks)
        return context.get_dummy_value()

    number = types.int64
    return types.void(number, number, number, number, number), emit


@njit(forceinline=True, error_model="numpy")  # whose divisions are not checked for 0, so that they are vectors
def pool(states, score_weights, attention_weights, context):
    """Softmax attention over one row's states: its weights, and the sum of its states by weight.

    states: address of float32 (T, D). score_weights: float32 (D,). attention_weights: float32 (T,), and context:
    float64 (D,), are the results.
    """
    num_blocks, num_tokens = len(score_weights) // LANES, len(attention_weights)
    weights = attention_weights.ctypes.data
    highest = np.float64(score_tokens(states, score_weights.ctypes.data, num_blocks, num_tokens, weights))
    # Apart from their sum, which has an order, exponentials are computed as vectors.
    for t in range(num_tokens):
        attention_weights[t] = exponential(np.float64(attention_weights[t]) - highest)
    total = 0.0
    for t in range(num_tokens):
        total += attention_weights[t]
    add_weighted(states, weights, num_blocks, num_tokens, context.ctypes.data)
    for t in range(num_tokens):
        attention_weights[t] /= total
    for d in range(len(context)):
        context[d] /= total


@njit(forceinline=True)
def classify(context, hidden_weights, hidden_biases, class_weights, class_biases, logits, probabilities):
    """Linear, ReLU, linear and softmax, all in float64.

    context: (D,). Weights as (inputs, outputs). logits: (C,), and probabilities: float32 (C,), are the results. It is
    written out since a BLAS adds up in an order of its own.
    """
    hidden = hidden_biases.copy()
    for k in range(len(hidden_weights)):
        for j in range(len(hidden)):
            hidden[j] += context[k] * hidden_weights[k, j]
    logits[:] = class_biases
    for k in range(len(class_weights)):
        active = 0.0 if hidden[k] < 0 else hidden[k]  # unlike max, it keeps NaN
        for j in range(len(logits)):
            logits[j] += active * class_weights[k, j]
    highest = logits.max()
    shares = np.empty(len(logits))
    total = 0.0
    for j in range(len(logits)):
        shares[j] = exponential(logits[j] - highest)
        total += shares[j]
    for j in range(len(logits)):
        probabilities[j] = shares[j] / total

"""One LSTM step of a tile: a few rows side by side, a vector of hidden units, all four gates.

Owns the arithmetic of the recurrent part and which tile suits which processor. As in a good matrix product, the sums
of a tile stay in registers over the whole inner loop: a vector of weights that is loaded serves every row of the tile,
and a number of a row serves the vectors of four gates. Then the gates become states where they stand, and while one
tile waits for its divisions, the processor is busy with the products of the next.

Each sum starts from a bias or a row of the folded table and takes its products one by one, in the order of the
inputs. Tiles differ in how many sums they compute at once, never in the order of one: all give the same bits.

Knows nothing about layers, directions, or which rows a tile holds. It imports Numba: import it late.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

from typing import NamedTuple

from numba.core import registry, types
from numba.extending import intrinsic

from attnlstm.engines.fused_cpu.vectors import FLOAT, INT64, SideBySide, Vectors, at, pointer_to, repeat

# tanh(x) = x P(x^2) / Q(x^2), a minimax fit on |x| <= LIMIT. Computed in float32 it is within 3.3e-7, and the
# sigmoid within 2.1e-7. At LIMIT, numerator and denominator are the same float: saturated gates are exactly 0 and
# 1, so a cell that is to keep its state does so for any number of steps.
LIMIT = 9.0
P = (0.99999994, 0.13389006, 0.0035053326, 2.0780222e-05, 1.3613181e-08)
Q = (1.0, 0.4672231, 0.025913369, 0.00033020318, 7.877767e-07)

GATES = 4

# What a slot, the place of a row among those that are computed side by side, holds: int64 each, addresses mostly.
SLOT_FIELDS = 8
SUMS, BELOW, BEFORE, NOW, CELL, TOKEN, STEPS_LEFT, PARTIAL = range(SLOT_FIELDS)


class Tile(NamedTuple):
    """rows: most rows side by side. lanes: hidden units in a vector, which is one register."""

    rows: int
    lanes: int


def tile_of_processor() -> Tile | None:
    """What suits the processor that Numba compiles for; None if it can't multiply and add with one rounding.

    Four rows fill half of 32 registers. Six would fit, but then products and gates are so many instructions
    each that the processor no longer finds the next tile's products while it waits for this one's gates.
    """
    triple, _, features = registry.cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features:
        return Tile(4, 16)
    if "+fma" in features:
        return Tile(3, 8)
    return Tile(4, 4) if triple.startswith(("aarch64", "arm64")) else None


def tanh_fraction(rows, x, scale=1.0):
    """Numerator and `scale` times the denominator of tanh(x)."""
    x = rows.clamp(x, -LIMIT, LIMIT)
    z = rows.multiply(x, x)
    return rows.multiply(x, _polynomial(rows, z, P)), _polynomial(rows, z, [scale * q for q in Q])


def sigmoid_fraction(rows, x):
    """Numerator and denominator of sigmoid(2 x) = (1 + tanh(x)) / 2."""
    top, bottom = tanh_fraction(rows, x, 2.0)
    return rows.fma(bottom, 0.5, top), bottom


def lstm_cell(rows, i, f, g, o, c):
    """One LSTM step from the sums that reach the gates, with those of i, f and o halved: new h and c.

    rows: `SideBySide`; the others are lists with a vector for each row.
    """
    i_top, i_bottom = sigmoid_fraction(rows, i)
    f_top, f_bottom = sigmoid_fraction(rows, f)
    g_top, g_bottom = tanh_fraction(rows, g)
    # Division is slow: products of fractions are divided once. f stays apart, where it can be exactly 1.
    new = rows.divide(rows.multiply(i_top, g_top), rows.multiply(i_bottom, g_bottom))
    c = rows.fma(rows.divide(f_top, f_bottom), c, new)
    o_top, o_bottom = sigmoid_fraction(rows, o)
    c_top, c_bottom = tanh_fraction(rows, c)
    return rows.divide(rows.multiply(o_top, c_top), rows.multiply(o_bottom, c_bottom)), c


def _polynomial(rows, z, coefficients):
    *lower, highest = coefficients
    total = rows.fma(z, highest, lower.pop())
    while lower:
        total = rows.fma(total, z, lower.pop())
    return total


def add_products(vectors, inputs, weights, count, sums):
    """sums[r * W + w] + weights[k, w] * inputs[r][k] for k in 0 .. count - 1, one after the other.

    W: vectors of weights, GATES in a step: as many as there are sums for each row of inputs.
    """
    builder = vectors.builder
    width = len(sums) // len(inputs)

    def one_input(k, sums):
        row = at(builder, weights, builder.mul(k, INT64(width * vectors.num_lanes)))
        numbers = [vectors.splat(builder.load(at(builder, each, k))) for each in inputs]
        sums = list(sums)
        # One vector of weights after the other: with 16 registers there is room for one beside the sums of a tile.
        for w in range(width):
            loaded = vectors.load(at(builder, row, w * vectors.num_lanes))
            for n in range(w, len(sums), width):
                sums[n] = vectors.fma(loaded, numbers[n // width], sums[n])
        return sums

    return repeat(builder, count, sums, one_input)


@intrinsic(prefer_literal=True)
def step_tile(typing, slots, weights, first_unit, state_size, first_input, counts, is_first, is_last, rows, lanes):
    """One step of `rows` rows and the hidden units first_unit .. first_unit + lanes - 1.

    slots: address of the tile's first slot. Of each are read: SUMS, where the gate sums begin, (panels, 4, lanes);
    BELOW, the token's state in the layer below, (2, state_size); BEFORE, this direction's state at the token before;
    PARTIAL, where sums are kept, (4, lanes); and CELL, (state_size,), which is overwritten. NOW is where the new state
    goes, (state_size,).
    weights: address of float32 (inputs, 4, lanes). counts: how many inputs of the first and second half of BELOW and
    of BEFORE are added, from first_input on, in this order; a step may be cut into several calls.
    is_first: the sums come from SUMS, not from PARTIAL. is_last: they are turned into a state, not kept in PARTIAL.
    """
    if not all(isinstance(size, types.IntegerLiteral) for size in (rows, lanes)):
        return None

    def emit(context, builder, signature, args):
        slots, weights, first_unit, state_size, first_input, counts, is_first, is_last, _, _ = args
        num_rows, num_lanes = rows.literal_value, lanes.literal_value
        vectors = Vectors(builder, num_lanes)
        slots = pointer_to(builder, slots, INT64)
        weights = pointer_to(builder, weights, FLOAT)

        def field(which):
            addresses = (builder.load(at(builder, slots, r * SLOT_FIELDS + which)) for r in range(num_rows))
            return [pointer_to(builder, address, FLOAT) for address in addresses]

        first_sum = builder.mul(first_unit, INT64(GATES))
        starts = [
            builder.select(is_first, at(builder, whole, first_sum), partial)
            for whole, partial in zip(field(SUMS), field(PARTIAL), strict=True)
        ]
        sums = [vectors.load(at(builder, start, gate * num_lanes)) for start in starts for gate in range(GATES)]
        below, before = ([at(builder, state, first_input) for state in field(f)] for f in (BELOW, BEFORE))
        halves = below, [at(builder, state, state_size) for state in below], before
        for n, inputs in enumerate(halves):
            count = builder.extract_value(counts, n)
            sums = add_products(vectors, inputs, weights, count, sums)
            weights = at(builder, weights, builder.mul(count, INT64(GATES * num_lanes)))
        with builder.if_else(is_last) as (then, otherwise):
            with then:
                _finish(vectors, sums, *([at(builder, each, first_unit) for each in field(f)] for f in (CELL, NOW)))
            with otherwise:
                for n, total in enumerate(sums):
                    row, gate = divmod(n, GATES)
                    vectors.store(total, at(builder, field(PARTIAL)[row], gate * num_lanes))
        return context.get_dummy_value()

    number = types.int64
    three = types.UniTuple(number, 3)
    flag = types.boolean
    return types.void(number, number, number, number, number, three, flag, flag, rows, lanes), emit


def _finish(vectors, sums, cells, states):
    """From gate sums to states, two rows at a time."""
    for first in range(0, len(cells), 2):
        part = range(first, min(first + 2, len(cells)))
        gates = ([sums[r * GATES + gate] for r in part] for gate in range(GATES))
        h, c = lstm_cell(SideBySide(vectors), *gates, [vectors.load(cells[r]) for r in part])
        for n, r in enumerate(part):
            vectors.store(c[n], cells[r])
            vectors.store(h[n], states[r])

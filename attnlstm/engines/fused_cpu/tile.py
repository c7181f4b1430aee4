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

from attnlstm.engines.fused_cpu.vectors import FLOAT, INT32, INT64, SideBySide, Vectors, at, pointer_to, repeat

# tanh(x) = x P(x^2) / Q(x^2), a minimax fit on |x| <= LIMIT. Computed in float32 it is within 3.3e-7, and the
# sigmoid within 2.1e-7. At LIMIT, numerator and denominator are the same float: saturated gates are exactly 0 and
# 1, so a cell that is to keep its state does so for any number of steps.
LIMIT = 9.0
P = (0.99999994, 0.13389006, 0.0035053326, 2.0780222e-05, 1.3613181e-08)
Q = (1.0, 0.4672231, 0.025913369, 0.00033020318, 7.877767e-07)

GATES = 4

# What a slot, the place of a row among those that are computed side by side, holds: int64 each.
SLOT_FIELDS = 2
POSITION, STEPS_LEFT = range(SLOT_FIELDS)

FRAME_FIELDS = 10
"""What all slots share in a step, int64 each: see `step_tile`."""


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
        return add_outer_product(vectors, [at(builder, each, k) for each in inputs], row, sums)

    return repeat(builder, count, sums, one_input)


def add_outer_product(vectors, numbers, row, sums):
    """sums[r * W + w] + row[w] * numbers[r], W vectors of the row. numbers: pointers; row: pointer to the first.

    With 16 registers there is room beside the sums of a tile for the numbers and one vector, or for the vectors and one
    number: what there are fewer of is loaded first.
    """
    builder, sums = vectors.builder, list(sums)
    width = len(sums) // len(numbers)
    places = [at(builder, row, w * vectors.num_lanes) for w in range(width)]
    if len(numbers) <= width:
        splats = [vectors.splat(builder.load(each)) for each in numbers]
        for w, place in enumerate(places):
            loaded = vectors.load(place)
            for n in range(w, len(sums), width):
                sums[n] = vectors.fma(loaded, splats[n // width], sums[n])
        return sums
    loaded = [vectors.load(place) for place in places]
    for r, each in enumerate(numbers):
        number = vectors.splat(builder.load(each))
        for w in range(width):
            n = r * width + w
            sums[n] = vectors.fma(loaded[w], number, sums[n])
    return sums


@intrinsic(prefer_literal=True)
def step_tile(typing, frame, first_slot, weights, first_unit, firsts, counts, is_first, is_last, rows, lanes):
    """One step of `rows` rows, those of first_slot and the slots after it, and hidden units first_unit .. + lanes - 1.

    frame: what all slots share, addresses mostly. Of the slots' positions, int64; of the tokens, int32; of where the
    gate sums of token 0 begin, (panels, 4, lanes), and how many bytes on those of the next token do; of the states
    (positions, 2, size) below, of this direction's states one token before, and of where its new states go; of the
    cells, (slots, size), which are overwritten; of where sums are kept, (slots, 4, lanes); and the size. From step to
    step these addresses move on, and positions stay: a slot has nothing of its own that each step would change.
    weights: address of float32 (inputs, 4, lanes). firsts, counts: which inputs of the first and second half of the
    state below and of the state before are added, in this order; a step may be cut into several calls.
    is_first: the sums begin anew, not from those that were kept. is_last: they are turned into a state, not kept.
    """
    if not all(isinstance(size, types.IntegerLiteral) for size in (rows, lanes)):
        return None

    def emit(context, builder, signature, args):
        frame, first_slot, weights, first_unit, firsts, counts, is_first, is_last, _, _ = args
        num_rows, num_lanes = rows.literal_value, lanes.literal_value
        positions, tokens, first_sums, sums_bytes, below, before, now, cells, kept, size = (
            builder.extract_value(frame, n) for n in range(FRAME_FIELDS)
        )
        vectors = Vectors(builder, num_lanes)
        weights = pointer_to(builder, weights, FLOAT)

        of_slots = at(builder, pointer_to(builder, positions, INT64), first_slot)
        of_rows = [builder.load(at(builder, of_slots, r)) for r in range(num_rows)]
        state_floats = builder.mul(size, INT64(2))
        moved = [builder.mul(position, state_floats) for position in of_rows]

        def states(address):
            return [at(builder, pointer_to(builder, address, FLOAT), floats) for floats in moved]

        def of_each_slot(address, floats):
            begin = at(builder, pointer_to(builder, address, FLOAT), builder.mul(first_slot, floats))
            return [at(builder, begin, builder.mul(floats, INT64(r))) for r in range(num_rows)]

        kept = of_each_slot(kept, INT64(GATES * num_lanes))
        first_sum = builder.mul(first_unit, INT64(GATES))
        sums = []
        for position, partial in zip(of_rows, kept, strict=True):
            token = builder.zext(builder.load(at(builder, pointer_to(builder, tokens, INT32), position)), INT64)
            of_token = builder.add(first_sums, builder.mul(token, sums_bytes))
            whole = at(builder, pointer_to(builder, of_token, FLOAT), first_sum)
            start = builder.select(is_first, whole, partial)
            sums += [vectors.load(at(builder, start, gate * num_lanes)) for gate in range(GATES)]
        halves = states(below), [at(builder, state, size) for state in states(below)], states(before)
        for n, half in enumerate(halves):
            first, count = (builder.extract_value(each, n) for each in (firsts, counts))
            sums = add_products(vectors, [at(builder, state, first) for state in half], weights, count, sums)
            weights = at(builder, weights, builder.mul(count, INT64(GATES * num_lanes)))
        with builder.if_else(is_last) as (then, otherwise):
            with then:
                at_unit = [
                    [at(builder, each, first_unit) for each in of] for of in (of_each_slot(cells, size), states(now))
                ]
                _finish(vectors, sums, *at_unit)
            with otherwise:
                for n, total in enumerate(sums):
                    row, gate = divmod(n, GATES)
                    vectors.store(total, at(builder, kept[row], gate * num_lanes))
        return context.get_dummy_value()

    number, flag = types.int64, types.boolean
    three = types.UniTuple(number, 3)
    of_frame = types.UniTuple(number, FRAME_FIELDS)
    return types.void(of_frame, number, number, number, three, three, flag, flag, rows, lanes), emit


def _finish(vectors, sums, cells, states):
    """From gate sums to states, all rows side by side."""
    gates = (sums[gate::GATES] for gate in range(GATES))
    h, c = lstm_cell(SideBySide(vectors), *gates, [vectors.load(cell) for cell in cells])
    for r in range(len(cells)):
        vectors.store(c[r], cells[r])
        vectors.store(h[r], states[r])

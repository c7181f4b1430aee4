"""The arithmetic of an LSTM's forward and backward pass as LLVM code: tiles whose sums stay in registers.

Owns one step of a few rows, forward and backward, and the two matrix products of training: rows times weights, and
the sum over positions of inputs times gradients, which is the gradient of weights. Each sum takes its products one by
one in a fixed order. Knows nothing about layers, directions or networks. It imports Numba: import it late.

What the forward pass keeps of each position, for one direction of one layer, is a record: the four gates (panels, 4,
lanes), which become the gradients of the gates' sums where they stand, the cell, and its tanh. States lie apart, those
of both directions side by side.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from attnlstm.engines.fused_cpu.tile import GATES, add_outer_product, add_products, sigmoid_fraction, tanh_fraction
from attnlstm.engines.fused_cpu.vectors import FLOAT, INT32, INT64, SideBySide, Vectors, at, pointer_to, repeat

# What a slot, the place of a row among those computed side by side, holds: int64 each. Addresses but for POSITION.
SLOT_FIELDS = 4
POSITION, START, FROM, TO = range(SLOT_FIELDS)

RECORD = GATES + 2
"""Numbers that are kept for each unit and position; first those of gates, then CELL and TANH."""

CELL, TANH = GATES, GATES + 1

STEPS_AHEAD = 4
"""So many steps before it is needed, a record is fetched into the cache: more rows go side by side than a processor
follows by itself."""

ADDRESS = types.int64


def _fields(builder, slots, num_rows, which):
    return [builder.load(at(builder, slots, r * SLOT_FIELDS + which)) for r in range(num_rows)]


def _at_position(builder, base, position, width):
    return at(builder, base, builder.mul(position, width))


def _record(builder, records, position, size):
    return _at_position(builder, records, position, builder.mul(size, INT64(RECORD)))


def _unit(builder, record, which, size, unit):
    """Where the CELL or TANH of a unit is in a record."""
    return at(builder, record, builder.add(builder.mul(size, INT64(which)), unit))


def _apart(context, builder, name, args, body):
    """Call a function with this body, which is compiled once, however often and wherever the tile is used."""
    module = builder.module
    if name not in module.globals:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [arg.type for arg in args]), name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block())
        body(inside, *function.args)
        inside.ret_void()
    builder.call(module.globals[name], args)
    return context.get_dummy_value()


@intrinsic(prefer_literal=True)
def forward_tile(typing, slots, weights, first_unit, size, ahead, states, records, rows, lanes):
    """One step of `rows` rows and the hidden units first_unit .. first_unit + lanes - 1.

    slots: address of the tile's first slot. START: where the gates' sums begin, (panels, 4, lanes), those of i, f and o
    halved. weights: address of float32 (size, 4, lanes). ahead: 1 or -1, the way that positions are gone through.
    states, records: addresses of position 0, of 2 * size and RECORD * size numbers a position.
    """

    def body(builder, *args):
        slots, weights, first_unit, size, ahead, states, records, _, _ = args
        num_rows, num_lanes = rows.literal_value, lanes.literal_value
        vectors = Vectors(builder, num_lanes)
        slots = pointer_to(builder, slots, INT64)
        weights, states, records = (pointer_to(builder, address, FLOAT) for address in (weights, states, records))
        first_sum = builder.mul(first_unit, INT64(GATES))
        both = builder.mul(size, INT64(2))
        positions = _fields(builder, slots, num_rows, POSITION)
        starts = [
            at(builder, pointer_to(builder, each, FLOAT), first_sum)
            for each in _fields(builder, slots, num_rows, START)
        ]
        sums = [vectors.load(at(builder, start, gate * num_lanes)) for start in starts for gate in range(GATES)]
        behind = [builder.sub(position, ahead) for position in positions]
        before = [_at_position(builder, states, position, both) for position in behind]
        sums = add_products(vectors, before, weights, size, sums)

        old = [
            vectors.load(_unit(builder, _record(builder, records, each, size), CELL, size, first_unit))
            for each in behind
        ]
        of_gates = (sums[gate::GATES] for gate in range(GATES))
        *saved, cell, tanh, state = _cell(SideBySide(vectors), *of_gates, old)
        for r, position in enumerate(positions):
            record = _record(builder, records, position, size)
            for gate, of_rows in enumerate(saved):
                vectors.store(of_rows[r], at(builder, at(builder, record, first_sum), gate * num_lanes))
            vectors.store(cell[r], _unit(builder, record, CELL, size, first_unit))
            vectors.store(tanh[r], _unit(builder, record, TANH, size, first_unit))
            vectors.store(state[r], at(builder, _at_position(builder, states, position, both), first_unit))

    def emit(context, builder, signature, args):
        return _apart(context, builder, f"training_forward_{rows.literal_value}_{lanes.literal_value}", args, body)

    number = types.int64
    return types.void(ADDRESS, ADDRESS, number, number, number, ADDRESS, ADDRESS, rows, lanes), emit


def _cell(rows, i, f, g, o, c):
    """From the gates' sums, those of i, f and o halved, and the old cell: the gates, the new cell, its tanh, h."""
    i_top, i_bottom = sigmoid_fraction(rows, i)
    f_top, f_bottom = sigmoid_fraction(rows, f)
    g_top, g_bottom = tanh_fraction(rows, g)
    o_top, o_bottom = sigmoid_fraction(rows, o)
    # Division is slow: one for the four of them. Denominators are at least 1, and their product below 1e12.
    of_if, of_go = rows.multiply(i_bottom, f_bottom), rows.multiply(g_bottom, o_bottom)
    inverse = rows.divide(1.0, rows.multiply(of_if, of_go))
    over_if, over_go = rows.multiply(inverse, of_go), rows.multiply(inverse, of_if)
    i = rows.multiply(rows.multiply(i_top, f_bottom), over_if)
    f = rows.multiply(rows.multiply(f_top, i_bottom), over_if)
    g = rows.multiply(rows.multiply(g_top, o_bottom), over_go)
    o = rows.multiply(rows.multiply(o_top, g_bottom), over_go)
    c = rows.fma(f, c, rows.multiply(i, g))
    tanh = rows.divide(*tanh_fraction(rows, c))
    return i, f, g, o, c, tanh, rows.multiply(o, tanh)


@intrinsic(prefer_literal=True)
def backward_cell(typing, position, first_unit, size, ahead, records, from_above, from_next, of_cell, lanes):
    """The backward pass of one step of one row and the hidden units first_unit .. first_unit + lanes - 1.

    gates are overwritten with the gradients of their sums. from_above: address of position 0, the gradients of states,
    2 * size numbers a position. from_next: (size,), what the step after this one says of this state. of_cell: (size,),
    the gradient of this step's cell, is overwritten with that of the cell before.
    """

    def body(builder, *args):
        position, first_unit, size, ahead, *addresses, _ = args
        num_lanes = lanes.literal_value
        vectors = Vectors(builder, num_lanes)
        records, from_above, from_next, of_cell = (pointer_to(builder, address, FLOAT) for address in addresses)
        record = _record(builder, records, position, size)
        gates = at(builder, record, builder.mul(first_unit, INT64(GATES)))
        i, f, g, o = (vectors.load(at(builder, gates, gate * num_lanes)) for gate in range(GATES))
        tanh = vectors.load(_unit(builder, record, TANH, size, first_unit))
        behind = _record(builder, records, builder.sub(position, ahead), size)
        before = vectors.load(_unit(builder, behind, CELL, size, first_unit))
        above = _at_position(builder, from_above, position, builder.mul(size, INT64(2)))
        dh = vectors.add(vectors.load(at(builder, above, first_unit)), vectors.load(at(builder, from_next, first_unit)))
        one = vectors.constant(1.0)
        multiply, subtract = vectors.multiply, builder.fsub
        dho = multiply(dh, o)
        dc = vectors.fma(dho, subtract(one, multiply(tanh, tanh)), vectors.load(at(builder, of_cell, first_unit)))
        dci, dcf = multiply(dc, i), multiply(dc, f)
        gradients = (
            multiply(multiply(dci, g), subtract(one, i)),
            multiply(multiply(dcf, before), subtract(one, f)),
            multiply(dci, subtract(one, multiply(g, g))),
            multiply(multiply(dho, tanh), subtract(one, o)),
        )
        for gate, gradient in enumerate(gradients):
            vectors.store(gradient, at(builder, gates, gate * num_lanes))
        vectors.store(dcf, at(builder, of_cell, first_unit))

    def emit(context, builder, signature, args):
        return _apart(context, builder, f"training_backward_{lanes.literal_value}", args, body)

    number = types.int64
    return types.void(number, number, number, number, *[ADDRESS] * 4, lanes), emit


@intrinsic(prefer_literal=True)
def product_tile(typing, slots, weights, count, first_column, rows, width, lanes):
    """TO[c] = START[c] + the sum over k of FROM[k] * weights[k, c], for `width` vectors of columns of `rows` slots.

    slots: address of the first. weights: address of float32 (count, width, lanes). first_column: of START and TO.
    """

    def body(builder, *args):
        slots, weights, count, first_column = args[:4]
        num_rows, num_vectors, num_lanes = (each.literal_value for each in (rows, width, lanes))
        vectors = Vectors(builder, num_lanes)
        slots = pointer_to(builder, slots, INT64)
        starts, inputs, results = (
            [pointer_to(builder, each, FLOAT) for each in _fields(builder, slots, num_rows, which)]
            for which in (START, FROM, TO)
        )
        sums = [
            vectors.load(at(builder, at(builder, start, first_column), v * num_lanes))
            for start in starts
            for v in range(num_vectors)
        ]
        sums = add_products(vectors, inputs, pointer_to(builder, weights, FLOAT), count, sums)
        for n, total in enumerate(sums):
            row, v = divmod(n, num_vectors)
            vectors.store(total, at(builder, at(builder, results[row], first_column), v * num_lanes))

    def emit(context, builder, signature, args):
        return _apart(
            context, builder, f"product_{rows.literal_value}_{width.literal_value}_{lanes.literal_value}", args, body
        )

    number = types.int64
    return types.void(ADDRESS, ADDRESS, number, number, rows, width, lanes), emit


@intrinsic(prefer_literal=True)
def outer_tile(typing, inputs, input_width, gradients, gradient_width, count, to, to_width, rows, lanes):
    """to[r, c] += the sum over positions p of inputs[p, r] * gradients[p, c], for `rows` r and a panel of columns c.

    inputs, gradients, to: addresses of float32; widths: numbers from one position, or row of `to`, to the next.
    """

    def body(builder, *args):
        inputs, input_width, gradients, gradient_width, count, to, to_width = args[:7]
        num_rows, num_lanes = rows.literal_value, lanes.literal_value
        vectors = Vectors(builder, num_lanes)
        inputs, gradients, to = (pointer_to(builder, each, FLOAT) for each in (inputs, gradients, to))
        places = [
            at(builder, at(builder, to, builder.mul(to_width, INT64(r))), gate * num_lanes)
            for r in range(num_rows)
            for gate in range(GATES)
        ]

        def one_position(p, sums):
            of_inputs = _at_position(builder, inputs, p, input_width)
            of_gradients = _at_position(builder, gradients, p, gradient_width)
            return add_outer_product(vectors, [at(builder, of_inputs, r) for r in range(num_rows)], of_gradients, sums)

        sums = repeat(builder, count, [vectors.load(place) for place in places], one_position)
        for total, place in zip(sums, places, strict=True):
            vectors.store(total, place)

    def emit(context, builder, signature, args):
        return _apart(context, builder, f"training_outer_{rows.literal_value}_{lanes.literal_value}", args, body)

    number = types.int64
    return types.void(ADDRESS, number, ADDRESS, number, number, ADDRESS, number, rows, lanes), emit


@intrinsic(prefer_literal=True)
def drop(typing, numbers, to, num_vectors, key, threshold, scale, lanes):
    """to[n] = 0 where a hash of key + n is below the threshold, otherwise scale * numbers[n]: dropout.

    key, threshold: uint32 in int64. The hash is lowbias32, two rounds of multiplying and shifting (C. Wellons, Hash
    Prospector, 2018). The backward pass calls it with the same key for the same mask.
    """

    def emit(context, builder, signature, args):
        numbers, to, num_vectors, key, threshold, scale, _ = args
        num_lanes = lanes.literal_value
        vectors = Vectors(builder, num_lanes)
        numbers, to = (pointer_to(builder, address, FLOAT) for address in (numbers, to))
        integers = ir.VectorType(INT32, num_lanes)

        def splat(number):
            empty = ir.Constant(integers, ir.Undefined)
            first = builder.insert_element(empty, number, INT32(0))
            return builder.shuffle_vector(first, empty, ir.Constant(integers, [0] * num_lanes))

        def constant(number):
            return ir.Constant(integers, [number] * num_lanes)

        below = splat(builder.trunc(threshold, INT32))
        key = builder.add(splat(builder.trunc(key, INT32)), ir.Constant(integers, list(range(num_lanes))))
        scale, zero = vectors.splat(scale), vectors.constant(0.0)

        def one_vector(n, carried):
            first = builder.mul(n, INT64(num_lanes))
            hashed = builder.add(key, splat(builder.trunc(first, INT32)))
            for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
                hashed = builder.xor(hashed, builder.lshr(hashed, constant(shift)))
                hashed = builder.mul(hashed, constant(factor))
            hashed = builder.xor(hashed, builder.lshr(hashed, constant(16)))
            kept = vectors.multiply(vectors.load(at(builder, numbers, first)), scale)
            dropped = builder.icmp_unsigned("<", hashed, below)
            vectors.store(builder.select(dropped, zero, kept), at(builder, to, first))
            return []

        repeat(builder, num_vectors, [], one_vector)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, types.float32, lanes), emit

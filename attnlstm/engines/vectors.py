"""Vectors of floats inside Numba functions: the few operations that a recurrent kernel needs.

Owns a Numba type, `Vector`, that is LLVM's `<n x float>` for any n. LLVM spreads it over the registers that
the processor has, so the same code serves AVX-512, AVX2 and NEON, without the help of a vectoriser, which
gives up on recurrent loops. Each lane sees the same IEEE operations in the same order wherever it stands, so
what stands in other lanes never changes its bits. Knows nothing about networks. It imports Numba: import it
late.

A vector is seen as S slots of W lanes. Arrays are one-dimensional; nothing checks their bounds. S and W must
be constants to the compiler, and powers of two.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic, overload

INT32 = ir.IntType(32)
INT64 = ir.IntType(64)


class Vector(types.Type):
    """`num_lanes` floats of type `element`, types.float32 or types.float64."""

    def __init__(self, num_lanes, element=types.float32):
        self.num_lanes = num_lanes
        self.element = element
        super().__init__(f"Vector({num_lanes}, {element})")


@register_default(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        lane = dmm.lookup(fe_type.element).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(lane, fe_type.num_lanes))


# ---- Memory: three ways for slot s, lane j to find its float ----


@intrinsic(prefer_literal=True)
def load(typing, array, start, S, W):
    """array[start + j]: every slot gets the same W floats."""
    if not _are_constant(S, W):
        return None

    def emit(context, builder, signature, args):
        run = _load_run(builder, _pointer(context, builder, signature, args, args[1]), W.literal_value)
        return _join(builder, [run] * S.literal_value)

    return Vector(S.literal_value * W.literal_value)(array, types.int64, S, W), emit


@intrinsic(prefer_literal=True)
def load_runs(typing, array, starts, offset, S, W):
    """array[starts[s] + offset + j]: W floats for each slot."""
    if not _are_constant(S, W):
        return None

    def emit(context, builder, signature, args):
        pointers = _pointers(context, builder, signature, args, S.literal_value)
        return _join(builder, [_load_run(builder, pointer, W.literal_value) for pointer in pointers])

    return Vector(S.literal_value * W.literal_value)(array, starts, types.int64, S, W), emit


@intrinsic(prefer_literal=True)
def load_spread(typing, array, starts, offset, S, W):
    """array[starts[s] + offset]: one float for each slot, the same in all of its lanes."""
    if not _are_constant(S, W):
        return None

    def emit(context, builder, signature, args):
        pointers = _pointers(context, builder, signature, args, S.literal_value)
        return _join(builder, [_spread(builder, builder.load(pointer), W.literal_value) for pointer in pointers])

    return Vector(S.literal_value * W.literal_value)(array, starts, types.int64, S, W), emit


@intrinsic(prefer_literal=True)
def store_runs(typing, array, starts, offset, S, W, vector):
    """array[starts[s] + offset + j] = vector: the reverse of `load_runs`."""
    if not _are_constant(S, W):
        return None

    def emit(context, builder, signature, args):
        for s, pointer in enumerate(_pointers(context, builder, signature, args, S.literal_value)):
            lanes = range(s * W.literal_value, (s + 1) * W.literal_value)
            run = builder.shuffle_vector(args[5], args[5], _mask(lanes))
            builder.store(run, builder.bitcast(pointer, run.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, starts, types.int64, S, W, vector), emit


def _are_constant(*sizes):
    return all(isinstance(size, types.IntegerLiteral) for size in sizes)


def _pointer(context, builder, signature, args, index):
    """Where args[0], an array, has the element of this index."""
    return builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [index])


def _pointers(context, builder, signature, args, num_slots):
    """Where args[0] has the elements that args[1], an array of starts, and args[2], an offset, point to."""
    starts = context.make_array(signature.args[1])(context, builder, args[1]).data
    for s in range(num_slots):
        start = builder.load(builder.gep(starts, [INT64(s)]))
        yield _pointer(context, builder, signature, args, builder.add(start, args[2]))


def _load_run(builder, pointer, width):
    run = ir.VectorType(pointer.type.pointee, width)
    return builder.load(builder.bitcast(pointer, run.as_pointer()), align=4)


def _spread(builder, scalar, width):
    empty = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
    first = builder.insert_element(empty, scalar, INT32(0))
    return builder.shuffle_vector(first, empty, _mask([0] * width))


def _join(builder, runs):
    """Runs of equal width, a power of two of them, as one vector."""
    while len(runs) > 1:
        both = _mask(range(2 * runs[0].type.count))
        runs = [builder.shuffle_vector(a, b, both) for a, b in zip(runs[::2], runs[1::2], strict=True)]
    return runs[0]


def _mask(lanes):
    return ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))


# ---- Arithmetic, lane by lane; numbers stand for vectors that hold them in every lane ----


def _elementwise(emit_lanes):
    """An emitter of LLVM code for equal vectors as an intrinsic for vectors and numbers."""

    def typed(args):
        (vector,) = {arg for arg in args if isinstance(arg, Vector)}

        def emit(context, builder, signature, values):
            return emit_lanes(
                builder, *(_as_vector(context, builder, vector, *pair) for pair in zip(args, values, strict=True))
            )

        return vector(*args), emit

    return typed


def _as_vector(context, builder, vector, type_, value):
    if type_ == vector:
        return value
    return _spread(builder, context.cast(builder, value, type_, vector.element), vector.num_lanes)


def _emit_fma(builder, a, b, c):
    lane = {"float": "f32", "double": "f64"}[str(a.type.element)]
    # fmuladd is one rounding where the processor can do it, and never a call into libm.
    name = f"llvm.fmuladd.v{a.type.count}{lane}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def _emit_clamp(builder, x, low, high):
    # In this form each select is one instruction on x86, and NaN stays NaN.
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    return builder.select(builder.fcmp_ordered("<", x, low), low, x)


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, rounded once."""
    return _elementwise(_emit_fma)((a, b, c))


@intrinsic
def clamp(typing, x, low, high):
    """x, or the nearer bound where x is outside low .. high; NaN stays NaN."""
    return _elementwise(_emit_clamp)((x, low, high))


@intrinsic
def _add(typing, a, b):
    return _elementwise(lambda builder, a, b: builder.fadd(a, b))((a, b))


@intrinsic
def _multiply(typing, a, b):
    return _elementwise(lambda builder, a, b: builder.fmul(a, b))((a, b))


@intrinsic
def _divide(typing, a, b):
    return _elementwise(lambda builder, a, b: builder.fdiv(a, b))((a, b))


@overload(operator.add)
def _add_operator(a, b):
    if isinstance(a, Vector) or isinstance(b, Vector):
        return lambda a, b: _add(a, b)
    return None


@overload(operator.mul)
def _multiply_operator(a, b):
    if isinstance(a, Vector) or isinstance(b, Vector):
        return lambda a, b: _multiply(a, b)
    return None


@overload(operator.truediv)
def _divide_operator(a, b):
    if isinstance(a, Vector) or isinstance(b, Vector):
        return lambda a, b: _divide(a, b)
    return None


@intrinsic
def to_double(typing, vector):
    """The same numbers in float64."""
    wide = Vector(vector.num_lanes, types.float64)

    def emit(context, builder, signature, args):
        return builder.fpext(args[0], context.get_value_type(wide))

    return wide(vector), emit


@intrinsic
def add_up(typing, vector):
    """The sum of all lanes, added as a tree."""

    def emit(context, builder, signature, args):
        (lanes,) = args
        while lanes.type.count > 1:
            half = lanes.type.count // 2
            low, high = (
                builder.shuffle_vector(lanes, lanes, _mask(part)) for part in (range(half), range(half, 2 * half))
            )
            lanes = builder.fadd(low, high)
        return builder.extract_element(lanes, INT32(0))

    return vector.element(vector), emit

"""Vectors of floats as LLVM code, for functions that Numba compiles: the few operations that the kernels need.

Owns how one operation is written down for LLVM, whatever the width of a vector. Every operation is one IEEE operation
in every lane, `fma` one rounding, and LLVM may not reorder or join them: so what a lane computes depends neither on
the processor nor on what stands in the other lanes. Knows nothing about networks. It imports Numba: import it late.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

from llvmlite import ir
from numba.core import cgutils

INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()


def pointer_to(builder, address, type_):
    """An int64 address as a pointer to numbers of this type."""
    return builder.inttoptr(address, type_.as_pointer())


def at(builder, pointer, index):
    """The pointer moved on by `index` numbers, a Python int or an int64 of LLVM's."""
    return builder.gep(pointer, [INT64(index) if isinstance(index, int) else index])


class Vectors:
    """Writes operations on vectors of `num_lanes` numbers of type `lane`, FLOAT or DOUBLE, at the builder's place."""

    def __init__(self, builder, num_lanes, lane=FLOAT):
        self.builder = builder
        self.num_lanes = num_lanes
        self.lane = lane
        self.type = ir.VectorType(lane, num_lanes)

    def constant(self, number):
        return ir.Constant(self.type, [number] * self.num_lanes)

    def load(self, pointer):
        return self.builder.load(self._run(pointer), align=4)

    def store(self, vector, pointer):
        self.builder.store(vector, self._run(pointer), align=4)

    def splat(self, number):
        """The number in every lane."""
        empty = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(empty, number, INT32(0))
        return self.builder.shuffle_vector(first, empty, _mask([0] * self.num_lanes))

    def fma(self, a, b, c):
        """a * b + c, rounded once."""
        lane = "f32" if self.lane == FLOAT else "f64"
        name = f"llvm.fma.v{self.num_lanes}{lane}"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(self.type, [self.type] * 3), name
        )
        return self.builder.call(function, [a, b, c])

    def add(self, a, b):
        return self.builder.fadd(a, b)

    def multiply(self, a, b):
        return self.builder.fmul(a, b)

    def divide(self, a, b):
        return self.builder.fdiv(a, b)

    def clamp(self, x, low, high):
        """x, or the nearer bound where x is outside low .. high; NaN stays NaN."""
        # In this form each select is one instruction on x86.
        x = self.builder.select(self.builder.fcmp_ordered(">", x, high), high, x)
        return self.builder.select(self.builder.fcmp_ordered("<", x, low), low, x)

    def sum_of_lanes(self, vector):
        """One number: halves added until one lane is left."""
        while vector.type.count > 1:
            half = vector.type.count // 2
            low, high = (
                self.builder.shuffle_vector(vector, vector, _mask(lanes))
                for lanes in (range(half), range(half, 2 * half))
            )
            vector = self.builder.fadd(low, high)
        return self.builder.extract_element(vector, INT32(0))

    def _run(self, pointer):
        return self.builder.bitcast(pointer, self.type.as_pointer())


class SideBySide:
    """The operations of `Vectors` on lists of vectors, one for each row; a Python float stands for a constant.

    Rows that are computed in turns, operation by operation, keep a processor busy while each waits for its results.
    """

    def __init__(self, vectors):
        self._vectors = vectors

    def __getattr__(self, name):
        operation = getattr(self._vectors, name)

        def of_all_rows(*operands):
            num_rows = next(len(operand) for operand in operands if isinstance(operand, list))
            columns = [
                operand if isinstance(operand, list) else [self._vectors.constant(operand)] * num_rows
                for operand in operands
            ]
            return [operation(*row) for row in zip(*columns, strict=True)]

        return of_all_rows


def repeat(builder, count, carried, body):
    """A loop: carried = body(index, carried), `count` times (int64, perhaps 0); returns what is carried at the end.

    carried: a list of LLVM values. body: gets the index, int64 from 0, and such a list, and returns the next one.
    """
    before = builder.block
    inside, after = (builder.append_basic_block(name) for name in ("repeat", "repeated"))
    builder.cbranch(builder.icmp_signed(">", count, INT64(0)), inside, after)
    builder.position_at_end(inside)
    index = builder.phi(INT64)
    current = [builder.phi(value.type) for value in carried]
    following = body(index, current)
    next_index = builder.add(index, INT64(1))
    builder.cbranch(builder.icmp_signed("<", next_index, count), inside, after)
    end = builder.block
    for phi, first, then in zip([index, *current], [INT64(0), *carried], [next_index, *following], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(then, end)
    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in carried]
    for result, first, then in zip(results, carried, following, strict=True):
        result.add_incoming(first, before)
        result.add_incoming(then, end)
    return results


def _mask(lanes):
    return ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))

"""Vectors in compiled functions do what numpy does, lane by lane, and the functions made of them are accurate."""

import math

import numpy as np
import pytest

numba = pytest.importorskip("numba")
vectors = pytest.importorskip("attnlstm.engines.fused_cpu.vectors")

from llvmlite import ir  # noqa: E402
from numba.core import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

from attnlstm.engines.fused_cpu.pooling import exponential  # noqa: E402
from attnlstm.engines.fused_cpu.tile import sigmoid_fraction, tanh_fraction  # noqa: E402


def by_lane(operation, *arrays: np.ndarray) -> np.ndarray:
    """What operation(vectors, *loaded), which writes LLVM code, gives for float32 arrays, eight lanes at a time."""

    @intrinsic
    def emitted(typing, addresses, result):
        def emit(context, builder, signature, args):
            eight = vectors.Vectors(builder, 8)
            addresses = (builder.extract_value(args[0], n) for n in range(len(arrays)))
            loaded = [eight.load(vectors.pointer_to(builder, each, vectors.FLOAT)) for each in addresses]
            eight.store(operation(eight, *loaded), vectors.pointer_to(builder, args[1], vectors.FLOAT))
            return context.get_dummy_value()

        return types.void(addresses, result), emit

    @numba.njit
    def call(addresses, result):
        emitted(addresses, result)

    arrays = tuple(np.ascontiguousarray(array, np.float32) for array in arrays)
    result = np.empty_like(arrays[0])
    for n in range(0, len(result), 8):
        call(tuple(array[n:].ctypes.data for array in arrays), result[n:].ctypes.data)
    return result


A, B, C = (np.random.default_rng(29).normal(size=(3, 8)) * 3).astype(np.float32)


def test_arithmetic_is_by_lane_and_rounded_once() -> None:
    np.testing.assert_array_equal(by_lane(lambda v, a, b: v.add(a, b), A, B), A + B)
    np.testing.assert_array_equal(by_lane(lambda v, a, b: v.multiply(a, b), A, B), A * B)
    np.testing.assert_array_equal(by_lane(lambda v, a, b: v.divide(a, b), A, B), A / B)
    exact = A.astype(np.float64) * B + C  # the product of two float32 is exact in float64
    np.testing.assert_array_equal(by_lane(lambda v, a, b, c: v.fma(a, b, c), A, B, C), exact.astype(np.float32))


def test_clamp_keeps_what_is_no_number() -> None:
    x = [np.nan, np.inf, -np.inf, 0.25, 7, -7, 1, -1]
    found = by_lane(lambda v, x: v.clamp(x, v.constant(-1.0), v.constant(1.0)), x)
    np.testing.assert_array_equal(found, [np.nan, 1, -1, 0.25, 1, -1, 1, -1])


def test_lanes_are_added_by_halves() -> None:
    found = by_lane(lambda v, x: v.splat(v.sum_of_lanes(x)), A)
    fours = A[:4] + A[4:]
    twos = fours[:2] + fours[2:]
    np.testing.assert_array_equal(found, np.full(8, twos[0] + twos[1]))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_loop_carries_values(count: int) -> None:
    def add_indices(v, x):
        def body(index, carried):
            number = v.splat(v.builder.sitofp(index, vectors.FLOAT))
            return [v.add(carried[0], number), carried[0]]

        first, _ = vectors.repeat(v.builder, ir.Constant(vectors.INT64, count), [x, x], body)
        return first

    np.testing.assert_allclose(by_lane(add_indices, A), A + sum(range(count)), rtol=1e-6)


@pytest.mark.parametrize(
    ("fraction", "exact", "error"),
    [
        (tanh_fraction, np.tanh, 3.4e-7),
        (sigmoid_fraction, lambda x: (1 + np.tanh(x)) / 2, 2.2e-7),
    ],
    ids=["tanh", "sigmoid"],
)
def test_activations_are_within_their_errors(fraction, exact, error: float) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4000), np.logspace(-38, 0, 80)]).astype(np.float32)

    def quotient(v, x):
        top, bottom = fraction(vectors.SideBySide(v), [x])
        return v.divide(top[0], bottom[0])

    found = by_lane(quotient, x)
    np.testing.assert_allclose(found, exact(x.astype(np.float64)), rtol=0, atol=error)
    assert set(found[x > 9]) == {1}


def test_the_exponential_is_exact_to_the_last_digits() -> None:
    call = numba.njit(lambda x: exponential(x))
    for x in np.concatenate([-np.logspace(-20, 2.84, 300), [0.0]]):
        assert call(x) == pytest.approx(math.exp(x), rel=1e-15, abs=0)
    assert call(0.0) == 1
    assert call(-np.inf) < 1e-300
    assert np.isnan(call(np.nan))

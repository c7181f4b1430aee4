"""The functions that are made of vectors in compiled code are accurate."""

import math

import numpy as np
import pytest

numba = pytest.importorskip("numba")
vectors = pytest.importorskip("attnlstm.engines.fused_cpu.vectors")

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

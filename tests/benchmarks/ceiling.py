"""The ceiling: operations counted for a token, against what a core's vector units were measured to do.

Counts multiply-adds of the network with its embedding folded into the first layer's input, and lane operations of its
activations as the fused kernel writes them. Measures with the kernel's own vectors.
"""

import time

import numpy as np

from attnlstm.config import ModelConfig

CELL_OPERATIONS = 79
"""Lane operations of an LSTM cell after its gate sums, for a unit, as first counted: 5 fractions of 12, and 19 to join
them, of which 3 are divisions, counted as one operation each although they cost more. The kernel needs 11 to join them
now; the count stays, so that shares can be compared."""


def operations_per_token(config: ModelConfig) -> int:
    """Multiply-adds of both directions, the score and the sum of states by weight; lane operations of activations."""
    H = config.hidden_size
    products = sum(2 * 4 * H * (H + (2 * H if layer else 0)) for layer in range(config.num_layers))
    return products + 2 * 2 * H + CELL_OPERATIONS * 2 * H * config.num_layers


class PeakLoop:
    """Multiply-adds that depend on nothing but themselves, in as many registers as hide their latency."""

    STEPS = 5_000_000
    VECTORS = 10

    def __init__(self) -> None:
        from attnlstm.engines.fused_cpu.kernel import LANES

        self._lanes = LANES
        self._loop = _compile_loop(LANES, self.VECTORS)
        self._array = np.ones(LANES + self.VECTORS, np.float32)
        self.measure()

    def measure(self) -> float:
        """Multiply-adds a second, counted by lanes."""
        began = time.process_time()
        self._loop(self._array, self.STEPS)  # type: ignore[operator]
        return self._lanes * self.VECTORS * self.STEPS / (time.process_time() - began)


def _compile_loop(lanes: int, num_vectors: int) -> object:
    from numba import njit
    from numba.core import types
    from numba.extending import intrinsic

    from attnlstm.engines.fused_cpu.vectors import FLOAT, Vectors, at, pointer_to, repeat

    @intrinsic
    def multiply_add(typing, address, steps):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            vectors, array = Vectors(builder, lanes), pointer_to(builder, args[0], FLOAT)
            x, y = (vectors.constant(factor) for factor in (0.5, 0.25))
            firsts = [vectors.load(at(builder, array, n)) for n in range(num_vectors)]
            sums = repeat(builder, args[1], firsts, lambda _, carried: [vectors.fma(each, x, y) for each in carried])
            for n, total in enumerate(sums):
                vectors.store(total, at(builder, array, n))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), emit

    @njit(nogil=True)
    def loop(array: np.ndarray, steps: int) -> None:
        multiply_add(array.ctypes.data, steps)

    return loop

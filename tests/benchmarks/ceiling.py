"""The ceiling: operations counted for a token, against what a core's vector units were measured to do.

Counts multiply-adds of the network with its embedding folded into the first layer's input, and lane operations of its
activations as the fused kernel writes them. Measures with the kernel's own vectors.
"""

import time

import numpy as np

from attnlstm.config import ModelConfig
from attnlstm.engines import open_engine
from end_to_end import Plan
from findings import Findings
from script import load_network
from turns import describe, spread
from workloads import Workload, checkpoint, lognormal, ragged

CELL_OPERATIONS = 79
"""Lane operations of an LSTM cell after its gate sums, for a unit, as first counted: 5 fractions of 12, and 19 to join
them, of which 3 are divisions, counted as one operation each although they cost more. The kernel needs 11 to join them
now; the count stays, so that shares can be compared."""


def multiply_adds(config: ModelConfig) -> int:
    """Of a token: recurrent and input products of both directions, the score, and the sum of states by weight."""
    H = config.hidden_size
    products = sum(2 * 4 * H * (H + (2 * H if layer else 0)) for layer in range(config.num_layers))
    return products + 2 * 2 * H


def activations(config: ModelConfig) -> int:
    """Lane operations of a token's activations."""
    return CELL_OPERATIONS * 2 * config.hidden_size * config.num_layers


def find_ceiling(plan: Plan, num_rows: int = 2000) -> Findings:
    """One core: its peak, then the fused engine on lognormal rows, in turns."""
    place = checkpoint(Workload("lognormal", 0), plan.folder)
    network = load_network(place)
    engine = open_engine(network, "cpu", 1)
    data = ragged(lognormal(num_rows))
    peak_loop = _compile_peak_loop()
    peak_loop.measure()
    engine.score(*data)
    peaks, speeds = [], []
    for _ in range(plan.rounds):
        peaks.append(peak_loop.measure())
        began = time.process_time()
        engine.score(*data)
        speeds.append(len(data[0]) / (time.process_time() - began))
    products, other = multiply_adds(network.config), activations(network.config)
    shares = {
        "multiply-adds": spread(100 * speed * products / peak for speed, peak in zip(speeds, peaks, strict=True)),
        "multiply-adds and activations": spread(
            100 * speed * (products + other) / peak for speed, peak in zip(speeds, peaks, strict=True)
        ),
    }
    figures = {
        "peak_operations_per_second": spread(peaks),
        "tokens_per_second": spread(speeds),
        "operations_per_token": {"multiply-adds": products, "activations": other},
        "percent_of_peak": shares,
    }
    rows = [
        ["measured peak, 1e9 multiply-adds a second", describe(spread(peak / 1e9 for peak in peaks))],
        [f"{engine.name}, Mtokens/s", describe(spread(speed / 1e6 for speed in speeds))],
        [f"share of the peak, {products:,} multiply-adds a token, %", describe(shares["multiply-adds"])],
        [
            f"share of the peak, with {other:,} operations of activations, %",
            describe(shares["multiply-adds and activations"]),
        ],
    ]
    return Findings("The ceiling, one core, hidden 16, lognormal", ["", ""], rows, ["By CPU time"], figures)


class _PeakLoop:
    """Multiply-adds that depend on nothing but themselves, in as many registers as hide their latency."""

    STEPS = 5_000_000
    VECTORS = 10

    def __init__(self, function: object, lanes: int) -> None:
        self._function, self._lanes = function, lanes
        self._array = np.ones(lanes + self.VECTORS, np.float32)

    def measure(self) -> float:
        """Multiply-adds a second, counted by lanes."""
        began = time.process_time()
        self._function(self._array, self.STEPS)  # type: ignore[operator]
        return self._lanes * self.VECTORS * self.STEPS / (time.process_time() - began)


def _compile_peak_loop() -> _PeakLoop:
    from numba import njit
    from numba.core import types
    from numba.extending import intrinsic

    from attnlstm.engines.fused_cpu.kernel import LANES
    from attnlstm.engines.fused_cpu.vectors import FLOAT, Vectors, at, pointer_to, repeat

    @intrinsic
    def multiply_add(typing, address, steps):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            vectors, array = Vectors(builder, LANES), pointer_to(builder, args[0], FLOAT)
            x, y = (vectors.constant(factor) for factor in (0.5, 0.25))
            firsts = [vectors.load(at(builder, array, n)) for n in range(_PeakLoop.VECTORS)]
            sums = repeat(builder, args[1], firsts, lambda _, carried: [vectors.fma(each, x, y) for each in carried])
            for n, total in enumerate(sums):
                vectors.store(total, at(builder, array, n))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), emit

    @njit(nogil=True)
    def loop(array: np.ndarray, steps: int) -> None:
        multiply_add(array.ctypes.data, steps)

    return _PeakLoop(loop, LANES)

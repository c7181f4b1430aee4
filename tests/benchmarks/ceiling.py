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
"""Lane operations of an LSTM cell after its gate sums, for a unit: 5 fractions of 12, and 19 to join them, of which 3
are divisions, counted as one operation each although they cost more."""


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
    VECTORS = 5

    def __init__(self, function: object, lanes: int) -> None:
        self._function, self._lanes = function, lanes
        self._array = np.ones(lanes, np.float32)

    def measure(self) -> float:
        """Multiply-adds a second, counted by lanes."""
        began = time.process_time()
        self._function(self._array, self.STEPS)  # type: ignore[operator]
        return self._lanes * self.VECTORS * self.STEPS / (time.process_time() - began)


def _compile_peak_loop() -> _PeakLoop:
    from numba import njit

    from attnlstm.engines.fused_kernel import lanes_in_registers
    from attnlstm.engines.vectors import fma, load, store_runs

    W = lanes_in_registers()

    @njit(nogil=True)
    def loop(array: np.ndarray, steps: int) -> None:
        a = b = c = d = e = load(array, 0, 1, W)
        b = b * np.float32(2)
        c = c * np.float32(3)
        d = d * np.float32(4)
        e = e * np.float32(5)
        x = load(array, 0, 1, W) * np.float32(0.5)
        y = load(array, 0, 1, W) * np.float32(0.25)
        for _ in range(steps):
            a = fma(a, x, y)
            b = fma(b, x, y)
            c = fma(c, x, y)
            d = fma(d, x, y)
            e = fma(e, x, y)
        store_runs(array, np.zeros(1, np.int64), 0, 1, W, a + b + c + d + e)

    return _PeakLoop(loop, W)

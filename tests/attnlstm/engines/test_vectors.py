"""Vectors in compiled functions do what numpy does, lane by lane."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")
vectors = pytest.importorskip("attnlstm.engines.vectors")

FLOATS = np.arange(40, dtype=np.float32) ** 1.5
STARTS = np.array([8, 0, 21, 13])


def test_slots_and_lanes_find_their_floats() -> None:
    @numba.njit
    def copy(array, starts, shared, runs, spread):
        slots = 8 * np.arange(4)
        vectors.store_runs(shared, slots, 0, 4, 8, vectors.load(array, 5, 4, 8))
        vectors.store_runs(runs, slots, 0, 4, 8, vectors.load_runs(array, starts, 3, 4, 8))
        vectors.store_runs(spread, slots, 0, 4, 8, vectors.load_spread(array, starts, 3, 4, 8))

    shared, runs, spread = np.empty((3, 32), np.float32)
    copy(FLOATS, STARTS, shared, runs, spread)
    np.testing.assert_array_equal(shared, np.tile(FLOATS[5:13], 4))
    np.testing.assert_array_equal(runs, np.concatenate([FLOATS[start + 3 : start + 11] for start in STARTS]))
    np.testing.assert_array_equal(spread, np.repeat(FLOATS[STARTS + 3], 8))


def test_stored_runs_leave_what_is_between_them() -> None:
    @numba.njit
    def write(array, starts, out):
        vectors.store_runs(out, starts, 1, 4, 2, vectors.load(array, 0, 1, 8))

    found = np.full(40, -1, np.float32)
    write(FLOATS, STARTS, found)
    expected = np.full(40, -1, np.float32)
    expected[STARTS + 1], expected[STARTS + 2] = FLOATS[0:8:2], FLOATS[1:8:2]
    np.testing.assert_array_equal(found, expected)


def test_arithmetic_is_by_lane_and_numbers_stand_for_all_lanes() -> None:
    @numba.njit
    def compute(array, found):
        to = np.zeros(1, np.int64)
        a, b = vectors.load(array, 1, 1, 16), vectors.load(array, 17, 1, 16)
        vectors.store_runs(found, to, 0, 1, 16, (a + b) * 0.5 / b)
        vectors.store_runs(found, to, 16, 1, 16, vectors.fma(a, 2.0, b))
        vectors.store_runs(found, to, 32, 1, 16, vectors.clamp(a, 4.0, 9.0))
        return vectors.add_up(vectors.to_double(a)), vectors.add_up(a)

    found = np.empty(48, np.float32)
    exact, total = compute(FLOATS, found)
    a, b = FLOATS[1:17], FLOATS[17:33]
    half = np.float32(0.5)
    np.testing.assert_array_equal(found[:16], (a + b) * half / b)
    np.testing.assert_allclose(found[16:32], 2 * a.astype(float) + b, rtol=6e-8)
    np.testing.assert_array_equal(found[32:], a.clip(4, 9))
    assert exact == pytest.approx(a.astype(float).sum(), rel=1e-15)
    assert total == pytest.approx(a.astype(float).sum(), rel=1e-6)


def test_clamp_keeps_what_is_no_number() -> None:
    @numba.njit
    def compute(array, found):
        vectors.store_runs(
            found, np.zeros(1, np.int64), 0, 1, 4, vectors.clamp(vectors.load(array, 0, 1, 4), -1.0, 1.0)
        )

    found = np.empty(4, np.float32)
    compute(np.array([np.nan, np.inf, -np.inf, 0.25], np.float32), found)
    np.testing.assert_array_equal(found, [np.nan, 1, -1, 0.25])

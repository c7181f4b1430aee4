"""The largest weights of each row, against sorting each row by itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.output.ragged import top_of_rows

# Few distinct values, so that ties are common.
ROWS = st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=6), max_size=6)


@given(ROWS, st.integers(1, 7))
def test_top_of_rows_is_each_row_sorted_and_cut(rows: list[list[float]], count: int) -> None:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    weights = np.array([weight for row in rows for weight in row], np.float32)
    positions, kept, kept_offsets = top_of_rows(weights, offsets, count)
    expected = [sorted(enumerate(row), key=lambda pair: (-pair[1], pair[0]))[:count] for row in rows]
    assert kept_offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert positions.tolist() == [position for row in expected for position, _ in row]
    assert kept.tolist() == [weight for row in expected for _, weight in row]
    assert positions.dtype == np.int32
    assert kept.dtype == np.float32


def test_a_very_long_row_among_many_short_ones() -> None:
    offsets = np.concatenate(([0], np.cumsum([1] * 5000 + [1 << 21] + [2] * 5000))).astype(np.int64)
    weights = np.random.default_rng(0).random(offsets[-1], np.float32)
    positions, kept, kept_offsets = top_of_rows(weights, offsets, 2)
    assert kept_offsets[-1] == 5000 + 2 + 10_000
    assert positions[5000] == weights[5000 : 5000 + (1 << 21)].argmax()
    pairs = weights[offsets[5001] :].reshape(-1, 2)
    assert positions[5002:].reshape(-1, 2)[:, 0].tolist() == pairs.argmax(1).tolist()
    assert kept[5002:].reshape(-1, 2).tolist() == (-np.sort(-pairs, axis=1)).tolist()


def test_weights_that_are_not_numbers_stay_in_their_rows() -> None:
    weights = np.array([0.5, np.nan, 0.25, 0.75], np.float32)
    positions, _, offsets = top_of_rows(weights, np.array([0, 2, 4]), 1)
    assert positions.tolist() == [1, 1]
    assert offsets.tolist() == [0, 1, 2]

"""Ragged to padded and back, and which rows share a batch."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlstm.batching import check_ragged, pad, plan_batches, plan_pieces

OFFSETS = np.array([0, 2, 7, 8, 11])
VALUES = np.array([10, 11, 20, 21, 22, 23, 24, 30, 40, 41, 42], np.uint8)


def test_rows_are_left_aligned_and_the_rest_is_padding() -> None:
    token_ids, lengths = pad(VALUES, OFFSETS, np.array([3, 0, 2]), 256)
    assert token_ids.tolist() == [[40, 41, 42], [10, 11, 256], [30, 256, 256]]
    assert lengths.tolist() == [3, 2, 1]


def plan(lengths: list[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    batches = plan_batches(np.array(lengths, np.int64), max_tokens=max_tokens, max_rows=max_rows)
    return [rows.tolist() for rows in batches]


def test_like_lengths_share_a_batch_longest_first() -> None:
    assert plan([2, 9, 3, 2, 50, 3], max_tokens=12, max_rows=3) == [[4], [1], [2, 5, 0], [3]]


def test_equal_lengths_keep_their_order_and_unsigned_ones_are_sorted_too() -> None:
    assert plan([5] * 7, max_tokens=15, max_rows=99) == [[0, 1, 2], [3, 4, 5], [6]]
    (rows,) = plan_batches(np.array([1, 3, 2], np.uint8), max_tokens=99, max_rows=99)
    assert rows.tolist() == [1, 2, 0]


def test_long_rows_of_like_length_make_larger_batches() -> None:
    lengths = np.array([100, 99, 99, 98, 97, 100, 40], np.int64)
    batches = plan_batches(lengths, max_tokens=200, max_rows=9, min_rows=5)
    assert [rows.tolist() for rows in batches] == [[0, 5, 1, 2, 3], [4, 6]]
    (rows, *_) = plan_batches(np.full(9, 100), max_tokens=150, max_rows=9, min_rows=8)
    assert len(rows) == 6  # four times the tokens are the most
    (rows, *_) = plan_batches(np.array([1000, 990]), max_tokens=100, max_rows=9, min_rows=5)
    assert len(rows) == 1


def test_pieces_are_rows_in_order_within_the_limit() -> None:
    assert [(piece.start, piece.stop) for piece in plan_pieces(OFFSETS, 5)] == [(0, 1), (1, 2), (2, 4)]
    assert list(plan_pieces(OFFSETS, 100)) == [slice(0, 4)]
    assert list(plan_pieces(OFFSETS[:1], 5)) == []
    assert list(plan_pieces(OFFSETS + 3, 1)) == [slice(row, row + 1) for row in range(4)]


@given(
    lengths=st.lists(st.integers(1, 60), max_size=200),
    max_tokens=st.integers(1, 300),
    max_rows=st.integers(1, 40),
)
def test_every_row_is_in_one_batch_within_the_limits(lengths: list[int], max_tokens: int, max_rows: int) -> None:
    batches = plan(lengths, max_tokens, max_rows)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) <= max_rows
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= max_tokens


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=50), seed=st.integers(0, 99))
def test_batches_hold_every_value_once_in_its_place(lengths: list[int], seed: int) -> None:
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    values = np.random.default_rng(seed).integers(0, 1000, offsets[-1])
    back = {}
    for rows in plan_batches(np.diff(offsets), max_tokens=64, max_rows=7):
        token_ids, found = pad(values, offsets, rows, 1000)
        assert found.tolist() == [lengths[row] for row in rows]
        back |= {row: ids[ids != 1000].tolist() for row, ids in zip(rows.tolist(), token_ids, strict=True)}
    assert [back[row] for row in range(len(lengths))] == [part.tolist() for part in np.split(values, offsets[1:-1])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, o: (v, o[:-1]), "offsets must run from 0 to the number of values, 11"),
        (lambda v, o: (v, o[:0]), "offsets must run from 0 to the number of values, 11"),
        (lambda v, o: (v, np.insert(o, 2, 2)), "every row needs at least one token; row 1 has none"),
        (lambda v, o: (v.astype(np.float32), o), r"values must be integers in one dimension, not float32 \(11,\)"),
        (lambda v, o: (v, o), r"token ids must be in 0\.\.41; found 10\.\.42"),
        (lambda v, o: (v.astype(np.int64) - 11, o), r"token ids must be in 0\.\.41; found -1\.\.31"),
    ],
)
def test_broken_rows_are_refused(
    change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_ragged(*change(VALUES, OFFSETS), 42)


def test_sound_rows_pass() -> None:
    check_ragged(VALUES, OFFSETS, 43)
    check_ragged(VALUES, OFFSETS, 256)
    check_ragged(VALUES[:0], OFFSETS[:1], 43)

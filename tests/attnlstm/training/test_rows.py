"""Batches hold every row once, crops are pieces of rows, hidden tokens leave something of each."""

import numpy as np
import pytest

from attnlstm.training.rows import LabelledSequences, balancing_weights, crop, hide_tokens, shuffled_batches


def test_every_row_is_in_one_batch_of_like_lengths() -> None:
    lengths = np.random.default_rng(1).integers(3, 30, 307)
    rng = np.random.default_rng(7)
    batches = shuffled_batches(lengths, 37, rng)
    assert sorted(np.concatenate(batches).tolist()) == list(range(307))
    assert {len(batch) for batch in batches} == {37, 307 % 37}
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded / lengths.sum() < 1.15
    assert not np.array_equal(batches[0], shuffled_batches(lengths, 37, rng)[0])


def test_a_crop_is_a_piece_of_its_row() -> None:
    labelled = LabelledSequences(np.arange(30), np.array([0, 3, 30]), np.array([1, 0]))
    rng = np.random.default_rng(0)
    pieces = [crop(labelled, np.array([1, 0]), 5, rng) for _ in range(40)]
    for piece in pieces:
        assert piece.lengths.tolist() == [5, 3]
        assert piece.labels.tolist() == [0, 1]
        assert np.diff(piece.values[:5]).tolist() == [1] * 4
        assert piece.values[5:].tolist() == [0, 1, 2]
    starts = {int(piece.values[0]) for piece in pieces}
    assert min(starts) >= 3
    assert max(starts) <= 25
    assert len(starts) > 10


def test_hidden_tokens_are_about_their_share_and_never_a_whole_row() -> None:
    lengths = np.array([1, 2, 3, 5000])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    rows = LabelledSequences(np.full(5006, 255, np.uint8), offsets, np.zeros(4, np.int64))
    rng = np.random.default_rng(0)
    hidden_shares = []
    for _ in range(30):
        shown = hide_tokens(rows, 0.9, 256, rng)
        assert set(shown.values.tolist()) == {255, 256}
        hidden = np.add.reduceat(shown.values == 256, offsets[:-1])
        assert (hidden < lengths).all()
        hidden_shares.append(hidden[3] / 5000)
    assert np.mean(hidden_shares) == pytest.approx(0.9, abs=0.01)
    assert hide_tokens(rows, 0.0, 256, rng) is rows


def test_balancing_weights_give_every_class_the_same_say() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [3])
    weights = balancing_weights(labels, 4)
    assert np.bincount(labels, weights[labels], 4) == pytest.approx([10 / 3, 10 / 3, 0, 10 / 3])
    assert weights[labels].mean() == pytest.approx(1)

"""The side a row is on never changes: not with the code, the machine, or the rows beside it."""

from collections import Counter

import numpy as np
import pytest

from storage.labelled.split import SPLIT_NAMES, TEST, TRAIN, VALIDATION, assign_splits

PINNED = {
    b"": "train",
    b"a": "validation",
    b"b": "train",
    b"3": "validation",
    b"4": "train",
    b"attention": "train",
    b"group-0": "test",
    b"group-1": "train",
    b"\x00\xff": "train",
}


def test_sides_of_known_keys_are_as_they_always_were() -> None:
    sides = assign_splits(PINNED)
    assert {key: SPLIT_NAMES[side] for key, side in zip(PINNED, sides.tolist(), strict=True)} == PINNED


def test_side_follows_from_the_key_alone() -> None:
    keys = [b"%d" % number for number in range(1000)]
    whole = assign_splits(keys)
    assert whole.dtype == np.int8
    assert assign_splits(keys[::-1]).tolist() == whole[::-1].tolist()
    assert assign_splits(keys[500:510] * 2).tolist() == whole[500:510].tolist() * 2


def test_shares_are_about_what_was_asked_for() -> None:
    keys = [b"%d" % number for number in range(20_000)]
    counts = Counter(assign_splits(keys, validation_share=0.2, test_share=0.05).tolist())
    assert abs(counts[TEST] / 20_000 - 0.05) < 0.01
    assert abs(counts[VALIDATION] / 20_000 - 0.2) < 0.01


def test_larger_test_share_keeps_the_test_rows_it_had() -> None:
    keys = [b"%d" % number for number in range(1000)]
    small, large = assign_splits(keys, test_share=0.1), assign_splits(keys, test_share=0.2)
    assert set(np.flatnonzero(small == TEST)) < set(np.flatnonzero(large == TEST))


def test_no_shares_leave_all_to_train_and_no_keys_give_no_sides() -> None:
    assert set(assign_splits([b"a", b"b"], validation_share=0, test_share=0).tolist()) == {TRAIN}
    assert assign_splits([]).tolist() == []


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.1), (0.1, -0.1), (1.0, 0.0)])
def test_shares_that_leave_nothing_to_train_on_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match=f"shares must leave a train side, not {validation} and {test}"):
        assign_splits([b"a"], validation_share=validation, test_share=test)

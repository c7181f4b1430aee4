"""The side a row is on never changes: not with the code, the machine, or the rows beside it."""

from collections import Counter

import numpy as np

from storage.labelled.split import SPLIT_NAMES, TEST, VALIDATION, hash_keys, splits_of_hashes

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
    sides = splits_of_hashes(hash_keys(PINNED))
    assert {key: SPLIT_NAMES[side] for key, side in zip(PINNED, sides.tolist(), strict=True)} == PINNED


def test_side_follows_from_the_key_alone() -> None:
    keys = [b"%d" % number for number in range(1000)]
    whole = splits_of_hashes(hash_keys(keys))
    assert whole.dtype == np.int8
    assert splits_of_hashes(hash_keys(keys[::-1])).tolist() == whole[::-1].tolist()
    assert splits_of_hashes(hash_keys(keys[500:510] * 2)).tolist() == whole[500:510].tolist() * 2


def test_a_tenth_each_is_validated_and_tested_on_and_no_keys_give_no_sides() -> None:
    counts = Counter(splits_of_hashes(hash_keys(b"%d" % number for number in range(20_000))).tolist())
    assert abs(counts[TEST] / 20_000 - 0.1) < 0.01
    assert abs(counts[VALIDATION] / 20_000 - 0.1) < 0.01
    assert splits_of_hashes(hash_keys([])).tolist() == []

"""Which side of a split a row is on: train, validation or test, for good.

The side is a function of the row's key alone, so it stays the same in every later retraining, whatever rows
come beside it.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLIT_NAMES = ("train", "validation", "test")

VALIDATION_SHARE = TEST_SHARE = 0.1
"""Of the distinct keys. With other shares rows would change sides, and no two figures could be compared."""


def hash_keys(keys: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """uint64 (N,): a hash of each key, the same on every machine and in every version."""
    hashes = (hashlib.blake2b(key, digest_size=8, person=b"attnlstm-split").digest() for key in keys)
    return np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64)


def splits_of_hashes(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int8]:
    """int8 (N,): TRAIN, VALIDATION or TEST for each key that `hash_keys` has hashed; equal keys are on one side."""
    uniform = hashes / 2.0**64
    sides = np.full(len(uniform), TRAIN, np.int8)
    sides[uniform < TEST_SHARE + VALIDATION_SHARE] = VALIDATION
    sides[uniform < TEST_SHARE] = TEST
    return sides

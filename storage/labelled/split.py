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


def hash_keys(keys: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """uint64 (N,): a hash of each key, the same on every machine and in every version."""
    hashes = (hashlib.blake2b(key, digest_size=8, person=b"attnlstm-split").digest() for key in keys)
    return np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64)


def assign_splits(
    keys: Iterable[bytes], *, validation_share: float = 0.1, test_share: float = 0.1
) -> npt.NDArray[np.int8]:
    """int8 (N,): TRAIN, VALIDATION or TEST for each key, in these shares of the distinct keys.

    Equal keys are on the same side. Raises ValueError unless the shares leave something to train on.
    """
    return splits_of_hashes(hash_keys(keys), validation_share=validation_share, test_share=test_share)


def splits_of_hashes(
    hashes: npt.NDArray[np.uint64], *, validation_share: float = 0.1, test_share: float = 0.1
) -> npt.NDArray[np.int8]:
    """The same for keys that `hash_keys` has hashed."""
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise ValueError(f"shares must leave a train side, not {validation_share} and {test_share}")
    uniform = hashes / 2.0**64
    sides = np.full(len(uniform), TRAIN, np.int8)
    sides[uniform < test_share + validation_share] = VALIDATION
    sides[uniform < test_share] = TEST
    return sides

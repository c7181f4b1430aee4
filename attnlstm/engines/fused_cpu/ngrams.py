"""The n-grams that end at each token of a row, and the sum of their embeddings, compiled by Numba.

Owns how the hash rolls from token to token; what it is, `attnlstm.ngrams` says. It imports Numba: import it late.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

import numpy as np
from numba import njit

from attnlstm.ngrams import FACTOR, PRIME


@njit(forceinline=True)
def begin_hashes(hashes, num_embeddings):
    """hashes: int64 (longest,), of the n-grams that end before a row's first token, by n - 1; -1 where there is none."""
    hashes[:] = -1
    hashes[0] = num_embeddings + 1


@njit(forceinline=True)
def roll_hashes(hashes, token, num_embeddings):
    """Go on to those that end at the next token, which is hidden if it is the last of its vocabulary."""
    is_hidden = token == num_embeddings - 1
    for n in range(len(hashes) - 1, 0, -1):
        before = hashes[n - 1]
        hashes[n] = -1 if is_hidden or before < 0 else (before * FACTOR + token + 1) % PRIME
    hashes[0] = -1 if is_hidden else np.int64(token) + 1


@njit(forceinline=True)
def add_ngrams(hashes, ngrams, total):
    """total: float32 (at least E,), to which the embeddings of these n-grams are added. ngrams: (longest - 1, buckets,
    E)."""
    num_buckets = np.int64(ngrams.shape[1])
    for n in range(1, len(hashes)):
        if hashes[n] >= 0:
            of_ngram = ngrams[n - 1, hashes[n] % num_buckets]
            for e in range(len(of_ngram)):
                total[e] += of_ngram[e]

"""The n-grams that end at each token of a row, and the sum of their embeddings, compiled by Numba.

Owns how the hash rolls from token to token; what it is, `attnlstm.ngrams` says. It imports Numba: import it late.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from attnlstm.engines.fused_cpu.vectors import FLOAT, INT64, Vectors, at, pointer_to, repeat
from attnlstm.ngrams import FACTOR, PRIME

LANES = 16
"""Of a vector in here, on any processor."""


@intrinsic(prefer_literal=True)
def add_run(typing, to, numbers, num_vectors, lanes):
    """to += numbers, both addresses of num_vectors * lanes float32."""

    def emit(context, builder, signature, args):
        num_lanes = lanes.literal_value
        vectors = Vectors(builder, num_lanes)
        to, numbers = (pointer_to(builder, address, FLOAT) for address in args[:2])

        def one_vector(n, carried):
            first = builder.mul(n, INT64(num_lanes))
            place = at(builder, to, first)
            vectors.store(vectors.add(vectors.load(place), vectors.load(at(builder, numbers, first))), place)
            return []

        repeat(builder, args[2], [], one_vector)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, lanes), emit


@njit(forceinline=True)
def _modulo_prime(number):
    """Of what is below 2^62, without a division: 2^31 is 1 modulo this prime."""
    number = (number & PRIME) + (number >> 31)
    number = (number & PRIME) + (number >> 31)
    return number - PRIME if number >= PRIME else number


@njit(forceinline=True)
def bucket_of(hashed, num_buckets):
    """num_buckets: a power of two."""
    return hashed & (np.int64(num_buckets) - 1)


@njit(forceinline=True)
def begin_hashes(hashes, num_embeddings):
    """hashes: int64 (longest,), of the n-grams that end before a row's first token, by n - 1; -1 for none."""
    hashes[:] = -1
    hashes[0] = num_embeddings + 1


@njit(forceinline=True)
def roll_hashes(hashes, token, num_embeddings):
    """Go on to those that end at the next token, which is hidden if it is the last of its vocabulary."""
    is_hidden = token == num_embeddings - 1
    for n in range(len(hashes) - 1, 0, -1):
        before = hashes[n - 1]
        hashes[n] = -1 if is_hidden or before < 0 else _modulo_prime(before * FACTOR + token + 1)
    hashes[0] = -1 if is_hidden else np.int64(token) + 1


@njit(forceinline=True)
def add_ngrams(hashes, tables, total):
    """total: float32 (at least E,), to which the embeddings of these n-grams are added. tables: (longest - 1, buckets,
    E)."""
    num_features = np.int64(tables.shape[2])
    for n in range(1, len(hashes)):
        if hashes[n] >= 0:
            of_ngram = tables[n - 1, bucket_of(hashes[n], tables.shape[1])]
            if num_features % LANES == 0:
                add_run(total.ctypes.data, of_ngram.ctypes.data, num_features // LANES, LANES)
            else:
                for e in range(num_features):
                    total[e] += of_ngram[e]

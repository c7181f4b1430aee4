"""The n-grams that end at each token of a row, and the sum of their embeddings, compiled by Numba.

Owns how the hash rolls from token to token; what it is, `attnlstm.ngrams` says. It imports Numba: import it late.
"""

# mypy: ignore-errors
# Numba gives these functions their types when it compiles them; mypy can't follow.

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from attnlstm.engines.fused_cpu.vectors import FLOAT, INT32, INT64, Vectors, at, pointer_to, repeat
from attnlstm.ngrams import FACTOR, PRIME

LANES = 16
"""Of a vector in here, on any processor."""

CACHE_LINE = 16
"""Numbers of a line, which is 64 bytes."""

TOKENS_AHEAD = 32
"""Whose embeddings are on their way at once."""


def _fetcher(for_writing):
    def fetch(typing, address, num_numbers):
        """Ask for this many float32 from an address on, which need not be anybody's, to be in the cache soon."""

        def emit(context, builder, signature, args):
            pointer = pointer_to(builder, args[0], FLOAT)
            bits, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), [bits, flag, flag, flag]), "llvm.prefetch.p0"
            )

            def one_line(n, carried):
                line = at(builder, pointer, builder.mul(n, INT64(CACHE_LINE)))
                # Into all caches, and it is data.
                builder.call(function, [builder.bitcast(line, bits), INT32(for_writing), INT32(3), INT32(1)])
                return []

            repeat(builder, builder.sdiv(args[1], INT64(CACHE_LINE)), [], one_line)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), emit

    return intrinsic(fetch)


fetch_to_write, fetch_to_read = _fetcher(1), _fetcher(0)


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


@njit
def embed_ngrams(tokens, num_embeddings, tables, sums):
    """sums[t, :E] = the sum of the embeddings of the n-grams that end at token t of a row.

    tables: float32 (longest - 1, buckets, E). sums: float32 (T, at least E), of any distance from row to row.
    """
    num_tables, num_features = len(tables), np.int64(tables.shape[2])
    hashes = np.empty(num_tables + 1, np.int64)
    buckets = np.empty((TOKENS_AHEAD, num_tables), np.int64)
    begin_hashes(hashes, num_embeddings)
    begin = 0
    while begin < len(tokens):
        # First ask for all embeddings of a few tokens, then add them up: the memory answers many at once.
        count = min(TOKENS_AHEAD, len(tokens) - begin)
        for t in range(count):
            roll_hashes(hashes, tokens[begin + t], num_embeddings)
            for n in range(num_tables):
                buckets[t, n] = bucket_of(hashes[n + 1], tables.shape[1]) if hashes[n + 1] >= 0 else -1
                if buckets[t, n] >= 0:
                    fetch_to_read(tables[n, buckets[t, n]].ctypes.data, num_features)
        for t in range(count):
            total = sums[begin + t]
            total[:num_features] = 0
            for n in range(num_tables):
                if buckets[t, n] >= 0:
                    of_ngram = tables[n, buckets[t, n]]
                    if num_features % LANES == 0:
                        add_run(total.ctypes.data, of_ngram.ctypes.data, num_features // LANES, LANES)
                    else:
                        for e in range(num_features):
                            total[e] += of_ngram[e]
        begin += count

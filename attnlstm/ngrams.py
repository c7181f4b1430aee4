"""Hashed n-grams: which row of a table stands for the n tokens that end at a position.

Owns the hash, which `config.json` names, and the rule where there is no n-gram. A row has a marker before its first
token, so that what it begins with differs from the same tokens further on; an n-gram that would reach beyond the
marker, or holds a hidden token, is none. Knows nothing of tables or networks.
"""

import torch
from torch import Tensor

PRIME, FACTOR = 2**31 - 1, 1_540_483_477
"""Of the hash "polynomial-31": of tokens t_1 .. t_n, with the marker counted as the token `num_embeddings`, it is the
sum of (t_k + 1) * FACTOR ** (n - k), modulo PRIME and then modulo the number of buckets. 64 bits hold every step."""


def ngram_buckets(token_ids: Tensor, longest: int, num_buckets: int, num_embeddings: int) -> Tensor:
    """int64 (longest - 1, B, T): the buckets of the n-grams that end at each token, n = 2 .. longest, -1 for none.

    token_ids: integer (B, T), rows left-aligned. num_embeddings: as in `ModelConfig`; its last id hides a token.
    """
    tokens = token_ids.long()
    is_shown = tokens != num_embeddings - 1
    hashed, is_there = tokens + 1, is_shown
    at_start, is_marker = num_embeddings + 1, True  # of the n-gram that ends before the first token
    found = []
    for _ in range(2, longest + 1):
        before = torch.nn.functional.pad(hashed[:, :-1], (1, 0), value=at_start)
        was_there = torch.nn.functional.pad(is_there[:, :-1], (1, 0), value=is_marker)
        hashed, is_there = (before * FACTOR + tokens + 1) % PRIME, was_there & is_shown
        at_start, is_marker = 0, False
        found.append(torch.where(is_there, hashed % num_buckets, -1))
    return torch.stack(found)

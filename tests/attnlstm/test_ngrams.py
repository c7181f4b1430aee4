"""Which n-grams there are, and the hash that checkpoints rely on."""

import torch

from attnlstm.ngrams import ngram_buckets


def hashed(tokens: list[int]) -> int:
    total = 0
    for token in tokens:
        total = (total * 1_540_483_477 + token + 1) % (2**31 - 1)
    return total % 1024


def test_each_length_is_hashed_from_the_marker_on_and_hidden_tokens_have_no_ngrams() -> None:
    marker, hidden = 257, 256
    rows = torch.tensor([[7, 0, 255, hidden, 3, 4], [7, 0, 255, 255, 255, 255]], dtype=torch.int32)
    bigrams, trigrams = ngram_buckets(rows, 3, 1024, 257).tolist()
    assert bigrams[0] == [hashed([marker, 7]), hashed([7, 0]), hashed([0, 255]), -1, -1, hashed([3, 4])]
    assert trigrams[0] == [-1, hashed([marker, 7, 0]), hashed([7, 0, 255]), -1, -1, -1]
    assert trigrams[1][:3] == trigrams[0][:3]
    assert hashed([7, 0]) == 174


def test_large_vocabularies_do_not_overflow() -> None:
    (bigrams,) = ngram_buckets(torch.tensor([[65_534, 65_534]]), 2, 1024, 65_536).tolist()
    assert bigrams == [[hashed([65_536, 65_534]), hashed([65_534, 65_534])]]

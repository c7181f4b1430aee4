"""Networks of odd sizes and rows with a planted token, shared by the model's tests."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from attnlstm.training.rows import LabelledSequences

# Distinct primes (2 * hidden_size apart), so that a swapped axis cannot pass. 22 / 2 heads = 11.
SIZES = {"num_embeddings": 43, "embedding_dim": 7, "hidden_size": 11, "classes": ("a", "b", "c", "d", "e")}


@pytest.fixture(params=["additive", "multihead", "multihead, two heads", "three layers", "n-grams"])
def network(request: pytest.FixtureRequest) -> AttentionLSTM:
    """Both attentions, several heads, another depth, n-grams; in evaluation mode."""
    more = {
        "additive": {"attention_size": 13},
        "multihead": {"attention": "multihead"},
        "multihead, two heads": {"attention": "multihead", "num_heads": 2},
        "three layers": {"num_layers": 3},
        "n-grams": {"longest_ngram": 3, "ngram_buckets": 64},
    }[request.param]
    torch.manual_seed(17)
    network = AttentionLSTM(ModelConfig(**SIZES, **more)).eval()
    if network.config.longest_ngram > 1:
        nn.init.normal_(network.ngrams)
    return network


@pytest.fixture(scope="session")
def planted() -> Callable[[int, int], LabelledSequences]:
    """So many rows of noise with a token, 0, 1 or 2, in up to three random places, that tells the class; by seed."""

    def rows(num_rows: int, seed: int) -> LabelledSequences:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(3, 30, num_rows)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        values = rng.integers(3, 11, offsets[-1]).astype(np.uint8)
        labels = rng.integers(0, 3, num_rows)
        values[offsets[:-1, None] + rng.integers(0, lengths[:, None], (num_rows, 3))] = labels[:, None]
        return LabelledSequences(values, offsets, labels)

    return rows

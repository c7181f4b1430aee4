"""Networks of odd sizes and ragged rows, shared by the model's tests."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM

Ragged = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

# Distinct primes (2 * hidden_size apart), so that a swapped axis cannot pass. 22 / 2 heads = 11.
SIZES = {"num_embeddings": 43, "embedding_dim": 7, "hidden_size": 11, "classes": ("a", "b", "c", "d", "e")}


@pytest.fixture(params=["additive", "multihead", "multihead, two heads", "three layers"])
def network(request: pytest.FixtureRequest) -> AttentionLSTM:
    """Both attentions, several heads, another depth; in evaluation mode."""
    more = {
        "additive": {"attention_size": 13},
        "multihead": {"attention": "multihead"},
        "multihead, two heads": {"attention": "multihead", "num_heads": 2},
        "three layers": {"num_layers": 3},
    }[request.param]
    torch.manual_seed(17)
    return AttentionLSTM(ModelConfig(**SIZES, **more)).eval()


@pytest.fixture
def ragged() -> Callable[[list[int]], Ragged]:
    """Rows of these lengths, of token ids that the networks know."""

    def rows(lengths: list[int]) -> Ragged:
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        return np.random.default_rng(19).integers(0, 42, offsets[-1]).astype(np.uint8), offsets

    return rows

"""Networks that tests score with, and what their scores must be.

Imported by tests, and by the processes that some of them start. Knows the model alone: no files, no flows.
"""

import copy
from itertools import pairwise

import numpy as np
import torch

from attnlstm.config import ModelConfig
from attnlstm.engines import Scores
from attnlstm.network import AttentionLSTM


def make_network(**sizes: object) -> AttentionLSTM:
    """A network in evaluation mode whose sizes are primes, with weights large enough to move its gates."""
    torch.manual_seed(17)
    config = ModelConfig(num_embeddings=43, embedding_dim=7, classes=tuple("abcde"), **sizes)  # type: ignore[arg-type]
    network = AttentionLSTM(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return network


def make_rows(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of rows of these lengths, of token ids that the networks know."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return np.random.default_rng(19).integers(0, 42, offsets[-1]).astype(np.uint8), offsets


@torch.no_grad()
def check_scores(
    network: AttentionLSTM, scores: Scores, values: np.ndarray, offsets: np.ndarray, atol: float = 1e-6
) -> None:
    """The scores are what the network gives for each row alone in float64."""
    exact = copy.deepcopy(network).double()
    for row, (start, end) in enumerate(pairwise(offsets)):
        token_ids = torch.from_numpy(values[start:end].astype(np.int64))[None]
        logits, weights = exact(token_ids, torch.tensor([end - start]))
        probabilities = (logits[0] / network.config.temperature).softmax(0).numpy()
        np.testing.assert_allclose(scores.probabilities[row], probabilities, rtol=0, atol=atol)
        np.testing.assert_allclose(scores.attention_weights[start:end], weights[0].numpy(), rtol=0, atol=atol)


def bits(scores: Scores) -> tuple[bytes, bytes]:
    """For comparisons to the last bit."""
    return scores.probabilities.tobytes(), scores.attention_weights.tobytes()

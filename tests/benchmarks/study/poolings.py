"""The poolings that the study compares: the project's two, two without attention, and one with a known fault.

All share the embedding, the LSTM, the classifier and the forward pass of `AttentionLSTM` up to the pooling. Only the
project's own two exist outside the study: checkpoints and fused engines do not know the others.
Shape letters: B rows, T time steps, H hidden size.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from attnlstm.config import Attention, ModelConfig
from attnlstm.network import AttentionLSTM

Pooling = Literal["last_state", "mean", "additive", "multihead", "multihead_published"]

ROWS_TOGETHER = 32
"""Rows that attend to each other in the published multihead. A training step gives a network slices of at least so
many rows, and an engine gives it many more; both put rows of similar length beside each other."""


class LastState(AttentionLSTM):
    """No attention: the state in which each direction ends.

    The forward direction ends at the last real step and the backward direction at the first.
    """

    def pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionLSTM.pool`. Each of the two steps weighs one half."""
        H = self.config.hidden_size
        rows = torch.arange(len(states), device=states.device)
        last = mask.sum(1) - 1
        weights = torch.zeros_like(states[:, :, 0])
        weights[rows, last] = 0.5
        weights[:, 0] += 0.5
        return torch.cat((states[rows, last, :H], states[:, 0, H:]), dim=-1), weights


class MeanState(AttentionLSTM):
    """No attention: the mean of the states over real steps."""

    def pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionLSTM.pool`."""
        weights = mask.to(states.dtype) / mask.sum(1, keepdim=True)
        return (weights.unsqueeze(1) @ states).squeeze(1), weights


class PublishedMultihead(AttentionLSTM):
    """Multihead attention without `batch_first=True`, as it was published: rows attend to each other.

    `nn.MultiheadAttention` then takes the first axis of (B, T, 2H) for time. At each step every row attends to all
    rows of the batch at that step, padded or not, and a row's logits depend on the rows beside it. Everything else is
    as in the project's multihead attention. Since the batch matters, training and evaluation use the same batches of
    up to ROWS_TOGETHER neighbours, however many rows are given at once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert isinstance(self.attention, nn.MultiheadAttention), "the config is of multihead attention"
        self.attention.batch_first = False

    def pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `AttentionLSTM.pool`, but the weights are what the rows of the batch give to a row at each step.

        At a step in which no row is padded they sum to 1 over the rows of a batch, not over the tokens of a row.
        """
        batches = zip(torch.split(states, ROWS_TOGETHER), torch.split(mask, ROWS_TOGETHER), strict=True)
        contexts, weights = zip(*(self._pool_batch(*batch) for batch in batches), strict=True)
        return torch.cat(contexts), torch.cat(weights)

    def _pool_batch(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # received: (T, B, B), at each step the weights of all rows for each row
        outputs, received = self.attention(self.q(states), self.k(states), self.v(states))
        return (outputs * mask.unsqueeze(-1)).sum(1), received.mean(1).t() * mask


POOLINGS: dict[Pooling, tuple[type[AttentionLSTM], Attention]] = {
    "last_state": (LastState, "additive"),
    "mean": (MeanState, "additive"),
    "additive": (AttentionLSTM, "additive"),
    "multihead": (AttentionLSTM, "multihead"),
    "multihead_published": (PublishedMultihead, "multihead"),
}
"""The network of each pooling, and the attention that its config names (the default's for those without any)."""


def make_network(pooling: Pooling, config: ModelConfig, seed: int) -> AttentionLSTM:
    """A fresh network whose weights follow from the seed; embedding and LSTM start the same for all poolings."""
    kind, attention = POOLINGS[pooling]
    assert config.attention == attention, f"{pooling} needs a config of {attention} attention"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config)
    if pooling in ("last_state", "mean"):
        del network.attention
    return network

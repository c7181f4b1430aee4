"""The poolings that the study compares: the two of this project, two without attention, and one with a known fault.

All share the embedding, the LSTM and the classifier of `AttentionLSTM`, and its forward pass up to the pooling. None
but the project's own two is of use outside the study: checkpoints and fused engines don't know the others.
Shape letters: B rows, T time steps, H hidden size.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from attnlstm.config import Attention, ModelConfig
from attnlstm.network import AttentionLSTM

Variant = Literal["last_state", "mean", "additive", "multihead", "multihead_published"]

ROWS_TOGETHER = 32
"""Rows that attend to each other in the published multihead. A step of training gives a network slices of so many rows
or more, and an engine many more; of both, neighbours are of like length."""


class LastState(AttentionLSTM):
    """No attention: each direction's state after it has read the row.

    That is the forward direction's at the last real step and the backward direction's at the first; both steps weigh
    one half.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.attention

    def pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionLSTM.pool`."""
        H = self.config.hidden_size
        rows = torch.arange(len(states), device=states.device)
        last = mask.sum(1) - 1
        context = torch.cat((states[rows, last, :H], states[:, 0, H:]), dim=-1)
        weights = torch.zeros_like(states[:, :, 0])
        weights[rows, last] = 0.5
        weights[:, 0] += 0.5
        return context, weights


class MeanState(AttentionLSTM):
    """No attention: the mean of the states over real steps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.attention

    def pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionLSTM.pool`."""
        weights = mask.to(states.dtype) / mask.sum(1, keepdim=True)
        return (weights.unsqueeze(1) @ states).squeeze(1), weights


class PublishedMultihead(AttentionLSTM):
    """Multihead attention without `batch_first=True`, as it was published: rows attend to each other.

    `nn.MultiheadAttention` takes the first axis of (B, T, 2H) for time. So at each step every row attends to all rows
    of the batch at that step, whatever stands there, and a row's logits depend on the rows beside it. Everything else
    is the project's own: the same initial weights from the same seed, outputs summed over a row's real steps.

    Because the batch matters, it is the same in training and in evaluation: up to ROWS_TOGETHER neighbours, however
    many rows are given at once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert isinstance(self.attention, nn.MultiheadAttention), "the config is of multihead attention"
        self.attention.batch_first = False

    def pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `AttentionLSTM.pool`, save for the weights: what the rows of the batch give to a row at each step.

        At every step that no row is padded in, they sum to 1 over the rows of a batch, not over the tokens of a row.
        """
        batches = zip(torch.split(states, ROWS_TOGETHER), torch.split(mask, ROWS_TOGETHER), strict=True)
        contexts, weights = zip(*(self._pool_batch(*batch) for batch in batches), strict=True)
        return torch.cat(contexts), torch.cat(weights)

    def _pool_batch(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # received: (T, B, B), a row of weights over rows for each row, at each step
        outputs, received = self.attention(self.q(states), self.k(states), self.v(states))
        context = (outputs * mask.unsqueeze(-1)).sum(1)
        return context, received.mean(1).t() * mask


VARIANTS: dict[Variant, tuple[type[AttentionLSTM], Attention]] = {
    "last_state": (LastState, "additive"),
    "mean": (MeanState, "additive"),
    "additive": (AttentionLSTM, "additive"),
    "multihead": (AttentionLSTM, "multihead"),
    "multihead_published": (PublishedMultihead, "multihead"),
}
"""Each one's network, and the attention that its config names. Those without any have the default's."""


def make_variant(variant: Variant, config: ModelConfig, seed: int) -> AttentionLSTM:
    """A fresh network whose weights follow from the seed. Raises ValueError if the config has another attention.

    The embedding and the LSTM start the same in all variants.
    """
    network, attention = VARIANTS[variant]
    if config.attention != attention:
        raise ValueError(f"the config of {variant} must have attention {attention!r}, not {config.attention!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(config)

"""The attention-LSTM: embedding, bidirectional LSTM, attention pooling, classifier.

Owns the arithmetic from token ids to logits and the rule that rows and padding never influence each other.
Parameters carry the published names. Knows nothing about how batches are made or where weights come from.
Shape letters: B rows, T time steps (the longest row), E embedding features, H hidden size, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlstm.attention import AdditiveAttention, summed_attention
from attnlstm.config import ModelConfig
from attnlstm.ngrams import ngram_buckets

STEPS_PER_CALL = 8192
"""Time steps given to one LSTM call; longer rows carry the state over, which bounds the memory of the call.
cuDNN fails from 65,536 on (pytorch#133751)."""


class AttentionLSTM(nn.Module):
    """The network that a `ModelConfig` describes, with torch's default initial weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        state_size = 2 * config.hidden_size
        self.embedding = nn.Embedding(config.num_embeddings, config.embedding_dim)
        if config.longest_ngram > 1:
            # By length, bucket and feature. What was never trained says nothing.
            shape = config.longest_ngram - 1, config.ngram_buckets, config.embedding_dim
            self.ngrams = nn.Parameter(torch.zeros(shape))
            self.ngram_context = nn.Linear(config.embedding_dim, state_size, bias=False)
        # Holds the parameters under torch's names. It is never called: a bidirectional call reads padding.
        self.sequence = nn.LSTM(
            config.embedding_dim,
            config.hidden_size,
            num_layers=config.num_layers,
            dropout=config.dropout,
            bidirectional=True,
            batch_first=True,
        )
        self.attention: AdditiveAttention | nn.MultiheadAttention
        if config.attention == "additive":
            self.attention = AdditiveAttention(state_size, config.attention_size or state_size)
        else:
            self.q = nn.Linear(state_size, state_size, bias=False)
            self.k = nn.Linear(state_size, state_size, bias=False)
            self.v = nn.Linear(state_size, state_size, bias=False)
            self.attention = nn.MultiheadAttention(state_size, config.num_heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(state_size, config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, config.num_classes),
        )

    def forward(
        self, token_ids: Tensor, lengths: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and attention weights of a padded batch.

        token_ids: integer (B, T), rows left-aligned; any valid id may stand in padding.
        lengths: integer (B,), real tokens of each row, 1 to T.
        generator: source of the dropout in training; None for torch's global one.
        Returns logits float (B, C), before the temperature, and attention weights float (B, T): exactly 0 on
        padding, rows sum to 1. Raises ValueError if shapes disagree or, on a CPU, a length is outside 1 to T.
        """
        _check_batch(token_ids, lengths)
        mask = torch.arange(token_ids.shape[1], device=lengths.device) < lengths[:, None]
        x: Tensor = self.embedding(token_ids)
        of_ngrams = None
        if self.config.longest_ngram > 1:
            of_ngrams = self.embed_ngrams(token_ids)
            if self.training and self.config.ngram_dropout:
                of_ngrams = _dropout(of_ngrams, self.config.ngram_dropout, generator)
            x = x + of_ngrams.to(x.dtype)
        context, weights = self.pool(self._hidden_states(x, lengths, generator), mask)
        return self.classify(context, of_ngrams, mask), weights

    def embed_ngrams(self, token_ids: Tensor) -> Tensor:
        """The sum of the embeddings of the n-grams that end at each token: float (B, T, E)."""
        config = self.config
        found = ngram_buckets(token_ids, config.longest_ngram, config.ngram_buckets, config.num_embeddings)
        total = self.ngrams.new_zeros(())
        for table, buckets in zip(self.ngrams, found, strict=True):
            total = total + F.embedding(buckets.clamp(min=0), table) * (buckets >= 0)[..., None]
        return total

    def classify(self, context: Tensor, of_ngrams: Tensor | None, mask: Tensor) -> Tensor:
        """Logits (B, C), before the temperature.

        context: float (B, 2H), of the pooled states. of_ngrams: float (B, T, E), as `embed_ngrams` has them, if there
        are any. mask: bool (B, T), True for real tokens.
        """
        if of_ngrams is not None:
            total = (of_ngrams * mask[..., None]).sum(1)
            context = context + self.ngram_context(total / mask.sum(1, keepdim=True).sqrt())
        logits: Tensor = self.mlp(context)
        return logits

    def pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One context vector of each row, and what each step weighs in it. Other poolings override this.

        states: float (B, T, 2H), finite and meaningless on padding. mask: bool (B, T), True for real tokens.
        Returns context (B, 2H) and weights (B, T).
        """
        if isinstance(self.attention, AdditiveAttention):
            context, weights = self.attention(states, mask)
            return context, weights
        return summed_attention(self.attention, self.q(states), self.k(states), self.v(states), mask)

    def _hidden_states(self, x: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Tensor:
        """The last layer's states (B, T, 2H), of embedded tokens (B, T, E). On padding they are finite,
        and mean nothing.

        The backward direction runs forward over rows that are reversed up to their own length, so in both
        directions padding comes after the last real token. `PackedSequence` would do the same and turn off
        oneDNN on CPU and cuDNN's kernel for small hidden sizes.
        """
        # Time comes first in here, as oneDNN and cuDNN have it: (T, B, features).
        x = x.transpose(0, 1).contiguous()
        mirror = _mirror(lengths, x.shape[0])
        for layer in range(self.config.num_layers):
            if layer and self.training and self.config.dropout:
                x = _dropout(x, self.config.dropout, generator)
            ahead = self._run(x, f"l{layer}")
            back = self._run(_rearrange(x, mirror), f"l{layer}_reverse")
            x = torch.cat((ahead, _rearrange(back, mirror)), dim=-1)
        return x.transpose(0, 1)

    def _run(self, x: Tensor, name: str) -> Tensor:
        """One direction of one layer, read forward: (T, B, features) to (T, B, H)."""
        parameters = [
            getattr(self.sequence, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        h = c = x.new_zeros(1, x.shape[1], self.config.hidden_size)
        # cuDNN and oneDNN keep what a backward pass needs only when told to; there is no dropout in this
        # call.
        keep_for_backward = torch.is_grad_enabled()
        outputs = []
        for part in torch.split(x, STEPS_PER_CALL):
            output, h, c = torch.lstm(part, (h, c), parameters, True, 1, 0.0, keep_for_backward, False, False)
            outputs.append(output)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _mirror(lengths: Tensor, num_steps: int) -> Tensor:
    """Where each step of a row goes when the row's real tokens are reversed: int64 (T * B,), rows of a (T,
    B) grid.

    Padding stays in place, so doing it twice changes nothing.
    """
    step = torch.arange(num_steps, device=lengths.device)[:, None]
    last = lengths - 1
    source = torch.where(step <= last, last - step, step)
    return (source * len(lengths) + torch.arange(len(lengths), device=lengths.device)).flatten()


def _rearrange(x: Tensor, index: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, index).view_as(x)


def _dropout(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """torch's dropout, drawing from a generator of one's own, which `F.dropout` cannot."""
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
    return x * kept / (1 - share)


def _check_batch(token_ids: Tensor, lengths: Tensor) -> None:
    if token_ids.ndim != 2 or lengths.shape != token_ids.shape[:1]:
        raise ValueError(
            f"token_ids must be (B, T) and lengths (B,); got {tuple(token_ids.shape)} and {tuple(lengths.shape)}"
        )
    if lengths.is_cuda:
        return  # looking would wait for the device
    num_steps = token_ids.shape[1]
    outside = (lengths < 1) | (lengths > num_steps)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"every row needs 1 to {num_steps} tokens; row {row} has {int(lengths[row])}")

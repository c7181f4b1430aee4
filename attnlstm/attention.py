"""Attention pooling: from the hidden states of all time steps to one context vector, with a weight for each
step.

Shape letters: B rows, T time steps, D features of a hidden state, A rows of the additive matrix, N heads.
Every mask is bool (B, T), True for real tokens (the reverse of torch's key_padding_mask). What stands in
padding never reaches a result. Knows nothing about the LSTM that made the states.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SCORES_PER_BLOCK = 1 << 20
"""Attention scores held at once, as a number of floats: 4 MiB. More is no faster."""

SCORES_KEPT = 1 << 24
"""Up to this many, 64 MiB, are kept in training for the backward pass. With more it computes them again."""


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the real steps of each row.

    scores: float (..., T). mask: bool, broadcastable to scores.
    Returns float (..., T): exactly 0 on padding, rows sum to 1; a row without tokens is all 0.
    """
    # The lowest float, not -inf: a row without tokens would turn to NaN, and so would its gradient.
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0.0)


class AdditiveAttention(nn.Module):
    """Additive attention over time with no tanh and no query: score_t = v . (W h_t + b).

    After Bahdanau et al. 2015, whose alignment model has a tanh between W and v. Without it the score is
    affine in the state, so W and v fold into one vector, exactly, and W h_t is never computed.
    """

    def __init__(self, state_size: int, attention_size: int) -> None:
        super().__init__()
        self.qk_weights = nn.Linear(state_size, attention_size)
        self.dot_product = nn.Linear(attention_size, 1, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """states: float (B, T, D). mask: bool (B, T), True for real tokens.

        Returns context (B, D), the sum of the states by weight, and weights (B, T): 0 on padding, rows sum
        to 1; a row without tokens is all 0 in both. Raises ValueError if shapes disagree.
        """
        _check_shapes(states, mask)
        v = self.dot_product.weight  # (1, A)
        scores = F.linear(states, v @ self.qk_weights.weight, v @ self.qk_weights.bias).squeeze(-1)
        weights = masked_softmax(scores, mask)
        return (weights.unsqueeze(1) @ states).squeeze(1), weights


def summed_attention(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs of a multihead attention over time, summed over real steps (Vaswani et al. 2017, section
    3.2.2).

    query, key, value: float (B, T, D). mask: bool (B, T), True for real tokens.
    Returns context (B, D), the sum of `attention`'s outputs over the real queries, and weights (B, T): for
    token j the mean of A[i, j] over heads and real queries i; 0 on padding, rows sum to 1. A row without
    tokens is all 0 in both. Raises ValueError if shapes disagree.

    The sum over queries of A V needs no more of A than its column sums. They are added up over blocks of queries,
    forward and backward, so memory grows with T, not with T * T.
    """
    _check_shapes(query, mask)
    B, T, D = query.shape
    N = attention.num_heads
    weight_q, weight_k, weight_v = attention.in_proj_weight.chunk(3)
    bias_q, bias_k, bias_v = attention.in_proj_bias.chunk(3)

    def heads(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias).view(B, T, N, D // N).transpose(1, 2).flatten(0, 1)  # (BN, T, D / N)

    q = heads(query, weight_q * math.sqrt(N / D), bias_q * math.sqrt(N / D))
    k = heads(key, weight_k, bias_k)
    v = heads(value, weight_v, bias_v)
    # One more feature, 1 in queries and the lowest float in padding's keys, and the product has the mask in it.
    mask_of_heads = mask.repeat_interleave(N, 0)  # (BN, T)
    penalty = torch.zeros_like(mask_of_heads, dtype=k.dtype).masked_fill(~mask_of_heads, torch.finfo(k.dtype).min)
    q = F.pad(q, (0, 1), value=1.0)
    k = torch.cat((k, penalty.unsqueeze(-1)), dim=-1).transpose(1, 2).contiguous()
    is_query = mask_of_heads.to(q.dtype).unsqueeze(1)

    received: Tensor = _Received.apply(is_query, q, k)  # type: ignore[no-untyped-call]

    num_tokens = mask.sum(1, keepdim=True)
    context = (received @ v).view(B, D)
    # The output projection is affine, and every real query adds its bias once.
    context = F.linear(context, attention.out_proj.weight) + num_tokens * attention.out_proj.bias
    return context, received.view(B, N, T).mean(1) / num_tokens.clamp(min=1)


class _Received(torch.autograd.Function):
    """What each key gets from the real queries: the sum over them of A[i, j], A = softmax(q k) over keys.

    is_query: float (BN, 1, T), 1 for real tokens. q: (BN, T, features). k: (BN, features, T). Returns (BN, 1, T).
    """

    @staticmethod
    def forward(ctx: Any, is_query: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(is_query, q, k)
        received = torch.zeros_like(is_query)
        keep = q.shape[0] * q.shape[1] ** 2 <= SCORES_KEPT and any(ctx.needs_input_grad)
        ctx.kept = []
        for block in _blocks(q):
            weights = (q[:, block] @ k).softmax(-1)
            received += is_query[:, :, block] @ weights
            if keep:
                ctx.kept.append(weights)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        is_query, q, k = ctx.saved_tensors
        of_q, of_k = torch.empty_like(q), torch.zeros_like(k)
        for number, block in enumerate(_blocks(q)):
            # A query that is none has no part in the sum, which is a gradient of 0 for its whole row of A.
            is_real = is_query[:, :, block].transpose(1, 2)
            weights = ctx.kept[number] if ctx.kept else (q[:, block] @ k).softmax(-1)
            # The softmax's gradient: A * (g - sum_j A g), where g is the same for every query.
            of_scores = weights * gradient
            of_scores.addcmul_(weights, of_scores.sum(-1, keepdim=True), value=-1)
            of_q[:, block] = is_real * (of_scores @ k.transpose(1, 2))
            of_k += (is_real * q[:, block]).transpose(1, 2) @ of_scores
        return None, of_q, of_k


def _blocks(q: Tensor) -> Iterator[slice]:
    """Queries in blocks, so that no more than SCORES_PER_BLOCK scores are held at once, or those of one query."""
    num_heads, num_queries, _ = q.shape
    block_size = max(1, SCORES_PER_BLOCK // (num_heads * num_queries))
    for start in range(0, num_queries, block_size):
        yield slice(start, start + block_size)


def _check_shapes(states: Tensor, mask: Tensor) -> None:
    if states.ndim != 3 or mask.shape != states.shape[:2]:
        raise ValueError(f"states must be (B, T, D) and mask (B, T); got {tuple(states.shape)} and {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True for real tokens; got {mask.dtype}")

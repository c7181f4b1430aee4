"""The contract of masks, and the two poolings against torch's own modules."""

import pytest
import torch
from torch import Tensor, nn

from attnlstm import attention
from attnlstm.attention import AdditiveAttention, masked_softmax, summed_attention

LENGTHS = (7, 1, 13, 5)
MASK = torch.arange(13) < torch.tensor(LENGTHS)[:, None]


def states(seed: int, state_size: int = 22) -> Tensor:
    """(4, 13, state_size), with what is large and wrong on padding."""
    values = torch.randn(4, 13, state_size, generator=torch.Generator().manual_seed(seed))
    return values.masked_fill(~MASK[..., None], 1e6)


def multihead(num_heads: int) -> nn.MultiheadAttention:
    torch.manual_seed(23)
    module = nn.MultiheadAttention(22, num_heads, batch_first=True)
    # Biases start at 0, which would hide a mistake.
    nn.init.normal_(module.in_proj_bias)
    nn.init.normal_(module.out_proj.bias)
    return module


def test_masked_softmax_of_known_scores() -> None:
    scores = torch.tensor([[0.0, 2.0, 99.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0]]).log()
    mask = torch.tensor([[False, True, True], [True, True, False], [False, False, False]])
    expected = torch.tensor([[0, 2 / 101, 99 / 101], [0.5, 0.5, 0], [0, 0, 0]])
    torch.testing.assert_close(masked_softmax(scores, mask), expected)


def test_a_row_without_tokens_has_no_nan_in_its_gradient() -> None:
    scores = torch.zeros(1, 3, requires_grad=True)
    masked_softmax(scores, torch.zeros(1, 3, dtype=torch.bool)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.eq(0).all()


@pytest.mark.parametrize("num_heads", [1, 2, 11])
@pytest.mark.parametrize("scores_kept", [0, 1 << 24], ids=["computed twice", "kept"])
@pytest.mark.parametrize("scores_per_block", [1, 500, 1 << 20])
def test_multihead_and_its_gradients_are_torchs_module_summed_over_real_queries(
    num_heads: int, scores_per_block: int, scores_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SCORES_PER_BLOCK", scores_per_block)
    monkeypatch.setattr(attention, "SCORES_KEPT", scores_kept)
    module = multihead(num_heads)
    q, k, v = (states(seed).requires_grad_() for seed in (2, 3, 4))
    context, weights = summed_attention(module, q, k, v, MASK)
    outputs, received = module(q, k, v, key_padding_mask=~MASK)
    expected_context = (outputs * MASK[..., None]).sum(1)
    expected_weights = (received * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
    torch.testing.assert_close(context, expected_context, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights, expected_weights)
    assert weights[~MASK].eq(0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(4))

    inputs = [q, k, v, *module.parameters()]
    ours = torch.autograd.grad(context.square().sum() + weights.square().sum() * 100, inputs)
    theirs = torch.autograd.grad(expected_context.square().sum() + expected_weights.square().sum() * 100, inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_a_row_without_tokens_is_all_zero() -> None:
    none = torch.zeros_like(MASK)
    h = states(6)
    for context, weights in (
        AdditiveAttention(22, 17)(h, none),
        summed_attention(multihead(1), h, h, h, none),
    ):
        assert context.eq(0).all()
        assert weights.eq(0).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK.t(), r"states must be \(B, T, D\) and mask \(B, T\); got \(4, 13, 22\) and \(13, 4\)"),
        (MASK.float(), r"mask must be bool, True for real tokens; got torch.float32"),
    ],
)
def test_masks_of_another_shape_or_type_are_refused(mask: Tensor, message: str) -> None:
    h = states(7)
    with pytest.raises(ValueError, match=message):
        AdditiveAttention(22, 17)(h, mask)
    with pytest.raises(ValueError, match=message):
        summed_attention(multihead(1), h, h, h, mask)

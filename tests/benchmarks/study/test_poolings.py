"""Of the study's five poolings four leave rows alone, and the published multihead does not."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import poolings
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from poolings import POOLINGS, Pooling, make_network

LENGTHS = torch.tensor([5, 37, 1, 23, 2, 37, 11])
LEAVES_ROWS_ALONE = [pooling for pooling in get_args(Pooling) if pooling != "multihead_published"]


def make(pooling: Pooling) -> AttentionLSTM:
    sizes = {"num_embeddings": 43, "embedding_dim": 7, "hidden_size": 11, "classes": ("a", "b", "c", "d", "e")}
    network = make_network(pooling, ModelConfig(attention=POOLINGS[pooling][1], **sizes), seed=3).eval()
    for parameter in network.parameters():
        parameter.data *= 2.0  # as they start, weights leave attention almost uniform
    return network


def batch(padding_id: int = 42) -> Tensor:
    token_ids = torch.randint(0, 42, (7, 37), generator=torch.Generator().manual_seed(31))
    return token_ids.masked_fill(torch.arange(37) >= LENGTHS[:, None], padding_id)


@pytest.mark.parametrize("pooling", LEAVES_ROWS_ALONE)
@torch.no_grad()
def test_neither_other_rows_nor_padding_change_a_row_of_all_but_the_published_multihead(pooling: Pooling) -> None:
    network, token_ids = make(pooling), batch()
    logits, weights = network(token_ids, LENGTHS)
    torch.testing.assert_close(weights.sum(1), torch.ones(7))
    for row, length in enumerate(LENGTHS.tolist()):
        alone_logits, alone_weights = network(token_ids[row : row + 1, :length], LENGTHS[row : row + 1])
        torch.testing.assert_close(alone_logits[0], logits[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone_weights[0], weights[row, :length], rtol=0, atol=1e-5)
        assert weights[row, length:].eq(0).all()
    for found, other in zip((logits, weights), network(batch(0), LENGTHS), strict=True):
        assert torch.equal(found, other)


@torch.no_grad()
def test_the_published_multihead_attends_at_each_step_to_the_rows_of_batches_of_its_own_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, token_ids = make("multihead_published"), batch()
    states = network._hidden_states(network.embedding(token_ids), LENGTHS, None)
    q, k, v = network.q(states), network.k(states), network.v(states)
    over_time = nn.MultiheadAttention(22, 1, batch_first=True).eval()
    over_time.load_state_dict(network.attention.state_dict())
    context = torch.zeros(7, 22)
    for step in range(37):
        # The rows of one step stand where time should be.
        outputs, received = over_time(q[None, :, step], k[None, :, step], v[None, :, step])
        context[step < LENGTHS] += outputs[0][step < LENGTHS]
        assert received.sum(-1).allclose(torch.ones(7))
    logits, weights = network(token_ids, LENGTHS)
    torch.testing.assert_close(logits, network.mlp(context), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights[:, 0].sum(), torch.tensor(1.0))
    assert weights[LENGTHS[:, None] <= torch.arange(37)].eq(0).all()
    other_company, _ = network(token_ids[:3], LENGTHS[:3])
    assert ((logits[:3] - other_company).abs().amax(1) > 0.01).all()
    monkeypatch.setattr(poolings, "ROWS_TOGETHER", 3)
    together = network(token_ids, LENGTHS)
    for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
        for found, whole in zip(network(token_ids[rows], LENGTHS[rows]), together, strict=True):
            torch.testing.assert_close(found, whole[rows], rtol=0, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last_state", "mean"])
@torch.no_grad()
def test_poolings_without_attention_are_what_torch_gives_for_each_row(pooling: Pooling) -> None:
    network, token_ids = make(pooling), batch()
    logits, _ = network(token_ids, LENGTHS)
    assert not [name for name in network.state_dict() if name.startswith("attention")]
    for row, length in enumerate(LENGTHS.tolist()):
        states, (h, _) = network.sequence(network.embedding(token_ids[row : row + 1, :length]))
        context = states.mean(1) if pooling == "mean" else torch.cat((h[-2], h[-1]), dim=-1)
        torch.testing.assert_close(logits[row], network.mlp(context)[0], rtol=1e-4, atol=1e-4)


def test_embedding_and_lstm_start_the_same_and_the_published_multihead_is_ours_in_all_weights() -> None:
    weights = {pooling: make(pooling).state_dict() for pooling in POOLINGS}
    for name in ("embedding.weight", "sequence.weight_hh_l1_reverse"):
        assert all(torch.equal(each[name], weights["additive"][name]) for each in weights.values())
    ours, published = weights["multihead"], weights["multihead_published"]
    assert ours.keys() == published.keys()
    assert all(torch.equal(ours[name], published[name]) for name in ours)

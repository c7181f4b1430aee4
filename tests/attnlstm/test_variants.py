"""Of the study's five poolings four leave rows alone, and the published multihead does not."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from attnlstm import variants
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from attnlstm.variants import VARIANTS, PublishedMultihead, Variant, make_variant

LENGTHS = torch.tensor([5, 37, 1, 23, 2, 37, 11])
OURS = [variant for variant in get_args(Variant) if variant != "multihead_published"]


def make(variant: Variant) -> AttentionLSTM:
    sizes = {"num_embeddings": 43, "embedding_dim": 7, "hidden_size": 11, "classes": ("a", "b", "c", "d", "e")}
    network = make_variant(variant, ModelConfig(attention=VARIANTS[variant][1], **sizes), seed=3).eval()
    for parameter in network.parameters():
        parameter.data *= 2.0  # as they start, weights leave attention almost uniform
    return network


def batch(padding_id: int = 42) -> Tensor:
    token_ids = torch.randint(0, 42, (7, 37), generator=torch.Generator().manual_seed(31))
    return token_ids.masked_fill(torch.arange(37) >= LENGTHS[:, None], padding_id)


def test_there_are_as_many_variants_as_names() -> None:
    assert tuple(VARIANTS) == get_args(Variant)


@pytest.mark.parametrize("variant", OURS)
@torch.no_grad()
def test_rows_of_all_but_the_published_multihead_are_the_same_alone(variant: Variant) -> None:
    network, token_ids = make(variant), batch()
    logits, weights = network(token_ids, LENGTHS)
    torch.testing.assert_close(weights.sum(1), torch.ones(7))
    for row, length in enumerate(LENGTHS.tolist()):
        alone_logits, alone_weights = network(token_ids[row : row + 1, :length], LENGTHS[row : row + 1])
        torch.testing.assert_close(alone_logits[0], logits[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone_weights[0], weights[row, :length], rtol=0, atol=1e-5)
        assert weights[row, length:].eq(0).all()


@pytest.mark.parametrize("variant", OURS)
@torch.no_grad()
def test_what_stands_in_padding_changes_nothing_in_all_but_the_published_multihead(variant: Variant) -> None:
    network = make(variant)
    for found, other in zip(network(batch(42), LENGTHS), network(batch(0), LENGTHS), strict=True):
        assert torch.equal(found, other)


@torch.no_grad()
def test_rows_of_the_published_multihead_change_with_their_batch() -> None:
    network, token_ids = make("multihead_published"), batch()
    together, _ = network(token_ids, LENGTHS)
    alone = torch.cat([network(token_ids[row : row + 1], LENGTHS[row : row + 1])[0] for row in range(7)])
    assert ((together - alone).abs().amax(1) > 0.01).all()
    other_company, _ = network(token_ids[:3], LENGTHS[:3])
    assert ((together[:3] - other_company).abs().amax(1) > 0.01).all()


@torch.no_grad()
def test_the_published_multihead_attends_across_rows_at_each_step() -> None:
    network, token_ids = make("multihead_published"), batch()
    states = network._hidden_states(token_ids, LENGTHS, None)
    q, k, v = network.q(states), network.k(states), network.v(states)
    assert isinstance(network.attention, nn.MultiheadAttention)
    over_time = nn.MultiheadAttention(22, 1, batch_first=True).eval()
    over_time.load_state_dict(network.attention.state_dict())
    context = torch.zeros(7, 22)
    for step in range(37):
        # The rows of one step stand where time should be.
        outputs, received = over_time(q[None, :, step], k[None, :, step], v[None, :, step])
        is_real = step < LENGTHS
        context[is_real] += outputs[0][is_real]
        assert received.sum(-1).allclose(torch.ones(7))
    logits, weights = network(token_ids, LENGTHS)
    torch.testing.assert_close(logits, network.mlp(context), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights[:, 0].sum(), torch.tensor(1.0))
    assert weights[LENGTHS[:, None] <= torch.arange(37)].eq(0).all()


@torch.no_grad()
def test_the_published_multihead_has_batches_of_a_size_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "ROWS_TOGETHER", 3)
    network, token_ids = make("multihead_published"), batch()
    logits, weights = network(token_ids, LENGTHS)
    for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
        part_logits, part_weights = network(token_ids[rows], LENGTHS[rows])
        torch.testing.assert_close(part_logits, logits[rows], rtol=0, atol=1e-4)
        torch.testing.assert_close(part_weights, weights[rows], rtol=0, atol=1e-5)


@torch.no_grad()
def test_last_state_is_what_torchs_lstm_ends_with_in_both_directions() -> None:
    network, token_ids = make("last_state"), batch()
    logits, weights = network(token_ids, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        _, (h, _) = network.sequence(network.embedding(token_ids[row : row + 1, :length]))
        expected = network.mlp(torch.cat((h[-2], h[-1]), dim=-1))
        torch.testing.assert_close(logits[row], expected[0], rtol=1e-4, atol=1e-4)
    assert weights[1].nonzero().flatten().tolist() == [0, 36]
    assert weights[2, 0] == 1.0


@torch.no_grad()
def test_mean_is_the_mean_over_real_steps() -> None:
    network, token_ids = make("mean"), batch()
    logits, _ = network(token_ids, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        states, _ = network.sequence(network.embedding(token_ids[row : row + 1, :length]))
        torch.testing.assert_close(logits[row], network.mlp(states.mean(1))[0], rtol=1e-4, atol=1e-4)


def test_embedding_and_lstm_start_the_same_and_the_published_multihead_is_ours_in_all_weights() -> None:
    networks = {variant: make(variant).state_dict() for variant in get_args(Variant)}
    for name in ("embedding.weight", "sequence.weight_hh_l1_reverse"):
        for weights in networks.values():
            assert torch.equal(weights[name], networks["additive"][name])
    ours, published = networks["multihead"], networks["multihead_published"]
    assert ours.keys() == published.keys()
    assert all(torch.equal(ours[name], published[name]) for name in ours)
    for variant in ("last_state", "mean"):
        assert not [name for name in networks[variant] if name.startswith("attention")]


def test_a_config_of_another_attention_is_refused() -> None:
    config = ModelConfig(attention="additive", classes=("a", "b"))
    with pytest.raises(ValueError, match="multihead_published must have attention 'multihead', not 'additive'"):
        make_variant("multihead_published", config, seed=0)
    assert VARIANTS["multihead_published"][0] is PublishedMultihead

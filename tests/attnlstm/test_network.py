"""Rows never influence each other, padding never influences a row, and the arithmetic is torch's own."""

import pytest
import torch
from torch import Tensor, nn

from attnlstm import network as network_module
from attnlstm.attention import AdditiveAttention
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM

LENGTHS = torch.tensor([5, 37, 1, 23, 2, 37, 11])


def batch(padding_id: int = 42) -> Tensor:
    token_ids = torch.randint(0, 42, (7, 37), generator=torch.Generator().manual_seed(31))
    return token_ids.masked_fill(torch.arange(37) >= LENGTHS[:, None], padding_id)


def plain(network: AttentionLSTM, row: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (C,) and weights (T,) of one row by torch's modules alone, with nothing but real tokens."""
    embedded, added = network.embedding(row[None]), torch.zeros(())
    if network.config.longest_ngram > 1:
        of_ngrams = network.embed_ngrams(row[None])
        embedded = embedded + of_ngrams
        added = network.ngram_context(of_ngrams.sum(1) / len(row) ** 0.5)
    states, _ = network.sequence(embedded)
    if isinstance(network.attention, AdditiveAttention):
        weights = network.attention.dot_product(network.attention.qk_weights(states)).softmax(1)
        return network.mlp((weights * states).sum(1) + added)[0], weights[0, :, 0]
    outputs, received = network.attention(network.q(states), network.k(states), network.v(states))
    return network.mlp(outputs.sum(1))[0], received[0].mean(0)


@torch.no_grad()
def test_every_row_of_a_batch_is_what_torchs_modules_say_of_it_alone(network: AttentionLSTM) -> None:
    token_ids = batch()
    logits, weights = network(token_ids, LENGTHS)
    assert logits.shape == (7, 5)
    for row, length in enumerate(LENGTHS.tolist()):
        expected_logits, expected_weights = plain(network, token_ids[row, :length])
        torch.testing.assert_close(logits[row], expected_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(weights[row, :length], expected_weights, rtol=0, atol=1e-6)
        assert weights[row, length:].eq(0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(7))


@torch.no_grad()
def test_neither_order_nor_padding_changes_a_row(network: AttentionLSTM) -> None:
    token_ids = batch()
    logits, weights = network(token_ids, LENGTHS)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shuffled_logits, shuffled_weights = network(token_ids[order], LENGTHS[order])
    torch.testing.assert_close(shuffled_logits, logits[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled_weights, weights[order], rtol=0, atol=1e-5)
    other_logits, other_weights = network(batch(padding_id=0), LENGTHS)
    assert torch.equal(logits, other_logits)
    assert torch.equal(weights, other_weights)
    wider_logits, wider_weights = network(nn.functional.pad(token_ids, (0, 29), value=42), LENGTHS)
    torch.testing.assert_close(wider_logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(wider_weights[:, :37], weights, rtol=0, atol=1e-6)
    assert wider_weights[:, 37:].eq(0).all()


def test_gradients_of_one_row_stop_at_that_row(network: AttentionLSTM) -> None:
    embedded: list[Tensor] = []
    network.embedding.register_forward_hook(lambda module, args, output: embedded.append(output))
    logits, _ = network(batch(), LENGTHS)
    (gradient,) = torch.autograd.grad(logits[3].sum(), embedded[0])  # (B, T, E)
    reached = gradient.abs().sum(-1) > 0
    assert reached[3].tolist() == [True] * 23 + [False] * 14
    assert not reached[[0, 1, 2, 4, 5, 6]].any()


@torch.no_grad()
def test_long_rows_carry_the_state_from_call_to_call(network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, weights = network(batch(), LENGTHS)
    monkeypatch.setattr(network_module, "STEPS_PER_CALL", 3)
    chunked_logits, chunked_weights = network(batch(), LENGTHS)
    torch.testing.assert_close(chunked_logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(chunked_weights, weights, rtol=0, atol=1e-5)


def test_dropout_works_between_layers_in_training_alone_and_follows_its_generator() -> None:
    torch.manual_seed(37)
    network = AttentionLSTM(ModelConfig(num_embeddings=43, dropout=0.5, classes=("a", "b", "c")))

    def logits(seed: int) -> Tensor:
        result: Tensor = network(batch(), LENGTHS, torch.Generator().manual_seed(seed))[0]
        return result

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    network.eval()
    assert torch.equal(logits(1), logits(2))


def test_dropout_keeps_the_mean() -> None:
    ones = torch.ones(101, 103, 7)
    dropped = network_module._dropout(ones, 0.2, torch.Generator().manual_seed(41))
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("length", [0, -1, 38])
def test_a_length_outside_the_batch_is_refused(network: AttentionLSTM, length: int) -> None:
    lengths = LENGTHS.clone()
    lengths[4] = length
    with pytest.raises(ValueError, match=f"every row needs 1 to 37 tokens; row 4 has {length}"):
        network(batch(), lengths)


def test_shapes_that_disagree_are_refused(network: AttentionLSTM) -> None:
    with pytest.raises(ValueError, match=r"token_ids must be \(B, T\) and lengths \(B,\); got \(7, 37\) and \(6,\)"):
        network(batch(), LENGTHS[:6])


def test_attention_is_as_wide_as_the_states_where_nothing_else_is_said() -> None:
    network = AttentionLSTM(ModelConfig(classes=("a", "b", "c")))
    assert network.attention.qk_weights.weight.shape == (32, 32)

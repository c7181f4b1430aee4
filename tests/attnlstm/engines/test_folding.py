"""Folded weights give the sums and scores that the network's own weights give."""

import numpy as np
import pytest
import torch

from attnlstm.config import ModelConfig
from attnlstm.engines.folding import fold, fold_classifier, padded, weights_of
from attnlstm.network import AttentionLSTM

E, U, H, V = 7, 11, 16, 43


@pytest.fixture
def network() -> AttentionLSTM:
    torch.manual_seed(23)
    config = ModelConfig(
        num_embeddings=V, embedding_dim=E, hidden_size=U, attention_size=13, classes=tuple("abcde"), temperature=2.5
    )
    return AttentionLSTM(config).double().eval()


@torch.no_grad()
def test_table_and_projections_are_what_the_inputs_add_to_the_gates(network: AttentionLSTM) -> None:
    folded = fold(weights_of(network), network.config, H, sigmoid_scale=0.5)
    scale = torch.tensor([0.5, 0.5, 1, 0.5])[:, None]
    assert folded.table.shape == (2, V, 4, H)
    assert folded.projections.shape == (1, 2, 1 + 2 * H, 4, H)
    assert folded.recurrents.shape == (2, 2, H, 4, H)
    for direction, suffix in enumerate(("", "_reverse")):
        own = {name.removesuffix(suffix): p for name, p in network.sequence.named_parameters() if name.endswith(suffix)}
        x = network.embedding.weight[5]
        sums = own["weight_ih_l0"] @ x + own["bias_ih_l0"] + own["bias_hh_l0"]
        np.testing.assert_allclose(folded.table[direction, 5, :, :U], sums.reshape(4, U) * scale)
        state = torch.arange(2.0 * U, dtype=torch.float64)
        sums = own["weight_ih_l1"] @ state + own["bias_ih_l1"] + own["bias_hh_l1"]
        wide = np.concatenate([np.pad(half, (0, H - U)) for half in np.split(state.numpy(), 2)])
        found = folded.projections[0, direction, 0] + np.tensordot(wide, folded.projections[0, direction, 1:], 1)
        np.testing.assert_allclose(found[:, :U], sums.reshape(4, U) * scale)
        np.testing.assert_allclose(
            folded.recurrents[1, direction, :U, :, :U].transpose(1, 2, 0),
            own["weight_hh_l1"].reshape(4, U, U) * scale[..., None],
        )
    assert not folded.table[..., U:].any()
    assert not folded.recurrents[:, :, U:].any()


@torch.no_grad()
def test_scores_and_logits_are_the_networks_own(network: AttentionLSTM) -> None:
    weights = weights_of(network)
    states = torch.randn(2, 2 * U, dtype=torch.float64)
    wide = np.concatenate([np.pad(half, ((0, 0), (0, H - U))) for half in np.split(states.numpy(), 2, axis=1)], axis=1)
    by_network = network.attention.dot_product(network.attention.qk_weights(states))
    by_fold = wide @ fold(weights, network.config, H, sigmoid_scale=1).score
    np.testing.assert_allclose(by_fold[0] - by_fold[1], by_network[0, 0] - by_network[1, 0])
    hidden_weights, hidden_biases, class_weights, class_biases = fold_classifier(weights, network.config, H)
    logits = np.maximum(wide @ hidden_weights + hidden_biases, 0) @ class_weights + class_biases
    np.testing.assert_allclose(logits, network.mlp(states).numpy() / 2.5)


@torch.no_grad()
def test_weights_are_copies(network: AttentionLSTM) -> None:
    weights = weights_of(network)
    before = weights["mlp.0.bias"].copy()
    network.mlp[0].bias.add_(1)
    np.testing.assert_array_equal(weights["mlp.0.bias"], before)


def test_sizes_are_padded_to_a_power_of_two() -> None:
    assert [padded(size, 8) for size in (1, 8, 9, 16, 33)] == [8, 8, 16, 16, 64]

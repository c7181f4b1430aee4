"""A warm start takes over what a network knows, class by class, and says what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnlstm.config import ModelConfig
from attnlstm.engines.torch_engine import TorchEngine
from attnlstm.network import AttentionLSTM
from attnlstm.training.loop import warm_started

CONFIG = ModelConfig(classes=("a", "b", "c"), embedding_dim=3, hidden_size=5, temperature=1.9)


@pytest.fixture
def old() -> AttentionLSTM:
    torch.manual_seed(11)
    return AttentionLSTM(CONFIG).eval()


def logits(network: AttentionLSTM) -> dict[str, list[float]]:
    """Of two rows, by name of class."""
    values, offsets = np.array([7, 8, 9, 250, 3]), np.array([0, 3, 5])
    found = TorchEngine(network.eval(), "cpu", 1).logits(values, offsets)
    return dict(zip(network.config.classes, found.T.tolist(), strict=True))


def test_same_classes_give_the_same_network_and_a_copy(old: AttentionLSTM) -> None:
    before = logits(old)
    network = warm_started(old, replace(CONFIG, temperature=1.0), seed=1)
    assert logits(network) == before
    assert network.config.temperature == 1.0
    for parameter in network.parameters():
        parameter.data.zero_()
    assert logits(old) == before


def test_classes_keep_their_outputs_by_name_and_a_new_one_starts_afresh(old: AttentionLSTM) -> None:
    config = ModelConfig(classes=("new", "c", "a"), embedding_dim=3, hidden_size=5)
    found, before = logits(warm_started(old, config, seed=1)), logits(old)
    assert found["a"] == pytest.approx(before["a"])
    assert found["c"] == pytest.approx(before["c"])
    assert found["new"] == logits(warm_started(old, config, seed=1))["new"]
    assert found["new"] != logits(warm_started(old, config, seed=2))["new"]


def test_no_class_in_common_keeps_all_but_the_outputs(old: AttentionLSTM) -> None:
    network = warm_started(old, ModelConfig(classes=("x", "y"), embedding_dim=3, hidden_size=5), seed=1)
    assert torch.equal(network.embedding.weight, old.embedding.weight)
    assert network.mlp[2].weight.shape == (2, 5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_size": 6}, "it has hidden_size 5, not 6"),
        ({"embedding_dim": 4, "num_layers": 1}, "it has embedding_dim 3, not 4; num_layers 2, not 1"),
        ({"num_embeddings": 300}, "it has num_embeddings 257, not 300"),
        ({"attention": "multihead"}, "it has attention additive, not multihead"),
    ],
)
def test_other_sizes_are_refused_by_name(change: dict[str, object], text: str, old: AttentionLSTM) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        warm_started(old, replace(CONFIG, **change), seed=1)  # type: ignore[arg-type]

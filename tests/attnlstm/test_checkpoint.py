"""Files to network and back, and every way in which files can be wrong."""

import json
from collections import OrderedDict
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from attnlstm.checkpoint import CheckpointError, from_files, from_state_dict, to_files
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM

TOKEN_IDS = torch.randint(0, 42, (3, 13), generator=torch.Generator().manual_seed(43))
LENGTHS = torch.tensor([13, 7, 1])


@torch.no_grad()
def test_a_network_comes_back_the_same(network: AttentionLSTM) -> None:
    files = to_files(network)
    back = from_files(files, "here")
    assert back.config == network.config
    assert not back.training
    for ours, theirs in zip(back(TOKEN_IDS, LENGTHS), network(TOKEN_IDS, LENGTHS), strict=True):
        assert torch.equal(ours, theirs)
    assert to_files(back) == files


def test_equal_networks_give_equal_bytes(network: AttentionLSTM) -> None:
    twin = AttentionLSTM(network.config)
    twin.load_state_dict(OrderedDict(reversed(network.state_dict().items())))
    assert to_files(twin) == to_files(network)


def test_config_json_is_for_people_too(network: AttentionLSTM) -> None:
    text = to_files(network)["config.json"].decode()
    assert text.startswith('{\n  "attention": "')
    assert json.loads(text)["classes"] == ["a", "b", "c", "d", "e"]


def test_a_network_from_files_can_be_trained_on(network: AttentionLSTM) -> None:
    back = from_files(to_files(network), "here")
    back(TOKEN_IDS, LENGTHS)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in back.parameters())


def test_other_files_of_the_folder_are_ignored(network: AttentionLSTM) -> None:
    assert from_files({**to_files(network), "README.md": b"\xff"}, "here").config == network.config


def test_half_precision_weights_load_as_float32(network: AttentionLSTM) -> None:
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    back = from_files({**to_files(network), "model.safetensors": safetensors.torch.save(halves)}, "here")
    assert back.embedding.weight.dtype == torch.float32


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.update({"mlp.2.bias": torch.zeros(7)}),
            "tensor mlp.2.bias must have shape (3,), not (7,)",
        ),
        (
            lambda weights: weights.pop("embedding.weight"),
            "tensor embedding.weight of shape (257, 8) is missing",
        ),
        (
            lambda weights: weights.update({"q.weight": torch.zeros(32, 32)}),
            "tensor q.weight does not belong to additive attention with these sizes",
        ),
        (
            lambda weights: weights["sequence.bias_hh_l1"].fill_(float("nan")),
            "tensor sequence.bias_hh_l1 holds NaN or infinite values",
        ),
        (
            lambda weights: weights.update({"mlp.2.bias": torch.zeros(3, dtype=torch.int64)}),
            "tensor mlp.2.bias must hold floating-point numbers, not torch.int64",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Change, message: str) -> None:
    network = AttentionLSTM(ModelConfig(classes=("a", "b", "c")))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    change(weights)
    files = {**to_files(network), "model.safetensors": safetensors.torch.save(weights)}
    with pytest.raises(CheckpointError) as error:
        from_files(files, "models/3")
    assert str(error.value) == (
        f"checkpoint models/3 cannot be used: model.safetensors: {message}. "
        "Restore the file or take another checkpoint."
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str) -> None:
    files = to_files(AttentionLSTM(ModelConfig(classes=("a", "b"))))
    del files[name]
    with pytest.raises(CheckpointError) as error:
        from_files(files, "models/3")
    assert str(error.value) == (
        f"checkpoint models/3 has no {name}; a checkpoint is a folder with config.json and model.safetensors"
    )


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1], lambda whole: b"", lambda whole: whole[:100], lambda whole: b"\x80\x04K\x01."],
    ids=["one byte short", "empty", "header cut off", "a pickle"],
)
def test_damaged_weights_are_refused(damage: Callable[[bytes], bytes]) -> None:
    files = to_files(AttentionLSTM(ModelConfig(classes=("a", "b"))))
    damaged = damage(files["model.safetensors"])
    with pytest.raises(CheckpointError) as error:
        from_files({**files, "model.safetensors": damaged}, "models/3")
    assert str(error.value).startswith(
        f"checkpoint models/3 cannot be used: model.safetensors ({len(damaged)} bytes) is not safetensors: "
    )


def test_a_damaged_config_is_refused_with_its_own_message() -> None:
    files = to_files(AttentionLSTM(ModelConfig(classes=("a", "b"))))
    with pytest.raises(CheckpointError) as error:
        from_files({**files, "config.json": b"{}"}, "models/3")
    assert str(error.value).startswith("checkpoint models/3 cannot be used: config.json lacks attention, ")


def test_absurd_sizes_are_refused_before_memory_is_taken() -> None:
    files = to_files(AttentionLSTM(ModelConfig(classes=("a", "b"))))
    config = files["config.json"].replace(b'"embedding_dim": 8', b'"embedding_dim": 8000000000')
    with pytest.raises(CheckpointError, match=r"embedding.weight must have shape \(257, 8000000000\)"):
        from_files({**files, "config.json": config}, "models/3")


class PublishedAdditive(nn.Module):
    """The published names, from torch's modules alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(257, 8)
        self.sequence = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.attention = nn.Module()
        self.attention.qk_weights = nn.Linear(32, 19)
        self.attention.dot_product = nn.Linear(19, 1, bias=False)
        self.mlp = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, token_ids: Tensor) -> Tensor:
        states = self.sequence(self.embedding(token_ids))[0]
        weights = self.attention.dot_product(self.attention.qk_weights(states)).softmax(1)
        logits: Tensor = self.mlp((weights * states).sum(1))
        return logits


class PublishedMultihead(nn.Module):
    """The published names, from torch's modules alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(257, 8)
        self.sequence = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.q, self.k, self.v = (nn.Linear(32, 32, bias=False) for _ in range(3))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, token_ids: Tensor) -> Tensor:
        states = self.sequence(self.embedding(token_ids))[0]
        logits: Tensor = self.mlp(self.attention(self.q(states), self.k(states), self.v(states))[0].sum(1))
        return logits


@torch.no_grad()
@pytest.mark.parametrize(("published", "num_heads"), [(PublishedAdditive, 1), (PublishedMultihead, 4)])
def test_published_weights_load_as_they_are(published: type[nn.Module], num_heads: int) -> None:
    torch.manual_seed(47)
    theirs = published()
    ours = from_state_dict(theirs.state_dict(), num_heads=num_heads)
    token_ids = torch.randint(0, 256, (3, 29))
    torch.testing.assert_close(ours(token_ids, torch.full((3,), 29))[0], theirs(token_ids), rtol=1e-5, atol=1e-5)
    assert ours.config.classes == ("0", "1", "2", "3", "4")
    assert ours.config.attention_size == (19 if num_heads == 1 else None)
    assert to_files(from_files(to_files(ours), "here")) == to_files(ours)


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not an attention-LSTM's weights: embedding\.weight is missing"):
        from_state_dict(nn.Linear(2, 3).state_dict())


def test_class_names_must_be_as_many_as_the_weights_have() -> None:
    with pytest.raises(ValueError, match="num_classes is 5, but 2 classes are named"):
        from_state_dict(PublishedAdditive().state_dict(), classes=["a", "b"])

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


def test_a_network_comes_back_the_same_and_can_be_trained_on(network: AttentionLSTM) -> None:
    files = to_files(network)
    back = from_files({**files, "README.md": b"\xff"}, "here")  # other files of a folder are passed over
    assert back.config == network.config
    assert not back.training
    for ours, theirs in zip(back(TOKEN_IDS, LENGTHS), network(TOKEN_IDS, LENGTHS), strict=True):
        assert torch.equal(ours, theirs)
    assert to_files(back) == files
    back(TOKEN_IDS, LENGTHS)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in back.parameters())


def test_equal_networks_give_equal_bytes_and_a_config_for_people(network: AttentionLSTM) -> None:
    twin = AttentionLSTM(network.config)
    twin.load_state_dict(OrderedDict(reversed(network.state_dict().items())))
    files = to_files(network)
    assert to_files(twin) == files
    assert files["config.json"].decode().startswith('{\n  "attention": "')
    assert json.loads(files["config.json"])["classes"] == ["a", "b", "c", "d", "e"]


def test_half_precision_weights_load_as_float32(network: AttentionLSTM) -> None:
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    back = from_files({**to_files(network), "model.safetensors": safetensors.torch.save(halves)}, "here")
    assert back.embedding.weight.dtype == torch.float32


def refusal(change: Callable[[dict[str, bytes]], object]) -> str:
    """What is said of the files of a small network after a change to them."""
    files = to_files(AttentionLSTM(ModelConfig(classes=("a", "b", "c"))))
    change(files)
    with pytest.raises(CheckpointError) as error:
        from_files(files, "models/3")
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mlp.2.bias", torch.zeros(7), "tensor mlp.2.bias must have shape (3,), not (7,)"),
        ("embedding.weight", None, "tensor embedding.weight of shape (257, 8) is missing"),
        (
            "q.weight",
            torch.zeros(32, 32),
            "tensor q.weight does not belong to additive attention with these sizes",
        ),
        (
            "sequence.bias_hh_l1",
            torch.full((64,), torch.nan),
            "tensor sequence.bias_hh_l1 holds NaN or infinite values",
        ),
        (
            "mlp.2.bias",
            torch.zeros(3, dtype=torch.int64),
            "tensor mlp.2.bias must hold floating-point numbers, not torch.int64",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(name: str, tensor: Tensor | None, message: str) -> None:
    def change(files: dict[str, bytes]) -> None:
        weights = safetensors.torch.load(files["model.safetensors"])
        weights.pop(name, None)
        files["model.safetensors"] = safetensors.torch.save(weights if tensor is None else {**weights, name: tensor})

    assert refusal(change) == (
        f"checkpoint models/3 cannot be used: model.safetensors: {message}. "
        "Restore the file or take another checkpoint."
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str) -> None:
    assert refusal(lambda files: files.pop(name)) == (
        f"checkpoint models/3 has no {name}; a checkpoint is a folder with config.json and model.safetensors"
    )


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1], lambda whole: b"", lambda whole: whole[:100], lambda whole: b"\x80\x04K\x01."],
    ids=["one byte short", "empty", "header cut off", "a pickle"],
)
def test_damaged_weights_are_refused(damage: Callable[[bytes], bytes]) -> None:
    damaged = damage(to_files(AttentionLSTM(ModelConfig(classes=("a", "b", "c"))))["model.safetensors"])
    assert refusal(lambda files: files.update({"model.safetensors": damaged})).startswith(
        f"checkpoint models/3 cannot be used: model.safetensors ({len(damaged)} bytes) is not safetensors: "
    )


def test_a_damaged_config_and_sizes_that_no_memory_holds_are_refused() -> None:
    assert refusal(lambda files: files.update({"config.json": b"{}"})).startswith(
        "checkpoint models/3 cannot be used: config.json lacks attention, "
    )
    absurd = ModelConfig(classes=("a", "b", "c"), embedding_dim=8_000_000_000).to_json().encode()
    assert "embedding.weight must have shape (257, 8000000000)" in refusal(
        lambda files: files.update({"config.json": absurd})
    )


class Published(nn.Module):
    """The published names, from torch's modules alone."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(257, 8)
        self.sequence = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))
        if attention == "additive":
            self.attention = nn.Module()
            self.attention.qk_weights = nn.Linear(32, 19)
            self.attention.dot_product = nn.Linear(19, 1, bias=False)
        else:
            self.q, self.k, self.v = (nn.Linear(32, 32, bias=False) for _ in range(3))
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, token_ids: Tensor) -> Tensor:
        states = self.sequence(self.embedding(token_ids))[0]
        if isinstance(self.attention, nn.MultiheadAttention):
            context = self.attention(self.q(states), self.k(states), self.v(states))[0].sum(1)
        else:
            context = (self.attention.dot_product(self.attention.qk_weights(states)).softmax(1) * states).sum(1)
        logits: Tensor = self.mlp(context)
        return logits


@torch.no_grad()
@pytest.mark.parametrize(("attention", "num_heads"), [("additive", 1), ("multihead", 4)])
def test_published_weights_load_as_they_are(attention: str, num_heads: int) -> None:
    torch.manual_seed(47)
    theirs = Published(attention)
    ours = from_state_dict(theirs.state_dict(), num_heads=num_heads)
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1]
    token_ids = torch.randint(0, 256, (3, 29))
    torch.testing.assert_close(ours(token_ids, torch.full((3,), 29))[0], theirs(token_ids), rtol=1e-5, atol=1e-5)
    assert ours.config.classes == ("0", "1", "2", "3", "4")
    assert ours.config.attention_size == (19 if num_heads == 1 else None)
    assert to_files(from_files(to_files(ours), "here")) == to_files(ours)


def test_weights_of_something_else_and_other_numbers_of_class_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not an attention-LSTM's weights: embedding\.weight is missing"):
        from_state_dict(nn.Linear(2, 3).state_dict())
    with pytest.raises(ValueError, match="num_classes is 5, but 2 classes are named"):
        from_state_dict(Published("additive").state_dict(), classes=["a", "b"])

"""The compiled step against autograd in float64, parameter by parameter; the same bits on any number of threads."""

import copy
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnlstm.batching import pad
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from attnlstm.process import worker_threads
from attnlstm.training import fused
from attnlstm.training.fused import FusedGradients, why_not_fused
from attnlstm.training.rows import LabelledSequences
from builders import make_network, make_rows

pytest.importorskip("numba")

CLASS_WEIGHTS = np.array([0.5, 1, 1.5, 2, 3], np.float32)
LENGTHS = [5, 61, 1, 17, 2, 61, 29, 3, 1, 43, 7]


def make_batch(lengths: list[int]) -> LabelledSequences:
    values, offsets = make_rows(lengths)
    values[::5] = 42  # hidden
    return LabelledSequences(values, offsets, np.random.default_rng(23).integers(0, 5, len(lengths)))


def gradients_of(
    network: AttentionLSTM, batch: LabelledSequences, *, threads: int = 2, clip_norm: float = 1e9, seed: int = 0
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and all gradients. The second of two equal steps: what the first leaves behind must not matter."""
    with worker_threads(threads, "test") as workers:
        computing = FusedGradients(
            network, class_weights=CLASS_WEIGHTS, clip_norm=clip_norm, seed=seed, workers=workers
        )
        computing.compute(batch, step=1)
        loss = computing.compute(batch, step=3)
    return loss, {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def check_gradients(network: AttentionLSTM, batch: LabelledSequences) -> None:
    """Loss and gradients are those of autograd in float64."""
    loss, gradients = gradients_of(network, batch)
    exact = copy.deepcopy(network).double()
    token_ids, lengths = pad(batch.values, batch.offsets, np.arange(len(batch)), network.config.padding_id)
    labels = torch.from_numpy(batch.labels)
    logits, _ = exact(torch.from_numpy(token_ids), torch.from_numpy(lengths))
    losses = F.cross_entropy(logits, labels, reduction="none") * torch.from_numpy(CLASS_WEIGHTS).double()[labels]
    assert loss == pytest.approx(losses.mean().item(), rel=1e-6)
    expected = torch.autograd.grad(losses.mean(), list(exact.parameters()))
    for (name, gradient), exactly in zip(gradients.items(), expected, strict=True):
        atol = 1e-6 + 1e-5 * exactly.abs().max().item()
        torch.testing.assert_close(
            gradient.double(), exactly, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ({"hidden_size": 16}, LENGTHS * 4),
        ({"hidden_size": 11, "num_layers": 3, "attention_size": 13}, LENGTHS),
        ({"hidden_size": 5, "num_layers": 1}, [1]),
        ({"hidden_size": 29}, [1] * 19),
        ({"hidden_size": 16}, [23] * 37),
        ({"hidden_size": 37, "num_layers": 1}, [2, 1501, 3]),
        ({"hidden_size": 67, "num_layers": 3}, [31, 1, 32]),
        ({"hidden_size": 32}, LENGTHS),
        ({"hidden_size": 16, "longest_ngram": 4, "ngram_buckets": 64}, LENGTHS * 4),
        ({"hidden_size": 11, "num_layers": 1, "longest_ngram": 2, "ngram_buckets": 1024}, [1, 2, 3]),
        (
            {"hidden_size": 37, "num_layers": 3, "embedding_dim": 20, "longest_ngram": 3, "ngram_buckets": 128},
            [33] * 40,
        ),
        pytest.param({"hidden_size": 128}, LENGTHS, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gradients_agree_with_autograd_in_float64(sizes: dict[str, int], lengths: list[int]) -> None:
    network = make_network(**sizes)
    if sizes["hidden_size"] > 16:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.div_(2)  # less, since more of them reach a gate
    check_gradients(network, make_batch(lengths))


def test_groups_of_any_size_add_up_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "TOKENS_WORTH_A_THREAD", 1)
    for rows in (1, 3, 100):
        monkeypatch.setattr(fused, "ROWS_PER_GROUP", rows)
        check_gradients(make_network(hidden_size=11), make_batch(LENGTHS))


def test_threads_do_not_change_a_bit() -> None:
    network = make_network(hidden_size=16, dropout=0.3, longest_ngram=3, ngram_buckets=64, ngram_dropout=0.2)
    batch = make_batch(LENGTHS * 9)
    one, three = (gradients_of(network, batch, threads=threads) for threads in (1, 3))
    assert one[0] == three[0]
    assert all(torch.equal(gradient, three[1][name]) for name, gradient in one[1].items())


def test_a_gradient_that_is_too_long_is_cut_as_torch_cuts_it() -> None:
    network, batch = make_network(hidden_size=11), make_batch(LENGTHS)
    whole = list(gradients_of(network, batch)[1].values())
    cut = list(gradients_of(network, batch, clip_norm=0.01)[1].values())
    for parameter, gradient in zip(network.parameters(), whole, strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(network.parameters(), 0.01)
    for parameter, gradient in zip(network.parameters(), cut, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_dropout_drops_its_share_and_follows_from_the_seed() -> None:
    """Of the loss only means show: with scores and gates that dropped states do not move, it must not move either."""
    batch = make_batch(LENGTHS * 9)
    network = make_network(hidden_size=16, dropout=0.3)
    losses = {seed: gradients_of(network, batch, seed=seed)[0] for seed in (1, 2)}
    assert losses[1] != losses[2]
    assert gradients_of(network, batch, seed=1)[0] == losses[1]


def test_gradients_with_dropout_are_those_of_the_loss() -> None:
    """The mask of the backward pass is that of the forward pass: the loss falls by what the gradient says."""
    network, batch = make_network(hidden_size=16, dropout=0.4, num_layers=3), make_batch(LENGTHS * 9)
    loss, gradients = gradients_of(network, batch)
    square = sum(float(gradient.double().square().sum()) for gradient in gradients.values())
    step = 1e-3 / square**0.5
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(network)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.add_(gradients[name], alpha=sign * step)
        losses.append(gradients_of(moved, batch)[0])
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(square, rel=1e-2)
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-2)


@torch.no_grad()
def test_a_number_that_is_none_reaches_the_loss() -> None:
    network = make_network(hidden_size=11)
    network.embedding.weight[41] = torch.nan
    batch = make_batch(LENGTHS)
    batch.values[7] = 41
    loss, gradients = gradients_of(network, batch)
    assert np.isnan(loss)
    assert gradients["mlp.2.bias"].isnan().all()


def test_networks_that_it_does_not_know_are_left_to_torch_with_a_reason() -> None:
    class Other(AttentionLSTM):
        pass

    config = ModelConfig(classes=("a", "b"))
    assert why_not_fused(AttentionLSTM(config)) is None
    assert str(why_not_fused(Other(config))).startswith("it is made for the network itself, and Other may compute")
    assert str(why_not_fused(make_network(attention="multihead"))).startswith("multihead attention compares")
    assert why_not_fused(AttentionLSTM(config).double()) == "it computes on a CPU, in float32"
    many = ModelConfig(classes=("a", "b"), num_embeddings=50_000)
    assert str(why_not_fused(AttentionLSTM(many))).startswith("num_embeddings is 50000, which makes a table of 24 MiB")
    frozen = AttentionLSTM(config)
    frozen.embedding.weight.requires_grad = False
    assert why_not_fused(frozen) == "some of the parameters are not to be trained"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have vectors of one size")
def test_gradients_agree_on_avx2_alone() -> None:
    avx2 = {"NUMBA_CPU_NAME": "znver3", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    tests = ("test_gradients_agree_with_autograd_in_float64", "test_gradients_with_dropout_are_those_of_the_loss")
    arguments = ("-m", "pytest", "-q", "-m", "not slow", *(f"{__file__}::{test}" for test in tests))
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | avx2, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
